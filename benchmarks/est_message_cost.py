"""Time and memory of one EST message layer on a batch of molecules of QM9's size.

    python benchmarks/est_message_cost.py --molecules 16

Compares the block with the same function computed plainly (values at all points for every edge),
with Equiformer's graph attention and with the EST update. Memory is what autograd keeps for the
backward pass: distinct tensors, parameters left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from ase.build import molecule
from ase.neighborlist import neighbor_list
from torch import nn

from est_ocp.nn import (
    ESTMessageBlock,
    ESTUpdateBlock,
    SphereNorm,
    SphericalAttention,
)
from est_ocp.nn.equiformer import EquiformerAttention, IrrepsLayout
from est_ocp.nn.harmonic_edge_embedding import scale_harmonics
from est_ocp.nn.scatter import scatter_sum
from est_ocp.sphere import SphericalTransform, make_rule, spherical_harmonics

#: Molecules of ASE's G2 set with 12 to 16 atoms; QM9's have 18 on average.
NAMES = ("C6H6", "CH3CH2OCH3", "isobutane", "trans-butane", "C3H9N", "cyclobutane", "bicyclobutane")
CHANNELS, LMAX, NUM_BASIS = 128, 2, 128


class PlainMessage(nn.Module):
    """The equations of :class:`ESTMessageBlock` as written, all of it at all points."""

    def __init__(self, block: ESTMessageBlock, rule) -> None:
        super().__init__()
        self.block = block
        width = block.hidden_channels
        self.transform = SphericalTransform(rule, block.lmax)
        self.attention = SphericalAttention(width, rule)
        self.spherical_norm = SphereNorm(width, rule)

    def forward(self, x, edge_index, edge_sh, edge_scalars, envelope):
        """As of :class:`ESTMessageBlock`."""
        block, scale = self.block, self.block.lmax + 1
        source, target = edge_index
        h = block.source(x)[source] + block.target(x)[target]
        radial = block.radial(edge_scalars).unflatten(-1, (scale, -1))
        e = scale_harmonics(edge_sh, radial)
        f = self.transform.to_points(h / scale)
        f = f + self.attention(f, self.transform.to_points(e))
        gate = block.gate((h + e)[:, 0]) * envelope.unsqueeze(1)
        spherical, steerable = gate.tensor_split([block.num_spherical_experts], dim=1)
        on_sphere = block.spherical(self.spherical_norm(f), spherical)
        message = scale * self.transform.from_points(on_sphere) + block.steerable(h + e, steerable)
        return block.map_out(scatter_sum(message, target, len(x)))


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Edges [2, E] and vectors [E, 3] of `count` molecules at 5 Angstrom, and their atoms."""
    index, vectors, atoms = [], [], 0
    for number in range(count):
        made = molecule(NAMES[number % len(NAMES)])
        target, source, vec = neighbor_list("ijD", made, 5.0)
        index.append(torch.tensor([source, target]) + atoms)
        vectors.append(torch.tensor(vec))
        atoms += len(made)
    return torch.cat(index, dim=1), torch.cat(vectors).float(), atoms


def measure(function: Callable[[], torch.Tensor], repeats: int) -> tuple[float, float, float]:
    """Fewest seconds of the processor forward and backward, and megabytes kept in between."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function().sum().backward()
    forward, backward = [], []
    for _ in range(repeats):
        start = time.process_time()
        loss = function().sum()
        middle = time.process_time()
        loss.backward()
        forward.append(middle - start)
        backward.append(time.process_time() - middle)
    return min(forward), min(backward), sum(kept.values()) / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    index, vec, num_nodes = batch(options.molecules)
    num_edges = index.shape[1]
    harmonics = spherical_harmonics(vec / vec.norm(dim=1, keepdim=True), LMAX)
    scalars, envelope = torch.rand(num_edges, NUM_BASIS), torch.rand(num_edges)
    x = torch.randn(num_nodes, (LMAX + 1) ** 2, CHANNELS, requires_grad=True)
    edges = (index, harmonics, scalars, envelope)

    def message(points: int) -> ESTMessageBlock:
        rule = make_rule("lebedev", points)
        return ESTMessageBlock(
            CHANNELS, LMAX, rule, [NUM_BASIS, 64, 64], avg_degree=num_edges / num_nodes
        )

    irreps = IrrepsLayout("128x0e+64x1e+32x2e")
    attention = EquiformerAttention(
        irreps, irreps, irreps, IrrepsLayout("32x0e+16x1e+8x2e"), 4, LMAX, [NUM_BASIS, 64, 64]
    )
    flat = torch.randn(num_nodes, irreps.dim, requires_grad=True)
    update = ESTUpdateBlock(
        CHANNELS,
        LMAX,
        make_rule("lebedev", 26),
        hidden_channels=64,
        spherical_expert_channels=256,
        steerable_expert_channels=128,
    )
    plain = PlainMessage(message(26), make_rule("lebedev", 26))
    small, large = message(26), message(50)
    rows = {
        "EST message, 26 points": lambda: small(x, *edges),
        "EST message, 50 points": lambda: large(x, *edges),
        "the same plainly, 26 points": lambda: plain(x, *edges),
        "Equiformer's graph attention": lambda: attention(flat, index, harmonics, scalars),
        "EST update, 26 points": lambda: update(x),
    }
    degree = num_edges / num_nodes
    print(f"{num_nodes} atoms, {num_edges} edges ({degree:.1f} an atom), one thread")
    print("| block | forward, ms | backward, ms | kept, MB |\n|---|---|---|---|")
    for name, function in rows.items():
        forward, backward, memory = measure(function, options.repeats)
        print(f"| {name} | {1e3 * forward:.0f} | {1e3 * backward:.0f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
