"""What fairchem's trainer and predictor ask of a backbone besides its forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from fairchem.core.models.base import BackboneInterface
from fairchem.core.models.uma.escn_md import GradRegressConfig
from torch import nn

from est_ocp.errors import ConfigError, DataError, unknown_keys
from est_ocp.overlap import find_overlap


class FairchemBackbone(nn.Module, BackboneInterface):
    """Base of est-ocp's backbones: checks of structures and tasks, inference settings.

    Attributes
    ----------
    max_num_elements : int
        Atomic numbers must be below this.
    regress_config : GradRegressConfig
        What is predicted, and whether forces are direct or gradients; fairchem reads it.
    capturable : bool
        Whether a forward pass without gradients can be captured as a CUDA graph: it takes padded
        batches (:mod:`est_ocp.models.padding`) and never waits for the device.
    """

    capturable = False

    max_num_elements: int
    regress_config: GradRegressConfig

    @classmethod
    def refuse_unknown_keys(cls, unknown: Iterable[str]) -> None:
        """Refuse what the constructor, whose ``**unknown`` it is, has no parameter for.

        Raises
        ------
        ConfigError
            Naming the key and the nearest valid one.
        """
        allowed = inspect.signature(cls.__init__).parameters.keys() - {"self", "unknown"}
        unknown_keys(unknown, allowed, "model.backbone")

    def check_elements(self, atomic_numbers: torch.Tensor) -> None:
        """Refuse elements outside the model's table.

        Raises
        ------
        DataError
            Naming the atomic numbers.
        """
        wrong = (atomic_numbers < 1) | (atomic_numbers >= self.max_num_elements)
        if wrong.any():
            z = sorted(set(atomic_numbers[wrong].tolist()))
            raise DataError(
                f"atomic numbers {z} are outside this model's range 1.."
                f"{self.max_num_elements - 1}; remove these structures or train with a larger "
                "model.backbone.max_num_elements"
            )

    @classmethod
    def build_inference_settings(cls, settings) -> dict[str, Any]:
        """Overrides of the backbone's configuration for inference."""
        overrides: dict[str, Any] = {}
        if settings.activation_checkpointing is not None:
            overrides["activation_checkpointing"] = settings.activation_checkpointing
        if settings.external_graph_gen is not None:
            overrides["otf_graph"] = not settings.external_graph_gen
        return overrides

    def get_default_untrained_tasks(self, checkpoint_tasks, inference_settings) -> list:
        """No property is added at inference without being asked for."""
        return []

    def validate_tasks(self, dataset_to_tasks) -> None:
        """Refuse tasks that this model cannot serve.

        Raises
        ------
        ConfigError
            If forces are asked of an energy model, or if conservative forces and energies are
            normalised by different factors, which would contradict ``F = -dE/dx``.
        """
        conservative = self.regress_config.forces and not self.regress_config.direct_forces
        for tasks in dataset_to_tasks.values():
            scales = {task.property: float(task.normalizer.rmsd) for task in tasks}
            if "forces" in scales and not self.regress_config.forces:
                raise ConfigError(
                    "a task needs forces, but model.backbone.regress_forces is false; set it to "
                    "true or drop the task"
                )
            both = {"energy", "forces"} <= scales.keys()
            if conservative and both and scales["forces"] != scales["energy"]:
                raise ConfigError(
                    "conservative forces need the energy's normaliser: set tasks.forces.normalizer."
                    f"rmsd to {scales['energy']} (it is {scales['forces']})"
                )

    def prepare_for_inference(self, data, settings) -> FairchemBackbone:
        """Nothing to prepare."""
        return self

    def on_predict_check(self, data) -> None:
        """Nothing to check: positions and elements are checked on the way in."""

    def validate_atoms_data(self, atoms, task_name: str) -> None:
        """Check an ASE structure and set the charge and spin that fairchem expects.

        Raises
        ------
        DataError
            For elements outside the model's range, positions or cell that are not finite, a
            periodic cell without volume, or two atoms at the same place.
        """
        self.check_elements(torch.as_tensor(atoms.numbers))
        for name, array in (("positions", atoms.positions), ("cell", atoms.cell.array)):
            if not torch.isfinite(torch.as_tensor(array)).all():
                raise DataError(f"the structure's {name} are not finite; remove or repair it")
        if len(atoms) and atoms.pbc.any() and abs(atoms.cell.complete().volume) < 1e-6:
            raise DataError("the structure is periodic but its cell has no volume; set its cell")
        overlap = find_overlap(atoms.positions, atoms.cell.array, atoms.pbc)
        if overlap is not None:
            raise DataError(
                f"atoms {overlap[0]} and {overlap[1]} of the structure are at the same place "
                f"({overlap[2]:.4f} Angstrom apart); remove one of them"
            )
        atoms.info.setdefault("charge", 0)
        atoms.info.setdefault("spin", 0)
