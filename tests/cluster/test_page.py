"""The commands and keys on the page about clusters; SLURM's own are run in test_slurm.py."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from est_ocp.cli.config import resolve
from est_ocp.cli.main import main
from tests.training.launch import CONFIGS

ROOT = CONFIGS.parent
PAGE = (ROOT / "docs" / "cluster.md").read_text()
LINES = [
    line.strip()
    for block in re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
JOBS = [shlex.split(line)[2:] for line in LINES if line.startswith("fairchem --config ")]


@pytest.mark.parametrize("words", JOBS, ids=" ".join)
def test_every_job_resolves(words, monkeypatch):
    monkeypatch.setenv("OC20_ROOT", "/oc20")
    config, *overrides = words
    scheduler = resolve(ROOT / config, overrides).job.scheduler
    assert scheduler.mode == "slurm"
    assert scheduler.num_nodes * scheduler.ranks_per_node in (1, 8, 32)


def test_the_page_has_a_job_of_each_kind():
    text = [" ".join(words) for words in JOBS]
    assert len(text) >= 6
    for part in ("num_nodes=4", "is2re/", "constraint=a100", "dependency=singleton",
                 "num_array_jobs=4"):  # fmt: skip
        assert any(part in line for line in text), part


def test_keys_of_the_table_have_these_defaults(monkeypatch):
    monkeypatch.setenv("OC20_ROOT", "/oc20")
    config = resolve(CONFIGS / "s2ef" / "est_8layer.yml", ["cluster=slurm_a100"])
    rows = re.findall(r"^\| `([\w.]+)` \| (\d+)[ |]", PAGE, flags=re.MULTILINE)
    assert len(rows) == 5
    for key, value in rows:
        found = config
        for name in key.split("."):
            found = found[name]
        assert found == int(value), key
    assert set(config.job.scheduler.slurm.additional_parameters) == {"requeue", "export"}


def test_resuming(tiny_run, tmp_path, monkeypatch, capsys):
    assert "est-ocp resume runs/big" in LINES
    shutil.copytree(tiny_run, tmp_path / "runs" / "big")
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "--print", "runs/big"]) == 0
    words = shlex.split(capsys.readouterr().out)
    config = resolve(words[words.index("--config") + 1], words[words.index("--config") + 2 :])
    assert config.job.timestamp_id == "big"
    assert config.job.runner_state_path is None
