"""Checkpoints that name code: refused, not run, and let through only where they are trusted."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import importlib
import operator
import os
import pickle
import random
import tarfile
import threading
from pathlib import Path

import hydra
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
from est_ocp.training.safe_load import check_training_state, load_file, only_weights
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


def test_torch_s_own_switch_for_unsafe_files_does_not_count(inference, trap, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = read_checkpoint(inference)
    content.note = Touch(trap)
    torch.save(content, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"refers to 'posix.system'"):
        load_unit(tmp_path / "evil.pt")
    assert not trap.exists()
    assert load_unit(inference).tasks
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


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
        ("model_config._args_", [None, None, {"starting_checkpoint": "evil.pt"}]),
        ("model_config.backbone.model", "est_ocp.cli.main.main"),
        ("model_config.backbone.model", "est_ocp.models.EquiformerV2.__init__"),
        ("model_config.heads.energy.module", "fairchem.core.models.base.registry.import_module"),
        (
            "model_config._target_",
            "fairchem.core.models.base.load_model_and_weights_from_checkpoint",
        ),
        ("model_config._target_", "torch.nn.modules.module.torch.load"),
        ("tasks_config.0.normalizer", {"_target_": "os.system", "_partial_": True}),
        ("tasks_config.0.normalizer._target_", "est_ocp.data.write_oc20_lmdb"),
        ("tasks_config.0.normalizer._target_", {"_target_": "torch.nn.Identity"}),
        ("tasks_config.0.name", "${oc.env:HOME}"),
        ("tasks_config.0.name", "${oc.decode:'{_target_: os.system}'}"),
        ("tasks_config.0.normalizer", "${.other}"),
    ],
)
def test_a_config_that_names_other_code_is_refused(place, value, inference, tmp_path):
    torch.save(changed(inference, place, value), tmp_path / "evil.pt")
    for read in (load_unit, read_checkpoint):
        with pytest.raises(CheckpointError, match=r"evil.pt names .* at .*was not run.*--trust"):
            read(tmp_path / "evil.pt")


def test_a_node_that_answers_in_place_of_omegaconf_s_methods_is_refused(inference, tmp_path):
    content = read_checkpoint(inference)
    for name in ("_get_node", "items", "_val"):
        content.tasks_config = OmegaConf.create(content.tasks_config)
        vars(content.tasks_config[0])[name] = int
        torch.save(content, tmp_path / "evil.pt")
        with pytest.raises(CheckpointError, match=rf"names '{name}' at tasks_config\[0\]"):
            read_checkpoint(tmp_path / "evil.pt")


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "payload",
    [
        Calls(getattr, "", "upper"),
        Calls(operator.attrgetter, "system"),
        Calls(operator.methodcaller, "system"),
        Calls(functools.partial, os.system, "true"),
        Calls(importlib.import_module, "os"),
        Calls(hydra.utils.instantiate, {"_target_": "os.system", "command": "true"}),
        Calls(torch.load, "evil.pt"),
        collections.defaultdict(os.system),
        np.arange(3),
    ],
    ids=[
        "getattr", "attrgetter", "methodcaller", "partial", "import", "hydra", "load", "factory",
        "array",
    ],
)  # fmt: skip
def test_a_way_around_through_other_functions_is_refused(payload, zipped, inference, tmp_path):
    content = read_checkpoint(inference)
    content.ema_state_dict = {"weight": payload}
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil.pt refers to '.*', which .*was not run"):
        read_checkpoint(tmp_path / "evil.pt")


def test_other_formats_of_torch_are_refused(tmp_path):
    torch.jit.script(torch.nn.Identity()).save(tmp_path / "script.pt")
    with tarfile.open(tmp_path / "tar.pt", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    for name in ("script.pt", "tar.pt"):
        with pytest.raises(CheckpointError, match=f"{name} is damaged or is no checkpoint"):
            read_checkpoint(tmp_path / name)


def test_readers_in_several_threads_leave_the_process_as_it_was(inference, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    before = torch.serialization.get_safe_globals()
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with only_weights():
            inside.set()
            assert leave.wait(60)
            assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"

    holder, reader = (
        threading.Thread(target=hold),
        threading.Thread(target=read_checkpoint, args=(inference,)),
    )
    holder.start()
    assert inside.wait(60)
    reader.start()
    leave.set()
    for thread in (holder, reader):
        thread.join(60)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert set(torch.serialization.get_safe_globals()) == set(before)


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


def test_data_that_would_be_decoded_first_are_refused(tmp_path):
    checkpoint = SmallRun(tmp_path / "run").save(1)
    index = pickle.loads((checkpoint / ".metadata").read_bytes())
    for key, info in index.storage_data.items():
        index.storage_data[key] = dataclasses.replace(info, transform_descriptors=["stream.zstd"])
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match=r"stream\.zstd.*not run"):
        check_training_state(checkpoint)


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


def test_random_states_are_plain_numbers(tmp_path):
    state = random_state()
    torch.save(state, tmp_path / "random_state_rank0.pt")
    drawn = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    restore_random_state(load_file(tmp_path / "random_state_rank0.pt"))
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
    found = torch.load(tmp_path / "random_state_rank0.pt", weights_only=True)
    assert found.keys() == state.keys()
