"""Heads for properties of molecules: sums and means over atoms, dipole moments, spatial extents.

Which readout a property has follows from how it behaves when a molecule grows:

- *extensive*: two molecules far apart have the sum of their values: energies (U0, U, H, G, zpve),
  and, to the accuracy that QM9 shows, polarisability and heat capacity (alpha, Cv), which are
  called intensive now and then but grow with every atom. A sum over atoms.
- *intensive*: a second molecule far away changes nothing: homo, lumo, gap. A mean over atoms with
  learned weights, for frontier orbitals sit on a few atoms.
- mu: length of ``sum q_i r_i + mu_i``; r2: ``sum q_i r_i^2`` about the centre of mass
  (PaiNN, arXiv 2102.03150; SchNet, arXiv 1706.08566).
"""

from __future__ import annotations

import torch
from ase.data import atomic_masses
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import nn

from est_ocp.nn import init_weights
from est_ocp.qm9_targets import (
    ALL,
    BOHR,
    DIPOLE,
    EXTENSIVE,
    INTENSIVE,
    Target,
    targets_of,
)
from est_ocp.sphere.constants import ConstantBuffers


class AtomValues(nn.Sequential):
    """Numbers [N, out] for each atom from its scalar features [N, C]."""

    def __init__(self, channels: int, out: int = 1) -> None:
        super().__init__(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, out))


def sum_over_atoms(values: torch.Tensor, batch: torch.Tensor, num_graphs: int) -> torch.Tensor:
    """Sum values [N, ...] of the atoms of each of B molecules: [B, ...]."""
    return values.new_zeros(num_graphs, *values.shape[1:]).index_add(0, batch, values)


class CentreOfMass(ConstantBuffers):
    """Positions relative to each molecule's centre of mass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_constant("masses", torch.as_tensor(atomic_masses, dtype=torch.float64))

    def forward(
        self, pos: torch.Tensor, numbers: torch.Tensor, batch: torch.Tensor, num_graphs: int
    ) -> torch.Tensor:
        """Return positions [N, 3], Angstrom, of the same dtype."""
        mass = self.masses[numbers].to(pos.dtype)[:, None]
        moments = sum_over_atoms(torch.cat([mass * pos, mass], dim=1), batch, num_graphs)
        return pos - (moments[:, :3] / moments[:, 3:])[batch]


class ExtensiveReadout(nn.Module):
    """Sum of one value an atom, divided by a constant.

    Parameters
    ----------
    channels : int
    divisor : float
        About the root of the mean number of atoms, which gives the sum unit variance at the start.
    """

    def __init__(self, channels: int, divisor: float) -> None:
        super().__init__()
        self.divisor = divisor
        self.values = AtomValues(channels)

    def forward(self, x, pos, numbers, batch, num_graphs: int) -> torch.Tensor:
        """Values [B] from features [N, I, C]."""
        return sum_over_atoms(self.values(x[:, 0])[:, 0], batch, num_graphs) / self.divisor


class IntensiveReadout(nn.Module):
    """Mean of one value an atom, weighted by a softmax over the atoms of each molecule.

    It starts as the plain mean.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.values = AtomValues(channels, 2)

    def start_from_mean(self) -> None:
        """Make all weights equal."""
        with torch.no_grad():
            self.values[-1].weight[1].zero_()

    def forward(self, x, pos, numbers, batch, num_graphs: int) -> torch.Tensor:
        """Values [B] from features [N, I, C]."""
        value, logit = self.values(x[:, 0]).unbind(1)
        top = logit.new_full((num_graphs,), -torch.inf)
        top = top.scatter_reduce(0, batch, logit.detach(), "amax")
        weight = (logit - top[batch]).exp()
        both = torch.stack([weight * value, weight], dim=1)
        total = sum_over_atoms(both, batch, num_graphs)
        return total[:, 0] / total[:, 1]


class DipoleReadout(nn.Module):
    """Length of the dipole moment of point charges and, from vectors, atomic dipoles.

    The charges of a molecule are shifted to sum to zero: QM9's molecules are neutral, and the
    dipole moment then does not depend on the origin.

    Parameters
    ----------
    channels : int
    divisor : float
        As for :class:`ExtensiveReadout`.
    vectors : bool
        The features have degree 1: add atomic dipoles, gated by the scalars.
    """

    def __init__(self, channels: int, divisor: float, vectors: bool) -> None:
        super().__init__()
        self.divisor = divisor
        self.values = AtomValues(channels, 1 + channels if vectors else 1)
        self.mix = nn.Linear(channels, 1, bias=False) if vectors else None
        self.centre = CentreOfMass()

    def forward(self, x, pos, numbers, batch, num_graphs: int) -> torch.Tensor:
        """Lengths [B] from features [N, I, C], degree 1 in places 1 to 3 as (x, y, z)."""
        values = self.values(x[:, 0])
        charge = values[:, :1]
        ones = torch.ones_like(charge)
        total = sum_over_atoms(torch.cat([charge, ones], dim=1), batch, num_graphs)
        charge = charge - (total[:, :1] / total[:, 1:])[batch]
        moment = charge * self.centre(pos, numbers, batch, num_graphs).to(charge.dtype)
        if self.mix is not None:
            moment = moment + self.mix(x[:, 1:4] * values[:, None, 1:])[:, :, 0]
        vector = sum_over_atoms(moment, batch, num_graphs)
        return torch.linalg.vector_norm(vector, dim=1) / self.divisor


class SpatialExtentReadout(nn.Module):
    """Electronic spatial extent: electrons times squared distance from the centre of mass.

    ``sum (Z_i + q_i) r_i^2 + s_i``: with as many electrons as protons at each nucleus, QM9's
    values follow to 116 +- 9 bohr^2 of 280; the network corrects their number (q) and adds the
    extent of the atoms themselves (s).

    Parameters
    ----------
    channels : int
    divisor : float
        As for :class:`ExtensiveReadout`, for s.
    spread : float
        The normaliser's, bohr^2: the output is in its units.
    """

    def __init__(self, channels: int, divisor: float, spread: float) -> None:
        super().__init__()
        self.divisor = divisor
        self.scale = 1.0 / (BOHR**2 * spread)
        self.values = AtomValues(channels, 2)
        self.centre = CentreOfMass()

    def forward(self, x, pos, numbers, batch, num_graphs: int) -> torch.Tensor:
        """Values [B] from features [N, I, C]."""
        charge, own = self.values(x[:, 0]).unbind(1)
        pos = self.centre(pos, numbers, batch, num_graphs).to(charge.dtype)
        square = pos.square().sum(1) * self.scale
        return sum_over_atoms((numbers + charge) * square + own / self.divisor, batch, num_graphs)


class AllReadouts(nn.ModuleList):
    """Readouts of several targets, one after the other: [B, T]."""

    def forward(self, *inputs) -> torch.Tensor:
        """Values [B, T]; inputs as for each readout."""
        return torch.stack([readout(*inputs) for readout in self], dim=1)


@registry.register_model("est_molecular_property_head")
class MolecularPropertyHead(nn.Module, HeadInterface):
    """A property of each molecule, ``{"target": [B]}``, in the normaliser's units.

    Or all of QM9's targets, [B, 12], each in units of its spread.

    Parameters
    ----------
    backbone : Module
        With ``channels`` and, for dipole moments from vectors, ``lmax_out``.
    target : str
        Name of the property, see :data:`est_ocp.qm9_targets.TARGETS`; it decides the readout. "all"
        for all of them.
    divisor : float
        Of sums over atoms; the root of the training set's mean number of atoms.
    r2_spread : float
        The normaliser's for ``r2``, bohr^2, whose readout alone uses it.

    Raises
    ------
    ConfigError
        If the target is unknown.
    """

    capturable = True

    def __init__(
        self, backbone: nn.Module, target: str, divisor: float = 4.25, r2_spread: float = 1.0
    ) -> None:
        super().__init__()
        self.target = target
        channels = backbone.channels
        vectors = getattr(backbone, "lmax_out", 0) > 0

        def readout_of(target: Target) -> nn.Module:
            if target.readout == EXTENSIVE:
                return ExtensiveReadout(channels, divisor)
            if target.readout == INTENSIVE:
                return IntensiveReadout(channels)
            if target.readout == DIPOLE:
                return DipoleReadout(channels, divisor, vectors)
            return SpatialExtentReadout(channels, divisor, r2_spread)

        readouts = [readout_of(target) for target in targets_of(target)]
        self.readout = AllReadouts(readouts) if target == ALL else readouts[0]
        init_weights(self, getattr(backbone, "weight_init", "uniform"))
        for readout in readouts:
            if isinstance(readout, IntensiveReadout):
                readout.start_from_mean()

    def forward(self, data, emb) -> dict[str, torch.Tensor]:
        """Return the property of the batch's molecules."""
        x = emb["node_embedding"]
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(next(self.parameters()).dtype)
            out = self.readout(
                x, data.pos, emb["atomic_numbers"], emb["batch"], data.natoms.numel()
            )
        return {"target": out}
