"""A fairchem runner that writes a checkpoint's predictions, one npz a split."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.common import distutils
from fairchem.core.components.runner import Runner
from fairchem.core.launchers.api import SchedulerType
from torch.utils.data import DataLoader
from tqdm import tqdm

from est_ocp.data import release_workers
from est_ocp.data.loader import spare_inherited_objects
from est_ocp.errors import ConfigError, ESTError
from est_ocp.evaluation.checkpoint import load_unit, quiet
from est_ocp.evaluation.predictions import SplitPredictions, read_stamp
from est_ocp.evaluation.split_data import (
    check_ids,
    check_unique,
    in_file_order,
    splits_of,
    stamps_of,
)
from est_ocp.evaluation.stamp import same
from est_ocp.evaluation.unmet_elements import tell_of_unmet
from est_ocp.training.threads import share_cores

#: Arrays that one rank collects for a split: by structure, and by atom.
_BY_STRUCTURE = ("sample", "ids", "natoms", "energy", "energy_label")
_BY_ATOM = ("fixed",)
_FORCES = ("forces", "forces_label")
#: Seconds between lines of progress where the output is a file.
_LOG_SECONDS = 30.0


class PredictRunner(Runner):
    """Predict every structure of a dataset's splits once and save each split when it is complete.

    Splits come one after the other, their structures in the order of the files and in batches
    that do not depend on the number of ranks: with any number of ranks the results are the same.
    Splits whose npz is already there, of this very checkpoint and data, are left as they are, so
    that an evaluation that was cut short goes on with the split that it had reached.

    The jobs of a SLURM array (``job.scheduler.num_array_jobs=4``) share the splits among them.

    Parameters
    ----------
    dataloader : DataLoader
        Gives dataset (of :func:`est_ocp.data.create_dataset`), collate function, batch size and
        number of workers.
    checkpoint : str
        Checkpoint file, checkpoint folder or run folder.
    output_dir : str, optional
        Where ``<split>.npz`` go. Default: ``predictions`` in the job's results folder.
    free_atoms_only : bool
        Leave fixed atoms out of the saved forces.
    error_file : str, optional
        Where to put the text of an error of ours; the process then ends without a traceback.
    """

    def __init__(
        self,
        dataloader: DataLoader,
        checkpoint: str,
        output_dir: str | None = None,
        free_atoms_only: bool = False,
        error_file: str | None = None,
    ) -> None:
        self.dataloader = dataloader
        self.checkpoint = checkpoint
        self.output_dir = output_dir
        self.free_atoms_only = free_atoms_only
        self.error_file = error_file

    def run(self) -> list[str]:
        """Predict and save; return the names of the splits that were not there yet."""
        if self.job_config.scheduler.mode == SchedulerType.LOCAL:
            # fairchem's handlers would save the runner's state, of which there is none, and end
            # the process as if all had gone well.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threads = torch.get_num_threads()
        _set_threads()
        try:
            return self._run()
        except ESTError as error:
            if self.error_file is None:
                raise
            _leave(Path(self.error_file), str(error))
        finally:
            torch.set_num_threads(threads)

    def _run(self) -> list[str]:
        folder = Path(self.output_dir or Path(self.job_config.metadata.results_dir) / "predictions")
        folder.mkdir(parents=True, exist_ok=True)
        splits = self._share(splits_of(self.dataloader.dataset))
        message: list[Any] = [None]
        if distutils.is_master():
            message = [self._missing(folder, splits)]
        distutils.broadcast_object_list(message, 0)
        stamps: dict[str, Any] = message[0]
        if not stamps:
            return []
        unit = load_unit(
            self.checkpoint, device=distutils.get_device_for_local_rank().split(":")[0]
        )
        for split, stamp in stamps.items():
            part = folder / f".part-{split}-{distutils.get_rank()}.npz"
            elements: set[int] = set()
            np.savez(part, **self._predict(unit, split, splits[split], elements))
            tell_of_unmet(unit, split, elements)
            distutils.synchronize()
            if distutils.is_master():
                self._save(folder, split, stamp)
        return list(stamps)

    def _share(self, splits: dict[str, int]) -> dict[str, int]:
        """Return the splits of this job: with a SLURM array, every so many of them."""
        scheduler = self.job_config.scheduler
        if scheduler.mode != SchedulerType.SLURM:
            return splits
        number = self.job_config.metadata.array_job_num
        return dict(list(splits.items())[number :: scheduler.num_array_jobs])

    def _missing(self, folder: Path, splits: dict[str, int]) -> dict[str, Any]:
        """Return the stamps of the splits to be predicted, their data checked for repeats."""
        for split in splits:  # other jobs of an array write their own here
            for stale in folder.glob(f".part-{split}-[0-9]*.npz"):
                stale.unlink(missing_ok=True)
        stamps = stamps_of(self.dataloader.dataset, self.checkpoint, self.free_atoms_only)
        todo = {
            split: stamp
            for split, stamp in stamps.items()
            if split in splits and not same(read_stamp(folder / f"{split}.npz"), stamp)
        }
        for split in todo:
            check_ids(split, self.dataloader.dataset.datasets[splits[split]])
        return todo

    def _predict(
        self, unit: Any, split: str, number: int, elements: set[int]
    ) -> dict[str, np.ndarray]:
        """Return this rank's arrays of a split, and add its elements."""
        batch_size = getattr(self.dataloader.batch_sampler, "batch_size", None)
        if not batch_size:
            raise ConfigError(
                f"a {type(self.dataloader.batch_sampler).__name__} has no batch_size to predict "
                "with; use est_ocp.data.EvaluationBatchSampler for evaluation"
            )
        dataset = self.dataloader.dataset
        positions, samples = in_file_order(dataset, number)
        mine = list(_every(len(positions), batch_size))
        loader = DataLoader(
            dataset,
            batch_sampler=[positions[chosen].tolist() for chosen in mine],
            collate_fn=self.dataloader.collate_fn,
            num_workers=self.dataloader.num_workers,
            multiprocessing_context=self.dataloader.multiprocessing_context,
            pin_memory=self.dataloader.pin_memory,
            generator=torch.Generator(),
            worker_init_fn=spare_inherited_objects,
        )
        rows: dict[str, list[np.ndarray]] = {}
        try:
            for chosen, batch in zip(mine, _shown(loader, split), strict=True):
                arrays = _labels(batch)
                elements.update(batch.atomic_numbers.tolist())
                with quiet():
                    out = unit.predict(batch)
                arrays["sample"] = samples[chosen]
                arrays["energy"] = out["energy"].reshape(-1)
                if "forces" in out:
                    arrays["forces"] = out["forces"]
                else:
                    del arrays["forces_label"]
                for key, value in arrays.items():
                    value = value.detach().cpu().numpy() if torch.is_tensor(value) else value
                    rows.setdefault(key, []).append(value)
        finally:
            release_workers(loader)
        return {key: np.concatenate(values) for key, values in rows.items()}

    def _save(self, folder: Path, split: str, stamp: dict[str, Any]) -> None:
        """Join the ranks' files and write the split's npz."""
        ranks = range(distutils.get_world_size())
        files = [folder / f".part-{split}-{rank}.npz" for rank in ranks]
        parts = []
        for file in files:
            with np.load(file, allow_pickle=False) as arrays:
                parts.append(dict(arrays))
        predictions = merge([part for part in parts if part])
        check_unique(split, predictions.ids)
        if self.free_atoms_only:
            predictions = predictions.free_atoms_only()
        predictions.save(folder / f"{split}.npz", stamp)
        for file in files:
            file.unlink()
        logging.info(f"{len(predictions)} predictions in {folder / f'{split}.npz'}")

    def save_state(self, checkpoint_location: str, is_preemption: bool = False) -> bool:
        """Nothing to save: a run that is cut short goes on with the splits that are missing."""
        return False

    def load_state(self, checkpoint_location: str | None) -> None:
        """Nothing to load."""


def merge(parts: Sequence[dict[str, np.ndarray]]) -> SplitPredictions:
    """Join the ranks' arrays of one split, in the order of the structures' numbers."""
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(joined["sample"], kind="stable")
    starts = np.cumsum(joined["natoms"]) - joined["natoms"]
    atoms = np.concatenate([np.arange(starts[i], starts[i] + joined["natoms"][i]) for i in order])
    by_structure = {k: joined[k][order] for k in _BY_STRUCTURE if k != "sample"}
    by_atom = {k: joined[k][atoms] for k in (*_BY_ATOM, *_FORCES) if k in joined}
    fields = {"forces": None, **by_structure, **by_atom}
    for key in ("energy_label", "forces_label"):
        if key in fields and not np.isfinite(fields[key]).all():
            fields[key] = None
    return SplitPredictions(**fields)


def _set_threads() -> None:
    """Use as many threads with any number of ranks: sums depend on how threads share them.

    On a processor that is one, or OMP_NUM_THREADS; more ranks make it quicker.
    """
    if distutils.get_device_for_local_rank().startswith("cpu"):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    else:
        share_cores()


def _every(count: int, batch_size: int) -> Iterator[slice]:
    """Yield this rank's batches of ``count`` structures: every so many of the same sequence."""
    step = batch_size * distutils.get_world_size()
    for start in range(distutils.get_rank() * batch_size, count, step):
        yield slice(start, min(start + batch_size, count))


def _shown(loader: DataLoader, split: str) -> Iterator[Any]:
    """Yield the batches with a progress bar on a terminal, else a line now and then, on rank 0."""
    if not distutils.is_master():
        yield from loader
        return
    live, shown = sys.stderr.isatty(), time.perf_counter()
    with tqdm(total=len(loader), desc=split, unit="batch", disable=not live) as bar:
        for done, batch in enumerate(loader, start=1):
            yield batch
            bar.update()
            now = time.perf_counter()
            if not live and (now - shown > _LOG_SECONDS or done == len(loader)):
                print(f"{split}: {done} of {len(loader)} batches", file=sys.stderr, flush=True)
                shown = now


def _labels(batch: Any) -> dict[str, Any]:
    """What is needed of a batch besides predictions, before the model sees it."""
    nothing = torch.full((batch.pos.shape[0], 3), float("nan"))
    return {
        "ids": np.array([str(s) for s in batch.sid]),
        "natoms": batch.natoms.clone(),
        "fixed": batch.fixed.bool().clone(),
        "energy_label": batch.energy.reshape(-1).clone()
        if "energy" in batch
        else nothing[: len(batch.natoms), 0],
        "forces_label": batch.forces.clone() if "forces" in batch else nothing,
    }


def _leave(error_file: Path, text: str) -> None:
    """Put an error's text into a file and end this process; the first rank's error is kept."""
    try:
        with error_file.open("x") as stream:
            stream.write(text)
    except FileExistsError:
        pass
    sys.stderr.flush()
    os._exit(1)
