"""The code and the commands of docs/use.md run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import ase.io
import numpy as np
from ase.io import Trajectory

from est_ocp.cli.main import main
from est_ocp.evaluation import SplitPredictions
from est_ocp.relaxation import OPTIMIZERS
from tests.models.systems import slab, water
from tests.relaxation.checkpoints import is2re_records, write_is2re

TEXT = (Path(__file__).parents[2] / "docs" / "use.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = re.findall(r"est-ocp (?:relax|submission) [^\n`&]*--out [^\n`&]*", TEXT)


def test_the_code(s2ef, capsys):
    scope: dict = {}
    assert len(PYTHON) == 3
    for code in PYTHON:
        assert "runs/ID" in code
        exec(code.replace("runs/ID", str(s2ef)), scope)
    first, stock, *relaxed = capsys.readouterr().out.strip().splitlines()
    assert first.endswith("(13, 3)")
    assert np.isfinite(float(stock))
    assert scope["slab"].get_tags().tolist().count(2) == 1
    assert [line.split()[0] for line in relaxed] == ["water", "ammonia"]


def test_the_commands(s2ef, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ase.io.write("slabs.traj", [slab(seed=i) for i in range(3)])
    ase.io.write("molecule.xyz", water())
    ase.io.write("surface.cif", slab("Pd"))
    for split in ("val_id", "val_ood_ads"):
        write_is2re(tmp_path / "is2re" / split, is2re_records(2))
    records = is2re_records(4, labels=False)
    for split, record in zip(("id", "ood_ads", "ood_cat", "ood_both"), records, strict=True):
        write_is2re(tmp_path / "is2re" / f"test_{split}", [record])
    assert len(COMMANDS) == 6
    for command in COMMANDS:
        words = shlex.split(command.replace("runs/ID", str(s2ef)))
        quick = ["--steps", "1", "--device", "cpu"] if words[1] == "relax" else []
        assert main([*words[1:], *quick]) == 0, command
    assert len(Trajectory("relaxed/relaxed.traj")) == 5
    assert len(Trajectory("shared/relaxed.traj")) == 3
    assert Path("relaxed/summary.csv").is_file()
    assert len(SplitPredictions.load("is2re_relaxed/val_ood_ads.npz")) == 2
    with np.load("is2re_submission.npz") as file:
        sids = [int(file[f"{split}_ids"][0]) for split in ("id", "ood_ads", "ood_cat", "ood_both")]
    assert sids == [record["sid"] for record in records]


def test_the_table_names_every_option(capsys):
    from est_ocp.cli.main import build_parser

    parser = build_parser("relax")
    (sub,) = (a for a in parser._actions if a.dest == "command")
    options = {a.option_strings[0]: a for a in sub.choices["relax"]._actions if a.option_strings}
    rows = dict(re.findall(r"\| `(--[\w-]+)[^|]*\| ([^|]+) \|", TEXT))
    elsewhere = {"-h", "--debug", "--checkpoint", "--out", "--dataset"}
    assert rows.keys() == options.keys() - elsewhere
    for name in ("--fmax", "--steps", "--optimizer", "--batch-size", "--part"):
        assert rows[name] == str(options[name].default)
    assert tuple(options["--optimizer"].choices) == tuple(OPTIMIZERS)
