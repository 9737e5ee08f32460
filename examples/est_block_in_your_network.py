"""The EST update block in a small network of one's own, in plain PyTorch.

Every atom of a small cluster shall predict a vector that depends on three-body geometry. The
network makes steerable features from the neighbours' directions, updates them by two EST blocks
with residuals and reads the vector off the features of degree 1.

    python examples/est_block_in_your_network.py
"""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn import EquivariantLayerNorm, ESTUpdateBlock, SO3Linear
from est_ocp.sphere import make_rule, spherical_harmonics

LMAX = 2
CHANNELS = 16


class VectorNetwork(nn.Module):
    """Positions [G, A, 3] of G clusters of A atoms to one vector an atom, [G, A, 3]."""

    def __init__(self) -> None:
        super().__init__()
        rule = make_rule("design", 48)
        self.radial = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, CHANNELS))
        self.norms = nn.ModuleList(EquivariantLayerNorm(LMAX, CHANNELS) for _ in range(2))
        self.updates = nn.ModuleList(
            ESTUpdateBlock(
                CHANNELS,
                LMAX,
                rule,
                num_spherical_experts=2,
                spherical_expert_channels=32,
                num_steerable_experts=2,
                steerable_expert_channels=32,
            )
            for _ in range(2)
        )
        self.readout = SO3Linear(CHANNELS, 1, LMAX)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        edges = positions[:, None, :, :] - positions[:, :, None, :]  # [G, A, A, 3], i to j
        lengths = edges.norm(dim=-1, keepdim=True)
        directions = edges / lengths.clamp_min(1e-6)
        others = ~torch.eye(positions.shape[1], dtype=torch.bool, device=positions.device)[
            ..., None
        ]
        weights = torch.where(others, self.radial(lengths), 0.0)
        harmonics = spherical_harmonics(directions, LMAX)
        # Steerable features [G * A, (LMAX + 1)**2, CHANNELS] from all neighbours.
        x = torch.einsum("gaji,gajc->gaic", harmonics, weights).flatten(0, 1)
        for norm, update in zip(self.norms, self.updates, strict=True):
            x = x + update(norm(x))
        return self.readout(x)[:, 1:4, 0].view_as(positions)


def three_body_vectors(positions: torch.Tensor) -> torch.Tensor:
    """Toy target: for each atom i, the sum over j, k of (r_ij . r_ik) r_ij exp(-r_ij^2 / 4)."""
    edges = positions[:, None, :, :] - positions[:, :, None, :]
    products = torch.einsum("gajx,gakx->gaj", edges, edges)
    decay = torch.exp(-edges.square().sum(-1) / 4)
    return torch.einsum("gaj,gaj,gajx->gax", products, decay, edges)


def train(steps: int = 60) -> tuple[float, float]:
    """Fit the target on random clusters of 5 atoms; return the first and the last loss."""
    torch.manual_seed(0)
    network = VectorNetwork()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        positions = torch.randn(16, 5, 3)
        target = three_body_vectors(positions)
        loss = nn.functional.l1_loss(network(positions), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return sum(losses[:5]) / 5, sum(losses[-5:]) / 5


if __name__ == "__main__":
    first, last = train()
    print(f"mean absolute error: {first:.3f} at the start, {last:.3f} after training")
