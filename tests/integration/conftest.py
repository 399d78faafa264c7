"""Starting the real command, alone or on several ranks, with a deadline that nothing survives."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
_END_SECONDS = 20

LAUNCHERS: dict[str, Callable[[int], list[str]]] = {
    "single": lambda ranks: [],
    "mpirun": lambda ranks: [str(BIN / "mpirun"), "-np", str(ranks), "--oversubscribe",
                             "--bind-to", "none"],
    "horovodrun": lambda ranks: [str(BIN / "horovodrun"), "-np", str(ranks)],
    "gloo": lambda ranks: [str(BIN / "horovodrun"), "--gloo", "-np", str(ranks)],
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: str


@dataclass(frozen=True)
class Launch:
    """Runs commands under a launcher; one that outlives ``timeout`` is killed and fails the test.

    Called, it runs ``hvdyolo`` with the given words.
    """

    environment: dict[str, str]
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def __call__(
        self, words: Sequence[object], launcher: str = "single", ranks: int = 1, timeout: float = 180
    ) -> Ended:
        return self.wait(self.start(words, launcher, ranks), timeout)

    def program(
        self, command: Sequence[object], launcher: str = "single", ranks: int = 1, timeout: float = 180
    ) -> Ended:
        return self.wait(self._popen(command, launcher, ranks), timeout)

    def start(
        self, words: Sequence[object], launcher: str = "single", ranks: int = 1
    ) -> "subprocess.Popen[str]":
        return self._popen([BIN / "hvdyolo", *words], launcher, ranks)

    def wait(self, process: "subprocess.Popen[str]", timeout: float = 180) -> Ended:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            output = self._end(process)
            pytest.fail(f"still running after {timeout} s: {process.args}\n{output}")
        return Ended(process.returncode, output)

    def end_all(self) -> None:
        """End what a failed test left running: it would slow down all tests after it."""
        for process in self.started:
            if process.poll() is None:
                self._end(process)

    def _end(self, process: "subprocess.Popen[str]") -> str:
        """By SIGTERM first: a launcher that is killed at once leaves its ranks."""
        process.terminate()
        try:
            return process.communicate(timeout=_END_SECONDS)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.communicate()[0]

    def _popen(self, command: Sequence[object], launcher: str, ranks: int) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*LAUNCHERS[launcher](ranks), *map(str, command)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process


@pytest.fixture
def launch() -> Iterator[Launch]:
    environment = dict(os.environ)
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    launch = Launch(environment)
    yield launch
    launch.end_all()
