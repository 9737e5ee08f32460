"""Layers in plain PyTorch: tensors in, tensors out, one concept a file.

Steerable features are ``[N, (lmax+1)**2, C]`` in e3nn's convention, component normalised.
"""

from __future__ import annotations

from est_ocp.nn.axial_attention import AxialAttention, CoefficientNorm
from est_ocp.nn.balance_loss import expert_usage, load_balance_loss
from est_ocp.nn.bessel_basis import BesselBasis
from est_ocp.nn.drop import EquivariantDropout, GraphDropPath
from est_ocp.nn.edge_degree_embedding import EdgeDegreeEmbedding
from est_ocp.nn.edge_frame import EdgeFrame
from est_ocp.nn.envelope import PolynomialEnvelope
from est_ocp.nn.est_layer import ESTLayer
from est_ocp.nn.est_message import ESTMessageBlock
from est_ocp.nn.est_update import ESTUpdateBlock
from est_ocp.nn.expert_gate import ExpertGate, ExpertGateMLP
from est_ocp.nn.gate_recorder import GateRecorder
from est_ocp.nn.graph_attention import EquiformerV2Attention
from est_ocp.nn.grid_feed_forward import GridFeedForward
from est_ocp.nn.harmonic_edge_embedding import HarmonicEdgeEmbedding
from est_ocp.nn.init import init_weights
from est_ocp.nn.layer_norm import EquivariantLayerNorm
from est_ocp.nn.mixture_of_experts import MixtureOfHybridExperts
from est_ocp.nn.radial_basis import GaussianBasis
from est_ocp.nn.radial_mlp import RadialMLP
from est_ocp.nn.so2_convolution import SO2Convolution
from est_ocp.nn.so3_linear import SO3Linear
from est_ocp.nn.sphere_norm import SphereNorm
from est_ocp.nn.spherical_attention import SphericalAttention
from est_ocp.nn.spherical_expert import SphericalExperts
from est_ocp.nn.steerable_expert import SteerableExperts
from est_ocp.nn.transformer_block import TransformerBlock

__all__ = [
    "AxialAttention",
    "BesselBasis",
    "CoefficientNorm",
    "ESTLayer",
    "ESTMessageBlock",
    "ESTUpdateBlock",
    "EdgeDegreeEmbedding",
    "EdgeFrame",
    "EquiformerV2Attention",
    "EquivariantDropout",
    "EquivariantLayerNorm",
    "ExpertGate",
    "ExpertGateMLP",
    "GateRecorder",
    "GaussianBasis",
    "GraphDropPath",
    "GridFeedForward",
    "HarmonicEdgeEmbedding",
    "MixtureOfHybridExperts",
    "PolynomialEnvelope",
    "RadialMLP",
    "SO2Convolution",
    "SO3Linear",
    "SphereNorm",
    "SphericalAttention",
    "SphericalExperts",
    "SteerableExperts",
    "TransformerBlock",
    "expert_usage",
    "init_weights",
    "load_balance_loss",
]
