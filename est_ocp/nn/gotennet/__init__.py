"""GotenNet (Aykent and Xia, ICLR 2025) in the project's one layout, and its EST update.

Node features are ``[N, (lmax+1)**2, C]``: GotenNet's scalars ``h`` at i = 0, its steerable features
``X`` behind them. Edges carry scalars ``t`` [E, C] that every layer but the last refines.
"""

from __future__ import annotations

from est_ocp.nn.gotennet.eqff import EQFF
from est_ocp.nn.gotennet.est_update import GotenNetESTUpdate
from est_ocp.nn.gotennet.features import EdgeFeatures, NodeFeatures
from est_ocp.nn.gotennet.gata import GATA
from est_ocp.nn.gotennet.harmonics import unit_harmonics
from est_ocp.nn.gotennet.layer import GotenNetLayer
from est_ocp.nn.gotennet.radial import CosineCutoff, ExpNormalBasis

__all__ = [
    "EQFF",
    "GATA",
    "CosineCutoff",
    "EdgeFeatures",
    "ExpNormalBasis",
    "GotenNetESTUpdate",
    "GotenNetLayer",
    "NodeFeatures",
    "unit_harmonics",
]
