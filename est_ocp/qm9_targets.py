"""The twelve targets of QM9: their units, those of published tables, and how they scale with size.

Used by the data, the heads and the evaluation; it imports nothing of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from est_ocp.errors import ConfigError

#: Energies of QM9 are in Hartree; CODATA 2018, eV.
HARTREE = 27.211386245988

#: Bohr radius, Angstrom; CODATA 2018.
BOHR = 0.529177210903

#: Elements of QM9.
ELEMENTS = (1, 6, 7, 8, 9)

#: Which readout a target has.
EXTENSIVE, INTENSIVE, DIPOLE, SPATIAL_EXTENT = "extensive", "intensive", "dipole", "spatial_extent"


@dataclass(frozen=True)
class Target:
    """One property of a molecule.

    Attributes
    ----------
    name : str
    unit : str
        Of the stored labels and of predictions.
    table_unit : str
        Of published errors.
    table_factor : float
        ``table_unit`` per ``unit``.
    readout : {"extensive", "intensive", "dipole", "spatial_extent"}
    """

    name: str
    unit: str
    table_unit: str
    table_factor: float
    readout: str

    @property
    def has_references(self) -> bool:
        """Whether a value for each atom is taken off the labels first."""
        return self.readout == EXTENSIVE

    @property
    def is_centred(self) -> bool:
        """Whether training takes the mean off as well.

        Only intensive targets: a constant would make sums over atoms no longer add up for two
        molecules far apart, and lengths of vectors could become negative.
        """
        return self.readout == INTENSIVE


def _energy(name: str, readout: str) -> Target:
    return Target(name, "eV", "meV", 1000.0, readout)


#: In the order in which labels are stored.
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("mu", "D", "D", 1.0, DIPOLE),
        Target("alpha", "bohr^3", "bohr^3", 1.0, EXTENSIVE),
        _energy("homo", INTENSIVE),
        _energy("lumo", INTENSIVE),
        _energy("gap", INTENSIVE),
        Target("r2", "bohr^2", "bohr^2", 1.0, SPATIAL_EXTENT),
        _energy("zpve", EXTENSIVE),
        _energy("U0", EXTENSIVE),
        _energy("U", EXTENSIVE),
        _energy("H", EXTENSIVE),
        _energy("G", EXTENSIVE),
        Target("Cv", "cal/(mol K)", "cal/(mol K)", 1.0, EXTENSIVE),
    )
}

#: Targets that the sources give in Hartree.
IN_HARTREE = ("homo", "lumo", "gap", "zpve", "U0", "U", "H", "G")


#: In place of a target's name: all twelve as one vector, in units of their spreads.
ALL = "all"


def targets_of(name: str) -> tuple[Target, ...]:
    """Return all targets for "all", else the one of this name.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    return tuple(TARGETS.values()) if name == ALL else (target_of(name),)


def target_of(name: str) -> Target:
    """Return a target by its name.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    if name not in TARGETS:
        names = ", ".join((*TARGETS, ALL))
        raise ConfigError(f"'{name}' is no target of QM9; choose one of {names}")
    return TARGETS[name]
