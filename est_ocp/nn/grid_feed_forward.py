"""EquiformerV2's feed-forward block: a perceptron at points on the sphere."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.s2_activation import activation_matrices
from est_ocp.nn.so3_linear import SO3Linear
from est_ocp.sphere import ConstantBuffers, SphereRule


class GridFeedForward(ConstantBuffers):
    """Separable grid perceptron of EquiformerV2 (arXiv 2306.12059, section 4.4 and figure 1d).

    A degree-wise linear map, values at the points of a rule, a three-layer SiLU perceptron shared
    by all points, quadrature back, a second degree-wise linear map. The scalars between the two
    maps come from a perceptron of the input's scalars instead, hence the scalars of the output
    depend on the scalars of the input alone. Equivariant up to the aliasing of the nonlinearity
    on the rule's points.

    Parameters
    ----------
    channels, hidden_channels, out_channels : int
    lmax : int
    rule : SphereRule
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        out_channels: int,
        lmax: int,
        rule: SphereRule,
    ) -> None:
        super().__init__()
        self.rule_name = rule.name
        self.linear_in = SO3Linear(channels, hidden_channels, lmax)
        self.scalar_mlp = nn.Sequential(nn.Linear(channels, hidden_channels), nn.SiLU())
        self.grid_mlp = nn.Sequential(
            nn.Linear(hidden_channels, hidden_channels, bias=False),
            nn.SiLU(),
            nn.Linear(hidden_channels, hidden_channels, bias=False),
            nn.SiLU(),
            nn.Linear(hidden_channels, hidden_channels, bias=False),
        )
        self.linear_out = SO3Linear(hidden_channels, out_channels, lmax)
        to_points, from_points = activation_matrices(rule, lmax, lmax)
        self.register_constant("to_points_matrix", to_points)
        self.register_constant("from_points_matrix", from_points[1:])

    def forward(
        self,
        x: torch.Tensor,
        batch: torch.Tensor | None = None,
        num_graphs: int | None = None,
    ) -> torch.Tensor:
        """Update ``x`` [N, (lmax+1)**2, channels] to [N, (lmax+1)**2, out_channels].

        ``batch`` and ``num_graphs`` are those of every update block and have no effect here.
        """
        scalars = self.scalar_mlp(x[:, :1])
        hidden = self.linear_in(x)
        values = self.grid_mlp(torch.matmul(self.to_points_matrix.to(hidden.dtype), hidden))
        tensors = torch.matmul(self.from_points_matrix.to(values.dtype), values)
        return self.linear_out(torch.cat((scalars.to(tensors.dtype), tensors), dim=1))

    def extra_repr(self) -> str:
        return f"rule={self.rule_name}"
