"""What is measured: EST's two blocks and two whole models, with any points and degree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from buildingblocks.molecules import FlatMolecules
from torch import nn

from est_ocp.data.qm9_subset import read_subset
from est_ocp.models.graph import EDGE_INDEX, EDGE_VEC
from est_ocp.nn import ESTMessageBlock, ESTUpdateBlock
from est_ocp.sphere import make_rule

#: Lebedev rules of positive weights from about 20 to 350 points.
SIZES = (26, 50, 86, 110, 146, 194, 302, 350)
DEGREES = (1, 2, 4, 6)
#: Points at which L varies: exact to degree 19, enough for 2 L.
SIZE_OF_DEGREES = 146
CHANNELS = 128
NEIGHBOURS = 16


@dataclass(frozen=True)
class Case:
    """One point of a sweep.

    Attributes
    ----------
    subject : str
        A key of :data:`SUBJECTS`.
    points, lmax : int
        S and L.
    sweep : str
        ``S`` or ``L``: which of them the case is there for.
    """

    subject: str
    points: int
    lmax: int
    sweep: str


@dataclass
class Made:
    """A model and a function of no arguments that runs it forward and returns a scalar."""

    module: nn.Module
    forward: Callable[[], torch.Tensor]
    size: int


@dataclass(frozen=True)
class Subject:
    """Something to measure.

    Attributes
    ----------
    label : str
    lmax : int
        Its own degree, at which S varies.
    unit : str
        What its size counts.
    sizes : (int, int)
        Nodes or structures of a call, and the same for trying it out.
    make : callable
        Of (case, size, device, tiny, fused).
    """

    label: str
    lmax: int
    unit: str
    sizes: tuple[int, int]
    make: Callable[..., Made]


def square(out: Any) -> torch.Tensor:
    """Mean square of all that a model predicts."""
    if isinstance(out, dict):
        return torch.stack([square(value) for value in out.values()]).sum()
    return out.float().square().mean()


def _input(x: torch.Tensor) -> torch.Tensor:
    """A block's input, whose gradient belongs to the backward pass."""
    return x.detach().requires_grad_(torch.is_grad_enabled())


def _update(case: Case, size: int, device: str, tiny: bool, fused: bool) -> Made:
    channels = 8 if tiny else CHANNELS
    options = {"spherical_expert_channels": 8, "steerable_expert_channels": 8} if tiny else {}
    rule = make_rule("lebedev", case.points)
    block = ESTUpdateBlock(channels, case.lmax, rule, fused_kernels=fused, **options).to(device)
    x = torch.randn(size, (case.lmax + 1) ** 2, channels, device=device)
    return Made(block, lambda: square(block(_input(x))), size)


def _message(case: Case, size: int, device: str, tiny: bool, fused: bool) -> Made:
    channels = 8 if tiny else CHANNELS
    options = {"hidden_channels": 8, "spherical_expert_channels": 8} if tiny else {}
    block = ESTMessageBlock(
        channels, case.lmax, make_rule("lebedev", case.points), [64, 64], avg_degree=NEIGHBOURS,
        **options,
    ).to(device)  # fmt: skip
    coefficients = (case.lmax + 1) ** 2
    edges = size * NEIGHBOURS
    x = torch.randn(size, coefficients, channels, device=device)
    target = torch.arange(edges, device=device) // NEIGHBOURS
    index = torch.stack((torch.randint(size, (edges,), device=device), target))
    harmonics = torch.randn(edges, coefficients, device=device)
    radial, fade = torch.randn(edges, 64, device=device), torch.ones(edges, device=device)
    return Made(block, lambda: square(block(_input(x), index, harmonics, radial, fade)), size)


def _qm9(case: Case, size: int, device: str, tiny: bool, fused: bool) -> Made:
    rule = f"{{kind: lebedev, num_points: {case.points}}}"
    words = [
        f"model.backbone.update.rule={rule}",
        f"model.backbone.message.rule={rule}",
        f"model.backbone.lmax={case.lmax}",
        "++model.cuda_graphs=never",
    ]
    if tiny:
        words += ["model.backbone.channels=8", "model.backbone.num_layers=1"]
    model = _composed("train_qm9", ["model=qm9_est", *words], device)
    molecules = FlatMolecules.of(subset := read_subset(), subset.targets[:, 1].astype("f4"))
    batch = molecules.to(device).tight_batch(torch.arange(size, device=device))
    return Made(model, lambda: square(model(batch)), size)


def _s2ef(case: Case, size: int, device: str, tiny: bool, fused: bool) -> Made:
    from measuring.models import build
    from slabs import batches

    words = [
        f"model.backbone.update.rule={{kind: lebedev, num_points: {case.points}}}",
        f"model.backbone.lmax={case.lmax}",
        f"model.backbone.mmax={min(case.lmax, 2)}",
        f"++model.backbone.fused_kernels={str(fused).lower()}",
        "++model.cuda_graphs=never",
    ]
    model = build("est_s2ef_debug" if tiny else "est_s2ef_8layer", words, device)
    data = batches(size, 1, seed=1)[0].to(device)
    graph = model.backbone.radius_graph(data)
    data[EDGE_INDEX], data[EDGE_VEC] = graph.edge_index, graph.vec
    return Made(model, lambda: square(model(data)), size)


def _composed(config: str, words: list[str], device: str) -> nn.Module:
    """Model of a training configuration other than S2EF's."""
    import hydra
    from hydra import compose, initialize_config_module

    with initialize_config_module("est_ocp.configs", version_base=None):
        made = compose(config, words)
    return hydra.utils.instantiate(made.model).to(device)


SUBJECTS: dict[str, Subject] = {
    "update": Subject("update block", 4, "nodes", (1024, 8), _update),
    "s2ef": Subject("S2EF model, 45M", 4, "structures", (4, 1), _s2ef),
    "qm9": Subject("QM9 model, EST", 2, "molecules", (16, 1), _qm9),
    "message": Subject("message block", 2, "nodes", (256, 4), _message),
}


def cases(names: list[str], smoke: bool) -> list[Case]:
    """All cases of the subjects; degrees need ``1.5 (L+1)^2`` points."""
    sizes = (26, 50, 110) if smoke else SIZES
    degrees = (1, 2, 3) if smoke else DEGREES
    out = []
    for name in names:
        lmax = 2 if smoke else SUBJECTS[name].lmax
        out += [Case(name, s, lmax, "S") for s in sizes if s >= 1.5 * (lmax + 1) ** 2]
        out += [Case(name, SIZE_OF_DEGREES, degree, "L") for degree in degrees]
    return out
