"""Depth-wise tensor product of features with the spherical harmonics of an edge."""

from __future__ import annotations

import math

import torch
from e3nn import o3

from est_ocp.errors import ConfigError
from est_ocp.nn.equiformer.layout import Blocks, IrrepsLayout
from est_ocp.nn.triton.support import can_fuse
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
    fused : bool
        Use the fused kernel (:mod:`est_ocp.nn.triton.path_products`) where it applies: on GPUs, in
        half precision or where TF32 is allowed, up to degree 2, and where the harmonics need no
        gradient, which it has not.

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
        self,
        irreps_in: IrrepsLayout,
        lmax_sh: int,
        degrees_out: tuple[int, ...] | list[int],
        *,
        fused: bool = True,
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
        self.used = [index for index, paths in enumerate(self.paths_of) if paths]
        self.fused = fused and max(*irreps_in.degrees, *degrees) <= 2
        if self.fused:
            self._register_tables()

    def _register_tables(self) -> None:
        """For the kernel: where the paths of each input degree begin and where their parts go."""
        channels = dict.fromkeys(self.irreps_out.degrees, 0)
        column = 0
        for index in self.used:
            width = self.irreps_in.widths[index]
            entries, row = [], 0
            for _, _, l3 in self.paths_of[index]:
                entries.append((l3, row, column, channels[l3]))
                row += 2 * l3 + 1
                column += width
                channels[l3] += width
            entries.sort()
            degrees = [entry[0] for entry in entries]
            starts = [degrees.index(d) if d in degrees else None for d in self.irreps_out.degrees]
            starts += [len(entries)] * (4 - len(starts))
            for i in reversed(range(3)):
                starts[i] = starts[i + 1] if starts[i] is None else starts[i]
            table = starts + [number for entry in entries for number in entry[1:]]
            table = torch.tensor(table, dtype=torch.int32)
            self.register_buffer(f"table_{index}", table, persistent=False)

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

    def forward(
        self, blocks: Blocks, edge_sh: torch.Tensor, weights: torch.Tensor | None = None
    ) -> Blocks:
        """Multiply.

        Parameters
        ----------
        blocks : list of Tensor [E, 2l+1, width]
            Features of ``irreps_in``.
        edge_sh : Tensor [E, (lmax_sh+1)**2]
            Harmonics of the edges, component normalised.
        weights : Tensor [E, num_weights], optional
            By path, then channel; all ones if left out.

        Returns
        -------
        list of Tensor
            Blocks of ``irreps_out``.
        """
        if self.fused and not edge_sh.requires_grad and can_fuse(blocks[0]):
            return self.multiply_fused(blocks, edge_sh, weights)
        outputs: dict[int, Blocks] = {degree: [] for degree in self.irreps_out.degrees}
        groups = None if weights is None else weights.split(self.weight_sizes, dim=1)
        for index in self.used:
            block, paths = blocks[index], self.paths_of[index]
            matrix = self._matrix(index, edge_sh)
            coupled = matrix * block if block.shape[1] == 1 else torch.bmm(matrix, block)
            # Slices would cost a tensor as large as `coupled` for each path in the backward pass.
            parts = coupled.split([2 * l3 + 1 for _, _, l3 in paths], dim=1)
            if groups is not None:
                weight_of = groups[index].unflatten(1, (len(paths), -1)).unbind(1)
                parts = [p * w.unsqueeze(1) for p, w in zip(parts, weight_of, strict=True)]
            for (_, _, l3), part in zip(paths, parts, strict=True):
                outputs[l3].append(part)
        return [torch.cat(parts, dim=2) for parts in outputs.values()]

    def multiply_fused(
        self, blocks: Blocks, edge_sh: torch.Tensor, weights: torch.Tensor | None = None
    ) -> Blocks:
        """As :meth:`forward`, by the fused kernel; the matrices stay in the harmonics' type."""
        # Imported here, as Triton is there on GPUs alone.
        from est_ocp.nn.triton.path_products import path_products

        with torch.autocast(edge_sh.device.type, enabled=False):
            matrices = [self._matrix(index, edge_sh) for index in self.used]
        return path_products(
            [blocks[index] for index in self.used],
            matrices,
            weights,
            [getattr(self, f"table_{index}") for index in self.used],
            list(self.irreps_out.degrees),
            list(self.irreps_out.widths),
        )

    def by_degree(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """Weights [num_weights] of paths as those of the channels of each block of the result."""
        parts: dict[int, list[torch.Tensor]] = {degree: [] for degree in self.irreps_out.degrees}
        sizes = [self.irreps_in.width(l1) for l1, _, _ in self.paths]
        for (_, _, l3), part in zip(self.paths, weights.split(sizes), strict=True):
            parts[l3].append(part)
        return [torch.cat(degree) for degree in parts.values()]

    def _matrix(self, index: int, edge_sh: torch.Tensor) -> torch.Tensor:
        """Matrix [E, K, 2 l1 + 1] of all paths of one input degree."""
        matrix = edge_sh @ getattr(self, f"coupling_{index}")
        return matrix.unflatten(1, (-1, 2 * self.irreps_in.degrees[index] + 1))

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}, lmax_sh={self.lmax_sh}"
