"""fairchem's ASE calculator with errors that say what a checkpoint can do."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, equal
from fairchem.core import FAIRChemCalculator

from est_ocp.errors import ConfigError
from est_ocp.evaluation import load_unit
from est_ocp.evaluation.checkpoint import quiet


class CheckpointCalculator(FAIRChemCalculator):
    """fairchem's ``FAIRChemCalculator`` for a checkpoint of est-ocp.

    The numbers are fairchem's. What differs: one sentence for a property that the checkpoint does
    not have; arrays in ``atoms.info`` may be compared; structures periodic along one or two axes
    need cell vectors along these alone.

    Parameters
    ----------
    unit : MLIPPredictUnit
        From :func:`est_ocp.evaluation.load_unit`.
    dataset : str, optional
        Dataset whose tasks predict, as in the training's ``tasks``. Default: the only one, or
        ``oc20``.

    Raises
    ------
    ConfigError
        If the checkpoint has no such dataset, or several and none is called ``oc20``.
    """

    def __init__(self, unit: Any, dataset: str | None = None) -> None:
        super().__init__(unit, task_name=choose_dataset(unit, dataset))
        self._convert = self.a2g
        self.a2g = self.to_data

    def to_data(self, atoms: Atoms) -> Any:
        """Return the structure as fairchem's ``AtomicData`` (positions wrapped into the cell)."""
        if atoms.pbc.any() and not atoms.pbc.all():
            atoms = atoms.copy()
            atoms.cell = atoms.cell.complete()
        return self._convert(atoms)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return what changed since the last calculation."""
        state = Calculator.check_state(self, atoms, tol=tol)
        if not state and not equal(self.atoms.info, atoms.info):
            state.append("info")
        return state

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True):
        """Return a property of ``atoms`` (eV, eV/Angstrom).

        Raises
        ------
        PropertyNotImplementedError
            If the checkpoint does not predict it.
        """
        if name not in self.implemented_properties:
            has = " and ".join(p for p in ("energy", "forces") if p in self.implemented_properties)
            remedy = "; forces and relaxations need an S2EF checkpoint" if name == "forces" else ""
            raise PropertyNotImplementedError(f"this checkpoint predicts {has}, not {name}{remedy}")
        with quiet_start(self.predictor):
            return super().get_property(name, atoms, allow_calculation)


def quiet_start(unit: Any) -> AbstractContextManager[None]:
    """Hold back what fairchem logs at a unit's first prediction.

    It logs nothing at later ones, where silence would take half a millisecond.
    """
    started = getattr(unit, "lazy_model_intialized", False)
    return nullcontext() if started else quiet()


def load_calculator(
    path: str | Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    dataset: str | None = None,
    trust: bool = False,
    tf32: bool = False,
) -> CheckpointCalculator:
    """Load a checkpoint's averaged (EMA) weights as an ASE calculator.

    Parameters
    ----------
    path : path
        ``inference_ckpt.pt``, a folder ``checkpoints/step_N``, or a run's folder (newest one).
    device : {"cpu", "cuda"}
    dtype : torch.dtype
        float32 or float64.
    dataset : str, optional
        As for :class:`CheckpointCalculator`.
    trust : bool
        Run what the file names, for a file from a source that you trust.
    tf32 : bool
        Matrix products in TF32 on GPUs: faster, with rounding of about one in a thousand.

    Raises
    ------
    CheckpointError
        If the file cannot be used, or refers to other code.
    ConfigError
        If ``dataset`` has no meaning.
    """
    unit = load_unit(path, device=device, dtype=dtype, trust=trust)
    unit.inference_settings.tf32 = tf32
    return CheckpointCalculator(unit, dataset)


def choose_dataset(unit: Any, dataset: str | None = None) -> str:
    """Return the dataset whose tasks predict: the one named, the only one, or ``oc20``."""
    names = sorted(unit.dataset_to_tasks)
    if dataset is None:
        dataset = names[0] if len(names) == 1 else "oc20"
        if dataset not in names:
            raise ConfigError(
                f"this checkpoint was trained on {', '.join(names)}; say which is meant"
            )
    if dataset not in names:
        raise ConfigError(f"this checkpoint has no dataset '{dataset}'; it has {', '.join(names)}")
    return dataset
