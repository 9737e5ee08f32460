"""Models of configurations and checkpoints with other points than their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def read_trained(
    checkpoint: str,
) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, float]]:
    """Configuration of a checkpoint's model, its averaged weights, and units of its outputs.

    The units are the tasks' normalisers: eV, eV/Angstrom, or the target's own.
    """
    from omegaconf import OmegaConf

    from est_ocp.evaluation.checkpoint import read_checkpoint

    content = read_checkpoint(checkpoint)
    weights = {
        name.split("module.")[-1]: value
        for name, value in content.ema_state_dict.items()
        if name != "n_averaged"
    }
    tasks = OmegaConf.to_container(OmegaConf.create({"tasks": list(content.tasks_config)}))["tasks"]
    scales = {task["name"]: float(task["normalizer"]["rmsd"]) for task in tasks}
    return OmegaConf.to_container(OmegaConf.create(content.model_config)), weights, scales


def build(
    config: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor] | None,
    changes: Mapping[str, Mapping[str, Any]],
    scale: float = 1.0,
    device: str = "cpu",
) -> torch.nn.Module:
    """Model in float64 with other settings, the same weights whatever the points.

    Parameters
    ----------
    config : mapping
        Of the model, with ``_target_``.
    weights : mapping or None
        None: random weights, all linear maps multiplied by `scale`.
    changes : mapping
        Settings by part of the backbone (``update``, ``message``, ``graph``).
    scale : float
    device : str
    """
    import hydra

    config = copy.deepcopy(dict(config))
    for part, settings in changes.items():
        config["backbone"].setdefault(part, {}).update(settings)
    torch.manual_seed(0)
    model = hydra.utils.instantiate(config)
    if weights is not None:
        model.load_state_dict(weights)
    else:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "embedding" not in name:
                    parameter.mul_(scale)
    return model.to(device).double().eval()


def demo_structures(count: int) -> Any:
    """A batch of the demonstration set's first validation structures."""
    from ase import Atoms
    from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch

    from est_ocp.data import load_demo_frames

    frames = load_demo_frames()
    chosen = np.flatnonzero(frames.split == "val_id")
    batch = []
    for i in chosen[:: max(1, len(chosen) // count)][:count]:
        atoms = slice(*frames.offsets[i : i + 2])
        system = Atoms(frames.z[atoms], frames.pos[atoms], cell=frames.cell[i], pbc=True)
        batch.append(AtomicData.from_ase(system, task_name="oc20", target_dtype=torch.float64))
    return atomicdata_list_to_batch(batch)


@torch.no_grad()
def force_energy_errors(
    model: torch.nn.Module, batch: Any, rotations: torch.Tensor, scales: Mapping[str, float]
) -> dict[str, float]:
    """Mean errors of forces and energies, relative and absolute.

    Positions and cell are rotated in float64, whatever the model's precision.

    Parameters
    ----------
    model : Module
    batch : AtomicData
        In float64.
    rotations : Tensor [R, 3, 3]
    scales : mapping of str to float
        Units of the model's ``energy`` and ``forces``, eV and eV/Angstrom.

    Returns
    -------
    dict
        ``forces`` (norm of the change over the norm), ``prediction`` (change of the energy over
        the energies' spread), ``forces_absolute`` (mean change of a component, eV/Angstrom),
        ``prediction_absolute`` (eV).
    """
    dtype = next(model.parameters()).dtype

    def predict(rotation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        turned = batch.clone()
        turned.pos = (batch.pos @ rotation.T).to(dtype)
        turned.cell = (batch.cell @ rotation.T).to(dtype)
        out = model(turned)
        energy, forces = out["energy"]["energy"], out["forces"]["forces"]
        return energy.reshape(-1).double(), forces.double()

    energy, forces = predict(torch.eye(3, dtype=torch.float64, device=batch.pos.device))
    found: dict[str, list[torch.Tensor]] = {}
    for rotation in rotations.to(batch.pos.device):
        new_energy, new_forces = predict(rotation)
        change, difference = (new_energy - energy).abs().mean(), new_forces - forces @ rotation.T
        errors = {
            "prediction": change / energy.std(),
            "forces": difference.norm() / forces.norm(),
            "prediction_absolute": scales["energy"] * change,
            "forces_absolute": scales["forces"] * difference.abs().mean(),
        }
        for name, error in errors.items():
            found.setdefault(name, []).append(error)
    return {name: float(torch.stack(values).mean()) for name, values in found.items()}
