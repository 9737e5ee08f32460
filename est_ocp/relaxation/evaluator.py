"""Energies and forces of many structures in one pass of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms
from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch

from est_ocp.errors import CheckpointError, DataError, ESTError
from est_ocp.relaxation.calculator import (
    CheckpointCalculator,
    choose_dataset,
    quiet_start,
)


class Evaluator(Protocol):
    """What the relaxer needs: calculators, and their results for many structures at a time."""

    def attach(self, atoms: Atoms) -> None:
        """Give a structure its calculator; refuse what cannot be calculated."""

    def __call__(self, structures: Sequence[Atoms]) -> list[str | None]:
        """Fill the calculators; return for each structure what went wrong, or None."""


class BatchEvaluator:
    """Evaluate structures in one batch, and leave the results in their calculators.

    A structure that makes the batch fail is found by halving and fails alone; so does a batch that
    does not fit into memory, whose size is then kept.

    Parameters
    ----------
    unit : MLIPPredictUnit
        Of a checkpoint that predicts forces.
    dataset : str, optional
        As for :class:`~est_ocp.relaxation.CheckpointCalculator`.

    Raises
    ------
    CheckpointError
        If the checkpoint predicts no forces.
    """

    def __init__(self, unit: Any, dataset: str | None = None) -> None:
        self.unit = unit
        self.dataset = choose_dataset(unit, dataset)
        self.max_atoms = float("inf")
        found = {task.property for task in unit.dataset_to_tasks[self.dataset]}
        if not {"energy", "forces"} <= found:
            raise CheckpointError(
                f"a relaxation needs energies and forces, but this checkpoint predicts "
                f"{', '.join(sorted(found))} (IS2RE); take an S2EF checkpoint"
            )

    def attach(self, atoms: Atoms) -> None:
        """Give a structure its calculator.

        Raises
        ------
        DataError
            If it has no atoms, elements outside the model's range, positions or a cell that are
            not finite, or is periodic without a cell.
        """
        if len(atoms) == 0:
            raise DataError("the structure has no atoms")
        self.unit.validate_atoms_data(atoms, self.dataset)
        atoms.calc = CheckpointCalculator(self.unit, self.dataset)

    def __call__(self, structures: Sequence[Atoms]) -> list[str | None]:
        """Evaluate; return for each structure what went wrong, or None.

        Parameters
        ----------
        structures : sequence of Atoms
            With the calculators of :meth:`attach`.
        """
        if len(structures) > 1 and sum(map(len, structures)) > self.max_atoms:
            return self._halves(structures)
        try:
            return self._evaluate(structures)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            if len(structures) == 1:
                return [_reason(error)]
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        # Outside the handler, whose traceback would keep the failed pass's memory.
        if out_of_memory:
            self.max_atoms = sum(map(len, structures)) / 2
            torch.cuda.empty_cache()
        return self._halves(structures)

    def _halves(self, structures: Sequence[Atoms]) -> list[str | None]:
        middle = len(structures) // 2
        return [*self(structures[:middle]), *self(structures[middle:])]

    def _evaluate(self, structures: Sequence[Atoms]) -> list[str | None]:
        batch = atomicdata_list_to_batch([atoms.calc.to_data(atoms) for atoms in structures])
        with quiet_start(self.unit):
            out = self.unit.predict(batch)
        energies = out["energy"].detach().cpu().numpy().reshape(-1)
        ends = np.cumsum([len(atoms) for atoms in structures])
        forces = np.split(out["forces"].detach().cpu().numpy(), ends[:-1])
        return [
            _hold(atoms, float(energy), force)
            for atoms, energy, force in zip(structures, energies, forces, strict=True)
        ]


def _hold(atoms: Atoms, energy: float, forces: np.ndarray) -> str | None:
    """Leave results in a structure's calculator, as the calculator itself would."""
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        return "the predicted energy or forces are not finite"
    atoms.calc.atoms = atoms.copy()
    atoms.calc.results = {"energy": energy, "free_energy": energy, "forces": forces}
    return None


def _reason(error: Exception) -> str:
    """Return an exception in one line."""
    text = str(error).strip().splitlines()
    first = text[0][:200] if text else type(error).__name__
    return first if isinstance(error, ESTError) else f"the model failed ({first})"
