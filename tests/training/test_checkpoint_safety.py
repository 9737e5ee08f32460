"""Checkpoints that name code: refused, not run, and let through only where they are trusted."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf

from est_ocp.cli.main import main
from est_ocp.errors import CheckpointError
from est_ocp.evaluation import load_unit
from est_ocp.evaluation.checkpoint import read_checkpoint
from est_ocp.training import TrainRunner
from est_ocp.training.random_state import random_state, restore_random_state
from est_ocp.training.safe_load import load_file
from est_ocp.trust import trusting
from tests.relaxation.checkpoints import write_checkpoint
from tests.training.small_checkpoints import SmallRun, Touch, write_state


@pytest.fixture(scope="module")
def inference(tmp_path_factory) -> Path:
    """A harmless inference checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "inference_ckpt.pt")


@pytest.fixture
def trap(tmp_path) -> Path:
    """The file that a payload would make."""
    return tmp_path / "trap"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["tasks_config", "ema_state_dict"])
def test_a_pickled_os_system_in_an_inference_checkpoint_is_not_run(
    place, zipped, inference, trap, tmp_path
):
    content = read_checkpoint(inference)
    setattr(content, place, [Touch(trap)])
    evil = tmp_path / "evil.pt"
    torch.save(content, evil, _use_new_zipfile_serialization=zipped)
    for read in (load_unit, read_checkpoint):
        with pytest.raises(CheckpointError, match=r"refers to 'posix.system'.*not run.*--trust"):
            read(evil)
    assert not trap.exists()
    read_checkpoint(evil, trust=True)
    assert trap.exists()


def test_the_command_refuses_a_payload_in_one_line(inference, trap, tmp_path, capsys):
    content = read_checkpoint(inference)
    content.note = Touch(trap)
    torch.save(content, tmp_path / "evil.pt")
    command = ["relax", str(tmp_path / "none.xyz"), "--checkpoint", str(tmp_path / "evil.pt")]
    assert main([*command, "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"est-ocp: error: {tmp_path / 'evil.pt'} refers to 'posix.system'")
    assert not trap.exists()
    assert main([*command, "--device", "cpu", "--trust"]) == 2
    assert "evil.pt" not in capsys.readouterr().err
    assert trap.exists()


def test_an_older_format_and_nodes_of_omegaconf_load(inference, tmp_path):
    content = read_checkpoint(inference)
    expected = load_unit(inference).model.state_dict()
    content.tasks_config = OmegaConf.create(content.tasks_config)
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = load_unit(tmp_path / "old.pt").model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def changed(inference: Path, place: str, value) -> object:
    """Return the checkpoint's content with the entry at a dotted place replaced or added."""
    content = copy.deepcopy(read_checkpoint(inference))
    first, *keys, last = place.split(".")
    node = getattr(content, first)
    for key in keys:
        node = node[int(key) if key.isdecimal() else key]
    node[last] = value
    return content


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("tasks_config.0._target_", "os.system"),
        ("tasks_config.0.loss_fn._target_", "subprocess.check_call"),
        ("tasks_config.0.loss_fn.loss_fn", {"_target_": "builtins.exec", "_args_": ["1"]}),
        ("tasks_config.0.normalizer._target_", "est_ocp.cli.resume.subprocess.call"),
        ("tasks_config.0.normalizer._target_", "fairchem.core.common.registry.importlib.reload"),
        ("tasks_config.0._target_", "fairchem.core._cli.main"),
        ("tasks_config.0._target_", "fairchem.core.units.mlip_unit.utils.load_tasks"),
        ("tasks_config.0._target_", "fairchem.core.units.mlip_unit.predict.MLIPPredictUnit"),
        ("tasks_config.0.metrics", [{"_target_": "hydra.utils.call"}]),
        ("tasks_config.0.datasets", "${oc.create:{_target_:os.system}}"),
        ("model_config._target_", "torch.hub.load"),
        ("model_config.backbone.model", "os.system"),
        ("model_config.heads.energy.module", "posix.system"),
        ("model_config.heads.energy.module", "est_ocp.training.resume_command"),
        ("model_config.finetune_config", {"starting_checkpoint": "evil.pt"}),
    ],
)
def test_a_config_that_names_other_code_is_refused(place, value, inference, tmp_path):
    torch.save(changed(inference, place, value), tmp_path / "evil.pt")
    for read in (load_unit, read_checkpoint):
        with pytest.raises(CheckpointError, match=r"evil.pt names .* at .*was not run.*--trust"):
            read(tmp_path / "evil.pt")


def test_a_config_with_os_system_makes_no_file(inference, trap, tmp_path):
    task = {"_target_": "os.system", "command": f"touch {trap}"}
    content = read_checkpoint(inference)
    content.tasks_config = [task]
    torch.save(content, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"'os.system' at tasks_config\[0\]._target_"):
        load_unit(tmp_path / "evil.pt")
    content.tasks_config = OmegaConf.create([task])
    torch.save(content, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"'os.system' at tasks_config\[0\]._target_"):
        load_unit(tmp_path / "evil.pt")
    assert not trap.exists()


def test_code_of_another_package_loads_where_it_is_trusted(inference, tmp_path):
    name = "tests.training.foreign_loss.ForeignLoss"
    file = tmp_path / "foreign.pt"
    torch.save(changed(inference, "tasks_config.0.loss_fn.loss_fn._target_", name), file)
    with pytest.raises(CheckpointError, match=name):
        load_unit(file)
    task = load_unit(file, trust=True).tasks["energy"]
    assert type(task.loss_fn.loss_fn).__name__ == "ForeignLoss"
    with trusting():
        assert load_unit(file).tasks.keys() == {"energy", "forces"}


def resume(checkpoint: Path) -> None:
    """Do what a training does before its first step."""
    runner = object.__new__(TrainRunner)
    runner.job_config = OmegaConf.create({"metadata": {"checkpoint_dir": str(checkpoint.parent)}})
    runner.train_eval_unit = SmallUnit()
    runner.load_state(str(checkpoint))


class SmallUnit:
    """Loads as fairchem's unit does."""

    def load_state(self, location: str) -> None:
        state = {"unit_state": {"model": {"weight": torch.zeros(500)}, "progress": {"step": 0}}}
        dcp.load(state, checkpoint_id=location)
        assert state["unit_state"]["progress"]["step"] in (0, 3)


def put_into_index(checkpoint: Path, trap: Path) -> None:
    index = pickle.loads((checkpoint / ".metadata").read_bytes())
    index.planner_data = Touch(trap)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))


def put_into_data(checkpoint: Path, trap: Path) -> None:
    write_state(str(checkpoint), progress={"step": Touch(trap)})


def put_into_random_state(checkpoint: Path, trap: Path) -> None:
    torch.save({"python": Touch(trap)}, checkpoint / "random_state_rank0.pt")


@pytest.mark.parametrize("put", [put_into_index, put_into_data, put_into_random_state])
def test_a_payload_in_a_training_checkpoint_is_not_run(put, trap, tmp_path):
    checkpoint = SmallRun(tmp_path / "run").save(1)
    put(checkpoint, trap)
    (checkpoint / "saved.json").unlink()  # who makes a payload also makes a list that fits
    with pytest.raises(
        CheckpointError, match=r"refers to 'posix.system'.*not run.*EST_OCP_TRUST=1"
    ):
        resume(checkpoint)
    assert not trap.exists()
    with trusting():
        resume(checkpoint)
        load_file(checkpoint / "random_state_rank0.pt")
    assert trap.exists()


def test_a_harmless_training_checkpoint_resumes(tmp_path):
    resume(SmallRun(tmp_path / "run").save(1))


@pytest.mark.parametrize("earlier", [False, True])
def test_random_states_are_plain_numbers(earlier, tmp_path):
    state = random_state()
    if earlier:
        state["numpy"] = np.random.get_state()  # noqa: NPY002
    torch.save(state, tmp_path / "random_state_rank0.pt")
    drawn = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    restore_random_state(load_file(tmp_path / "random_state_rank0.pt"))
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
    if not earlier:
        assert (
            torch.load(tmp_path / "random_state_rank0.pt", weights_only=True).keys() == state.keys()
        )
