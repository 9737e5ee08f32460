"""Equiformer (arXiv 2206.11990) on irreps of unequal widths such as ``256x0e+128x1e``.

Node features between layers are flat ``[N, irreps.dim]`` in e3nn's layout; inside a layer they are
blocks ``[N, 2l+1, width]``, one a degree. Rotations only (SO(3)): every irrep is even.
"""

from __future__ import annotations

from est_ocp.nn.equiformer.attention import EquiformerAttention
from est_ocp.nn.equiformer.block import EquiformerBlock
from est_ocp.nn.equiformer.depthwise_tensor_product import DepthwiseTensorProduct
from est_ocp.nn.equiformer.edge_degree import IrrepsEdgeDegree
from est_ocp.nn.equiformer.edge_harmonics import edge_harmonics
from est_ocp.nn.equiformer.est_update import IrrepsESTUpdate
from est_ocp.nn.equiformer.feed_forward import IrrepsFeedForward
from est_ocp.nn.equiformer.gate import IrrepsGate
from est_ocp.nn.equiformer.layer_norm import IrrepsLayerNorm
from est_ocp.nn.equiformer.layout import IrrepsLayout
from est_ocp.nn.equiformer.linear import IrrepsLinear
from est_ocp.nn.equiformer.messages import LinearMessage, NonlinearMessage
from est_ocp.nn.equiformer.radial_basis import LearnableGaussianBasis
from est_ocp.nn.equiformer.radial_profile import RadialProfile

__all__ = [
    "DepthwiseTensorProduct",
    "EquiformerAttention",
    "EquiformerBlock",
    "IrrepsESTUpdate",
    "IrrepsEdgeDegree",
    "IrrepsFeedForward",
    "IrrepsGate",
    "IrrepsLayerNorm",
    "IrrepsLayout",
    "IrrepsLinear",
    "LearnableGaussianBasis",
    "LinearMessage",
    "NonlinearMessage",
    "RadialProfile",
    "edge_harmonics",
]
