"""What the shipped SLURM settings ask for; nothing of SLURM is needed for these tests."""

from __future__ import annotations

import re

import pytest

from tests.training.launch import CONFIGS, train

SLURM = "job.scheduler.slurm"


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """Return a function that submits with fairchem and returns sbatch's options."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(
        f'#!/bin/sh\ncp "$1" {tmp_path}/script\necho Submitted batch job 17\n'
    )
    (programs / "srun").write_text("#!/bin/sh\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_SUBMIT_HOST", raising=False)

    def run(config: str, *overrides: str) -> dict[str, str | None]:
        train(
            CONFIGS / config, "cluster=slurm_a100", "data.root=/oc20",
            f"job.run_dir={tmp_path}/runs", "job.timestamp_id=ID", *overrides,
        )  # fmt: skip
        text = (tmp_path / "script").read_text()
        options = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, flags=re.MULTILINE)
        assert len(dict(options)) == len(options)
        return {name: value or None for name, value in options}

    return run


def test_the_paper_s_s2ef_training_is_one_job_of_32_ranks(submit, tmp_path):
    options = submit(
        "s2ef/est_8layer.yml", "job.scheduler.num_nodes=4", f"{SLURM}.partition=gpu",
        f"{SLURM}.account=mine", f"{SLURM}.qos=long", f"{SLURM}.timeout_hr=48",
        f"+{SLURM}.additional_parameters.constraint=a100",
    )  # fmt: skip
    logs = f"{tmp_path}/runs/ID/logs"
    assert options == {
        "account": "mine",
        "constraint": "a100",
        "cpus-per-task": "8",
        "error": f"{logs}/%j_0_log.err",
        "export": "ALL,SLURM_KILL_BAD_EXIT=1",
        "gpus-per-node": "8",
        "job-name": "est-8layer-all",
        "mem": "480GB",
        "nodes": "4",
        "ntasks-per-node": "8",
        "open-mode": "append",
        "output": f"{logs}/%j_0_log.out",
        "partition": "gpu",
        "qos": "long",
        "requeue": None,
        "signal": "USR2@90",
        "time": "2880",
        "wckey": "submitit",
    }


def test_the_paper_s_is2re_training_is_one_node_and_names_nothing_of_the_cluster(submit):
    options = submit("is2re/est_6layer.yml")
    assert (options["nodes"], options["ntasks-per-node"]) == ("1", "8")
    assert not {"partition", "account", "qos", "constraint"} & set(options)


def test_a_chain_and_an_earlier_signal(submit):
    options = submit(
        "s2ef/est_8layer.yml", "job.run_name=big",
        f"+{SLURM}.additional_parameters.dependency=singleton",
        f"+{SLURM}.additional_parameters.signal=USR2@600",
    )  # fmt: skip
    assert options["dependency"] == "singleton"
    assert options["job-name"] == "big"
    assert options["signal"] == "USR2@600"


def test_predictions_are_an_array_of_one_job_a_split(submit):
    options = submit(
        "s2ef/predict.yml", "checkpoint=runs/ID", "job.scheduler.num_nodes=1",
        "job.scheduler.num_array_jobs=4",
    )  # fmt: skip
    assert options["array"] == "0-3%4"
    assert options["ntasks-per-node"] == "8"


def test_what_is_set_can_be_taken_away(submit):
    options = submit(
        "s2ef/est_8layer.yml", f"~{SLURM}.additional_parameters.requeue",
        f"+{SLURM}.additional_parameters.no-requeue=true",
    )  # fmt: skip
    assert "no-requeue" in options
    assert "requeue" not in options
