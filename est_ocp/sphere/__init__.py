"""Point sets, transforms and constants on the unit sphere; no trainable weights."""

from est_ocp.sphere.attention_bias import sphere_attention_bias
from est_ocp.sphere.constants import ConstantBuffers
from est_ocp.sphere.factory import make_rule
from est_ocp.sphere.harmonics import spherical_harmonics
from est_ocp.sphere.rule import SphereRule
from est_ocp.sphere.transform import SphericalTransform

__all__ = [
    "ConstantBuffers",
    "SphereRule",
    "SphericalTransform",
    "make_rule",
    "sphere_attention_bias",
    "spherical_harmonics",
]
