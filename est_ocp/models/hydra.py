"""fairchem's HydraModel with what its trainer asks for, and with CUDA graphs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from ase import Atoms
from ase.data import atomic_numbers
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from torch import nn

from est_ocp.models.captured_training import CapturedSteps
from est_ocp.models.cuda_graph import CapturedForwards
from est_ocp.models.graph import EDGE_INDEX, EDGE_VEC
from est_ocp.models.trained_elements import TrainedElements
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
    """fairchem's :class:`HydraModel` with ``no_weight_decay`` and CUDA graphs; remembers elements.

    The stock class has no such method, so its trainer would decay norms, biases and embeddings.
    Single atoms are supported, so no table of isolated atoms' energies is needed.

    Predictions for small batches on a GPU (evaluation mode, no gradients, direct forces) are
    captured as a CUDA graph when sizes repeat, and replayed: their time is that of starting
    hundreds of kernels one by one. Steps of training (training mode, with gradients) can be, of
    any size, forward and backward; their graphs stay through evaluations. The search for
    neighbours and the loss stay outside.

    ASE structures with elements that training has not met are predicted with a warning.

    Parameters
    ----------
    cuda_graphs : {"never", "inference", "training", "always"}
        What CUDA graphs are used for.
    cuda_graph_atoms : int
        Predictions for batches of more atoms are never captured.
    *args, supports_single_atoms, **kwargs
        As of fairchem's class.

    Attributes
    ----------
    captured : CapturedForwards
        Graphs of predictions; ``captured.mode`` may be set at any time.
    captured_steps : CapturedSteps
        Graphs of training steps; its ``mode`` too.
    trained_elements : TrainedElements
        Those of the batches seen in training mode.

    Raises
    ------
    ConfigError
        If a setting has no meaning.
    """

    def __init__(
        self,
        *args: Any,
        supports_single_atoms: bool = True,
        cuda_graphs: str = "inference",
        cuda_graph_atoms: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, supports_single_atoms=supports_single_atoms, **kwargs)
        self.captured = CapturedForwards(cuda_graphs, cuda_graph_atoms)
        self.captured_steps = CapturedSteps(cuda_graphs)
        num_elements = getattr(self.backbone, "max_num_elements", len(atomic_numbers))
        self.trained_elements = TrainedElements(num_elements)

    def no_weight_decay(self) -> set[str]:
        """Full names of the parameters without weight decay."""
        return undecayed_parameters(self)

    def train(self, mode: bool = True) -> ESTHydraModel:
        """Switch between training and evaluation; training drops the graphs of predictions."""
        if mode:
            self.captured.clear()
        return super().train(mode)

    @property
    def capturable(self) -> bool:
        """Whether a pass runs on padded batches and without waiting for the device.

        Recomputed layers draw their random numbers again, which a captured pass cannot.
        """
        parts = (self.backbone, *self.output_heads.values())
        config = self.backbone.regress_config
        return (
            all(getattr(part, "capturable", False) for part in parts)
            and not getattr(self.backbone, "record_gates", False)
            and not (self.training and getattr(self.backbone, "activation_checkpointing", False))
            and (config.direct_forces or not config.forces)
        )

    def validate_atoms_data(self, atoms: Atoms, task_name: str) -> None:
        """Check an ASE structure; warn of elements that training has not met.

        Raises
        ------
        DataError
            As the backbone's.
        """
        super().validate_atoms_data(atoms, task_name)
        warning = self.trained_elements.first_warning(atoms.numbers.tolist())
        if warning is not None:
            # No log, which is silent during a first prediction.
            warnings.warn(warning, stacklevel=2)

    def forward(self, data: Any) -> dict[str, Any]:
        """Predict the tasks of a batch (fairchem ``AtomicData``)."""
        out = self._forward(data)
        if self.training:
            # Afterwards, when the backbone has refused what is no element of its table.
            self.trained_elements.record(data.atomic_numbers)
        return out

    def _forward(self, data: Any) -> dict[str, Any]:
        graphs = self.captured_steps if self.training else self.captured
        # Compiling traces the model itself.
        if torch.compiler.is_compiling() or not (graphs.wanted(data) and self.capturable):
            return super().forward(data)
        carried = EDGE_VEC in data
        graph = self.backbone.radius_graph(data)
        layers = getattr(self.backbone, "call_layer", None)
        mode = None if layers is None else layers.mode
        out = graphs(self, super().forward, data, graph, mode)
        if out is not None:
            return out
        with graphs.plainly():
            if carried:
                return super().forward(data)
            data[EDGE_INDEX], data[EDGE_VEC] = graph.edge_index, graph.vec
            try:
                return super().forward(data)
            finally:
                del data[EDGE_INDEX], data[EDGE_VEC]
