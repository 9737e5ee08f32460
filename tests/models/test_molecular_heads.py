"""Readouts of molecular properties: their physics, and their choice by target."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.models import ESCNMDBaseline, MolecularPropertyHead
from est_ocp.models.molecular_heads import SpatialExtentReadout
from est_ocp.qm9_targets import BOHR, TARGETS
from tests.models.every_backbone import BACKBONES
from tests.models.systems import collate, molecule, rotated, single_atom, water
from tests.models.systems import rotation as random_rotation
from tests.tolerances import TOL

DTYPE = torch.float64
SINGLE = TOL[torch.float32]
CHANNELS = 8
EXTENSIVE = ["alpha", "zpve", "U0", "U", "H", "G", "Cv"]
INTENSIVE = ["homo", "lumo", "gap"]


def head(target: str, lmax_out: int = 1, seed: int = 0, **options) -> MolecularPropertyHead:
    torch.manual_seed(seed)
    backbone = SimpleNamespace(channels=CHANNELS, lmax_out=lmax_out)
    made = MolecularPropertyHead(backbone, target, **options).to(DTYPE)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def molecules(sizes: list[int], seed: int = 1) -> tuple[SimpleNamespace, dict]:
    """Random molecules: data as the head reads them, and features of degrees 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    numbers = torch.tensor([1, 6, 7, 8, 9])[torch.randint(5, (total,), generator=generator)]
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    data = SimpleNamespace(
        pos=torch.randn(total, 3, generator=generator, dtype=DTYPE), natoms=torch.tensor(sizes)
    )
    features = torch.randn(total, 4, CHANNELS, generator=generator, dtype=DTYPE)
    return data, {"node_embedding": features, "atomic_numbers": numbers, "batch": batch}


def as_one(data: SimpleNamespace, emb: dict) -> tuple[SimpleNamespace, dict]:
    """The same atoms as one molecule."""
    joined = SimpleNamespace(pos=data.pos, natoms=data.natoms.sum(0, keepdim=True))
    return joined, emb | {"batch": torch.zeros_like(emb["batch"])}


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_gives_one_finite_number_a_molecule(target):
    data, emb = molecules([3, 1, 7])
    out = head(target)(data, emb)
    assert list(out) == ["target"]
    assert out["target"].shape == (3,)
    assert torch.isfinite(out["target"]).all()
    single = head(target)(
        SimpleNamespace(pos=data.pos[4:], natoms=data.natoms[2:]),
        {k: v[4:] for k, v in emb.items()} | {"batch": emb["batch"][4:] - 2},
    )["target"]
    torch.testing.assert_close(out["target"][2:], single, atol=TOL[DTYPE], rtol=0)


@pytest.mark.parametrize("target", EXTENSIVE)
def test_extensive_targets_add_up(target):
    parts = molecules([4, 9])
    model = head(target)
    whole = model(*as_one(*parts))["target"]
    torch.testing.assert_close(whole[0], model(*parts)["target"].sum(), atol=TOL[DTYPE], rtol=0)


@pytest.mark.parametrize("target", INTENSIVE)
def test_intensive_targets_do_not_grow(target):
    data, emb = molecules([6])
    model = head(target)
    twice_data = SimpleNamespace(pos=data.pos.repeat(2, 1), natoms=2 * data.natoms)
    twice = {k: v.repeat(2, *[1] * (v.dim() - 1)) for k, v in emb.items()}
    one, two = model(data, emb)["target"], model(twice_data, twice)["target"]
    torch.testing.assert_close(one, two, atol=TOL[DTYPE], rtol=0)


def test_intensive_targets_start_as_the_mean_over_atoms():
    torch.manual_seed(0)
    model = MolecularPropertyHead(SimpleNamespace(channels=CHANNELS), "gap").to(DTYPE)
    data, emb = molecules([6])
    atoms = model.readout.values(emb["node_embedding"][:, 0])[:, 0]
    out = model(data, emb)["target"]
    torch.testing.assert_close(out[0], atoms.mean(), atol=TOL[DTYPE], rtol=0)


@pytest.mark.parametrize("target", ["mu", "r2"])
@pytest.mark.parametrize("lmax_out", [0, 1])
def test_lengths_do_not_depend_on_place_or_orientation(target, lmax_out):
    data, emb = molecules([5, 8])
    model = head(target, lmax_out)
    rotation = random_rotation(3).to(DTYPE)
    x = emb["node_embedding"].clone()
    x[:, 1:4] = torch.einsum("ij,njc->nic", rotation, x[:, 1:4])
    moved = SimpleNamespace(pos=data.pos @ rotation.T + 100.0, natoms=data.natoms)
    a, b = model(data, emb)["target"], model(moved, emb | {"node_embedding": x})["target"]
    torch.testing.assert_close(a, b, atol=1e3 * TOL[DTYPE], rtol=0)


def test_dipole_of_two_charges_is_charge_times_distance():
    model = head("mu", lmax_out=0, divisor=1.0)
    data, emb = molecules([2])
    charge = model.readout.values(emb["node_embedding"][:, 0])[:, 0]
    distance = (data.pos[0] - data.pos[1]).norm()
    expected = (charge[0] - charge[1]).abs() / 2 * distance
    torch.testing.assert_close(model(data, emb)["target"][0], expected, atol=1e-9, rtol=0)
    assert model(data, emb)["target"] >= 0


def test_vectors_change_the_dipole_moment():
    data, emb = molecules([5])
    x = emb["node_embedding"].clone()
    x[:, 1:4] = 0
    with_vectors, without = head("mu", 1), head("mu", 0)
    assert with_vectors.readout.mix is not None
    assert without.readout.mix is None
    out = with_vectors(data, emb)["target"]
    assert not torch.allclose(out, with_vectors(data, emb | {"node_embedding": x})["target"])


def test_spatial_extent_starts_from_the_nuclei_and_follows_the_normaliser():
    readout = SpatialExtentReadout(CHANNELS, divisor=4.25, spread=280.0).to(DTYPE)
    for parameter in readout.parameters():
        torch.nn.init.zeros_(parameter)
    pos = torch.tensor([[0.0, 0, 0], [0, 0, 1.2]], dtype=DTYPE)
    numbers, batch = torch.tensor([8, 8]), torch.zeros(2, dtype=torch.long)
    out = readout(torch.zeros(2, 1, CHANNELS, dtype=DTYPE), pos, numbers, batch, 1) * 280.0
    torch.testing.assert_close(out, torch.tensor([16 * (0.6 / BOHR) ** 2], dtype=DTYPE))


def test_gradients_are_finite_where_the_dipole_moment_vanishes():
    model = head("mu")
    data, emb = molecules([1])
    emb["node_embedding"] = torch.zeros_like(emb["node_embedding"]).requires_grad_()
    model(data, emb)["target"].sum().backward()
    assert torch.isfinite(emb["node_embedding"].grad).all()


def test_an_unknown_target_is_refused_by_name():
    with pytest.raises(ConfigError, match="'Alpha' is no target of QM9; choose one of mu, alpha"):
        head("Alpha")


def test_unknown_keys_of_escn_md_are_refused():
    with pytest.raises(ConfigError, match="num_layerz"):
        ESCNMDBaseline(num_layerz=3)


def test_escn_md_on_our_graph_keeps_symmetry_and_takes_single_atoms():
    # fairchem keeps the matrices of its grid in single precision.
    torch.manual_seed(0)
    sizes = {"sphere_channels": 8, "hidden_channels": 8, "edge_channels": 8}
    model = ESCNMDBaseline(num_layers=1, num_distance_basis=8, **sizes).double().eval()
    r = random_rotation(2)
    outputs = [model(collate([atoms, single_atom()])) for atoms in (water(), rotated(water(), r))]
    plain, turned = (out["node_embedding"] for out in outputs)
    assert plain.shape == (4, 9, 8)
    assert (outputs[0]["edge_index"] < 3).all()
    torch.testing.assert_close(plain[:, 0], turned[:, 0], atol=SINGLE, rtol=0)
    vectors = torch.einsum("ij,njc->nic", r, plain[:, 1:4])
    torch.testing.assert_close(vectors, turned[:, 1:4], atol=SINGLE, rtol=0)
    alone = model(collate([single_atom()]))["node_embedding"]
    torch.testing.assert_close(alone, plain[3:], atol=SINGLE, rtol=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_molecule_without_a_cell_is_one_in_a_large_box(name):
    backbone = BACKBONES[name]().to(DTYPE)
    free = molecule("CH3CH2OH")
    boxed = free.copy()
    boxed.set_cell([30.0, 30.0, 30.0])
    boxed.center()
    boxed.set_pbc(True)
    # Through the box's wall: wrapped atoms are still neighbours.
    boxed.translate([15.0, 0.0, 0.0])
    found = []
    for atoms in (free, boxed):
        data = collate([atoms])
        emb = backbone(data)
        made = MolecularPropertyHead(backbone, "alpha").to(DTYPE)
        made.load_state_dict({n: torch.full_like(t, 0.1) for n, t in made.state_dict().items()})
        found.append(made(data, emb)["target"].detach())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=TOL[DTYPE])
