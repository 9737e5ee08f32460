"""A SLURM cluster of two nodes on this one machine, for tests: no systemd, no accounting.

The nodes are two slurmd processes of this host, named by loopback addresses, so that the name of
the first one resolves for the rendezvous of ranks. Four more nodes are only declared, never
started: jobs for eight GPUs a node are accepted and wait there for ever.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODES = ("127.0.0.1", "127.0.0.2")
#: Partition of the nodes that are only declared.
DECLARED = "a100"
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "setpriv")
#: States of a job that will not run again.
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
#: Seconds that anything may take on a machine that has much else to do, and the daemons' start.
PATIENCE, START = 600.0, 180.0
#: Bound while a cluster is up: the ranks of a job meet at a port that fairchem fixes, so there is
#: one cluster a machine. An abstract socket: it is no file, and it goes when its process ends.
_LOCK = "\0est-ocp one-host slurm"
_CONF = """
ClusterName=onehost
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=1,bf_interval=2
ReturnToService=2
SlurmctldTimeout=300
SlurmdTimeout=300
KillWait=5
MessageTimeout=60
TCPTimeout=30
BatchStartTimeout=300
MinJobAge=3600
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdParameters=config_overrides
GresTypes=gpu
MailProg=/bin/true
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=200000
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=200000
NodeName=a100-[1-4] NodeAddr=127.0.0.1 Port={ports[3]} CPUs=64 RealMemory=500000 Gres=gpu:8 \
Feature=a100 State=DOWN
PartitionName=main Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=INFINITE State=UP
PartitionName=a100 Nodes=a100-[1-4] MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why a cluster cannot be started here, None if it can."""
    missing = [name for name in _PROGRAMS if _find(name) is None]
    if missing:
        return (
            f"SLURM is not installed here ({', '.join(missing)} not found): apt-get install "
            "--no-install-recommends slurmctld slurmd slurm-client munge"
        )
    return None if os.geteuid() == 0 else "only root can start SLURM's daemons"


class NoStart(Exception):
    """The daemons do not run on this machine; the message ends with their logs."""


class OneHostSlurm:
    """The cluster; :func:`running` starts and ends it.

    Attributes
    ----------
    folder : Path
        Of configuration, state and logs.
    environment : dict of str to str
        What a process needs to reach the cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle.

        Raises
        ------
        NoStart
        """
        for name in ("state", "log"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)
        host = socket.gethostname().split(".")[0]
        text = _CONF.format(folder=self.folder, host=host, nodes=NODES, ports=_free_ports(4))
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("AutoDetect=off\n")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        place = [f"--{name}={self.folder}/munge.{end}" for name, end in files.items()]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", *place)
        try:
            wait_for((self.folder / "munge.socket").exists, "munged", START)
            self._daemon("slurmctld", "-D", "-c")
            for node in NODES:
                self._daemon("slurmd", "-D", "-N", node)
            wait_for(lambda: self._idle() == len(NODES), "two idle nodes", START)
        except TimeoutError as error:
            logs = sorted((self.folder / "log").iterdir())
            ends = (f"{file.name}: {file.read_text()[-500:]}" for file in logs)
            raise NoStart("\n".join((str(error), *ends))) from error

    def stop(self) -> None:
        """End everything that this cluster started: daemons, steps, jobs."""
        # killed, since nothing is to be kept: their orderly end takes half a minute
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait()
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def call(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands and return what it printed."""
        return subprocess.run(
            command, env=os.environ | self.environment, check=check, capture_output=True, text=True,
            timeout=PATIENCE,
        ).stdout  # fmt: skip

    def job(self, number: int | str) -> dict[str, str]:
        """Return ``scontrol show job`` as a mapping."""
        line = self.call("scontrol", "--oneliner", "show", "job", str(number)).splitlines()[0]
        return dict(re.findall(r"(\S+?)=(\S*)", line))

    def state(self, number: int | str) -> str:
        """Return a job's state, e.g. ``RUNNING``."""
        return self.job(number)["JobState"]

    def wait_for_end(self, number: int | str) -> dict[str, str]:
        """Wait until a job has ended in whatever way, and return its record."""
        wait_for(lambda: self.state(number) in OVER, f"the end of job {number}", PATIENCE)
        return self.job(number)

    def processes(self, **variables: str) -> list[int]:
        """Return this machine's processes that belong to the cluster and have these variables."""
        wanted = {f"{k}={v}".encode() for k, v in (self.environment | variables).items()}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "environ").read_bytes().split(b"\0")
                if wanted <= set(words) and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
        return found

    def _daemon(self, name: str, *options: str) -> None:
        # in the foreground, as children that end with this process even if that is killed
        program = _find(name)
        assert program is not None
        self._daemons.append(
            subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", program, *options],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=(self.folder / "log" / f"{name}.stderr").open("a"),
            )
        )

    def _idle(self) -> int:
        out = self.call("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D", check=False)
        return int(out.strip() or 0)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[OneHostSlurm]:
    """Start a cluster in an empty folder and always end it; one at a time on a machine."""
    with socket.socket(socket.AF_UNIX) as lock:
        wait_for(lambda: _bound(lock), "the end of another cluster", 2 * PATIENCE)
        cluster = OneHostSlurm(folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def wait_for(true: Callable[[], object], what: str, seconds: float) -> None:
    """Wait until something is true; TimeoutError names what did not happen."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


def _bound(lock: socket.socket) -> bool:
    try:
        lock.bind(_LOCK)
    except OSError:
        return False
    return True


def _find(program: str) -> str | None:
    """Find a program, the daemons also outside a user's path."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
