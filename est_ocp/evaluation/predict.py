"""A fairchem runner that writes a checkpoint's predictions, one npz a split."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.common import distutils
from fairchem.core.components.runner import Runner
from torch.utils.data import DataLoader
from tqdm import tqdm

from est_ocp.data import release_workers
from est_ocp.errors import DataError
from est_ocp.evaluation.checkpoint import load_unit, quiet
from est_ocp.evaluation.predictions import SplitPredictions
from est_ocp.training.threads import share_cores

#: Arrays that one rank collects for a split: by structure, and by atom.
_BY_STRUCTURE = ("sample", "ids", "natoms", "energy", "energy_label")
_BY_ATOM = ("forces", "forces_label", "fixed")


class PredictRunner(Runner):
    """Predict every structure of a dataloader's splits once and save the results.

    Repeats with which samplers fill up the last batches of the ranks are dropped, and the rows of
    a split are in the order of its files, whatever the number of ranks.

    Parameters
    ----------
    dataloader : DataLoader
        Over a dataset whose samples have ``sample_id`` and ``dataset_name``.
    checkpoint : str
        Checkpoint file, checkpoint folder or run folder.
    output_dir : str, optional
        Where ``<split>.npz`` go. Default: ``predictions`` in the job's results folder.
    free_atoms_only : bool
        Leave fixed atoms out of the saved forces.
    """

    def __init__(
        self,
        dataloader: DataLoader,
        checkpoint: str,
        output_dir: str | None = None,
        free_atoms_only: bool = False,
    ) -> None:
        self.dataloader = dataloader
        self.checkpoint = checkpoint
        self.output_dir = output_dir
        self.free_atoms_only = free_atoms_only

    def run(self) -> dict[str, SplitPredictions] | None:
        """Predict and save; rank 0 returns the predictions by split."""
        share_cores()
        folder = Path(self.output_dir or Path(self.job_config.metadata.results_dir) / "predictions")
        folder.mkdir(parents=True, exist_ok=True)
        device = distutils.get_device_for_local_rank().split(":")[0]
        unit = load_unit(self.checkpoint, device=device)
        torch.save(self._predict(unit), folder / f"part_{distutils.get_rank()}.pt")
        release_workers(self.dataloader)
        distutils.synchronize()
        if not distutils.is_master():
            return None
        parts = []
        for rank in range(distutils.get_world_size()):
            file = folder / f"part_{rank}.pt"
            parts.append(torch.load(file, weights_only=False))
            file.unlink()
        merged = {}
        for name, split in split_names({name for part in parts for name in part}).items():
            predictions = merge([part[name] for part in parts if name in part])
            if self.free_atoms_only:
                predictions = predictions.free_atoms_only()
            predictions.save(folder / f"{split}.npz")
            logging.info(f"{len(predictions)} predictions in {folder / f'{split}.npz'}")
            merged[split] = predictions
        return merged

    def _predict(self, unit: Any) -> dict[str, dict[str, list[np.ndarray]]]:
        """Return this rank's arrays by dataset name."""
        splits: dict[str, dict[str, list[np.ndarray]]] = {}
        batches: Iterable[Any] = tqdm(
            self.dataloader,
            desc="predict",
            unit="batch",
            disable=None if distutils.is_master() else True,
        )
        for batch in batches:
            if "sample_id" not in batch:
                raise DataError("the dataset gives no sample_id; use est_ocp.data.OC20LmdbDataset")
            rows = _labels(batch)
            with quiet():
                out = unit.predict(batch)
            rows["energy"] = out["energy"].reshape(-1)
            rows["forces"] = out["forces"]
            _collect(splits, list(batch.dataset_name), rows)
        return splits

    def save_state(self, checkpoint_location: str, is_preemption: bool = False) -> bool:
        """Nothing to save: a run that is cut short starts again."""
        return False

    def load_state(self, checkpoint_location: str | None) -> None:
        """Nothing to load."""


def _labels(batch: Any) -> dict[str, Any]:
    """What is needed of a batch besides predictions, before the model sees it."""
    nothing = torch.full((batch.pos.shape[0], 3), float("nan"))
    return {
        "sample": batch.sample_id.reshape(-1).clone(),
        "ids": np.array([str(s) for s in batch.sid]),
        "natoms": batch.natoms.clone(),
        "fixed": batch.fixed.bool().clone(),
        "energy_label": batch.energy.reshape(-1).clone()
        if "energy" in batch
        else nothing[: len(batch.natoms), 0],
        "forces_label": batch.forces.clone() if "forces" in batch else nothing,
    }


def _collect(
    splits: dict[str, dict[str, list[np.ndarray]]], names: list[str], rows: dict[str, Any]
) -> None:
    """Append a batch's rows to the lists of their datasets."""
    arrays = {k: v.detach().cpu().numpy() if torch.is_tensor(v) else v for k, v in rows.items()}
    name_of = np.array(names)
    name_of_atom = np.repeat(name_of, arrays["natoms"])
    for name in np.unique(name_of):
        lists = splits.setdefault(str(name), {k: [] for k in (*_BY_STRUCTURE, *_BY_ATOM)})
        for key in _BY_STRUCTURE:
            lists[key].append(arrays[key][name_of == name])
        for key in _BY_ATOM:
            lists[key].append(arrays[key][name_of_atom == name])


def split_names(names: Iterable[str]) -> dict[str, str]:
    """Return each dataset's split: ``oc20.val_id`` is ``val_id`` where all share ``oc20.``."""
    names = sorted(names)
    shared = all("." in name for name in names) and len({n.split(".", 1)[0] for n in names}) == 1
    return {name: name.split(".", 1)[1] if shared else name for name in names}


def merge(parts: list[dict[str, list[np.ndarray]]]) -> SplitPredictions:
    """Join the ranks' arrays of one split: each structure once, in the order of its number."""
    joined = {
        key: np.concatenate([array for part in parts for array in part[key]])
        for key in (*_BY_STRUCTURE, *_BY_ATOM)
    }
    _, first = np.unique(joined["sample"], return_index=True)
    starts = np.cumsum(joined["natoms"]) - joined["natoms"]
    atoms = np.concatenate(
        [np.arange(starts[i], starts[i] + joined["natoms"][i]) for i in first]
        or [np.zeros(0, dtype=np.int64)]
    )
    labelled = np.isfinite(joined["energy_label"]).all()
    return SplitPredictions(
        ids=joined["ids"][first],
        energy=joined["energy"][first],
        forces=joined["forces"][atoms],
        natoms=joined["natoms"][first],
        fixed=joined["fixed"][atoms],
        energy_label=joined["energy_label"][first] if labelled else None,
        forces_label=joined["forces_label"][atoms] if labelled else None,
    )
