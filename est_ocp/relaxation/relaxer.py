"""Many relaxations in lock-step: ASE's optimisers move the atoms, one batch serves them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS, FIRE, LBFGS, MDMin
from ase.optimize.optimize import Optimizer

from est_ocp.errors import ConfigError, ESTError
from est_ocp.relaxation.evaluator import Evaluator

#: ASE's optimisers that need one evaluation a step.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    "lbfgs": LBFGS,
    "bfgs": BFGS,
    "fire": FIRE,
    "mdmin": MDMin,
}


@dataclass(frozen=True)
class Relaxed:
    """The end of one relaxation.

    Attributes
    ----------
    name : str
    atoms : Atoms or None
        The last structure with its energy and forces (a ``SinglePointCalculator``), info and
        constraints; None if the relaxation failed.
    steps : int
    converged : bool
        Whether the largest force on an atom, constraints applied, is below ``fmax``.
    energy_first, energy_last : float
        eV, of the first and the last structure that could be evaluated; nan if there was none.
    fmax : float
        Largest force on an atom at the end, constraints applied, eV/Angstrom; nan likewise.
    error : str
        Why it failed; empty if it did not.
    """

    name: str
    atoms: Atoms | None
    steps: int = 0
    converged: bool = False
    energy_first: float = float("nan")
    energy_last: float = float("nan")
    fmax: float = float("nan")
    error: str = ""


class BatchedRelaxer:
    """Relax many structures, a number of them at a time.

    Each structure has its own ASE optimiser and its own constraints. In every round the optimisers
    make one step each and all structures are evaluated together; a structure that has converged, or
    failed, makes room for the next one.

    Parameters
    ----------
    evaluate : Evaluator
        E.g. a :class:`~est_ocp.relaxation.BatchEvaluator`.
    optimizer : {"lbfgs", "bfgs", "fire", "mdmin"}
    fmax : float
        Converged when no atom's force is larger, eV/Angstrom.
    steps : int
        Most steps of a structure.
    batch_size : int
        Structures at a time.
    maxstep : float, optional
        Longest step of an atom, Angstrom; default: the optimiser's own.
    trajectories : path, optional
        Existing folder for ``<name>.traj`` with every step.

    Raises
    ------
    ConfigError
        If a setting has no meaning.
    """

    def __init__(
        self,
        evaluate: Evaluator,
        optimizer: str = "lbfgs",
        fmax: float = 0.02,
        steps: int = 200,
        batch_size: int = 32,
        maxstep: float | None = None,
        trajectories: Path | None = None,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer '{optimizer}' is not one of {', '.join(OPTIMIZERS)}")
        if not fmax > 0:
            raise ConfigError(f"fmax must be above 0 eV/Angstrom, not {fmax}")
        if steps < 0 or batch_size < 1:
            raise ConfigError(
                f"steps must be 0 or more and batch_size 1 or more, not {steps} and {batch_size}"
            )
        if maxstep is not None and not maxstep > 0:
            raise ConfigError(f"maxstep must be above 0 Angstrom, not {maxstep}")
        self.evaluate = evaluate
        self.optimizer = OPTIMIZERS[optimizer]
        self.fmax = fmax
        self.steps = steps
        self.batch_size = batch_size
        self.options = {} if maxstep is None else {"maxstep": maxstep}
        self.trajectories = trajectories

    def run(
        self, structures: Iterable[tuple[str, Atoms | Callable[[], Atoms]]]
    ) -> Iterator[Relaxed]:
        """Relax structures and yield each as it ends.

        Parameters
        ----------
        structures : iterable of (name, Atoms or function that returns Atoms)
            Taken one by one as there is room; the given structures are not changed.
        """
        waiting = iter(structures)
        active: list[_Relaxation] = []
        while True:
            while len(active) < self.batch_size:
                item = next(waiting, None)
                if item is None:
                    break
                try:
                    active.append(self._start(*item))
                except ESTError as error:
                    yield Relaxed(item[0], None, error=str(error))
            if not active:
                return
            errors = self.evaluate([relaxation.atoms for relaxation in active])
            unfinished = []
            for relaxation, error in zip(active, errors, strict=True):
                end = relaxation.fail(error) if error else relaxation.look(self.steps)
                if end is None:
                    end = relaxation.step()
                if end is None:
                    unfinished.append(relaxation)
                else:
                    yield end
            active = unfinished

    def _start(self, name: str, source: Atoms | Callable[[], Atoms]) -> _Relaxation:
        atoms = source() if callable(source) else source.copy()
        # Put back at the end: fairchem adds a charge and a spin, and copies it at every step.
        info, atoms.info = atoms.info, {k: v for k, v in atoms.info.items() if k in _MODEL_INFO}
        self.evaluate.attach(atoms)
        trajectory = None if self.trajectories is None else str(self.trajectories / f"{name}.traj")
        optimizer = self.optimizer(atoms, logfile=None, trajectory=trajectory, **self.options)
        optimizer.fmax = self.fmax
        return _Relaxation(name, atoms, info, optimizer)


#: What of ``atoms.info`` fairchem's models read.
_MODEL_INFO = ("charge", "spin")


class _Relaxation:
    """One structure under way; does what ``Optimizer.irun`` does, between evaluations."""

    def __init__(self, name: str, atoms: Atoms, info: dict, optimizer: Optimizer) -> None:
        self.name = name
        self.atoms = atoms
        self.info = info
        self.optimizer = optimizer
        self.energy_first = self.energy_last = self.fmax = float("nan")

    def look(self, steps: int) -> Relaxed | None:
        """Take note of an evaluation; return the result if it is the last one."""
        self.energy_last = float(self.atoms.calc.results["energy"])
        if self.optimizer.nsteps == 0:
            self.energy_first = self.energy_last
        self.fmax = float(np.linalg.norm(self.atoms.get_forces(), axis=1).max())
        self.optimizer.call_observers()
        converged = bool(self.optimizer.converged())
        if not converged and self.optimizer.nsteps < steps:
            return None
        results = {key: self.atoms.calc.results[key] for key in ("energy", "forces")}
        self.atoms.calc = SinglePointCalculator(self.atoms, **results)
        self.atoms.info = self.info
        return self._end(self.atoms, converged=converged)

    def step(self) -> Relaxed | None:
        """Move the atoms; return a result only if the optimiser fails."""
        try:
            self.optimizer.step()
        except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
            return self.fail(f"the optimiser failed ({error})")
        self.optimizer.nsteps += 1
        if not np.isfinite(self.atoms.positions).all():
            return self.fail("the optimiser moved atoms to positions that are not finite")
        return None

    def fail(self, error: str) -> Relaxed:
        """Return the result of a relaxation that cannot go on."""
        return self._end(None, error=f"{error} at step {self.optimizer.nsteps}")

    def _end(self, atoms: Atoms | None, converged: bool = False, error: str = "") -> Relaxed:
        self.optimizer.close()
        return Relaxed(
            self.name,
            atoms,
            self.optimizer.nsteps,
            converged,
            self.energy_first,
            self.energy_last,
            self.fmax,
            error,
        )
