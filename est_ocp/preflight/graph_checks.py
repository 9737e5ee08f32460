"""Neighbours inside the model's cutoff, on a few structures of the sample."""

from __future__ import annotations

import numpy as np
import torch
from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch

from est_ocp.models.graph import RadiusGraph
from est_ocp.models.settings import GraphSettings
from est_ocp.overlap import find_overlap
from est_ocp.preflight.check import Check, Status
from est_ocp.preflight.run_config import RunConfig
from est_ocp.preflight.sample import SplitSample

#: Structures whose graphs are built; no neighbour is left out of them.
STRUCTURES, ALL_NEIGHBORS = 16, 100_000
#: Distances at which two atoms are suspiciously close, or on top of each other, Angstrom.
CLOSE, OVERLAPPING = 0.6, 0.3


def check_neighbors(sample: SplitSample, config: RunConfig) -> list[Check]:
    """Neighbours an atom against ``max_neighbors`` and ``avg_degree``; closest pair."""
    graph = config.backbone.get("graph")
    if not isinstance(graph, dict) or "cutoff" not in graph:
        return [Check("neighbours", Status.SKIP, "the model names no cutoff")]
    build = RadiusGraph(GraphSettings(cutoff=graph["cutoff"], max_neighbors=ALL_NEIGHBORS))
    chosen = np.linspace(0, len(sample.systems) - 1, min(STRUCTURES, len(sample.systems)))
    counts, closest, alone = [], np.inf, 0
    for i in chosen.astype(int):
        data = atomicdata_list_to_batch([sample.systems[i]])
        edges = build(data)
        here = torch.bincount(edges.edge_index[1], minlength=data.num_nodes).numpy()
        counts.append(here)
        alone += int((here == 0).sum()) if data.num_nodes > 1 else 0
        if len(edges.distance):
            closest = min(closest, float(edges.distance.min()))
        # Atoms at the same place have no edge.
        overlap = find_overlap(data.pos.numpy(), data.cell[0].numpy(), data.pbc[0].numpy())
        closest = min(closest, overlap[2] if overlap else np.inf)
    return [
        _check_counts(np.concatenate(counts), alone, graph, config.backbone.get("avg_degree")),
        _check_closest(closest),
    ]


def _check_counts(counts: np.ndarray, alone: int, graph: dict, avg_degree: float | None) -> Check:
    limit = int(graph.get("max_neighbors", GraphSettings.max_neighbors))
    cut = float((counts > limit).mean())
    kept = float(np.minimum(counts, limit).mean())
    figures = {
        "mean": float(counts.mean()), "largest": int(counts.max()), "max_neighbors": limit,
        "fraction_cut": cut, "mean_kept": kept, "without": alone,
    }  # fmt: skip
    found = (
        f"{counts.mean():.1f} an atom inside {graph['cutoff']:g} Å (largest {counts.max()}); "
        f"max_neighbors {limit} cuts {100 * cut:.0f}% of the atoms, {kept:.1f} are kept"
    )
    if alone:
        found += f"; {alone} of {len(counts)} atoms have none"
        remedy = "raise model.backbone.graph.cutoff, or check the cells and positions"
        status = Status.FAIL if alone > 0.05 * len(counts) else Status.WARN
        return Check("neighbours", status, found, remedy, figures)
    if avg_degree and not 1 / 3 < avg_degree / kept < 3:
        remedy = f"set model.backbone.avg_degree={kept:.1f} (it is {avg_degree:g})"
        return Check("neighbours", Status.WARN, found, remedy, figures)
    return Check("neighbours", Status.OK, found, figures=figures)


def _check_closest(closest: float) -> Check:
    name, figures = "closest pair", {"distance": closest if np.isfinite(closest) else None}
    if not np.isfinite(closest):
        return Check(name, Status.SKIP, "no pairs inside the cutoff")
    found = f"{closest:.2f} Å"
    remedy = "atoms lie on top of each other: check positions and cells"
    if closest < OVERLAPPING:
        return Check(name, Status.FAIL, found, remedy, figures)
    if closest < CLOSE:
        return Check(name, Status.WARN, found, remedy, figures)
    return Check(name, Status.OK, found, figures=figures)
