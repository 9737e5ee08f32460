"""Frames of the study as LMDBs, and their Hydra data group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from est_ocp.data import SPLITS, Frames, write_oc20_lmdb

#: Frames of each split in --smoke.
SMOKE_FRAMES = {split: 24 if split == "train" else 4 for split in SPLITS}
DATA_GROUP = "s2ef_peers"


def load_frames(path: Path | None, smoke: bool) -> Frames:
    """Return the frames of a file, or a few of the embedded ones."""
    if not smoke:
        if path is None:
            raise SystemExit("name --frames, a file of labelled frames (or try --smoke)")
        return Frames.load(path)
    from est_ocp.data.demo import load_demo_frames

    frames = load_demo_frames()
    chosen = [np.flatnonzero(frames.split == split)[: SMOKE_FRAMES[split]] for split in SPLITS]
    return frames.select(np.concatenate(chosen))


def write_lmdbs(frames: Frames, folder: Path) -> None:
    """Write each split into a folder of its name, unless it is there."""
    for split in SPLITS:
        if not (folder / split / "metadata.npz").is_file():
            write_oc20_lmdb(folder / split, frames.of_split(split).records(), overwrite=True)


def write_data_config(frames: Frames, folder: Path, out: Path) -> dict[str, Any]:
    """Write ``configs/data/s2ef_peers.yaml`` below ``out``, normalised by the training frames.

    Returns
    -------
    dict
        Numbers for the page: frames of each split, statistics of the training set, source.
    """
    statistics = frames.statistics()["train"]
    train = frames.of_split("train")
    free = train.forces[~train.fixed]
    rms = float(np.sqrt((free.astype(np.float64) ** 2).mean()))
    lmdb = {"format": "est_ocp.data.OC20LmdbDataset"}
    config = {
        "train": lmdb | {"splits": {"train": {"src": str(folder / "train")}}},
        "val": lmdb | {"splits": {s: {"src": str(folder / s)} for s in SPLITS if s != "train"}},
        "normalizer": {
            "energy_mean": float(statistics["energy_mean"]),
            "energy_std": float(statistics["energy_std"]),
            "forces_std": rms,
        },
        "avg_num_nodes": float(statistics["mean_atoms"]),
    }
    group = out / "configs" / "data"
    group.mkdir(parents=True, exist_ok=True)
    (group / f"{DATA_GROUP}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    validation = [frames.of_split(s) for s in SPLITS if s != "train"]
    energies = [np.abs(f.energy - statistics["energy_mean"]).mean() for f in validation]
    forces = [np.abs(f.forces[~f.fixed]).mean() for f in validation]
    return {
        "source": frames.source,
        "frames": {s: int((frames.split == s).sum()) for s in SPLITS},
        "atoms": config["avg_num_nodes"],
        "energy_std": config["normalizer"]["energy_std"],
        "forces_rms": rms,
        # What predicting the mean energy and no forces gives, on the mean of the splits.
        "trivial": {
            "energy_mae": float(np.mean(energies)),
            "forces_mae": float(np.mean(forces)),
        },
    }
