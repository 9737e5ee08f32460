"""EST-only networks of any depth, degree and point set, and their errors under rotation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from equivariance.molecules import cast, random_wigner, rotated
from equivariance.points import PointSet
from est_ocp.models import ESTNetwork, MolecularPropertyHead
from est_ocp.nn import ESTMessageBlock, ESTUpdateBlock
from est_ocp.nn.random_rotation import rotate


def network_settings(points: PointSet, lmax: int, channels: int, num_layers: int) -> dict[str, Any]:
    """Settings of the QM9 model ``model/qm9_est``, all widths in proportion to `channels`."""
    rule = {"kind": points.kind, "num_points": points.num_points}
    if not isinstance(points.num_points, int):
        rule["num_points"] = list(points.num_points)
    half = channels // 2
    return {
        "lmax": lmax,
        "lmax_out": lmax,
        "num_layers": num_layers,
        "channels": channels,
        "max_num_elements": 10,
        "num_distance_basis": channels,
        "edge_channels": half,
        "message": {
            "rule": rule,
            "hidden_channels": half,
            "spherical_expert_channels": channels,
            "steerable_expert_channels": half,
            "radial_channels": [half, half],
        },
        "update": {
            "rule": rule,
            "hidden_channels": half,
            "spherical_expert_channels": 2 * channels,
            "steerable_expert_channels": channels,
        },
    }


class PlainSoftmaxNetwork(ESTNetwork):
    """The network with a softmax that counts all points alike."""

    def _message(self, lmax: int, out_channels: int, **options: Any) -> ESTMessageBlock:
        return super()._message(lmax, out_channels, quadrature=False, **options)

    def _update(self) -> ESTUpdateBlock:
        options = dict(vars(self.update_settings)) | {"quadrature": False}
        rule = options.pop("rule").build(self.lmax)
        return ESTUpdateBlock(self.channels, self.lmax, rule, **options)


class DepthNetwork(nn.Module):
    """Outputs of a network cut off after each of its layers.

    Parameters
    ----------
    points : PointSet
    lmax, channels, num_layers : int
    seed : int
        Of the weights, which are the same for all point sets.
    """

    def __init__(
        self, points: PointSet, lmax: int, channels: int, num_layers: int, seed: int = 0
    ) -> None:
        super().__init__()
        cls = ESTNetwork if points.quadrature else PlainSoftmaxNetwork
        torch.manual_seed(seed)
        self.backbone = cls(**network_settings(points, lmax, channels, num_layers))
        self.head = MolecularPropertyHead(self.backbone, target="alpha")

    def forward(self, batch: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Features [N, (lmax+1)**2, C] and predictions [B] after 1, 2, ... layers."""
        depths = []
        hooks = [
            block.register_forward_hook(lambda module, given, out: depths.append(out))
            for block in self.backbone.blocks
        ]
        try:
            emb = self.backbone(batch)
        finally:
            for hook in hooks:
                hook.remove()
        outputs = []
        for x in depths:
            features = self.backbone.norm(x)
            prediction = self.head(batch, emb | {"node_embedding": features})["target"]
            outputs.append((features, prediction))
        return outputs


@torch.no_grad()
def rotation_errors(
    network: DepthNetwork, molecules: list[Any], dtype: torch.dtype, seed: int = 1
) -> Iterator[dict[str, float]]:
    """Errors of a network cut off after 1, 2, ... layers, one random rotation a molecule.

    Parameters
    ----------
    network : DepthNetwork
    molecules : list of AtomicData
        Batches in float64; rotations happen in float64, too.
    dtype : torch.dtype
        Precision of the network.
    seed : int
        Of the rotations.

    Yields
    ------
    dict
        ``absolute``: mean of ``|f(R x) - f(x)|`` over molecules, f the prediction; ``relative``:
        that over the standard deviation of f over molecules; ``features``:
        ``|u(R x) - D(R) u(x)| / |u(x)|``, u the features of all atoms.
    """
    network = network.to(dtype).eval()
    lmax = network.backbone.lmax
    generator = torch.Generator().manual_seed(seed)
    before, after, difference, scale = [], [], [], []
    for batch in molecules:
        wigner = random_wigner(batch.natoms.numel(), lmax, generator, batch.pos.device)
        plain = network(cast(batch, dtype))
        turned = network(cast(rotated(batch, wigner), dtype))
        before.append(torch.stack([f.double() for _, f in plain]))
        after.append(torch.stack([f.double() for _, f in turned]))
        pairs = [
            (rotate(u.double(), wigner[batch.batch]), v.double())
            for (u, _), (v, _) in zip(plain, turned, strict=True)
        ]
        difference.append(torch.stack([(v - u).square().sum() for u, v in pairs]))
        scale.append(torch.stack([u.square().sum() for u, _ in pairs]))
    predictions = torch.cat(before, dim=1)
    absolute = (torch.cat(after, dim=1) - predictions).abs().mean(dim=1)
    features = (torch.stack(difference).sum(0) / torch.stack(scale).sum(0)).sqrt()
    spread = predictions.std(dim=1)
    for error, size, feature in zip(absolute, spread, features, strict=True):
        yield {
            "absolute": error.item(),
            "relative": (error / size).item(),
            "features": feature.item(),
        }
