"""A small random graph for EST messages, and the block's equations written out plainly."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from est_ocp.nn import ESTMessageBlock, SphereNorm
from est_ocp.nn.axial_attention import CoefficientNorm
from est_ocp.sphere import SphereRule, make_rule, spherical_harmonics
from tests.nn.rotations import rotate

CHANNELS, HIDDEN, NUM_BASIS = 6, 8, 5
SIZES = {
    "hidden_channels": HIDDEN,
    "num_spherical_experts": 2,
    "spherical_expert_channels": 10,
    "num_steerable_experts": 2,
    "steerable_expert_channels": 6,
    "avg_degree": 4.0,
}


@dataclass(frozen=True)
class Edges:
    """Inputs of a message block."""

    x: torch.Tensor
    edge_index: torch.Tensor
    directions: torch.Tensor
    edge_scalars: torch.Tensor
    envelope: torch.Tensor
    lmax: int

    def arguments(self) -> tuple[torch.Tensor, ...]:
        harmonics = spherical_harmonics(self.directions, self.lmax)
        return self.x, self.edge_index, harmonics, self.edge_scalars, self.envelope

    def rotated(self, rotation: torch.Tensor) -> Edges:
        x = rotate(self.x, rotation, self.lmax)
        return replace(self, x=x, directions=self.directions @ rotation.T)

    def subset(self, chosen: torch.Tensor | slice) -> Edges:
        return replace(
            self,
            edge_index=self.edge_index[:, chosen],
            directions=self.directions[chosen],
            edge_scalars=self.edge_scalars[chosen],
            envelope=self.envelope[chosen],
        )


def make_edges(
    nodes: int = 6, edges: int = 21, lmax: int = 2, dtype: torch.dtype = torch.float64
) -> Edges:
    """Random edges; the first two point up and down the polar axis; the last node has none."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    directions = normal(edges, 3)
    directions[:2] = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]], dtype=dtype)
    return Edges(
        normal(nodes, (lmax + 1) ** 2, CHANNELS),
        torch.randint(0, nodes - 1, (2, edges), generator=generator),
        directions / directions.norm(dim=1, keepdim=True),
        normal(edges, NUM_BASIS).abs(),
        torch.rand(edges, generator=generator, dtype=dtype),
        lmax,
    )


def make_block(
    rule: SphereRule | None = None,
    lmax: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **options,
) -> ESTMessageBlock:
    """A block whose biases and norms are far from their special initial values."""
    torch.manual_seed(seed)
    rule = make_rule("lebedev", 26) if rule is None else rule
    block = ESTMessageBlock(CHANNELS, lmax, rule, [NUM_BASIS, 7], **(SIZES | options))
    for name, parameter in block.named_parameters():
        if parameter.dim() == 1 or "bias" in name:
            scale = "norm.weight" in name
            torch.nn.init.normal_(parameter, float(scale), 0.3)
    return block.to(dtype).eval()


def literal_messages(block: ESTMessageBlock, rule: SphereRule, edges: Edges) -> torch.Tensor:
    """The equations of the block's docstring, edge by edge and point by point.

    Only linear maps, experts and gate are the block's own modules.
    """
    x, edge_index, harmonics, edge_scalars, envelope = edges.arguments()
    lmax, attention = block.lmax, block.attention
    heads, points = attention.num_heads, rule.points.to(x.dtype)
    values = spherical_harmonics(rule.points, lmax).to(x.dtype)

    def norm(parameters: CoefficientNorm, f: torch.Tensor) -> torch.Tensor:
        made = SphereNorm(HIDDEN, rule).to(f.dtype)
        return torch.func.functional_call(made, dict(parameters.named_parameters()), f)

    def split(f: torch.Tensor) -> torch.Tensor:
        return f.view(len(points), heads, HIDDEN // heads).transpose(0, 1)

    out = x.new_zeros(len(x), (lmax + 1) ** 2, HIDDEN)
    for edge, (source, target) in enumerate(edge_index.T.tolist()):
        h = block.source(x[[source]]) + block.target(x[[target]])
        radial = block.radial(edge_scalars[[edge]]).view(lmax + 1, HIDDEN)
        e = torch.stack(
            [
                radial[degree] * harmonics[edge, degree * degree + m]
                for degree in range(lmax + 1)
                for m in range(2 * degree + 1)
            ]
        )[None]
        f = values @ h / (lmax + 1)
        q = split(attention.query(norm(attention.query_norm, f))[0])
        context = norm(attention.context_norm, values @ e)[0]
        k, v = split(attention.key(context)), split(attention.value(context))
        logits = (q @ k.mT + points @ points.T) / math.sqrt(HIDDEN // heads)
        weights = torch.softmax(logits + torch.log(rule.weights), dim=-1)
        f = f + attention.out((weights @ v).transpose(0, 1).reshape(1, len(points), HIDDEN))
        m = h + e
        gate = m.new_ones(1, 1) if block.gate is None else block.gate(m[:, 0])
        spherical = gate[:, : block.num_spherical_experts]
        on_sphere = block.spherical(norm(block.spherical_norm, f), spherical)
        message = (lmax + 1) * block.transform.from_points(on_sphere)
        if block.steerable is not None:
            message = message + block.steerable(m, gate[:, block.num_spherical_experts :])
        out[target] += envelope[edge] * message[0]
    out = out[:, block.lmin_out**2 : (block.lmax_out + 1) ** 2]
    return block.map_out(out) / math.sqrt(SIZES["avg_degree"])
