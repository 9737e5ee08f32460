"""Depth-wise tensor product of features with the spherical harmonics of an edge."""

from __future__ import annotations

import math

import torch
from e3nn import o3

from est_ocp.errors import ConfigError
from est_ocp.nn.equiformer.layout import Blocks, IrrepsLayout
from est_ocp.sphere import ConstantBuffers


class DepthwiseTensorProduct(ConstantBuffers):
    """Couple every channel with the harmonics, each channel and path with a weight of its own.

    For a path ``(l1, l2, l3)``, with Wigner 3j symbols ``C`` of norm one,
    ``y_{l3 k, u} = w_{path, u} sqrt(2 l3 + 1) sum_{ij} C_ijk x_{l1 i, u} Y_{l2 j}``: component
    normalisation without a factor for the number of paths (Equiformer's rescaling moves that
    into the weights, where it is 1 because every path fills channels of its own). All paths of an
    input degree share one small matrix an edge. The matrices come from float64 constants.

    Parameters
    ----------
    irreps_in : IrrepsLayout
        Features.
    lmax_sh : int
        Harmonics of degrees 0 to ``lmax_sh``, one each.
    degrees_out : sequence of int
        Degrees of the result.

    Attributes
    ----------
    paths : list of tuple
        ``(l1, l2, l3)`` in the order of the weights: by l1, then l2, then l3.
    irreps_out : IrrepsLayout
        Channels of all paths to a degree, in the order of the paths.
    num_weights : int
        Weights an edge: the width of l1 for each path.
    """

    def __init__(
        self, irreps_in: IrrepsLayout, lmax_sh: int, degrees_out: tuple[int, ...] | list[int]
    ) -> None:
        super().__init__()
        if lmax_sh < 0:
            raise ConfigError(f"the degree of the edge harmonics must be >= 0, got {lmax_sh}")
        self.irreps_in = irreps_in
        self.lmax_sh = lmax_sh
        self.paths_of = [
            [
                (l1, l2, l3)
                for l2 in range(lmax_sh + 1)
                for l3 in range(abs(l1 - l2), l1 + l2 + 1)
                if l3 in degrees_out
            ]
            for l1 in irreps_in.degrees
        ]
        self.paths = [path for paths in self.paths_of for path in paths]
        self.weight_sizes = [
            len(paths) * width for paths, width in zip(self.paths_of, irreps_in.widths, strict=True)
        ]
        self.num_weights = sum(self.weight_sizes)
        self._register_couplings()
        widths: dict[int, int] = {}
        for l1, _, l3 in self.paths:
            widths[l3] = widths.get(l3, 0) + irreps_in.width(l1)
        degrees = sorted(widths)
        if not set(degrees_out) <= widths.keys():
            raise ConfigError(
                f"the tensor product of {irreps_in} with harmonics up to degree {lmax_sh} cannot "
                f"make degrees {sorted(set(degrees_out) - widths.keys())}; raise lmax_sh"
            )
        self.irreps_out = IrrepsLayout.of(degrees, [widths[d] for d in degrees])

    def _register_couplings(self) -> None:
        """One constant [(lmax_sh+1)**2, K * (2 l1 + 1)] for each input degree with paths."""
        for index, paths in enumerate(self.paths_of):
            columns = []
            for l1, l2, l3 in paths:
                coupling = torch.zeros(
                    (self.lmax_sh + 1) ** 2, 2 * l3 + 1, 2 * l1 + 1, dtype=torch.float64
                )
                symbol = o3.wigner_3j(l1, l2, l3, dtype=torch.float64) * math.sqrt(2 * l3 + 1)
                coupling[l2 * l2 : (l2 + 1) ** 2] = symbol.permute(1, 2, 0)
                columns.append(coupling)
            if columns:
                self.register_constant(f"coupling_{index}", torch.cat(columns, dim=1).flatten(1))

    def forward(self, blocks: Blocks, edge_sh: torch.Tensor, weights: torch.Tensor) -> Blocks:
        """Multiply.

        Parameters
        ----------
        blocks : list of Tensor [E, 2l+1, width]
            Features of ``irreps_in``.
        edge_sh : Tensor [E, (lmax_sh+1)**2]
            Harmonics of the edges, component normalised.
        weights : Tensor [E, num_weights] or [1, num_weights]
            By path, then channel.

        Returns
        -------
        list of Tensor
            Blocks of ``irreps_out``.
        """
        outputs: dict[int, Blocks] = {degree: [] for degree in self.irreps_out.degrees}
        groups = weights.split(self.weight_sizes, dim=1)
        for index, (block, paths) in enumerate(zip(blocks, self.paths_of, strict=True)):
            if not paths:
                continue
            matrix = edge_sh @ getattr(self, f"coupling_{index}")
            matrix = matrix.unflatten(1, (-1, block.shape[1]))
            coupled = matrix * block if block.shape[1] == 1 else torch.bmm(matrix, block)
            weight_of = groups[index].unflatten(1, (len(paths), -1)).unbind(1)
            # Slices would cost a tensor as large as `coupled` for each path in the backward pass.
            parts = coupled.split([2 * l3 + 1 for _, _, l3 in paths], dim=1)
            for (_, _, l3), part, weight in zip(paths, parts, weight_of, strict=True):
                outputs[l3].append(part * weight.unsqueeze(1))
        return [torch.cat(parts, dim=2) for parts in outputs.values()]

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}, lmax_sh={self.lmax_sh}"
