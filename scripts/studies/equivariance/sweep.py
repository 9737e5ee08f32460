"""Errors of untrained networks over point sets, degrees, depths and precisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from equivariance.molecules import batches, molecule_tensors
from equivariance.network import DepthNetwork, rotation_errors
from equivariance.points import PointSet, ladder
from est_ocp.sphere.discrepancy import cap_discrepancy

DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Settings:
    """What a sweep covers.

    Attributes
    ----------
    molecules : int
        How many of the embedded 2,000.
    batch : int
        Molecules at once.
    channels : int
        Width; all others are in proportion.
    degrees : sequence of int
        L.
    precisions : sequence of str
        Keys of :data:`DTYPES`.
    deep_degree : int
        The degree that gets all `layers`; the paper's is 2.
    layers, other_layers : int
        Depth at `deep_degree` and at the other degrees.
    sizes : sequence of int
        Only sets of so many points, whatever :func:`fits_degree` says; none: all that it takes.
    device : str
    """

    molecules: int = 1000
    batch: int = 16
    channels: int = 128
    degrees: Sequence[int] = (1, 2, 4, 6)
    precisions: Sequence[str] = tuple(DTYPES)
    deep_degree: int = 2
    layers: int = 6
    other_layers: int = 6
    device: str = "cpu"
    sizes: Sequence[int] = ()


def fits_degree(points: PointSet, lmax: int) -> bool:
    """Whether the size is worth measuring: enough points for the coefficients, not too many.

    Below ``1.5 (L+1)^2`` points no transform is close to exact; above ``100 L`` exact rules have
    reached the rounding of float64 or take long.
    """
    return 1.5 * (lmax + 1) ** 2 <= points.size <= 100 * lmax


def cases(
    settings: Settings, sets: Sequence[PointSet] | None = None
) -> list[tuple[int, str, PointSet]]:
    """Degree, precision and points of every network that is measured."""
    return [
        (lmax, dtype, points)
        for lmax in settings.degrees
        for dtype in settings.precisions
        for points in (ladder() if sets is None else sets)
        if (points.size in settings.sizes if settings.sizes else fits_degree(points, lmax))
    ]


def sweep(settings: Settings, sets: Sequence[PointSet] | None = None) -> Iterator[dict[str, Any]]:
    """Yield one row for every point set, degree, precision and depth."""
    tensors = molecule_tensors()
    molecules = batches(tensors, settings.molecules, settings.batch, settings.device)
    for lmax, dtype, points in tqdm(cases(settings, sets), desc="networks", mininterval=10):
        deep = lmax == settings.deep_degree
        layers = settings.layers if deep else settings.other_layers
        network = DepthNetwork(points, lmax, settings.channels, layers).to(settings.device)
        rule = points.softmax_rule()
        for depth, errors in enumerate(rotation_errors(network, molecules, DTYPES[dtype]), 1):
            yield {
                "points": points.name,
                "S": points.size,
                "degree": points.rule().degree,
                "cap_discrepancy": cap_discrepancy(rule),
                "L": lmax,
                "dtype": dtype,
                "layers": depth,
                "molecules": settings.molecules,
                "channels": settings.channels,
                **errors,
            }
