"""Make the embedded demonstration set, or one like it.

From scratch (about two hours on one core for 1,500 systems):

    pip install -e .[labels] fairchem-data-oc
    python scripts/make_demo_set.py demo_s2ef.npz --frames-out frames.npz --adsorbates oc20

From a frames file made so before:

    python scripts/make_demo_set.py demo_s2ef.npz --from frames.npz

Slabs of elemental metals and random alloys get one adsorbate each at a random place and angle. Each
system gives six frames of a short relaxation and two rattled ones. Labels are CHGNet 0.4.2's, a
universal potential, not DFT (``--labels emt`` is for trying the script out). Energies are
adsorption-like: total, minus the ideal clean slab, minus one reference energy for each of H, C, N
and O in the adsorbate, fitted to the train relaxations. Splits are by system, as OC20's: the
out-of-domain metals and adsorbates never occur in train.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path

import ase
import numpy as np
from ase import build
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.geometry import get_distances
from ase.optimize import LBFGS
from tqdm import tqdm

from est_ocp.data.frames import SPLITS, Frames, write_packed

FCC = ("Ag", "Al", "Au", "Cu", "Ir", "Ni", "Pd", "Pt", "Rh")
HCP = ("Co", "Os", "Re", "Ru", "Ti", "Zn")
BCC = ("Fe", "Mo", "Nb", "Ta", "V", "W")
ALLOYS = (
    "Ag-Al", "Ag-Pd", "Au-Pd", "Cu-Au", "Cu-Ni", "Ir-Ni", "Ni-Al", "Ni-Pd", "Pd-Cu", "Pt-Cu",
    "Pt-Ni", "Rh-Ir", "Rh-Pt",
)  # fmt: skip
OOD_MATERIALS = frozenset({"Ag-Al", "Nb", "Ni-Pd", "Os", "Pt-Cu", "Re", "Rh-Ir", "Ta"})
EMT_ELEMENTS = frozenset({"Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt"})
SURFACES = {
    "fcc111": build.fcc111, "fcc100": build.fcc100, "hcp0001": build.hcp0001,
    "bcc110": build.bcc110, "bcc100": build.bcc100,
}  # fmt: skip
SIZES = ((2, 2, 3), (2, 2, 4), (3, 2, 3), (3, 2, 4), (3, 3, 3))

#: ASE's molecules that resemble OC20's adsorbates, with the atom that points to the surface.
ASE_ADSORBATES = {
    "H": 0, "C": 0, "N": 0, "O": 0, "CH": 0, "CH3": 0, "CH4": 0, "NH": 0, "NH2": 0, "NH3": 0,
    "OH": 0, "H2O": 0, "C2H2": 0, "C2H4": 0, "CCH": 0, "C2H3": 0, "C2H5": 0, "CN": 0, "CO": 1,
    "HCO": 0, "H2CO": 0, "CH3O": 1, "H2COH": 0, "CH3CO": 0, "H2CCO": 0, "HCOOH": 0, "CH3OH": 1,
    "NO": 0, "NO2": 0, "N2": 0, "N2H4": 0,
}  # fmt: skip
ASE_OOD = frozenset({"CH3", "NH", "OH", "HCO", "HCOOH", "N2", "N2H4"})
OC20_OOD = frozenset({
    "*C*C", "*CH3", "*CHCH2OH", "*CHCHO", "*CHO", "*COCHO", "*COHCH2", "*COHCHOH", "*COHCOH",
    "*COOH", "*N2", "*NH", "*NH2NH2", "*OH", "*OHNH2",
})  # fmt: skip
LARGEST_ADSORBATE = 7
REFERENCE_ELEMENTS = (1, 6, 7, 8)

#: LBFGS steps whose frames are kept, and the widths (Angstrom) of the two rattles.
RELAX_STEPS = (0, 1, 2, 4, 6, 9)
RATTLE_WIDTHS = ((0.03, 0.08), (0.08, 0.20))
SPLIT_SHARES = {
    "train": 0.76, "val_id": 0.06, "val_ood_ads": 0.06, "val_ood_cat": 0.06, "val_ood_both": 0.06,
}  # fmt: skip

#: Frames of each system that are embedded.
KEPT_FIDS = (0, 2, 4, 6, 7)

ATOM_ARRAYS = ("z", "pos", "forces", "tags", "fixed")
FRAME_ARRAYS = (
    "natoms", "energy", "cell", "sid", "fid", "split", "kind", "material", "surface", "adsorbate",
)  # fmt: skip

Adsorbates = dict[str, tuple[ase.Atoms, int]]


def load_adsorbates(kind: str) -> tuple[Adsorbates, frozenset[str]]:
    """Return adsorbates (name to atoms and binding atom) and the names kept out of train."""
    if kind == "ase":
        made = {}
        for name, binding in ASE_ADSORBATES.items():
            single = name in ("H", "C", "N", "O")
            made[name] = (ase.Atoms(name) if single else build.molecule(name), binding)
        return made, ASE_OOD
    from fairchem.data.oc.databases.pkls import ADSORBATE_PKL_PATH

    with open(ADSORBATE_PKL_PATH, "rb") as stream:
        table = pickle.load(stream)
    made = {
        name: (atoms, int(binding[0]))
        for atoms, name, binding, *_ in table.values()
        if len(atoms) <= LARGEST_ADSORBATE
    }
    return made, OC20_OOD


def make_calculator(kind: str) -> Calculator:
    """Return the calculator that labels frames."""
    if kind == "emt":
        from ase.calculators.emt import EMT

        return EMT()
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device="cpu")


def make_slab(material: str, surface: str, size: tuple[int, int, int], rng) -> ase.Atoms:
    """Return a clean slab at experimental lattice constants, the lower half of its layers fixed.

    An alloy takes the mean lattice constant and random sites for its two elements.
    """
    elements = material.split("-")
    states = [ase.data.reference_states[ase.data.atomic_numbers[e]] for e in elements]
    lattice = {"a": float(np.mean([state["a"] for state in states]))}
    if surface == "hcp0001":
        lattice["c"] = lattice["a"] * states[0]["c/a"]
    slab = SURFACES[surface](elements[0], size=size, vacuum=8.0, **lattice)
    if len(elements) == 2:
        swapped = rng.random(len(slab)) < 0.5
        slab.symbols[np.flatnonzero(swapped)] = elements[1]
    layer = size[2] - slab.get_tags()
    slab.set_tags((layer >= size[2] // 2).astype(int))
    slab.set_constraint(FixAtoms(mask=layer < size[2] // 2))
    slab.pbc = True
    return slab


def place_adsorbate(slab: ase.Atoms, adsorbate: ase.Atoms, binding: int, rng) -> ase.Atoms:
    """Return the slab with an adsorbate at a random place, angle and a slight tilt, touching it."""
    adsorbate = adsorbate.copy()
    adsorbate.positions -= adsorbate.positions[binding]
    adsorbate.rotate(rng.normal(0, 15), "x", center=(0, 0, 0))
    adsorbate.rotate(rng.uniform(0, 360), "z", center=(0, 0, 0))
    top = slab.positions[:, 2].max()
    adsorbate.positions += rng.random(2) @ slab.cell[:2] + [0, 0, top + 0.8]
    touching = 1.05 * np.add.outer(
        covalent_radii[adsorbate.numbers], covalent_radii[slab.numbers]
    )  # fmt: skip
    while True:
        distance = get_distances(
            adsorbate.positions, slab.positions, cell=slab.cell, pbc=[True, True, False]
        )[1]
        if (distance > touching).all():
            break
        adsorbate.positions[:, 2] += 0.05
    system = slab.copy()
    adsorbate.set_tags(2)
    system += adsorbate
    system.cell[2] = [0, 0, system.positions[:, 2].max() + 8.0]
    return system


def label_system(system: ase.Atoms, calculator: Calculator, rng) -> list[tuple]:
    """Return (kind, positions, energy, forces) of the relaxation's and the rattled frames."""
    frames = []

    def record(kind: str) -> None:
        energy, forces = system.get_potential_energy(), system.get_forces(apply_constraint=False)
        frames.append((kind, system.positions.copy(), energy, forces.copy()))

    system.calc = calculator
    optimiser = LBFGS(system, logfile=None)
    for _ in optimiser.irun(fmax=0.0, steps=RELAX_STEPS[-1]):
        if optimiser.nsteps in RELAX_STEPS:
            record(f"relax{optimiser.nsteps}")
    relaxed = system.positions.copy()
    free = system.get_tags() > 0
    for low, high in RATTLE_WIDTHS:
        moved = relaxed.copy()
        moved[free] += rng.normal(0, rng.uniform(low, high), (free.sum(), 3))
        system.set_positions(moved, apply_constraint=False)
        record("rattle")
    return frames


def surfaces_of(material: str) -> tuple[str, ...]:
    """Return the surfaces made of a material."""
    if material in HCP:
        return ("hcp0001",)
    return ("bcc110", "bcc100") if material in BCC else ("fcc111", "fcc100")


def draw_systems(count: int, labels: str, adsorbates: Adsorbates, ood: frozenset[str], rng):
    """Return (split, material, adsorbate) of every system, splits in proportion to their shares."""
    materials = [*FCC, *HCP, *BCC, *ALLOYS]
    if labels == "emt":
        materials = [name for name in materials if EMT_ELEMENTS.issuperset(name.split("-"))]
    drawn = []
    splits = rng.choice(list(SPLIT_SHARES), size=count, p=list(SPLIT_SHARES.values()))
    for split in splits:
        new_metal = split in ("val_ood_cat", "val_ood_both")
        new_adsorbate = split in ("val_ood_ads", "val_ood_both")
        material = rng.choice([m for m in materials if (m in OOD_MATERIALS) == new_metal])
        adsorbate = rng.choice([a for a in adsorbates if (a in ood) == new_adsorbate])
        drawn.append((str(split), str(material), str(adsorbate)))
    return drawn


def generate(count: int, labels: str, adsorbate_kind: str, seed: int) -> Frames:
    """Build and label ``count`` systems."""
    rng = np.random.default_rng(seed)
    adsorbates, ood = load_adsorbates(adsorbate_kind)
    calculator = make_calculator(labels)
    atoms: dict[str, list] = {key: [] for key in ATOM_ARRAYS}
    rows: dict[str, list] = {key: [] for key in FRAME_ARRAYS}
    for number, (split, material, name) in enumerate(
        tqdm(draw_systems(count, labels, adsorbates, ood, rng), unit="system")
    ):
        surface = str(rng.choice(surfaces_of(material)))
        slab = make_slab(material, surface, SIZES[rng.integers(len(SIZES))], rng)
        system = place_adsorbate(slab, *adsorbates[name], rng)
        clean = system[system.get_tags() < 2]
        clean.calc = calculator
        slab_energy = clean.get_potential_energy()
        for fid, (kind, pos, energy, forces) in enumerate(label_system(system, calculator, rng)):
            tags = system.get_tags()
            values = (system.numbers, pos, forces, tags, tags == 0)
            for key, value in zip(atoms, values, strict=True):
                atoms[key].append(value)
            values = (len(system), energy - slab_energy, system.cell.array, 100000 + number, fid)
            values += (split, kind, material, surface, name)
            for key, value in zip(rows, values, strict=True):
                rows[key].append(value)
    arrays = {key: np.concatenate(value) for key, value in atoms.items()}
    arrays |= {key: np.array(value) for key, value in rows.items()}
    for key, dtype in (("z", "u1"), ("tags", "u1"), ("pos", "f4"), ("forces", "f4")):
        arrays[key] = arrays[key].astype(dtype)
    label_name = "CHGNet 0.4.2" if labels == "chgnet" else "ASE EMT (plumbing only)"
    source = (
        f"{label_name}: LBFGS steps and rattled frames; energy = total - ideal clean slab - "
        "linear H,C,N,O references; eV, Angstrom"
    )
    return subtract_references(Frames(**arrays, source=source))


def subtract_references(frames: Frames) -> Frames:
    """Subtract the H, C, N and O energies that fit the train relaxations best."""
    on_adsorbate = np.where(frames.tags == 2, frames.z, 0)
    composition = np.stack(
        [np.add.reduceat(on_adsorbate == z, frames.offsets[:-1]) for z in REFERENCE_ELEMENTS], 1
    ).astype(float)
    fitted = (frames.split == "train") & (frames.kind != "rattle")
    reference = np.linalg.lstsq(composition[fitted], frames.energy[fitted], rcond=None)[0]
    return Frames(**{**vars(frames), "energy": frames.energy - composition @ reference})


def cut(
    frames: Frames, train_frames: int, val_frames: int, max_atoms: int, max_force: float, seed: int
) -> Frames:
    """Return a small subset: whole systems to a split, smaller ones likelier, no wild forces.

    Validation systems are taken only where what is in domain for their split (metal, adsorbate)
    occurs in the chosen train systems.
    """
    rng = np.random.default_rng(seed)
    usable = frames.largest_force() <= max_force
    usable &= (frames.natoms <= max_atoms) & np.isin(frames.fid, KEPT_FIDS)
    chosen = np.zeros(len(frames), bool)
    shared = {"val_id": ("material", "adsorbate"), "val_ood_ads": ("material",)}
    shared |= {"val_ood_cat": ("adsorbate",)}
    for split in SPLITS:
        pool = usable & (frames.split == split)
        for field in shared.get(split, ()):
            values = getattr(frames, field)
            pool &= np.isin(values, values[chosen & (frames.split == "train")])
        systems, first = np.unique(frames.sid[pool], return_index=True)
        weights = frames.natoms[pool][first].astype(float) ** -2
        keys = rng.random(len(systems)) ** (1 / weights)  # weighted order without replacement
        wanted = train_frames if split == "train" else val_frames
        counts = np.array([(frames.sid[pool] == s).sum() for s in systems])
        order = np.argsort(-keys)
        taken = systems[order[: np.searchsorted(np.cumsum(counts[order]), wanted) + 1]]
        chosen |= pool & np.isin(frames.sid, taken)
    return frames.select(chosen)


def report(frames: Frames, show: Callable[[str], None] = print) -> None:
    """Print the statistics of docs/data.md."""
    columns = ("systems", "frames", "mean_atoms", "energy_mean", "energy_std", "energy_mad")
    columns += ("force_mae", "force_rms", "force_max")
    show("| split | " + " | ".join(columns) + " |")
    show("|---" * (len(columns) + 1) + "|")
    for split, row in frames.statistics().items():
        cells = (f"{row[c]:.3f}" if isinstance(row[c], float) else f"{row[c]}" for c in columns)
        show(f"| {split} | " + " | ".join(cells) + " |")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path, help="packed set to write")
    add("--from", dest="source", type=Path, help="frames file to cut from; nothing is labelled")
    add("--frames-out", type=Path, help="also keep all frames at full precision")
    add("--labels", choices=("chgnet", "emt"), default="chgnet")
    add("--adsorbates", choices=("ase", "oc20"), default="ase")
    add("--systems", type=int, default=1500, help="systems to build (default 1500)")
    add("--train-frames", type=int, default=1280)
    add("--val-frames", type=int, default=100, help="of each validation split")
    add("--max-atoms", type=int, default=21)
    add("--max-force", type=float, default=10.0, help="eV/Angstrom, on free atoms")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.source:
        frames = Frames.load(options.source)
    else:
        frames = generate(options.systems, options.labels, options.adsorbates, options.seed)
    if options.frames_out:
        frames.save(options.frames_out)
    frames = cut(
        frames, options.train_frames, options.val_frames, options.max_atoms, options.max_force,
        options.seed,
    )  # fmt: skip
    write_packed(options.out, frames)
    print(f"{options.out}: {options.out.stat().st_size / 1024:.0f} KiB, {frames.source}")
    report(frames)


if __name__ == "__main__":
    main()
