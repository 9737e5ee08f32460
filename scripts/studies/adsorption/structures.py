"""Adsorption energies of Xu and Kitchin, and ideal, unrelaxed structures to predict them from.

The data: Z. Xu and J. R. Kitchin, "Probing the coverage dependence of site and adsorbate
configurational correlations on (111) surfaces of late transition metals", J. Phys. Chem. C 118,
25597 (2014), supporting information. PBE; energies in eV for each adsorbed atom, with the
references of the publication.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import fcc111
from ase.data import atomic_numbers, covalent_radii

from est_ocp.errors import DataError

#: PBE lattice constants, Angstrom, with which the published slabs were built.
LATTICE = {
    "Ag": 4.16, "Au": 4.17, "Cu": 3.64, "Ir": 3.88, "Pd": 3.95, "Pt": 3.98, "Rh": 3.84,
}  # fmt: skip
#: Sites in coordinates of the primitive surface cell, counted from a surface atom.
SITES = {
    "ontop": ((0, 0),),
    "bridge": ((1 / 2, 0), (0, 1 / 2), (1 / 2, 1 / 2)),
    "fcc": ((1 / 3, 1 / 3),),
    "hcp": ((2 / 3, 2 / 3),),
}
#: Surface cells that are filled one after the other from coverage 0.25 to 1.
FILLING = ((0, 0), (1, 0), (0, 1), (1, 1))
LAYERS, VACUUM = 4, 12.0
#: No adsorbate starts closer to the surface plane than this, Angstrom.
LOWEST = 0.9


@dataclass(frozen=True)
class Entry:
    """One adsorption energy (eV for each adsorbed atom) and its published, relaxed structure."""

    metal: str
    adsorbate: str
    site: str
    coverage: float
    energy: float
    relaxed: dict[str, Any] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Short name, e.g. ``Pt-O-fcc-0.25``."""
        return f"{self.metal}-{self.adsorbate}-{self.site}-{self.coverage:g}"


def read_entries(path: str | Path) -> list[Entry]:
    """Return all entries that have an energy, in the order of the file.

    Parameters
    ----------
    path : path
        JSON of two nested mappings ``structures`` and ``energies`` [metal][adsorbate][site]
        [coverage]. Relaxations that were not accepted have a letter in place of a number.

    Raises
    ------
    DataError
        If the file is something else.
    """
    try:
        content = json.loads(Path(path).read_text())
        structures, energies = content["structures"], content["energies"]
        entries = [
            Entry(metal, adsorbate, site, float(coverage), float(energy), relaxed)
            for (metal, adsorbate, site, coverage), energy in _leaves(energies)
            if not isinstance(energy, str)
            for relaxed in [structures[metal][adsorbate][site][coverage]]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not the file of adsorption energies ({type(error).__name__}: {error}); it "
            "needs 'structures' and 'energies' [metal][adsorbate][site][coverage]"
        ) from None
    if not entries:
        raise DataError(f"{path} holds no energies")
    return entries


def _leaves(mapping: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def ideal_structure(metal: str, adsorbate: str, site: str, coverage: float) -> Atoms:
    """Build the starting structure: nothing of it comes from a relaxation.

    An ideal fcc(111) slab of 2 x 2 atoms and four layers, the lower two fixed, at the metal's PBE
    lattice constant; adsorbed atoms at the site where they touch the nearest surface atoms by the
    sum of covalent radii. Tags are OC20's: 0 below the surface, 1 surface, 2 adsorbate.

    Raises
    ------
    DataError
        If the metal, site or coverage is not known.
    """
    count = round(4 * coverage)
    if metal not in LATTICE or site not in SITES or not 1 <= count <= 4:
        raise DataError(f"no ideal structure for {metal}, {adsorbate}, {site}, {coverage}")
    atoms = fcc111(metal, (2, 2, LAYERS), a=LATTICE[metal], vacuum=VACUUM, periodic=True)
    layer = atoms.get_tags()
    primitive = atoms.cell.array[:2] / 2
    at = np.array(SITES[site][0])
    surface = atoms.positions[:, 2].max()
    for cell in FILLING[:count]:
        place = (at + cell) @ primitive
        place[2] = surface + height(metal, adsorbate, site)
        atoms.append(adsorbate)
        atoms.positions[-1] = place
    tags = np.where(layer == 1, 1, 0)
    atoms.set_tags([*tags, *[2] * count])
    atoms.arrays["fixed"] = np.array([*(layer > 2).astype(int), *[0] * count])
    atoms.set_pbc(True)
    return atoms


def height(metal: str, adsorbate: str, site: str) -> float:
    """Height above the surface plane, Angstrom, from covalent radii."""
    bond = covalent_radii[atomic_numbers[metal]] + covalent_radii[atomic_numbers[adsorbate]]
    spacing = LATTICE[metal] / np.sqrt(2)
    lateral = {"ontop": 0.0, "bridge": spacing / 2}.get(site, spacing / np.sqrt(3))
    return float(np.sqrt(max(bond**2 - lateral**2, LOWEST**2)))


def site_after_relaxation(entry: Entry) -> str:
    """Check the relaxed structure against the entry's name, and return where the adsorbate is.

    Returns
    -------
    str
        The site nearest to most of the adsorbed atoms: relaxations may leave the named one.

    Raises
    ------
    DataError
        If composition, coverage or cell are not those of the ideal structure.
    """
    ideal = ideal_structure(entry.metal, entry.adsorbate, entry.site, entry.coverage)
    symbols = list(entry.relaxed["symbols"])
    if symbols != ideal.get_chemical_symbols():
        raise DataError(f"{entry.name}: the published structure is {Atoms(symbols).symbols}")
    cell = np.array(entry.relaxed["cell"])
    if not np.allclose(cell, ideal.cell.array, atol=1e-2):
        raise DataError(f"{entry.name}: the published cell differs from the ideal slab's")
    relaxed = np.array(entry.relaxed["pos"])[ideal.get_tags() == 2]
    primitive = cell[:2, :2] / 2
    names = [name for name, places in SITES.items() for _ in places]
    places = np.array([place for group in SITES.values() for place in group])
    fraction = (relaxed[:, :2] @ np.linalg.inv(primitive))[:, None] - places
    images = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    apart = ((fraction - np.round(fraction))[:, :, None] + images) @ primitive
    nearest = np.linalg.norm(apart, axis=-1).min(axis=-1).argmin(axis=1)
    found = [names[i] for i in nearest]
    return max(set(found), key=lambda name: (found.count(name), name == entry.site))


def record(entry: Entry, number: int) -> dict[str, Any]:
    """Return an entry as a record for :func:`est_ocp.data.write_oc20_lmdb` (task ``is2re``)."""
    atoms = ideal_structure(entry.metal, entry.adsorbate, entry.site, entry.coverage)
    moved = np.array(entry.relaxed["pos"]) - atoms.positions
    cell = atoms.cell.array
    moved -= np.round(moved @ np.linalg.inv(cell)) @ cell
    return {
        "pos": atoms.positions,
        "atomic_numbers": atoms.numbers,
        "cell": cell,
        "tags": atoms.get_tags(),
        "fixed": atoms.arrays["fixed"],
        "sid": number,
        "y_relaxed": entry.energy,
        "pos_relaxed": atoms.positions + moved,
    }
