"""One message-passing layer from the neighbours to the centre of a star, three kinds.

All take directions ``[G, fold, 3]`` and return the centre's steerable features
``[G, (L+1)**2, C]``. Neighbours are of one element at one distance: first features are scalars, the
same for all atoms, and the radial network's input is constant.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from e3nn import o3
from torch import nn

from est_ocp.nn import EquivariantLayerNorm, ESTMessageBlock, ESTUpdateBlock, SO3Linear
from est_ocp.sphere import SphereRule, spherical_harmonics

CHANNELS = 8
HIDDEN = 16


class ESTStar(nn.Module):
    """EST message block and EST update block, both without steerable experts, with residuals.

    Parameters
    ----------
    lmax : int
        Degree L.
    fold : int
        Number of neighbours; sums over them are divided by its root.
    rule : SphereRule
        Points of the sphere, for both blocks.
    norm, inverse : str
        As of :class:`est_ocp.nn.ESTUpdateBlock`.
    update_norm : bool
        Normalise what the update block reads.
    """

    def __init__(
        self,
        lmax: int,
        fold: int,
        rule: SphereRule,
        norm: str = "sphere",
        inverse: str = "quadrature",
        update_norm: bool = True,
    ) -> None:
        super().__init__()
        self.lmax = lmax
        self.embedding = nn.Parameter(torch.randn(CHANNELS))
        experts = {"num_spherical_experts": 1, "num_steerable_experts": 0, "inverse": inverse}
        experts["spherical_expert_channels"] = HIDDEN
        self.norm_1 = EquivariantLayerNorm(lmax, CHANNELS)
        self.message = ESTMessageBlock(
            CHANNELS, lmax, rule, [1, HIDDEN], hidden_channels=CHANNELS, avg_degree=fold, **experts
        )
        self.norm_2 = EquivariantLayerNorm(lmax, CHANNELS) if update_norm else nn.Identity()
        self.update = ESTUpdateBlock(CHANNELS, lmax, rule, norm=norm, **experts)

    def forward(self, directions: torch.Tensor) -> torch.Tensor:
        graphs, fold = directions.shape[:2]
        # Node 0 stands for every neighbour: they are alike. The centres follow.
        x = _scalars(self.embedding, graphs + 1, self.lmax)
        target = torch.arange(1, graphs + 1).repeat_interleave(fold)
        edges = torch.stack((torch.zeros_like(target), target))
        ones = directions.new_ones(graphs * fold)
        harmonics = spherical_harmonics(directions.flatten(0, 1), self.lmax)
        message = self.message(self.norm_1(x), edges, harmonics, ones[:, None], ones)
        x = (x + message)[1:]
        return x + self.update(self.norm_2(x))


class TFNStar(nn.Module):
    """Tensor field layer: scalars times harmonics, summed, mixed, gated.

    With scalar inputs the tensor product of features and harmonics has one path a degree.
    """

    def __init__(self, lmax: int, fold: int) -> None:
        super().__init__()
        self.lmax, self.scale = lmax, fold**-0.5
        self.embedding = nn.Parameter(torch.randn(CHANNELS))
        self.radial = nn.Parameter(torch.randn(lmax + 1, CHANNELS))
        self.mix = SO3Linear(CHANNELS, CHANNELS, lmax)
        self.gates = nn.Linear(CHANNELS, lmax * CHANNELS)

    def aggregate(self, directions: torch.Tensor) -> torch.Tensor:
        """Sum over the neighbours, [G, (L+1)**2, C]."""
        degrees = list(range(self.lmax + 1))
        harmonics = o3.spherical_harmonics(
            degrees, directions, normalize=False, normalization="component"
        )
        weights = _of_coefficients(self.radial * self.embedding)
        return harmonics.sum(dim=1).unsqueeze(-1) * weights * self.scale

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """Add to the first features what is mixed and gated."""
        x = self.mix(x)
        gates = torch.sigmoid(self.gates(x[:, 0])).unflatten(-1, (self.lmax, CHANNELS))
        gates = torch.cat((torch.sigmoid(x[:, :1]), gates), dim=1)
        gated = x * _of_coefficients(gates)
        return gated + _scalars(self.embedding, len(x), self.lmax)

    def forward(self, directions: torch.Tensor) -> torch.Tensor:
        return self.activate(self.aggregate(directions))


class MACEStar(TFNStar):
    """The tensor field layer with products of up to three sums over neighbours (four bodies)."""

    def __init__(self, lmax: int, fold: int) -> None:
        super().__init__(lmax, fold)
        self.factors = nn.ModuleList(SO3Linear(CHANNELS, CHANNELS, lmax) for _ in range(2))
        self.terms = nn.ModuleList(SO3Linear(CHANNELS, CHANNELS, lmax) for _ in range(2))

    def forward(self, directions: torch.Tensor) -> torch.Tensor:
        first = self.aggregate(directions)
        table = coupling(self.lmax).to(first)
        total = power = first
        for factor, term in zip(self.factors, self.terms, strict=True):
            outer = torch.einsum("gic,gjc->gcij", power, factor(first)).flatten(-2)
            power = torch.matmul(outer, table).transpose(1, 2)
            total = total + term(power)
        return self.activate(total)


@lru_cache(maxsize=8)
def coupling(lmax: int) -> torch.Tensor:
    """Clebsch-Gordan coefficients of all products up to degree lmax, [I * I, I], float64.

    e3nn's 3j symbols; a path into degree c has the factor sqrt((2c + 1) / number of such paths).
    """
    size = (lmax + 1) ** 2
    table = torch.zeros(size, size, size, dtype=torch.float64)
    part = [slice(degree**2, (degree + 1) ** 2) for degree in range(lmax + 1)]
    for c in range(lmax + 1):
        degrees = range(lmax + 1)
        pairs = [(a, b) for a in degrees for b in degrees if abs(a - b) <= c <= a + b]
        scale = ((2 * c + 1) / len(pairs)) ** 0.5
        for a, b in pairs:
            symbols = o3.wigner_3j(a, b, c, dtype=torch.float64)
            table[part[a], part[b], part[c]] = scale * symbols
    return table.flatten(0, 1)


def _scalars(embedding: torch.Tensor, nodes: int, lmax: int) -> torch.Tensor:
    """Features [nodes, (lmax+1)**2, C] with the embedding as scalars and zeros elsewhere."""
    x = embedding.expand(nodes, 1, -1)
    return torch.nn.functional.pad(x, (0, 0, 0, (lmax + 1) ** 2 - 1))


def _of_coefficients(x: torch.Tensor) -> torch.Tensor:
    """Repeat [..., L + 1, C], a row a degree, to [..., (L+1)**2, C], a row a coefficient."""
    counts = torch.arange(x.shape[-2]) * 2 + 1
    return torch.repeat_interleave(x, counts, dim=-2)


LAYERS = {"tfn": TFNStar, "mace": MACEStar}
