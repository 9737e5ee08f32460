"""Irreps of unequal widths: one flat tensor outside, one block a degree inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from e3nn import o3

from est_ocp.errors import ConfigError

#: Features by degree: Tensor [N, 2l+1, width of l], one for each degree of a layout.
Blocks = list[torch.Tensor]


class IrrepsLayout:
    """Degrees and widths of features such as ``256x0e+128x1e``.

    Two forms of the same features: *flat* ``[N, dim]`` is e3nn's layout (degree, channel,
    coefficient), in which layers exchange node features; *blocks* are a list of
    ``[N, 2l+1, width]``, one tensor a degree with channels last, in which matrix products are
    fast and which is the package's steerable layout but for the widths. Features are those of
    SO(3): all irreps have even parity, as in Equiformer (arXiv 2206.11990).

    Parameters
    ----------
    irreps : str, o3.Irreps or IrrepsLayout
        Sorted by degree, every degree at most once after merging neighbours.

    Attributes
    ----------
    degrees : tuple of int
        Degrees present, ascending.
    widths : tuple of int
        Number of channels of each.
    dim : int
        Length of a flat feature.

    Raises
    ------
    ConfigError
        If the text is not irreps, or the irreps are empty, unsorted or odd.
    """

    def __init__(self, irreps: str | o3.Irreps | IrrepsLayout) -> None:
        try:
            parsed = o3.Irreps(str(irreps)).simplify()
        except ValueError:
            raise ConfigError(f"'{irreps}' are not irreps; write e.g. 256x0e+128x1e") from None
        degrees = [ir.l for _, ir in parsed]
        if not degrees or sorted(set(degrees)) != degrees or any(ir.p != 1 for _, ir in parsed):
            raise ConfigError(
                f"irreps '{irreps}' must be even, sorted by degree, and name every degree once, "
                "e.g. 256x0e+128x1e"
            )
        self.degrees = tuple(degrees)
        self.widths = tuple(mul for mul, _ in parsed)
        self.sizes = [m * (2 * d + 1) for m, d in zip(self.widths, self.degrees, strict=True)]
        self.dim = sum(self.sizes)

    @classmethod
    def of(cls, degrees: Iterable[int], widths: Iterable[int]) -> IrrepsLayout:
        """Layout of the given degrees and widths."""
        return cls("+".join(f"{w}x{d}e" for d, w in zip(degrees, widths, strict=True)))

    @classmethod
    def uniform(cls, channels: int, lmax: int) -> IrrepsLayout:
        """The same number of channels for every degree up to ``lmax``."""
        return cls.of(range(lmax + 1), [channels] * (lmax + 1))

    def width(self, degree: int) -> int:
        """Channels of a degree; zero if it is absent."""
        return self.widths[self.degrees.index(degree)] if degree in self.degrees else 0

    def keep(self, degrees: Iterable[int]) -> IrrepsLayout:
        """The part of the layout that has the given degrees."""
        kept = [d for d in self.degrees if d in set(degrees)]
        return IrrepsLayout.of(kept, [self.width(d) for d in kept])

    def times(self, factor: int) -> IrrepsLayout:
        """The layout with every width multiplied, e.g. that of all heads."""
        return IrrepsLayout.of(self.degrees, [factor * w for w in self.widths])

    def split(self, flat: torch.Tensor) -> Blocks:
        """Blocks ``[N, 2l+1, width]`` (views) of a flat tensor ``[N, dim]``."""
        parts = flat.split(self.sizes, dim=-1)
        return [
            part.unflatten(-1, (width, -1)).transpose(-1, -2)
            for part, width in zip(parts, self.widths, strict=True)
        ]

    def join(self, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        """Flat tensor ``[N, dim]`` of blocks; the inverse of :meth:`split`."""
        return torch.cat([block.transpose(-1, -2).flatten(-2) for block in blocks], dim=-1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IrrepsLayout) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return "+".join(f"{w}x{d}e" for d, w in zip(self.degrees, self.widths, strict=True))

    def __repr__(self) -> str:
        return f"IrrepsLayout({self})"
