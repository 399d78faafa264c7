"""A real SLURM of two nodes on this host: munge, a controller and two node daemons of its own."""

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "munged")
# Daemons are in sbin, which a plain user's PATH leaves out.
_PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
_START_SECONDS = 60
_STOP_SECONDS = 20


def why_not() -> str | None:
    """Why there can be no cluster here; ``None`` if there can be."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"SLURM tests need {', '.join(missing)} (Debian: slurm-wlm, munge)"
    return None if os.geteuid() == 0 else "SLURM tests need root, as slurmd does"


def is_required() -> bool:
    """Whether a missing SLURM is a failure."""
    return os.environ.get("HVDYOLO_REQUIRE_SLURM") == "1"


@dataclass(frozen=True)
class EndedJob:
    """What a batch job left behind."""

    number: int
    state: str
    exit_code: int
    log: str


@dataclass
class Cluster:
    """Started by :meth:`start`; :meth:`stop` ends what it started and nothing else."""

    directory: Path
    environment: dict[str, str] = field(init=False)
    _daemons: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self) -> None:
        self.directory.chmod(0o755)
        self.environment = os.environ | {
            "PATH": _PATH,
            "SLURM_CONF": str(self.directory / "slurm.conf"),
        }
        # A SLURM that these tests themselves run in must not shine through.
        for name in list(self.environment):
            if name.startswith(("SLURM_", "SBATCH_", "OMPI_", "PMIX_")) and name != "SLURM_CONF":
                del self.environment[name]
        socket_path = self._start_munge()
        self._write_configuration(socket_path)
        self._start("slurmctld", "slurmctld", "-D", "-i", "-f", self.environment["SLURM_CONF"])
        for node in ("n1", "n2"):
            self._start(
                f"slurmd-{node}", "slurmd", "-D", "-f", self.environment["SLURM_CONF"], "-N", node
            )  # fmt: skip
        self._wait("both nodes to be idle", self._nodes_idle, _START_SECONDS)

    def stop(self) -> None:
        user = pwd.getpwuid(os.geteuid()).pw_name
        # A controller that does not answer must not keep the daemons alive.
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            subprocess.run(["scancel", "--user", user], env=self.environment, timeout=30, check=False)
            # A job outlives the node daemon that started it: it has to be gone first.
            self._wait("the jobs' end", lambda: not self._queue(), _STOP_SECONDS)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def submit(
        self,
        script: Path,
        words: Sequence[object],
        *options: str,
        variables: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> int:
        """Number of the job that ``sbatch`` makes; its log is ``<directory>/jobs/job-<number>.log``."""
        logs = self.directory / "jobs"
        logs.mkdir(exist_ok=True)
        command = ["sbatch", f"--output={logs}/job-%j.log", *options, str(script), *map(str, words)]
        printed = subprocess.run(
            command, env=self.environment | (variables or {}), cwd=cwd, check=True, text=True,
            capture_output=True, timeout=60,
        ).stdout  # fmt: skip
        return int(printed.split()[-1])

    def log(self, job: int) -> str:
        path = self.directory / "jobs" / f"job-{job}.log"
        return path.read_text(errors="replace") if path.exists() else "(no log)"

    def show(self, job: int) -> dict[str, str]:
        """Fields of ``scontrol show job``."""
        text = self.command("scontrol", "--oneliner", "show", "job", str(job))
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def command(self, *words: str) -> str:
        return subprocess.run(
            words, env=self.environment, check=True, text=True, capture_output=True, timeout=60
        ).stdout

    def wait_until(self, job: int, condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
        """Wait for ``condition``; fails with the job's log, also when the job ends without it."""

        def reached() -> bool:
            if condition():
                return True
            assert self.show(job)["JobState"] not in _ENDED or condition(), (
                f"job {job} ended before {what}:\n{self.log(job)}"
            )
            return False

        self._wait(f"{what} of job {job}", reached, seconds, lambda: self.log(job))

    def start_requeued(self, job: int) -> None:
        """Let a requeued job start soon: SLURM lets it wait for minutes."""
        self.wait_until(job, lambda: self.show(job)["JobState"] == "PENDING", "waiting for its turn")
        # A few seconds have to be: nodes refuse a job that starts again in the second in which it ended.
        self.command("scontrol", "update", f"JobId={job}", "StartTime=now+5")

    def wait_for_end(self, job: int, seconds: float = 240) -> EndedJob:
        self._wait(
            f"the end of job {job}",
            lambda: self.show(job)["JobState"] in _ENDED,
            seconds,
            lambda: self.log(job),
        )
        fields = self.show(job)
        return EndedJob(job, fields["JobState"], int(fields["ExitCode"].partition(":")[0]), self.log(job))

    def _start(self, name: str, *command: str) -> None:
        with open(self.directory / f"{name}.out", "wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _start_munge(self) -> Path:
        folder = self.directory / "munge"
        folder.mkdir(mode=0o755)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        path = folder / "socket"
        # Foreground and force: it refuses folders that others may write above it, as /tmp is.
        self._start(
            "munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={path}",
            f"--pid-file={folder}/pid", f"--log-file={folder}/log", f"--seed-file={folder}/seed",
        )  # fmt: skip
        self._wait("munged's socket", path.exists, _START_SECONDS)
        return path

    def _write_configuration(self, munge_socket: Path) -> None:
        host = socket.gethostname().partition(".")[0]
        user = pwd.getpwuid(os.geteuid()).pw_name
        controller, first, second = _free_ports(3)
        cores = os.cpu_count() or 1
        for name in ("state", "spool.n1", "spool.n2"):
            (self.directory / name).mkdir()
        node = f"NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN"
        (self.directory / "slurm.conf").write_text(
            f"""\
ClusterName=hvdyolo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={munge_socket}
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=3600
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={self.directory}/state
SlurmdSpoolDir={self.directory}/spool.%n
SlurmctldPidFile={self.directory}/slurmctld.pid
SlurmdPidFile={self.directory}/slurmd.%n.pid
SlurmctldLogFile={self.directory}/slurmctld.log
SlurmdLogFile={self.directory}/slurmd.%n.log
NodeName=n1 Port={first} {node}
NodeName=n2 Port={second} {node}
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES:4
"""
        )

    def _queue(self) -> str:
        return subprocess.run(
            ["squeue", "--noheader"], env=self.environment, check=False, text=True, capture_output=True,
            timeout=60,
        ).stdout.strip()  # fmt: skip

    def _nodes_idle(self) -> bool:
        for daemon in self._daemons:
            assert daemon.poll() is None, f"{daemon.args} ended:\n{self._daemon_logs()}"
        printed = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%N %t"], env=self.environment, check=False,
            text=True, capture_output=True, timeout=60,
        ).stdout  # fmt: skip
        return sorted(set(printed.split("\n"))) == ["", "n1 idle", "n2 idle"]

    def _daemon_logs(self) -> str:
        paths = [
            *self.directory.glob("*.out"),
            *self.directory.glob("*.log"),
            *self.directory.glob("munge/log"),
        ]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)

    def _wait(
        self,
        what: str,
        condition: Callable[[], bool],
        seconds: float,
        explain: Callable[[], str] | None = None,
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (
                f"waited {seconds:g} s for {what}:\n{(explain or self._daemon_logs)()}"
            )
            time.sleep(0.3)


_ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
