"""Table of the equivariance error of EST blocks against the sampling points of the sphere.

A network of residual layers ``x = x + EST(norm(x))`` with random weights is applied to random
features and to rotated copies of them, in float64. The error is that of everything the layers
added: ``|u(D x) - D u(x)| / |u(x)|`` with ``u(x) = network(x) - x``. The weights of q, k, v and
of the experts' first maps are multiplied by a sharpness: 1 is a fresh network, 2 one whose
training has made its functions on the sphere less smooth. ``decay`` is the factor between the
sizes of the input's successive degrees.

    python scripts/studies/est_equivariance.py --output results

writes ``est_equivariance.csv`` (one row a measurement) and ``est_equivariance.md`` (the table).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from equivariance.points import PointSet
from equivariance.tables import write_csv
from torch import nn

from est_ocp.nn.est_update import ESTUpdateBlock
from est_ocp.nn.layer_norm import EquivariantLayerNorm
from est_ocp.nn.random_rotation import RandomRotation, rotate

LMAX = 4
LAYERS = (1, 4)
LABELS = ("points", "S", "degree", "variant")


@dataclass(frozen=True)
class Case(PointSet):
    """One way to sample the sphere, and the block's options that go with it."""

    inverse: str = "quadrature"
    norm: str = "point"

    @property
    def variant(self) -> str:
        """What differs from the paper's block with weights in the softmax and quadrature."""
        parts = [] if self.quadrature else ["plain softmax"]
        if self.inverse != "quadrature":
            parts.append(f"{self.inverse.replace('_', '-')} inverse")
        if self.norm != "point":
            parts.append(f"norm over the {self.norm}")
        return ", ".join(parts)


def full_cases() -> list[Case]:
    """Every point set of the default table."""
    cases = [
        Case(kind, size) for kind in ("fibonacci_poles", "fibonacci") for size in (48, 90, 128, 182)
    ]
    cases += [Case("repulsion", size) for size in (90, 128)]
    cases += [Case("design", size) for size in (48, 90, 128, 182)]
    cases += [Case("lebedev", size) for size in (50, 86, 110, 146, 194)]
    cases += [
        Case("product", shape, quadrature)
        for shape in ((10, 9), (10, 13), (10, 15))
        for quadrature in (True, False)
    ]
    cases += [
        Case(kind, 128, inverse=inverse)
        for kind in ("fibonacci", "repulsion")
        for inverse in ("diagonal", "least_squares")
    ]
    cases += [Case(kind, 128, norm="sphere") for kind in ("repulsion", "design")]
    cases += [Case("lebedev", 146, norm="sphere")]
    return [*cases, Case("repulsion", 128, inverse="least_squares", norm="sphere")]


def quick_cases() -> list[Case]:
    """Three point sets, to see the command work."""
    return [Case("fibonacci", 48), Case("design", 48), Case("lebedev", 50)]


class ResidualNetwork(nn.Module):
    """Layers ``x = x + EST(norm(x))``; returns what the first k layers added, for all k."""

    def __init__(self, case: Case, channels: int, sharpness: float) -> None:
        super().__init__()
        rule = case.rule()
        self.rule = rule
        self.norms = nn.ModuleList(EquivariantLayerNorm(LMAX, channels) for _ in range(LAYERS[-1]))
        self.blocks = nn.ModuleList(
            ESTUpdateBlock(
                channels,
                LMAX,
                rule,
                inverse=case.inverse,
                quadrature=case.quadrature,
                norm=case.norm,
                spherical_expert_channels=4 * channels,
                steerable_expert_channels=2 * channels,
            )
            for _ in range(LAYERS[-1])
        )
        with torch.no_grad():
            for block in self.blocks:
                block.attention.qkv.weight.mul_(sharpness)
                block.mixture.spherical.weight_in.mul_(sharpness)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Sums of updates [N, 25, C] after one, two, ... layers."""
        total = torch.zeros_like(x)
        sums = []
        for norm, block in zip(self.norms, self.blocks, strict=True):
            total = total + block(norm(x + total))
            sums.append(total)
        return sums


def random_features(num_nodes: int, channels: int, decay: float) -> torch.Tensor:
    """Normal features [N, 25, C], each degree `decay` times the size of the one before."""
    degrees = torch.tensor([degree for degree in range(LMAX + 1) for _ in range(2 * degree + 1)])
    x = torch.randn(num_nodes, len(degrees), channels, dtype=torch.float64)
    return x * decay ** degrees[:, None]


@torch.no_grad()
def measure(
    case: Case, channels: int, num_nodes: int, seed: int, decay: float, sharpness: float
) -> Iterator[dict[str, object]]:
    """Errors of one network at every depth of the table.

    All cases see the same weights, features and rotations for a given seed.
    """
    torch.manual_seed(seed)
    network = ResidualNetwork(case, channels, sharpness).double().eval()
    x = random_features(num_nodes, channels, decay)
    wigner = RandomRotation(LMAX).double()(num_nodes)
    updates, rotated = network(x), network(rotate(x, wigner))
    for layers in LAYERS:
        expected = rotate(updates[layers - 1], wigner)
        error = (rotated[layers - 1] - expected).norm() / expected.norm()
        yield {
            "points": case.kind,
            "S": network.rule.num_points,
            "degree": network.rule.degree,
            "variant": case.variant,
            "decay": decay,
            "sharpness": sharpness,
            "layers": layers,
            "seed": seed,
            "error": error.item(),
        }


def markdown_table(rows: Sequence[dict[str, object]]) -> str:
    """One line a point set, one column for each input; cells are the errors by depth."""
    inputs = list(dict.fromkeys((row["decay"], row["sharpness"]) for row in rows))
    errors: dict[tuple, list[float]] = {}
    for row in rows:
        labels = tuple(row[name] for name in LABELS)
        key = (labels, (row["decay"], row["sharpness"]), row["layers"])
        errors.setdefault(key, []).append(row["error"])
    header = [*LABELS, *(f"decay {decay:g}, sharpness {sharp:g}" for decay, sharp in inputs)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for labels in dict.fromkeys(key[0] for key in errors):
        cells = [str(label) for label in labels]
        for setting in inputs:
            values = [errors[labels, setting, layers] for layers in LAYERS]
            cells.append(" / ".join(f"{sum(value) / len(value):.1e}" for value in values))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder to write to")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=4, help="features and rotations of a network")
    parser.add_argument("--seeds", type=int, default=1, help="networks that are averaged")
    parser.add_argument("--decay", type=float, nargs="+", default=[1.0, 0.7])
    parser.add_argument("--sharpness", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--quick", action="store_true", help="three small point sets, 8 channels")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every case and write the two files."""
    arguments = parse_arguments(argv)
    cases, channels = full_cases(), arguments.channels
    if arguments.quick:
        cases, channels = quick_cases(), 8
    start = time.perf_counter()
    rows = []
    for case in cases:
        for seed, decay, sharpness in itertools.product(
            range(arguments.seeds), arguments.decay, arguments.sharpness
        ):
            rows += measure(case, channels, arguments.nodes, seed, decay, sharpness)
        print(f"{case.kind} {rows[-1]['S']}: {time.perf_counter() - start:.0f} s", flush=True)
    write_csv(arguments.output / "est_equivariance.csv", rows)
    table = markdown_table(rows)
    (arguments.output / "est_equivariance.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
