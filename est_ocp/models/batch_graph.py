"""Radius graphs built where batches are made, ahead of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import get_worker_info

from est_ocp.models.graph import EDGE_INDEX, EDGE_VEC, RadiusGraph


class GraphCollater:
    """A ``collate_fn`` whose batches carry their radius graph, in the loader's processes only.

    The search for neighbours makes a GPU wait for the host several times a batch. Done by loader
    processes it overlaps with the training steps. In the training process itself nothing is
    added: there it would only move the work from the device to the processor.

    Parameters
    ----------
    collate_fn : callable
        List of systems to batch.
    radius_graph : RadiusGraph
        The model's own.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any], radius_graph: RadiusGraph) -> None:
        self.collate_fn = collate_fn
        self.radius_graph = radius_graph

    def __call__(self, systems: list[Any]) -> Any:
        batch = self.collate_fn(systems)
        if get_worker_info() is not None:
            graph = self.radius_graph(batch)
            batch[EDGE_INDEX], batch[EDGE_VEC] = graph.edge_index, graph.vec
        return batch
