"""The 8-layer S2EF model itself: real steps through fairchem, and its equivariance."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from fairchem.core._cli import get_hydra_config_from_yaml
from omegaconf import OmegaConf

from est_ocp.data.frames import SPLITS
from tests.models import systems
from tests.models.small import outputs
from tests.training.launch import CONFIGS, fairchem_command, run_command, write_tiny_data

pytestmark = pytest.mark.slow
CONFIG = CONFIGS / "s2ef" / "est_8layer.yml"
RULE = {"kind": "lebedev", "num_points": 590}
EXACT = {"update": {"rule": RULE}, "message": {"activation_rule": RULE}}


def test_the_45m_model_takes_two_real_steps(tmp_path):
    """``configs/s2ef/est_8layer.yml`` on OC20's folder layout, on a processor."""
    data = write_tiny_data(tmp_path / "frames")
    for split in SPLITS:
        shutil.copytree(data / split, tmp_path / "oc20" / "s2ef" / "all" / split)
    command = fairchem_command(
        CONFIG, "cluster=local_cpu", f"data.root={tmp_path / 'oc20'}", f"job.run_dir={tmp_path}",
        "job.timestamp_id=run", "steps=2", "epochs=null", "batch_size=2", "eval_batch_size=4",
        "max_eval_batches=1", "evaluate_every=null", "log_every=1",
    )  # fmt: skip
    run_command(command, timeout=600)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    checkpoint = tmp_path / "run" / "checkpoints" / "final" / "inference_ckpt.pt"
    state = torch.load(checkpoint, map_location="cpu", weights_only=False).model_state_dict
    assert sum(v.numel() for v in state.values()) == pytest.approx(45e6, rel=0.01)


def build(**changes):
    """The config's model with fewer channels and random weights of trained scale, float64."""
    import hydra

    config = OmegaConf.to_container(get_hydra_config_from_yaml(str(CONFIG), []))
    config = config["runner"]["train_eval_unit"]["model"]
    config["backbone"]["channels"] = 32
    for part, values in changes.items():
        config["backbone"][part].update(values)
    torch.manual_seed(0)
    model = hydra.utils.instantiate(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embedding" not in name:
                parameter.mul_(1.2)
    return model.double().eval()


def error(model, atoms=None) -> tuple[float, float]:
    """Relative change of the energy and the forces under a rotation of positions and cell."""
    atoms = atoms or systems.slab()
    r = systems.rotation(3)
    with torch.no_grad():
        e, f = outputs(model, systems.collate([atoms]))
        e_turned, f_turned = outputs(model, systems.collate([systems.rotated(atoms, r)]))
    return float((e_turned - e).abs() / e.abs()), float((f_turned - f @ r.T).norm() / f.norm())


def test_rotation_of_the_8_layer_model():
    energy, forces = error(build())
    assert energy < 2e-2
    assert forces < 2e-2


def test_many_points_leave_no_error():
    """What remains with 590 points everywhere is far below any row of the page's table."""
    energy, forces = error(build(**EXACT))
    assert energy < 1e-5
    assert forces < 1e-5


def test_only_a_strict_number_of_neighbours_breaks_an_ideal_slab():
    ideal = systems.slab(rattle=0.0)
    _, kept = error(build(**EXACT), ideal)
    _, strict = error(build(**EXACT, graph={"strict_max_neighbors": True}), ideal)
    assert kept < 1e-5
    assert strict > 1e-3
