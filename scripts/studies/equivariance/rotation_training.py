"""Does turning the points at random in training make the trained network more equivariant?

Two-layer EST networks learn the polarisability on the embedded molecules, with few points in the
update: a lattice or a design, in a fixed or in a random frame (``UpdateSettings.random_rotation``).
Afterwards predictions for molecules that were not trained on are compared over random rotations.
Messages act on a Lebedev rule whose error is far smaller, so that the update's is what is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from equivariance.molecules import batches, cast, molecule_tensors, random_wigner, rotated
from equivariance.network import network_settings
from equivariance.points import PointSet
from est_ocp.models import ESTNetwork, MolecularPropertyHead

#: Updates in training; few points, so that there is an error to lose.
UPDATES = (PointSet("fibonacci_poles", 26), PointSet("design", 26))
#: Messages in training and, more precise, in the measurement.
MESSAGE, MESSAGE_MEASURED = PointSet("lebedev", 26), PointSet("lebedev", 50)


@dataclass(frozen=True)
class TrainingSettings:
    """One training."""

    steps: int = 100
    batch: int = 16
    channels: int = 16
    seeds: int = 2
    test_molecules: int = 64
    rotations: int = 4
    learning_rate: float = 3e-3
    device: str = "cpu"


class Predictor(nn.Module):
    """Network of two layers, L = 2, with a head for the polarisability."""

    def __init__(
        self, update: PointSet, message: PointSet, channels: int, random_rotation: bool
    ) -> None:
        super().__init__()
        settings = network_settings(update, 2, channels, 2)
        settings["message"]["rule"] = {"kind": message.kind, "num_points": message.num_points}
        settings["update"]["random_rotation"] = random_rotation
        settings["lmax_out"] = 0
        self.backbone = ESTNetwork(**settings)
        self.head = MolecularPropertyHead(self.backbone, target="alpha")

    def forward(self, batch: Any) -> torch.Tensor:
        """Predictions [B]."""
        return self.head(batch, self.backbone(batch))["target"]


def train(
    update: PointSet, random_rotation: bool, settings: TrainingSettings, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield the errors of a network before and after its training."""
    tensors = molecule_tensors()
    per_atom = (tensors.label / tensors.natoms).mean()
    labels = tensors.label - per_atom * tensors.natoms
    scale = labels.std()
    torch.manual_seed(seed)
    network = Predictor(update, MESSAGE, settings.channels, random_rotation).to(settings.device)
    order = torch.randperm(len(labels) - settings.test_molecules) + settings.test_molecules
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, settings.steps
    )
    case = {"points": update.name, "S": update.size, "random_rotation": random_rotation}
    case |= {"seed": seed, "label_spread": scale.item()}
    yield case | {"steps": 0} | measure(network, update, settings, labels / scale, scale)
    name = f"{update.name}{', random frames' if random_rotation else ''}"
    for step in tqdm(range(settings.steps), desc=name, mininterval=10):
        chosen = order[torch.arange(settings.batch).add(step * settings.batch) % len(order)]
        batch = tensors.batch(chosen, ["qm9"] * len(chosen)).to(settings.device)
        target = (labels[chosen] / scale).to(settings.device)
        loss = nn.functional.l1_loss(network(batch), target)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    after = measure(network, update, settings, labels / scale, scale)
    yield case | {"steps": settings.steps} | after


def measure(
    trained: Predictor,
    update: PointSet,
    settings: TrainingSettings,
    labels: torch.Tensor,
    scale: torch.Tensor,
) -> dict[str, float]:
    """Errors on molecules that were not trained on, bohr^3, float64.

    ``rotation_error``: mean of ``|f(R x) - f(x)|`` over molecules and rotations; ``floor``: the
    same with the messages' precise points in the update, too; ``mae``: error of the predictions;
    ``relative``: the first over the standard deviation of the predictions.
    """
    predictions, change = _rotate(trained, update, settings)
    _, floor = _rotate(trained, MESSAGE_MEASURED, settings)
    truth = labels[: settings.test_molecules].to(predictions)
    return {
        "mae": ((predictions - truth).abs().mean() * scale).item(),
        "rotation_error": (change * scale).item(),
        "floor": (floor * scale).item(),
        "relative": (change / predictions.std()).item(),
    }


@torch.no_grad()
def _rotate(
    trained: Predictor, update: PointSet, settings: TrainingSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions [B] with points in the update, and their mean change under rotation."""
    network = Predictor(update, MESSAGE_MEASURED, settings.channels, False).to(settings.device)
    network.load_state_dict(trained.state_dict())
    network.double().eval()
    generator = torch.Generator().manual_seed(7)
    plain, changes = [], []
    tensors = molecule_tensors()
    for batch in batches(tensors, settings.test_molecules, settings.batch, settings.device):
        prediction = network(cast(batch, torch.float64))
        plain.append(prediction)
        for _ in range(settings.rotations):
            wigner = random_wigner(len(prediction), 1, generator, settings.device)
            changes.append((network(rotated(batch, wigner)) - prediction).abs())
    return torch.cat(plain), torch.cat(changes).mean()


def compare(settings: TrainingSettings) -> Iterator[dict[str, Any]]:
    """All trainings of the comparison."""
    for seed in range(settings.seeds):
        for update in UPDATES:
            for random_rotation in (False, True):
                yield from train(update, random_rotation, settings, seed)
