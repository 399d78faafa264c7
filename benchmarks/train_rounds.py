"""Rounds that several trainings take in turns.

Each training is one or more processes that live through all rounds of a launch. Before a batch that begins a
round they wait for a file, so one training works at a time, and a machine that slows down slows all alike.
Where memory lies and which threads share a core differ from launch to launch, so there may be several.
"""

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

BatchT = TypeVar("BatchT")

_LOOK_SECONDS = 0.005
_SETTLE_SECONDS = 1.0  # loaders fill their queues after a round
_MOST_SECONDS = 900.0
_END = "end"


@dataclass(frozen=True)
class Pace:
    """Batches of a round on each process; both are multiples of the batches of an optimizer step.

    Attributes:
        warm: before the clock starts: what was loaded in advance is among them.
        timed: while it runs.
    """

    warm: int
    timed: int


@dataclass(frozen=True)
class Timing:
    """What a process did between the clock's start and the end of a round.

    Attributes:
        processor_seconds: of all its threads; loader workers are other processes.
    """

    images: int
    seconds: float
    processor_seconds: float


class Gate:
    """A process's side of the rounds: ``before_batch`` returns when the next batch may be loaded."""

    def __init__(self, folder: Path, member: int, pace: Pace, benchmark: int) -> None:
        self._folder = folder
        self._benchmark = Path("/proc") / str(benchmark)
        self._member = member
        self._pace = pace
        self._batches = 0
        self._started = self._busy = 0.0

    def before_batch(self, images: int) -> None:
        """Wait where a round begins, and tell how long the last one took for its batches of ``images``."""
        number, place = divmod(self._batches, self._pace.warm + self._pace.timed)
        if place == 0:
            self._tell(
                number,
                Timing(
                    images=images * self._pace.timed,
                    seconds=time.perf_counter() - self._started,
                    processor_seconds=time.process_time() - self._busy,
                ),
            )
            self._wait(number)
        if place == self._pace.warm:
            self._started, self._busy = time.perf_counter(), time.process_time()
        self._batches += 1

    def _tell(self, number: int, timing: Timing) -> None:
        path = self._folder / report_name(number, self._member)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(timing)))
        temporary.replace(path)

    def _wait(self, number: int) -> None:
        while not (self._folder / begin_name(number)).exists():
            if (self._folder / _END).exists() or not self._benchmark.exists():
                os._exit(0)  # in the middle of an epoch, whatever is set up around it
            time.sleep(_LOOK_SECONDS)


def begin_name(number: int) -> str:
    """The file that begins round ``number``."""
    return f"begin-{number}"


def report_name(number: int, member: int) -> str:
    """The file in which a process says that it is ready for round ``number``, and how the last one went."""
    return f"ready-{number}-{member}.json"


@dataclass
class Training:
    """The benchmark's side: some processes that do a training together.

    Attributes:
        name: for people.
        commands: one a process that is started here.
        folder: for each launch's own.
        members: processes that report; a launcher's ranks are several for one command.
        variables: what is added to the environment.
        speeds: images a second of all processes together, each over its own timed batches, by round.
        costs: milliseconds of a processor that an image takes of them, by round. Other work on the machine
            changes them little.
    """

    name: str
    commands: Sequence[Sequence[str]]
    folder: Path
    members: int
    variables: dict[str, str] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    _launch: int = 0
    _round: int = 0
    _processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self) -> None:
        """Start the processes."""
        self._launch += 1
        self._round = 0
        self._processes = []
        self._gate.mkdir(parents=True)
        for number, command in enumerate(self.commands):
            with (self._gate / f"log-{number}").open("wb") as log:
                process = subprocess.Popen(
                    [*command, "--gate", str(self._gate), "--benchmark", str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | self.variables,
                )
            self._processes.append(process)

    def wait_until_ready(self) -> None:
        """Wait until each process is before its first batch."""
        self._wait(0)

    def take_round(self) -> None:
        """Let the processes do their batches, and keep how that went."""
        (self._gate / begin_name(self._round)).touch()
        self._round += 1
        reports = self._wait(self._round)
        time.sleep(_SETTLE_SECONDS)
        speed = sum(report.images / report.seconds for report in reports)
        cost = 1000 * sum(report.processor_seconds for report in reports) / sum(r.images for r in reports)
        print(f"  {self.name}: {speed:.2f} images/s, {cost:.1f} ms an image", file=sys.stderr, flush=True)
        self.speeds.append(speed)
        self.costs.append(cost)

    def end(self) -> None:
        """End the processes."""
        if self._processes:
            (self._gate / _END).touch()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def _gate(self) -> Path:
        return self.folder / f"launch-{self._launch}"

    def _wait(self, number: int) -> list[Timing]:
        paths = [self._gate / report_name(number, member) for member in range(self.members)]
        deadline = time.monotonic() + _MOST_SECONDS
        while not all(path.exists() for path in paths):
            if any(process.poll() is not None for process in self._processes):
                self._fail("ended")
            if time.monotonic() > deadline:
                self._fail(f"took more than {_MOST_SECONDS:.0f} s for a round")
            time.sleep(_LOOK_SECONDS)
        return [Timing(**json.loads(path.read_text())) for path in paths]

    def _fail(self, how: str) -> None:
        self.end()
        logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in self._gate.glob("log-*"))
        raise SystemExit(f"{self.name} {how}:\n{logs}")


def take_turns(trainings: Sequence[Training], rounds: int, launches: int = 1) -> None:
    """Start all, let them take turns, end them; ``launches`` times.

    The first batches of a training are slow. They are among those of its first round that are not timed.
    """
    for _ in range(launches):
        try:
            for training in trainings:
                training.start()
            for training in trainings:
                training.wait_until_ready()
                print(f"  {training.name} is ready", file=sys.stderr, flush=True)
            for number in range(rounds):
                # Back and forth, so that none is always the one after a certain other.
                for training in trainings if number % 2 else reversed(trainings):
                    training.take_round()
        finally:
            for training in trainings:
                training.end()


def gated(
    batches: Iterator[BatchT], gate: Gate, images_of: Callable[[BatchT], int], repeat: bool
) -> Iterator[BatchT]:
    """``batches``, each after the gate; with ``repeat`` the first again and again."""
    kept: BatchT | None = None
    while True:
        gate.before_batch(0 if kept is None else images_of(kept))
        if kept is None or not repeat:
            kept = next(batches)
        yield kept


def gate_arguments(parser: ArgumentParser) -> None:
    """What every process takes."""
    parser.add_argument("--gate", type=Path, required=True)
    parser.add_argument("--benchmark", type=int, required=True, help="process with which this one ends")
    parser.add_argument("--member", type=int, default=0)
    parser.add_argument("--warm", type=int, required=True)
    parser.add_argument("--timed", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeat", action="store_true", help="load one batch and take it again and again")


def open_gate(options: Namespace) -> Gate:
    """The gate that ``options`` describe."""
    member = int(os.environ.get("OMPI_COMM_WORLD_RANK", options.member))
    return Gate(options.gate, member, Pace(options.warm, options.timed), options.benchmark)


def pace_words(pace: Pace, member: int = 0) -> list[str]:
    """``pace`` as options."""
    return ["--warm", str(pace.warm), "--timed", str(pace.timed), "--member", str(member)]
