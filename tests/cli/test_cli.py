"""The command line: subcommands, and errors in one line."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import hydra
import pytest

from est_ocp.cli.config import resolve
from est_ocp.cli.demo import write_entry
from est_ocp.cli.info import describe
from est_ocp.cli.main import COMMANDS, main
from est_ocp.cli.parts import count_parts
from est_ocp.training import metrics_file
from tests.training.launch import CONFIGS, DEBUG


def test_help_names_every_subcommand(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert "fairchem --config" in out


def loaded_after(code: str) -> set[str]:
    """Top-level modules outside the standard library that code brings into a fresh process."""
    code = f"import sys; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    return names - set(sys.stdlib_module_names)


def test_the_command_line_itself_imports_nothing_heavy():
    code = "; ".join(f"build_parser('{name}')" for name in COMMANDS)
    assert loaded_after(f"from est_ocp.cli.main import build_parser; {code}") == {"est_ocp"}


def test_the_layers_alone_do_not_load_fairchem():
    assert "fairchem" not in loaded_after("import est_ocp.sphere, est_ocp.nn.est_update")


def test_the_package_registers_its_models_where_fairchem_is_loaded():
    code = (
        "import fairchem.core, est_ocp; from fairchem.core.common.registry import registry;"
        "print(registry.get_model_class('est_eqv2').__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "est_ocp.models.equiformer_v2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nothing.yml"], "nothing.yml does not exist"),
        (["info", str(DEBUG), "model=nonsense"], "nonsense"),
        (["info", str(DEBUG), "+model.backbone.lmx=2"], "did you mean 'lmax'"),
        (["evaluate", "--checkpoint", "nothing.pt"], "nothing.pt does not exist"),
        (["report", "nowhere"], "nowhere is not a run"),
        (["resume", "nowhere"], "nowhere is not a run"),
    ],
)
def test_errors_are_one_line_and_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("est-ocp: error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "folder"
    assert main(["data", "demo", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("est-ocp: error: ")
    assert str(tmp_path / "file") in line
    assert "not a directory" in line


def test_errors_of_the_system_that_name_no_file_are_one_line(monkeypatch, capsys):
    """As a write to an open file raises them."""
    for error, line in (
        (OSError(28, "No space left on device"), "no space left on device; free some space, then "),
        (OSError(5, "Input/output error"), "input/output error (--debug shows where)"),
        (OSError("of a\nlibrary"), "of a library (--debug shows where)"),
    ):

        def fail(_arguments, error=error):
            raise error

        monkeypatch.setattr("est_ocp.cli.data.run", fail)
        assert main(["data", "demo"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"est-ocp: error: {line}")
        assert err.count("\n") == 1
        with pytest.raises(OSError, match=r"(?s)No space|Input|library"):
            main(["data", "demo", "--debug"])


def test_debug_shows_the_error_itself():
    from est_ocp.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["info", "--debug", "nothing.yml"])


def test_info_counts_every_parameter_once(capsys):
    assert main(["info", str(DEBUG)]) == 0
    out = capsys.readouterr().out
    counts = {
        m[1].strip(): int(m[2].replace(",", ""))
        for m in re.finditer(r"(?m)^(\S.*?) +([\d,]+)$", out)
    }
    total = counts.pop("total")
    counts.pop("constants (buffers)")
    assert sum(counts.values()) == total
    assert "other" not in counts
    for part in (
        "norms", "message attention", "spherical attention", "steerable experts",
        "spherical experts", "gate",
    ):  # fmt: skip
        assert counts[f"block 0: {part}"] > 0
    assert "24 points, exact to degree 7 (design-24), in SphericalTransform, 1 times" in out
    assert "26 points, exact to degree 7 (lebedev-26), in SeparableS2Activation, 2 times" in out


def test_parts_of_the_baseline_add_up_too():
    cfg = resolve(DEBUG, ["model=eqv2_31m", "model.backbone.num_layers=1"])
    model = hydra.utils.instantiate(cfg.runner.train_eval_unit.model)
    parts = count_parts(model)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert "26" not in describe(model).split("points:")[0]


def test_data_demo_writes_the_splits(tmp_path, capsys):
    assert main(["data", "demo", "--out", str(tmp_path)]) == 0
    listed = capsys.readouterr().out.split()
    for split in ("train", "val_id", "val_ood_both"):
        assert str(tmp_path / split) in listed
        assert (tmp_path / split / "data.0000.lmdb").is_file()


def test_resume_prints_the_fairchem_command(tiny_run, capsys):
    assert main(["resume", "--print", str(tiny_run), "runner.max_steps=9"]) == 0
    words = shlex.split(capsys.readouterr().out.removeprefix("$ "))
    assert words[0].endswith("fairchem")
    assert words[2].endswith("checkpoints/final/resume.yaml")
    assert words[-1] == "runner.max_steps=9"


def test_overrides_may_follow_an_option(tiny_run, capsys):
    assert main(["resume", str(tiny_run), "--print", "runner.max_steps=9"]) == 0
    assert capsys.readouterr().out.split()[-1] == "runner.max_steps=9"


@pytest.mark.parametrize(
    "arguments",
    [["resume", "run", "--print", "word"], ["resume", "run", "--typo=1"], ["report", "run", "a=1"]],
)
def test_words_that_are_no_overrides_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_missing_data_is_one_line_and_leaves_earlier_files(tiny_run, tmp_path, capsys):
    (tmp_path / "val_id.npz").write_bytes(b"earlier")
    command = ["evaluate", "--checkpoint", str(tiny_run), "--out", str(tmp_path)]
    assert main([*command, "--config", str(DEBUG), f"data.root={tmp_path / 'nowhere'}"]) == 2
    err = capsys.readouterr().err
    assert err.count("est-ocp: error:") == 1
    assert "nowhere" in err
    assert "Traceback" not in err
    assert (tmp_path / "val_id.npz").read_bytes() == b"earlier"


def test_evaluate_prints_four_splits_and_the_mean(tiny_run, tmp_path, capsys):
    (tmp_path / "other.npz").write_bytes(b"mine")
    assert main(["evaluate", "--checkpoint", str(tiny_run), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "other.npz").read_bytes() == b"mine"
    assert not list(tmp_path.glob(".partial*"))
    out = capsys.readouterr().out
    for row in ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both", "mean"):
        assert re.search(rf"(?m)^{row} ", out)
    assert (tmp_path / "metrics.csv").is_file()


@pytest.mark.slow
def test_the_demo_from_nothing_to_a_report(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "steps=12", "checkpoint_every=6"]) == 0
    out = capsys.readouterr().out
    assert "fairchem --config" in out
    assert (tmp_path / "report" / "index.html").is_file()
    (run,) = (tmp_path / "runs").iterdir()
    assert metrics_file.read(run / "metrics.jsonl")[-1]["step"] == 12


def test_every_shipped_config_is_named_in_the_docs():
    text = (CONFIGS.parent / "docs" / "train.md").read_text()
    for config in CONFIGS.rglob("*.yml"):
        if "s2ef" in str(config):
            assert f"configs/{config.parent.name}/{config.name}" in text


def test_the_demonstrations_own_config_is_read_by_fairchem_alone(tmp_path):
    """Away from the repository; a fresh process, in which nobody has imported est-ocp."""
    config = write_entry(tmp_path)
    program = (
        "import sys\n"
        "from fairchem.core._cli import get_hydra_config_from_yaml\n"
        "assert 'est_ocp' not in sys.modules\n"
        "config = get_hydra_config_from_yaml(sys.argv[1], ['data.root=data', 'steps=7'])\n"
        "print('steps', config.runner.max_steps)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(config)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "steps 7" in done.stdout
