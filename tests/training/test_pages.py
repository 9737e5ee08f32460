"""The commands, keys and code on the pages about training and data work as they stand."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest

from est_ocp.cli.config import resolve
from est_ocp.cli.main import main
from est_ocp.data import OC20LmdbDataset, metadata
from est_ocp.data.demo_splits import TEST_SPLITS
from est_ocp.data.frames import SPLITS
from tests.training.launch import CONFIGS, train

ROOT = CONFIGS.parent
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("train.md", "data.md")}


def trainings(page: str) -> list[list[str]]:
    """Return the words of every complete ``fairchem --config`` command of a page."""
    text = PAGES[page].replace("\\\n", " ")
    lines = re.findall(r"^ +fairchem --config (configs/.*)$", text, flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


COMMANDS = [words for page in PAGES for words in trainings(page)]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_training_commands_resolve(words, monkeypatch):
    monkeypatch.setenv("OC20_ROOT", "/oc20")
    config, *overrides = words
    cfg = resolve(ROOT / config, overrides)
    assert {"job", "runner"} <= set(cfg)


def test_every_is2re_config_is_on_the_page():
    shown = {words[0] for words in COMMANDS} | set(
        re.findall(r"`(configs/\S+)`", PAGES["train.md"])
    )
    assert {f"configs/is2re/{p.name}" for p in (CONFIGS / "is2re").glob("*.yml")} <= shown


def test_keys_of_the_auxiliary_task_exist():
    section = PAGES["train.md"].split("### IS2RS")[1].split("\n## ")[0]
    keys = re.findall(r"^\| `([\w.]+)` \|", section, flags=re.MULTILINE)
    assert len(keys) > 5
    config = CONFIGS / "is2re" / "est_6layer_is2rs.yml"
    for key in keys:
        resolve(config, [f"{key}=1"])
    resolve(
        config, ["runner.train_dataloader.noise=null", "runner.callbacks.position_weight.end=2"]
    )


@pytest.mark.slow
def test_the_demonstration_of_is2re(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "    est-ocp data demo --out data/demo   " in PAGES["train.md"]
    assert main(["data", "demo", "--out", "data/demo"]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    names = [*SPLITS, *TEST_SPLITS]
    assert list(printed) == [*names, *(f"is2re/{name}" for name in names)]
    for name, folder in printed.items():
        task = "is2re" if name.startswith("is2re/") else "s2ef"
        rows = re.findall(rf"^\| `{name.split('/')[-1]}` \| (\d+) \| -?\d\.\d\d", PAGES["data.md"],
                          flags=re.MULTILINE)  # fmt: skip
        if task == "is2re" and name.split("/")[1] in SPLITS:
            assert len(OC20LmdbDataset({"src": folder, "task": task})) == int(rows[-1])
    train(CONFIGS / "is2re" / "debug.yml", "job.timestamp_id=ID")
    assert (tmp_path / "runs" / "ID" / "checkpoints" / "final" / "inference_ckpt.pt").is_file()


def test_writing_and_counting_on_the_data_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGES["data.md"], flags=re.DOTALL)
    count = 4
    scope = {
        "pos": np.random.default_rng(0).random((count, 3)), "z": np.full(count, 8),
        "cell": 9 * np.eye(3), "tags": np.ones(count), "fixed": np.zeros(count),
        "energy": -1.0, "forces": np.zeros((count, 3)),
    }  # fmt: skip
    exec(code, scope)
    (sample,) = OC20LmdbDataset({"src": "my_set/train"})
    assert sample.energy.item() == -1.0
    (command,) = re.findall(r"^python -m est_ocp\.data\.metadata (.*)$", PAGES["data.md"], re.M)
    path, *options = shlex.split(command)
    (tmp_path / "my_set" / "train" / "metadata.npz").unlink()
    monkeypatch.setenv("OC20_ROOT", str(tmp_path))
    (tmp_path / "s2ef").mkdir()
    (tmp_path / "my_set").rename(tmp_path / "s2ef" / "2M")
    metadata.main([path, *options])
    with np.load(tmp_path / "s2ef" / "2M" / "train" / "metadata.npz") as file:
        assert file["natoms"].tolist() == [count]
