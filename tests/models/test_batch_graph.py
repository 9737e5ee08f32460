"""Graphs that batches bring along."""

from __future__ import annotations

import copy

import torch
from torch.utils.data import DataLoader

from est_ocp.models.batch_graph import GraphCollater
from est_ocp.models.graph import EDGE_INDEX, EDGE_VEC, RadiusGraph
from est_ocp.models.settings import GraphSettings
from tests.models import small
from tests.models.systems import collate, crystal, single_atom, slab, water


def batch_of(workers: int):
    """One batch of unlike systems from a loader that builds graphs where it has processes."""
    systems = [slab(), water(), crystal(), single_atom()]
    collater = GraphCollater(collate, RadiusGraph(GraphSettings(cutoff=4.0, max_neighbors=12)))
    context = "fork" if workers else None
    loader = DataLoader(
        systems, 4, collate_fn=collater, num_workers=workers, multiprocessing_context=context
    )
    return next(iter(loader))


def test_loader_processes_add_the_graph_that_the_model_builds():
    batch, plain = batch_of(workers=1), batch_of(workers=0)
    assert EDGE_VEC not in plain
    built = RadiusGraph(GraphSettings(cutoff=4.0, max_neighbors=12))(plain)
    assert torch.equal(batch[EDGE_INDEX], built.edge_index)
    assert torch.equal(batch[EDGE_VEC], built.vec)
    assert built.edge_index.shape[1] > 0


def test_the_model_takes_the_batch_s_graph():
    model = small.model(graph={"cutoff": 4.0, "max_neighbors": 12}).eval()
    batch, plain = batch_of(workers=1), batch_of(workers=0)
    assert torch.equal(model(batch)["energy"]["energy"], model(plain)["energy"]["energy"])
    fewer = copy.copy(batch)
    fewer[EDGE_INDEX], fewer[EDGE_VEC] = batch[EDGE_INDEX][:, 1:], batch[EDGE_VEC][1:]
    assert not torch.equal(model(fewer)["energy"]["energy"], model(plain)["energy"]["energy"])


def test_edges_stay_functions_of_positions_that_need_gradients():
    batch = batch_of(workers=1)
    batch.pos.requires_grad_(True)
    assert RadiusGraph(GraphSettings(cutoff=4.0, max_neighbors=12))(batch).vec.requires_grad
