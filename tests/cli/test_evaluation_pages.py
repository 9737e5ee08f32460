"""The commands and the code on the pages about evaluation and submission run as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from est_ocp.cli.config import resolve
from est_ocp.cli.main import main
from est_ocp.data import load_demo_frames, write_oc20_lmdb
from est_ocp.data.demo_splits import TEST_SPLITS, unlabelled_records
from tests.training.launch import CONFIGS, train

ROOT = CONFIGS.parent
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("evaluate.md", "submit.md")}


def commands(page: str, program: str) -> list[str]:
    """Return the command lines of a page's blocks that call a program."""
    blocks = re.findall(r"```\n(.*?)```", PAGES[page], flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(program + " ")]


@pytest.fixture(scope="module")
def place(tiny_run, tiny_data, tmp_path_factory):
    """Folder that holds ``runs/ID`` and OC20's layout below ``oc20``."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(tiny_run, folder / "runs" / "ID", symlinks=True)
    splits = folder / "oc20" / "s2ef" / "all"
    shutil.copytree(tiny_data, splits)
    frames = load_demo_frames()
    for split in TEST_SPLITS:
        labelled = frames.of_split(split.replace("test", "val"))
        write_oc20_lmdb(splits / split, list(unlabelled_records(labelled, with_fid=True))[:3])
    (folder / "configs").symlink_to(CONFIGS)
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("EST_OCP_CACHE", str(place / "cache"))
    return place


def runnable(line: str, place: Path) -> list[str]:
    """Return a line's words for this machine: its data, and no GPU."""
    words = shlex.split(line)[1:]
    words = [word.replace("/path/to/oc20", str(place / "oc20")) for word in words]
    gpu = any(word.startswith("configs/") for word in words) and words[1] != "check"
    return [*words, "cluster=local_cpu"] if gpu else words


QUICK = [line for line in commands("evaluate.md", "est-ocp") if "ranks_per_node" not in line]


def test_the_page_about_evaluation(here, capsys):
    assert len(QUICK) >= 5
    for line in QUICK:
        assert main(runnable(line, here)) == 0, line
        assert "force MAE (meV/Å)" in capsys.readouterr().out
    assert (here / "runs/ID/results/predictions/parity.png").is_file()
    scope: dict = {}
    (code,) = re.findall(r"```python\n(.*?)```", PAGES["evaluate.md"], flags=re.DOTALL)
    exec(code, scope)
    assert float(capsys.readouterr().out) > 0


def test_the_page_about_submission(here, capsys):
    lines = commands("submit.md", "est-ocp")
    assert len(lines) >= 5
    for line in lines:
        assert main(runnable(line, here)) == 0, line
    assert capsys.readouterr().out.count("a valid leaderboard file; ids are unique") == 4
    assert (here / "submission.npz").is_file()
    assert (here / "free.npz").is_file()


@pytest.mark.slow
def test_several_ranks_and_jobs(here):
    (line,) = [line for line in commands("evaluate.md", "est-ocp") if "ranks_per_node" in line]
    assert main(runnable(line, here)) == 0
    jobs = [line for page in PAGES for line in commands(page, "fairchem")]
    assert len(jobs) == 2
    for number, line in enumerate(jobs):
        config, *overrides = runnable(line, here)[1:]
        assert resolve(ROOT / config, overrides[:-1]).job.scheduler.mode == "slurm"
        left_out = ("cluster=slurm", "output_dir=", "job.scheduler.num_array_jobs=")
        kept = [o for o in overrides if not o.startswith(left_out)]
        out = here / f"job-{number}"
        train(ROOT / config, *kept, f"output_dir={out}", f"job.run_dir={here / 'jobs'}")
        expected = TEST_SPLITS if "data.test" in line else ("val_id", "val_ood_both")
        assert {f"{split}.npz" for split in expected} <= {file.name for file in out.iterdir()}
        if "data.test" not in line:
            assert main(["evaluate", "--predictions", str(out)]) == 0
