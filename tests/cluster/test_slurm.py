"""Jobs that fairchem submits to a real SLURM: training, signals, kills, a chain, an array."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from est_ocp.cli.evaluate import evaluate, summarize
from est_ocp.training import metrics_file
from tests.cluster.one_host import DECLARED, OVER, PATIENCE, OneHostSlurm, wait_for
from tests.training.launch import CONFIGS, DEBUG, fairchem_command, run_command, train

#: Of the trainings: steps (two epochs of six), steps between checkpoints, and steps after which
#: the interrupted one waits for what is done to it.
STEPS, EVERY, GATES = 12, 4, (5, 10)
#: The shipped settings for a SLURM cluster, made small enough for this one, without GPUs.
CPU_NODES = (
    "cluster=slurm_a100", "cluster.num_workers=0", "job.device_type=CPU",
    "job.scheduler.ranks_per_node=1", "job.scheduler.slurm.mem_gb=1",
    "job.scheduler.slurm.cpus_per_task=1", "job.scheduler.slurm.timeout_hr=1",
)  # fmt: skip
TWO_NODES = (*CPU_NODES, "job.scheduler.num_nodes=2")


def losses(run: Path) -> dict[int, float]:
    rows = [r for r in metrics_file.read(run / "metrics.jsonl") if r["kind"] == "train"]
    assert len({r["step"] for r in rows}) == len(rows)
    return {r["step"]: r["loss"] for r in rows}


def log(run: Path, job: str, rank: int = 0) -> str:
    return (run / "logs" / f"{job}_{rank}_log.err").read_text()


def newest_job(cluster: OneHostSlurm) -> str:
    return str(max(map(int, cluster.call("squeue", "-h", "-o", "%A").split())))


@pytest.fixture(scope="module")
def options(tiny_data, tmp_path_factory) -> tuple[str, ...]:
    """Overrides that all trainings of this file share."""
    return (
        f"data.root={tiny_data}", f"job.run_dir={tmp_path_factory.mktemp('runs')}",
        f"steps={STEPS}", f"checkpoint_every={EVERY}", "max_eval_batches=1", "batch_size=2",
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(options) -> Path:
    return Path(options[1].split("=")[1])


@pytest.fixture(scope="module")
def local(cluster, options, runs) -> Path:
    """Run folder of two ranks on this machine, without SLURM."""
    train(DEBUG, *options, "job.timestamp_id=local", "job.scheduler.ranks_per_node=2")
    return runs / "local"


@dataclass
class Interrupted:
    """What happened to a chain of two jobs of one training.

    Attributes
    ----------
    run : Path
    first, second : str
        Numbers of the jobs.
    requeued : dict of str to str
        The first job's record after the signal.
    killed : dict of str to str
        Its record after one of its processes was killed.
    done : int
        Last step that was logged before the kill.
    """

    run: Path
    first: str
    second: str
    requeued: dict[str, str]
    killed: dict[str, str]
    done: int


@pytest.fixture(scope="module")
def interrupted(cluster, options, runs, tmp_path_factory) -> Interrupted:
    """A training that gets the signal of a preemption, and later loses a process."""
    run = runs / "chain"
    gates = tmp_path_factory.mktemp("gates")
    numbers = []
    for _ in range(2):
        command = fairchem_command(
            DEBUG, *options, *TWO_NODES, "job.timestamp_id=chain", "job.run_name=chain",
            "+job.scheduler.slurm.additional_parameters.dependency=singleton",
            "+runner.callbacks.gate._target_=tests.cluster.gate.Gate",
            f"+runner.callbacks.gate.folder={gates}", f"+runner.callbacks.gate.steps={[*GATES]}",
        )  # fmt: skip
        # the first as users submit it; another start of Python would show nothing more
        run_command(command) if not numbers else train(DEBUG, *command[3:])
        numbers.append(newest_job(cluster))
    first, second = numbers

    def waits_at(step: int) -> None:
        def there() -> bool:
            assert cluster.state(first) not in OVER, log(run, first)[-3000:]
            return (gates / f"waiting_{step}").exists()

        wait_for(there, f"step {step}", PATIENCE)

    waits_at(GATES[0])
    cluster.call("scancel", "--signal=USR2", first)
    wait_for(lambda: cluster.job(first)["Restarts"] == "1", "the requeue", PATIENCE)
    wait_for(lambda: cluster.state(first) == "PENDING", "the end of the first start", PATIENCE)
    requeued = cluster.job(first)
    (gates / f"open_{GATES[0]}").touch()
    cluster.call("scontrol", "update", f"JobId={first}", "StartTime=now")
    waits_at(GATES[1])
    done = max(losses(run))
    (rank,) = (
        pid
        for pid in cluster.processes(SLURM_JOB_ID=first, SLURM_PROCID="1")
        if b"submitit.core._submit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(rank, signal.SIGKILL)
    killed = cluster.wait_for_end(first)
    (gates / f"open_{GATES[1]}").touch()
    return Interrupted(run, first, second, requeued, killed, done)


def test_a_signal_requeues_the_job_and_it_goes_on_from_its_newest_checkpoint(interrupted):
    assert interrupted.requeued["JobState"] == "PENDING"
    assert interrupted.requeued["Requeue"] == "1"
    text = log(interrupted.run, interrupted.first)
    assert "Caught signal SIGUSR2" in text
    assert f"to be continued from {interrupted.run}/checkpoints/step_{EVERY}\n" in text
    assert f"Done loading checkpoint from {interrupted.run}/checkpoints/preemption_state" in text


def test_a_killed_process_ends_the_job_which_says_so(interrupted):
    assert interrupted.killed["JobState"] == "FAILED"
    assert interrupted.killed["Restarts"] == "1"
    # the other rank, at its gate, would have gone on waiting
    assert interrupted.done == GATES[1]
    assert "task 1: Killed" in log(interrupted.run, interrupted.first)


def test_the_next_job_of_the_chain_ends_the_training_as_two_ranks_of_one_machine_do(
    cluster, interrupted, local
):
    run = interrupted.run
    ended = cluster.wait_for_end(interrupted.second)
    assert ended["JobState"] == "COMPLETED", log(run, interrupted.second)[-3000:]
    text = log(run, interrupted.second)
    assert f"continuing this run from {run}/checkpoints/step_{2 * EVERY}\n" in text
    assert losses(run) == losses(local)
    assert sorted(losses(local)) == list(range(1, STEPS + 1))
    assert (run / "checkpoints" / "final" / "inference_ckpt.pt").is_file()
    text = (run / "logs" / f"{interrupted.second}_1_log.out").read_text()
    assert "Job completed successfully" in text


def test_an_array_predicts_one_split_a_job(cluster, tiny_data, runs, local, tmp_path):
    out = tmp_path / "array"
    train(
        CONFIGS / "s2ef" / "predict.yml", *CPU_NODES, "job.scheduler.num_nodes=1",
        "job.scheduler.num_array_jobs=4", f"checkpoint={local}", "data=demo_s2ef",
        f"data.root={tiny_data}", f"job.run_dir={runs}", "job.timestamp_id=array",
        f"output_dir={out}",
    )  # fmt: skip
    number = cluster.call("squeue", "-h", "-o", "%F").split()[0]
    for task in range(4):
        ended = cluster.wait_for_end(f"{number}_{task}")
        assert ended["JobState"] == "COMPLETED", log(runs / "array", f"{number}_{task}")
        (line,) = [
            line
            for line in log(runs / "array", f"{number}_{task}").splitlines()
            if "predictions in" in line
        ]
        assert str(out) in line
    whole = evaluate(local, None, tmp_path / "here", ["job.scheduler.ranks_per_node=1"])
    assert summarize(out).text() == whole.text()
    splits = sorted(file.name for file in (tmp_path / "here").glob("*.npz"))
    assert len(splits) == 4
    assert sorted(file.name for file in out.glob("*.npz")) == splits
    for name in splits:
        with np.load(out / name) as one, np.load(tmp_path / "here" / name) as other:
            np.testing.assert_array_equal(one["forces"], other["forces"])


def test_one_dead_process_ends_the_others_that_would_wait_for_ever(cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n"
        f"#SBATCH --export=ALL,SLURM_KILL_BAD_EXIT=1\n#SBATCH --output={tmp_path}/out\n"
        "srun bash -c '[ $SLURM_PROCID = 0 ] && touch up && sleep 3600;"
        " until [ -e up ]; do sleep 0.1; done; kill -9 $$'\n"
    )
    number = cluster.call("sbatch", f"--chdir={tmp_path}", str(script)).split()[-1]
    ended = cluster.wait_for_end(number)
    assert ended["JobState"] == "FAILED", (ended, (tmp_path / "out").read_text())


@pytest.mark.parametrize(
    ("config", "nodes", "ranks"), [("s2ef/est_8layer.yml", 4, 32), ("is2re/est_6layer.yml", 1, 8)]
)
def test_the_paper_s_trainings_are_accepted(cluster, config, nodes, ranks, tmp_path):
    train(
        CONFIGS / config, "cluster=slurm_a100", f"job.scheduler.num_nodes={nodes}",
        f"job.scheduler.slurm.partition={DECLARED}", "data.root=/oc20", f"job.run_dir={tmp_path}",
        "+job.scheduler.slurm.additional_parameters.constraint=a100",
    )  # fmt: skip
    number = newest_job(cluster)
    job = cluster.job(number)
    cluster.call("scancel", number)
    assert (job["JobState"], job["NumTasks"], job["CPUs/Task"]) == ("PENDING", str(ranks), "8")
    assert job["NumNodes"].split("-")[0] == str(nodes)
    assert (job["TresPerNode"], job["MinMemoryNode"]) == ("gres:gpu:8", "480G")
    assert (job["Features"], job["Requeue"], job["TimeLimit"]) == ("a100", "1", "3-00:00:00")


def test_the_page_s_own_commands_of_slurm(cluster, tmp_path):
    text = (CONFIGS.parent / "docs" / "cluster.md").read_text()
    lines = re.findall(r"^(?:squeue|scontrol|scancel) .*$", text, flags=re.MULTILINE)
    assert len(lines) == 4
    script = tmp_path / "job.sh"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --output={tmp_path}/out\n"
        "srun bash -c 'trap \"\" USR2; touch up; sleep 3600'\n"  # ignored by what it starts too
    )
    runs, waits = (
        cluster.call("sbatch", f"--chdir={tmp_path}", *options, str(script)).split()[-1]
        for options in ((), ("--begin=now+1hour",))
    )
    wait_for((tmp_path / "up").exists, "the step", PATIENCE)
    for line in lines:
        # only a job that runs gets a signal, only one that waits another time of start
        cluster.call(*line.replace("JOB", runs if "--signal" in line else waits).split())
    assert "`scancel --name=" in text
    cluster.call("scancel", "--name=job.sh")
    for number in (runs, waits):
        assert cluster.wait_for_end(number)["JobState"] == "CANCELLED"


def test_nothing_is_left_running(cluster):
    wait_for(lambda: not cluster.call("squeue", "-h").strip(), "the end of all jobs", PATIENCE)
    assert not cluster.processes(SUBMITIT_EXECUTOR="slurm")
