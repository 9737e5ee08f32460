"""Agreement with the recording of GotenNet: every part, and the whole registered backbone."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms

from est_ocp.models import GotenNetBaseline
from est_ocp.nn.gotennet import (
    EQFF,
    GATA,
    CosineCutoff,
    EdgeFeatures,
    ExpNormalBasis,
    NodeFeatures,
    unit_harmonics,
)
from tests.models.systems import collate
from tests.nn.gotennet.original import Recording
from tests.tolerances import PARITY_GOTENNET

RECORDING = Recording()
CONFIG = RECORDING.config
TENSORS = RECORDING.tensors
CUTOFF = CONFIG["cutoff"]
CHANNELS = CONFIG["n_atom_basis"]
NUM_BASIS = CONFIG["n_rbf"]
LAYERS = pytest.mark.parametrize("layer", range(CONFIG["n_interactions"]))


def agree(part: str, ours: torch.Tensor, recorded: torch.Tensor) -> None:
    """Compare, relative to the largest recorded value, and print the difference for the page."""
    assert ours.shape == recorded.shape
    largest = recorded.abs().max().item()
    difference = (ours - recorded).abs().max().item()
    print(f"\n{part}: {difference / largest:.1e}")
    assert difference < PARITY_GOTENNET * min(largest, 1.0)


def agree_nodes(part: str, ours: torch.Tensor, recorded: torch.Tensor) -> None:
    """Compare scalars and steerable features [N, I, C], which differ in size."""
    agree(f"{part}, scalars", ours[:, :1], recorded[:, :1])
    agree(f"{part}, steerable", ours[:, 1:], recorded[:, 1:])


def test_constants_of_the_radial_basis():
    basis = ExpNormalBasis(CUTOFF, NUM_BASIS)
    agree("centres", basis.centres, RECORDING.constants["means"])
    widths = torch.full((NUM_BASIS,), basis.sharpness)
    agree("widths", widths, RECORDING.constants["betas"])


def test_harmonics():
    unit = unit_harmonics(TENSORS["input/edge_vec"], TENSORS["input/edge_distance"], 2)
    agree("harmonics", unit, TENSORS["record/gata.0.in.rl_ij"])


def test_first_features():
    distance = TENSORS["input/edge_distance"]
    edge_index = TENSORS["input/edge_index"]
    nodes = NodeFeatures(CHANNELS, NUM_BASIS, CONFIG["max_z"])
    nodes.load_state_dict(RECORDING.below("node_features"))
    edge_features = EdgeFeatures(CHANNELS, NUM_BASIS)
    edge_features.load_state_dict(RECORDING.below("edge_features"))
    basis, fade = ExpNormalBasis(CUTOFF, NUM_BASIS)(distance), CosineCutoff(CUTOFF)(distance)
    with torch.no_grad():
        scalars = nodes(TENSORS["input/atomic_numbers"], edge_index, basis, fade)
        t = edge_features(scalars, edge_index, basis)
    agree("node features", scalars, TENSORS["record/gata.0.in.h"][:, 0])
    agree("edge features", t, TENSORS["record/gata.0.in.t_ij"])


@LAYERS
def test_gata(layer):
    last = layer == CONFIG["n_interactions"] - 1
    gata = GATA(CHANNELS, CONFIG["lmax"], CONFIG["num_heads"], refine_edges=not last).eval()
    gata.load_state_dict(RECORDING.below(f"blocks.{layer}.attention"))
    name = f"record/gata.{layer}"
    fade = CosineCutoff(CUTOFF)(TENSORS[f"{name}.in.r_ij"])
    t, harmonics = TENSORS[f"{name}.in.t_ij"], TENSORS[f"{name}.in.rl_ij"]
    with torch.no_grad():
        x, refined = gata(
            RECORDING.features(f"{name}.in."), t, TENSORS["input/edge_index"], harmonics, fade
        )
    agree_nodes(f"GATA {layer}", x, RECORDING.features(f"{name}.out."))
    recorded = TENSORS[f"{name}.out.t_ij"]
    if last:
        assert torch.equal(refined, recorded)
    else:
        agree(f"GATA {layer}, change of edges", refined - t, recorded - t)


@LAYERS
def test_eqff(layer):
    eqff = EQFF(CHANNELS)
    eqff.load_state_dict(RECORDING.below(f"blocks.{layer}.update"))
    x = RECORDING.features(f"record/gata.{layer}.out.")
    with torch.no_grad():
        x = x + eqff(x)
    agree_nodes(f"EQFF {layer}", x, RECORDING.features(f"record/eqff.{layer}.out."))


def test_whole_backbone_from_positions():
    backbone = GotenNetBaseline(
        lmax=CONFIG["lmax"],
        num_layers=CONFIG["n_interactions"],
        channels=CHANNELS,
        num_heads=CONFIG["num_heads"],
        num_distance_basis=NUM_BASIS,
        lmax_out=CONFIG["lmax"],
        max_num_elements=CONFIG["max_z"],
        graph={"cutoff": CUTOFF, "envelope": False},
        self_edges=False,
    ).eval()
    backbone.load_state_dict(RECORDING.state)
    atoms = Atoms(TENSORS["input/atomic_numbers"].numpy(), TENSORS["input/pos"].numpy())
    with torch.no_grad():
        out = backbone(collate([atoms], torch.float32))
    assert out["edge_index"].shape == TENSORS["input/edge_index"].shape
    agree_nodes("whole network", out["node_embedding"], RECORDING.features("output/"))
