"""Checks of the structures: numbers, identifiers, elements, tags, sizes of batches."""

from __future__ import annotations

from collections import Counter

import numpy as np

from est_ocp.preflight.check import Check, Status
from est_ocp.preflight.known import recognise
from est_ocp.preflight.run_config import RunConfig
from est_ocp.preflight.sample import SplitSample

#: Keys of a dataset's entry that make it smaller on purpose.
_SUBSET_KEYS = ("first_n", "sample_n", "subset_to", "max_atoms", "allow_missing_shards")
#: Random batches from which the spread of their sizes is taken.
_BATCHES = 2000


def check_count(sample: SplitSample) -> Check:
    """Number of structures, against OC20's where the path names one of its splits."""
    split = sample.split
    name = f"structures ({split.label})"
    if sample.open_error is not None:
        return Check(name, Status.FAIL, sample.open_error, f"correct the split's src: {split.src}")
    known = recognise(split.src)
    figures = {"count": sample.length, "expected": known.count if known else None}
    if sample.length == 0:
        return Check(name, Status.FAIL, "the split is empty", "check src and filters", figures)
    found = f"{sample.length:,}"
    if known is None:
        return Check(name, Status.OK, found, figures=figures)
    found += f" of {known.count:,} in OC20 {known.task} {known.name}"
    if sample.length == known.count:
        return Check(name, Status.OK, found, figures=figures)
    subset = [
        key for key in _SUBSET_KEYS
        if split.entry.get(key) or split.entry["splits"][split.name].get(key)
    ]  # fmt: skip
    if subset:
        remedy = f"{', '.join(subset)} may explain it; drop it for the whole split"
        return Check(name, Status.WARN, found, remedy, figures)
    if sample.length > known.count:
        remedy = "is it the first version of OC20 (before February 2021), or another set?"
        return Check(name, Status.WARN, found, remedy, figures)
    remedy = "shards are missing or the download is not whole: fetch and prepare it again"
    status = Status.FAIL if sample.length < 0.999 * known.count else Status.WARN
    return Check(name, status, found, remedy, figures)


def check_readable(sample: SplitSample) -> Check:
    """Whether every record of the sample could be read."""
    name = f"records ({sample.split.label})"
    read = len(sample.systems)
    figures = {"read": read, "errors": sample.read_errors}
    if sample.read_errors:
        found = f"{len(sample.read_errors)} errors, the first: {sample.read_errors[0]}"
        return Check(name, Status.FAIL, found, "repair or remove these records", figures)
    return Check(name, Status.OK, f"{read} read, all sound", figures=figures)


def check_ids(sample: SplitSample) -> Check:
    """Whether the identifiers of the sample are unique: leaderboard files need that."""
    name = f"identifiers ({sample.split.label})"
    ids = Counter(str(s.sid[0]) for s in sample.systems if s.get("sid", None))
    twice = [i for i, count in ids.items() if count > 1]
    if not ids:
        return Check(name, Status.WARN, "structures have no sid", "number them when writing")
    if twice:
        found = f"{len(twice)} occur more than once in the sample, e.g. '{twice[0]}'"
        remedy = "the files hold structures twice: prepare them again"
        return Check(name, Status.FAIL, found, remedy, {"repeated": twice})
    return Check(name, Status.OK, f"{len(ids)} in the sample, all different")


def check_elements(sample: SplitSample, config: RunConfig) -> Check:
    """Atomic numbers against the size of the model's embedding."""
    name = f"elements ({sample.split.label})"
    numbers = sorted({int(z) for s in sample.systems for z in s.atomic_numbers})
    limit = config.backbone.get("max_num_elements")
    figures = {"elements": numbers, "limit": limit}
    found = f"{len(numbers)} elements, atomic numbers {numbers[0]} to {numbers[-1]}"
    if limit is None:
        return Check(name, Status.OK, f"{found}; the model names no limit", figures=figures)
    found += f"; the model takes 1 to {limit - 1}"
    if numbers[-1] >= limit:
        remedy = f"set model.backbone.max_num_elements={numbers[-1] + 1}"
        return Check(name, Status.FAIL, found, remedy, figures)
    return Check(name, Status.OK, found, figures=figures)


def check_free_atoms(sample: SplitSample, config: RunConfig) -> Check:
    """Whether every structure has a free atom, and whether any is held fixed at all."""
    name = f"free atoms ({sample.split.label})"
    free = np.array([int((s.fixed == 0).sum()) for s in sample.systems])
    total = np.array([int(s.natoms) for s in sample.systems])
    figures = {"mean_free_fraction": float((free / total).mean()), "none": int((free == 0).sum())}
    found = f"{100 * figures['mean_free_fraction']:.0f}% of the atoms are free"
    needs = [name for name, task in config.tasks.items() if task.get("train_on_free_atoms")]
    if (free == 0).any():
        found += f"; {figures['none']} of {len(free)} structures have none"
        remedy = "'fixed' must be 0 for the atoms that may move: write the records again"
        return Check(name, Status.FAIL if needs else Status.WARN, found, remedy, figures)
    if (free == total).all() and needs:
        remedy = "OC20 fixes the atoms below the surface: is 'fixed' missing from the records?"
        return Check(name, Status.WARN, found, remedy, figures)
    return Check(name, Status.OK, found, figures=figures)


def check_tags(sample: SplitSample, config: RunConfig) -> Check:
    """Whether tags tell adsorbate, surface and the atoms below."""
    name = f"tags ({sample.split.label})"
    counts = Counter(int(t) for s in sample.systems for t in s.tags)
    found = ", ".join(f"{counts[tag]:,} with {tag}" for tag in sorted(counts))
    figures = {"counts": {str(tag): count for tag, count in sorted(counts.items())}}
    used = any("tag" in key and value for key, value in config.backbone.items())
    if set(counts) - {0, 1, 2}:
        remedy = "OC20's tags are 0 (below the surface), 1 (surface), 2 (adsorbate)"
        return Check(name, Status.FAIL if used else Status.WARN, found, remedy, figures)
    if len(counts) == 1:
        remedy = "OC20 tags the surface 1 and the adsorbate 2: write the records with tags"
        return Check(name, Status.FAIL if used else Status.WARN, found, remedy, figures)
    return Check(name, Status.OK, found, figures=figures)


def check_metadata(sample: SplitSample) -> Check:
    """Whether the numbers of atoms are known without reading every record."""
    name = f"metadata ({sample.split.label})"
    if sample.complete:
        return Check(name, Status.OK, "numbers of atoms are known")
    remedy = f"make it ahead: python -m est_ocp.data.metadata {sample.split.src} --workers 16"
    if sample.split.entry.get("format") == "ase_db":
        remedy = "fairchem's samplers need metadata.npz beside the database"
    found = "no metadata.npz: the first start counts the atoms of every record"
    return Check(name, Status.WARN, found, remedy)


def batch_atoms(sample: SplitSample, config: RunConfig, seed: int = 0) -> np.ndarray:
    """Return the numbers of atoms of random batches of one rank."""
    if config.max_atoms is not None:
        return np.full(_BATCHES, config.max_atoms)
    generator = np.random.default_rng(seed)
    size = int(config.batch_size or 1)
    return generator.choice(sample.natoms, (_BATCHES, size)).sum(axis=1)


def check_batches(sample: SplitSample, config: RunConfig) -> Check:
    """Atoms a batch."""
    natoms, batches = sample.natoms, batch_atoms(sample, config)
    figures = {
        "mean_atoms": float(natoms.mean()),
        "largest": int(natoms.max()),
        "batch_mean": float(batches.mean()),
        "batch_p99": float(np.percentile(batches, 99)),
        "batch_max": int(batches.max()),
    }
    found = f"{natoms.mean():.1f} atoms a structure (largest {natoms.max()})"
    if config.max_atoms is not None:
        found += f"; at most {config.max_atoms} a batch"
        large = int((natoms > config.max_atoms).sum())
        if large:
            remedy = f"raise batching.train.max_atoms above {natoms.max()}, or they go alone"
            found += f", {large} structures are larger"
            return Check("atoms a batch", Status.WARN, found, remedy, figures)
        return Check("atoms a batch", Status.OK, found, figures=figures)
    found += (
        f"; {config.batch_size} structures a batch: mean {figures['batch_mean']:.0f} atoms, "
        f"p99 {figures['batch_p99']:.0f}, max {figures['batch_max']}"
    )
    return Check("atoms a batch", Status.OK, found, figures=figures)


def check_avg_num_nodes(sample: SplitSample, config: RunConfig) -> list[Check]:
    """The divisor of energy heads against the mean number of atoms, or (Equiformer) its root."""
    checks = []
    mean = float(sample.natoms.mean())
    for name, head in config.heads.items():
        value = head.get("avg_num_nodes")
        if value is None or head.get("reduce") == "mean":
            continue
        found = f"avg_num_nodes {value:g}; the data's mean is {mean:.1f}, its root {mean**0.5:.2f}"
        sound = any(1 / 1.5 < value / good < 1.5 for good in (mean, mean**0.5))
        remedy = f"set model.heads.{name}.avg_num_nodes={mean:.2f} (Equiformer: {mean**0.5:.2f})"
        figures = {"configured": value, "mean": mean}
        status = Status.OK if sound else Status.WARN
        checks.append(Check(f"head {name}", status, found, "" if sound else remedy, figures))
    return checks
