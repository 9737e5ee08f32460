"""Train one layer with a linear classifier on two structures, and measure it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from est_ocp.sphere import SphereRule, make_rule
from folds.layers import CHANNELS, LAYERS, ESTStar
from folds.structures import Orientations, ring_pair, turn, turn_back

#: Probabilities this close to one half are a tie, which counts as half a right answer: equal
#: features give one half up to rounding, which is no recognition.
TIE = 0.01
#: Random orientations that a layer is measured in; half as many for more than 10 neighbours.
ORIENTATIONS = 8


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes
    ----------
    part : str
        Table it belongs to.
    layer : {"est", "tfn", "mace"}
        Kind of layer.
    lmax, fold, seed : int
        Degree, symmetry, seed of weights and orientation.
    kind, points : str, int
        Rule of the sphere (EST).
    setting : {"default", "paper", "no_norm"}
        "paper": LayerNorm at each point, diagonal inverse; "no_norm": the paper's without the norm
        between message and update; else the package's defaults.
    dtype : {"float64", "float32"}
        Of everything.
    turned : bool
        Train with random orientations, another for each structure and step; features are turned
        back. The same as turning the sphere's points.
    trained : bool
        Or only measure the layer as drawn.
    """

    part: str
    layer: str
    lmax: int
    fold: int
    seed: int
    kind: str = "-"
    points: int = 0
    setting: str = "default"
    dtype: str = "float64"
    turned: bool = False
    trained: bool = True


@dataclass(frozen=True)
class Protocol:
    """How all runs are trained and measured.

    Attributes
    ----------
    epochs : int
        At most; a training ends before when the loss is below `enough`.
    lr : float
        Adam's.
    enough : float
        Cross-entropy, 0.02 is a probability of 98% for the right class.
    hopeless, patience : float, int
        A training whose two structures have features that differ by a smaller share than this after
        `patience` epochs ends there.
    """

    epochs: int = 150
    lr: float = 5e-3
    enough: float = 0.02
    hopeless: float = 1e-13
    patience: int = 20


@lru_cache(maxsize=64)
def sphere_rule(kind: str, points: int) -> SphereRule:
    """The rule, made once."""
    return make_rule(kind, points)


def build(run: Run) -> nn.Module:
    """Layer of a run, its weights drawn from the run's seed."""
    torch.manual_seed(run.seed)
    if run.layer != "est":
        layer = LAYERS[run.layer](run.lmax, run.fold)
    else:
        options = {} if run.setting == "default" else {"norm": "point", "inverse": "diagonal"}
        options["update_norm"] = run.setting != "no_norm"
        layer = ESTStar(run.lmax, run.fold, sphere_rule(run.kind, run.points), **options)
    return layer.to(getattr(torch, run.dtype))


def difference(features: torch.Tensor) -> float:
    """Norm of the difference of two structures' features [2, I, C] relative to their norm."""
    first, second = features.double().flatten(1)
    return ((first - second).norm() / (0.5 * (first.norm() + second.norm()))).item()


@torch.no_grad()
def measure(layer: nn.Module, pair: torch.Tensor, wigner: torch.Tensor) -> dict:
    """Features as given and turned, the equivariance error and the difference.

    Parameters
    ----------
    layer : Module
    pair : Tensor [2, fold, 3]
        The two structures.
    wigner : Tensor [R, I, I]
        Orientations of both.

    Returns
    -------
    dict
        ``given`` [2, I, C]; ``laboratory`` and ``back`` [R, 2, I, C], the features of turned
        structures as they are and turned back; ``error``, the relative norm of
        ``back - given``, mean over all; ``difference`` of the two structures.
    """
    dtype = next(layer.parameters()).dtype
    given = layer(pair.to(dtype))
    both = wigner.repeat_interleave(2, dim=0)
    turned = turn(pair.repeat(len(wigner), 1, 1), both).to(dtype)
    laboratory = layer(turned)
    back = turn_back(laboratory, both).unflatten(0, (-1, 2))
    error = (back - given).flatten(2).norm(dim=2) / given.flatten(1).norm(dim=1)
    return {
        "given": given,
        "laboratory": laboratory.unflatten(0, (-1, 2)),
        "back": back,
        "error": error.mean().item(),
        "difference": difference(given),
    }


def recognised(logits: torch.Tensor) -> float:
    """Percentage of the structures [..., 2 structures, 2 classes] given their class; ties half."""
    margin = logits.softmax(dim=-1).diagonal(dim1=-2, dim2=-1).double() - 0.5
    score = torch.where(margin.abs() <= TIE, 0.5, (margin > 0).double())
    return 100 * score.mean().item()


def argmax_accuracy(logits: torch.Tensor) -> float:
    """Percentage of right classes [2, 2] by the larger logit, however small the margin."""
    return 100 * (logits.argmax(dim=-1) == torch.arange(2)).double().mean().item()


def execute(run: Run, protocol: Protocol) -> dict[str, object]:
    """Train and measure; return the run's figures."""
    started = time.process_time()
    layer = build(run)
    dtype = next(layer.parameters()).dtype
    classifier = nn.Linear((run.lmax + 1) ** 2 * CHANNELS, 2).to(dtype)
    orientations = Orientations(run.lmax, 1000 + run.seed)
    # A general orientation: along the axes the symmetries of rule and structure would coincide.
    pair = turn(ring_pair(run.fold), orientations.draw(1).expand(2, -1, -1))
    test = orientations.draw(ORIENTATIONS if run.fold <= 10 else ORIENTATIONS // 2)
    before = measure(layer, pair, test)
    parameters = [*layer.parameters(), *classifier.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=protocol.lr)
    best, epoch = 0.0, 0
    given, labels = pair.to(dtype), torch.arange(2)
    for epoch in range(1, protocol.epochs * run.trained + 1):
        if run.turned:
            wigner = orientations.draw(8)
            turned = turn(pair.repeat(4, 1, 1), wigner).to(dtype)
            features = turn_back(layer(turned), wigner)
        else:
            features = layer(given)
        logits = classifier(features.flatten(1))
        loss = nn.functional.cross_entropy(logits, labels.repeat(len(logits) // 2))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        best = max(best, argmax_accuracy(logits[:2].detach()))
        if not run.turned:
            if epoch == protocol.patience and difference(features.detach()) < protocol.hopeless:
                break
            if loss.item() < protocol.enough:
                break
    after = measure(layer, pair, test)
    with torch.no_grad():
        names = ("given", "back", "laboratory")
        logits = {name: classifier(after[name].flatten(-2)) for name in names}
    return {
        "epochs": epoch,
        "accuracy": recognised(logits["given"]),
        "accuracy_back": recognised(logits["back"]),
        "accuracy_laboratory": recognised(logits["laboratory"]),
        "accuracy_best_epoch": best,
        "error_start": before["error"],
        "error_end": after["error"],
        "difference_start": before["difference"],
        "difference_end": after["difference"],
        "seconds": time.process_time() - started,
    }
