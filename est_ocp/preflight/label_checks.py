"""Checks of the labels: total energies, normalisers, forces that are zero or huge."""

from __future__ import annotations

import numpy as np

from est_ocp.preflight.check import Check, Status
from est_ocp.preflight.known import ENERGY, recognise
from est_ocp.preflight.run_config import RunConfig
from est_ocp.preflight.sample import SplitSample

#: Adsorption energies are a few eV whatever the slab; DFT's total energies are eV for each atom.
TOTAL_EV, TOTAL_EV_PER_ATOM = 20.0, 1.0
#: Larger force components than this are broken calculations rather than steep walls, eV/Angstrom.
LARGE_FORCE = 50.0


def composition_r2(energy: np.ndarray, numbers: list[np.ndarray], seed: int = 0) -> float | None:
    """Return how well composition alone predicts energies of the other half of a sample.

    Total energies are nearly a sum over elements: R^2 close to 1. None for small samples.

    Parameters
    ----------
    energy : array [B]
    numbers : list of arrays [N_b]
        Atomic numbers.
    """
    elements = sorted({int(z) for zs in numbers for z in zs})
    if len(energy) < 4 * (len(elements) + 1) or energy.std() == 0:
        return None
    counts = np.array([[float((zs == z).sum()) for z in elements] for zs in numbers])
    counts = np.column_stack([counts, np.ones(len(energy))])
    order = np.random.default_rng(seed).permutation(len(energy))
    fit, test = order[::2], order[1::2]
    # A little ridge, for elements that the half happens not to hold.
    gram = counts[fit].T @ counts[fit] + 1e-3 * np.eye(counts.shape[1])
    weights = np.linalg.solve(gram, counts[fit].T @ energy[fit])
    rest = energy[test] - counts[test] @ weights
    return float(1 - rest.var() / energy[test].var())


def check_energy_kind(sample: SplitSample) -> Check:
    """Adsorption energies, or total energies by mistake."""
    name = f"energy labels ({sample.split.label})"
    labelled = [s for s in sample.systems if s.get("energy", None) is not None]
    if len(labelled) < len(sample.systems):
        found = f"{len(sample.systems) - len(labelled)} of {len(sample.systems)} have no energy"
        remedy = "use labelled files (test splits have none), and the right task: s2ef or is2re"
        return Check(name, Status.FAIL, found, remedy)
    energy = sample.label("energy")
    natoms = np.array([int(s.natoms) for s in labelled])
    numbers = [s.atomic_numbers.numpy() for s in labelled]
    size = np.abs(energy)
    total = (size > TOTAL_EV) & (size / natoms > TOTAL_EV_PER_ATOM)
    r2 = composition_r2(energy, numbers)
    figures = {
        "mean": float(energy.mean()),
        "std": float(energy.std()),
        "median_size": float(np.median(size)),
        "median_size_per_atom": float(np.median(size / natoms)),
        "composition_r2": r2,
        "fraction_like_totals": float(total.mean()),
    }
    found = f"mean {energy.mean():.3f} eV, std {energy.std():.3f}"
    if total.mean() >= 0.5:
        found += (
            f"; they are total energies ({figures['median_size_per_atom']:.1f} eV an atom"
            + (f"; composition explains {100 * r2:.0f}%" if r2 is not None and r2 > 0.5 else "")
            + ")"
        )
        remedy = (
            "OC20's task is adsorption energies: prepare the set again with the reference energies "
            "subtracted (--ref-energy), see docs/data.md"
        )
        return Check(name, Status.FAIL, found, remedy, figures)
    if total.any():
        found += f"; {int(total.sum())} of {len(total)} look like total energies"
        remedy = "reference energies are not subtracted everywhere: prepare the set again"
        return Check(name, Status.FAIL, found, remedy, figures)
    if np.median(size) > TOTAL_EV / 2:
        remedy = "adsorption energies are mostly below 10 eV: check the reference energies"
        return Check(name, Status.WARN, f"{found}; unusually large", remedy, figures)
    return Check(name, Status.OK, f"{found}: adsorption energies by their size", figures=figures)


def check_energy_normalizer(sample: SplitSample, config: RunConfig) -> Check:
    """The energy task's mean and rmsd against the sample and, on OC20, the published ones."""
    name = "energy normaliser"
    energy, normalizer = sample.label("energy"), config.normalizer("energy")
    if normalizer is None or len(energy) < 2 or energy.std() == 0:
        return Check(name, Status.SKIP, "no normaliser, or too few different labels")
    mean, rmsd = normalizer
    ratio = rmsd / energy.std()
    shift = abs(mean - energy.mean()) / energy.std()
    figures = {
        "mean": mean, "rmsd": rmsd, "sample_mean": float(energy.mean()),
        "sample_std": float(energy.std()), "sample_size": len(energy),
    }  # fmt: skip
    found = (
        f"mean {mean:.4g}, rmsd {rmsd:.4g}; {len(energy)} labels: mean {energy.mean():.4g}, "
        f"std {energy.std():.4g}"
    )
    remedy = (
        f"set data.normalizer.energy_mean={energy.mean():.4g} "
        f"data.normalizer.energy_std={energy.std():.4g} (better: of all labels)"
    )
    if not 1 / 3 < ratio < 3 or shift > 2:
        return Check(name, Status.FAIL, found, remedy, figures)
    if not 1 / 1.5 < ratio < 1.5 or shift > 0.5:
        return Check(name, Status.WARN, found, remedy, figures)
    known = recognise(sample.split.src)
    if known is not None:
        expected = ENERGY[known.task]
        if not np.allclose((mean, rmsd), expected, rtol=0.1):
            remedy = f"the published ones of OC20 {known.task} are {expected[0]}, {expected[1]}"
            return Check(name, Status.WARN, found, remedy, figures)
    return Check(name, Status.OK, found, figures=figures)


def check_forces(sample: SplitSample, config: RunConfig) -> list[Check]:
    """Forces: there, finite in size, and against their normaliser."""
    if "forces" not in config.tasks:
        return []
    name = f"force labels ({sample.split.label})"
    lacking = sum(s.get("forces", None) is None for s in sample.systems)
    if lacking:
        found = f"{lacking} of {len(sample.systems)} structures have no forces"
        remedy = "S2EF needs them: use labelled S2EF files (task: s2ef)"
        return [Check(name, Status.FAIL, found, remedy)]
    free = np.concatenate([s.forces[s.fixed == 0].double().numpy() for s in sample.systems])
    if not free.size:
        return [Check(name, Status.SKIP, "no free atoms")]
    rms, largest = float(np.sqrt((free**2).mean())), float(np.abs(free).max())
    figures = {"rms": rms, "largest": largest}
    found = f"rms {rms:.3f} eV/Å on free atoms, largest component {largest:.2f}"
    if largest == 0:
        remedy = "all are zero: the files were written without forces"
        return [Check(name, Status.FAIL, found, remedy, figures)]
    large = largest > LARGE_FORCE
    remedy = "such structures dominate the loss: look at them, and remove broken ones"
    checks = [
        Check(name, Status.WARN if large else Status.OK, found, remedy if large else "", figures)
    ]
    if sample.split.role == "train":
        checks.append(_forces_normalizer(rms, config))
    return checks


def _forces_normalizer(rms: float, config: RunConfig) -> Check:
    """OC20 divides forces by the energies' deviation, several times the forces' own size."""
    name = "force normaliser"
    forces, energy = config.normalizer("forces"), config.normalizer("energy")
    if forces is None:
        return Check(name, Status.SKIP, "no normaliser")
    mean, rmsd = forces
    figures = {"mean": mean, "rmsd": rmsd, "sample_rms": rms}
    found = f"mean {mean:.4g}, rmsd {rmsd:.4g}; sample's rms {rms:.4g}"
    remedy = f"set data.normalizer.forces_std={rms:.4g}"
    if mean != 0:
        remedy = "the mean of forces must be 0, or the model is not equivariant"
        return Check(name, Status.FAIL, found, remedy, figures)
    ratio = rmsd / rms
    custom = energy is not None and np.isclose(rmsd, energy[1])
    if not 1 / 100 < ratio < 100:
        return Check(name, Status.FAIL, found, remedy, figures)
    if not 1 / 3 < ratio < 3 and not (custom and ratio > 1):
        return Check(name, Status.WARN, found, remedy, figures)
    return Check(name, Status.OK, found, figures=figures)
