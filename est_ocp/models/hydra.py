"""fairchem's HydraModel with the weight-decay groups that its trainer asks for."""

from __future__ import annotations

from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from torch import nn

from est_ocp.nn import BesselBasis, CoefficientNorm, EquivariantLayerNorm, SphereNorm
from est_ocp.nn.equiformer import IrrepsLayerNorm, LearnableGaussianBasis

_UNDECAYED = (
    nn.LayerNorm,
    nn.Embedding,
    EquivariantLayerNorm,
    SphereNorm,
    IrrepsLayerNorm,
    LearnableGaussianBasis,
    BesselBasis,
    CoefficientNorm,
)


def undecayed_parameters(module: nn.Module) -> set[str]:
    """Names of parameters that weight decay leaves alone: norms, embeddings, radial bases, biases.

    The rule of Equiformer and EquiformerV2 (their code), with embeddings excluded too.
    """
    names = set()
    for prefix, child in module.named_modules():
        for name, _ in child.named_parameters(recurse=False):
            if isinstance(child, _UNDECAYED) or "bias" in name:
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


@registry.register_model("est_hydra")
class ESTHydraModel(HydraModel):
    """fairchem's :class:`HydraModel` with ``no_weight_decay``.

    The stock class has no such method, so its trainer would decay norms, biases and embeddings.
    Single atoms are supported, so no table of isolated atoms' energies is needed.
    """

    def __init__(self, *args, supports_single_atoms: bool = True, **kwargs) -> None:
        super().__init__(*args, supports_single_atoms=supports_single_atoms, **kwargs)

    def no_weight_decay(self) -> set[str]:
        """Full names of the parameters without weight decay."""
        return undecayed_parameters(self)
