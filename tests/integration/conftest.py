"""Starting the real command, alone or on several ranks, with a deadline that nothing survives."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

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
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"still running after {timeout} s: {process.args}\n{output}")
        return Ended(process.returncode, output)

    def _popen(self, command: Sequence[object], launcher: str, ranks: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*LAUNCHERS[launcher](ranks), *map(str, command)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def launch() -> Launch:
    environment = dict(os.environ)
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return Launch(environment)
