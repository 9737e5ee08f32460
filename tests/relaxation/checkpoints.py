"""Inference checkpoints with random weights, and small IS2RE splits, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
from torch.optim.swa_utils import AveragedModel

from est_ocp.data import load_demo_frames, write_oc20_lmdb
from tests.models.small import BACKBONE, CONSERVATIVE, HEADS, merge, model

_SMALL = {
    "num_layers": 1,
    "graph": {"max_neighbors": 30},
    "message": {"activation_rule": {"kind": "lebedev", "num_points": 50}},
    "update": {"rule": {"kind": "design", "num_points": 24}},
}
NORMALIZERS = {"energy": (-0.75, 2.9), "forces": (0.0, 2.9)}


def write_checkpoint(
    file: Path, forces: bool = True, conservative: bool = False, met: tuple[int, ...] = ()
) -> Path:
    """Write an S2EF checkpoint with direct or conservative forces, or one for energies alone.

    ``met``: atomic numbers that it is to remember from training.
    """
    backbone = merge(BACKBONE, _SMALL)
    tasks = ("energy", "forces") if forces else ("energy",)
    heads = CONSERVATIVE if conservative else {name: HEADS[name] for name in tasks}
    backbone |= {"regress_forces": forces, "direct_forces": not conservative}
    made = model(torch.float32, conservative=conservative, heads=heads, **backbone)
    made.trained_elements.met[list(met)] = 1
    content = MLIPInferenceCheckpoint(
        model_config={
            "_target_": "est_ocp.models.ESTHydraModel",
            "backbone": backbone,
            "heads": heads,
            "pass_through_head_outputs": conservative,
        },
        model_state_dict=made.state_dict(),
        ema_state_dict=AveragedModel(made).state_dict(),
        tasks_config=[_task(name) for name in tasks],
    )
    torch.save(content, file)
    return file


def _task(name: str) -> dict[str, Any]:
    mean, rmsd = NORMALIZERS[name]
    units = "fairchem.core.units.mlip_unit.mlip_unit"
    modules = "fairchem.core.modules"
    return {
        "_target_": f"{units}.Task",
        "name": name,
        "level": "system" if name == "energy" else "atom",
        "property": name,
        "datasets": ["oc20"],
        "out_spec": {"dim": [1 if name == "energy" else 3], "dtype": "float32"},
        "loss_fn": {
            "_target_": f"{modules}.loss.DDPMTLoss",
            "loss_fn": {"_target_": f"{modules}.loss.MAELoss"},
        },
        "normalizer": {
            "_target_": f"{modules}.normalization.normalizer.Normalizer",
            "mean": mean,
            "rmsd": rmsd,
        },
        "metrics": ["mae"],
    }


def is2re_records(count: int = 5, labels: bool = True) -> list[dict[str, Any]]:
    """Return initial structures of different systems, with invented relaxed energies."""
    records: dict[int, dict[str, Any]] = {}
    for frame in load_demo_frames().of_split("val_id").records():
        record = {k: frame[k] for k in ("pos", "atomic_numbers", "cell", "tags", "fixed", "sid")}
        if labels:
            record |= {
                "y_init": frame["energy"],
                "y_relaxed": frame["energy"] - 0.3,
                "pos_relaxed": frame["pos"],
            }
        records.setdefault(record["sid"], record)
        if len(records) == count:
            break
    return list(records.values())


def write_is2re(folder: Path, records: list[dict[str, Any]]) -> Path:
    """Write a split in OC20's layout, ``<split>/data.lmdb``."""
    write_oc20_lmdb(folder, records, task="is2re")
    assert (folder / "data.lmdb").is_file()
    return folder


def with_nan(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with a position that is not a number."""
    pos = np.array(record["pos"])
    pos[0, 0] = np.nan
    return {**record, "pos": pos}
