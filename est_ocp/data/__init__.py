"""Datasets, samplers and loaders for OC20 in fairchem, and the embedded demonstration set."""

from __future__ import annotations

from est_ocp.data.collate import TaskCollater, collate, drop_repeats
from est_ocp.data.demo import load_demo_frames, write_demo_set
from est_ocp.data.frames import SPLITS, Frames
from est_ocp.data.loader import create_dataset, get_dataloader, limit_elements, release_workers
from est_ocp.data.noisy_nodes import NoisyNodes
from est_ocp.data.oc20_lmdb import OC20LmdbDataset
from est_ocp.data.qm9_dataset import QM9Dataset, collate_molecules, create_qm9_dataset
from est_ocp.data.qm9_lmdb import write_qm9
from est_ocp.data.sampler import (
    EvaluationBatchSampler,
    FixedSizeBatchSampler,
    MaxAtomsBatchSampler,
)
from est_ocp.data.unpickle import safe_loads
from est_ocp.data.write_lmdb import write_oc20_lmdb

__all__ = [
    "SPLITS",
    "EvaluationBatchSampler",
    "FixedSizeBatchSampler",
    "Frames",
    "MaxAtomsBatchSampler",
    "NoisyNodes",
    "OC20LmdbDataset",
    "QM9Dataset",
    "TaskCollater",
    "collate",
    "collate_molecules",
    "create_dataset",
    "create_qm9_dataset",
    "drop_repeats",
    "get_dataloader",
    "limit_elements",
    "load_demo_frames",
    "release_workers",
    "safe_loads",
    "write_demo_set",
    "write_oc20_lmdb",
    "write_qm9",
]
