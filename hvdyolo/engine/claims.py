"""Who works on which chunk: a small file a claim, in a directory that all ranks and jobs share.

A claim is made by creating ``chunk-00000007.0`` exclusively. Its first line tells who holds it; after that
the holder adds one byte a heartbeat, so the file's length is a counter and no clocks are compared. A claim
is abandoned when its holder is known to be dead, or when its counter stood still for the expiry time; it is
then taken over by creating the next generation (``.1``, ``.2``, …), which again only one can do.

Claims only save work. If a holder was merely slow, two do the same chunk, and the part that is committed
first stands.
"""

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from hvdyolo.utils.files import storage_errors
from hvdyolo.utils.process_identity import ProcessIdentity

CLAIMS_DIRECTORY = "claims"
# Six chances to be seen alive before others call a holder dead.
_BEATS_PER_EXPIRY = 6


@dataclass(frozen=True)
class Claim:
    """A claim as others see it.

    Attributes:
        holder: ``None`` while its file is still being written.
        beats: heartbeats so far.
    """

    chunk: int
    holder: ProcessIdentity | None
    beats: int


class Claims:
    """The claims of this process, kept alive by a thread while the ``with`` block lasts.

    Args:
        directory: shared by everybody who works on the same output.
        expiry: seconds after which a claim whose counter stands still belongs to nobody.
        clock: seconds that never run backwards.
    """

    def __init__(self, directory: Path, expiry: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._expiry = expiry
        self._clock = clock
        self._identity = ProcessIdentity.current()
        self._mine: dict[int, Path] = {}
        self._seen: dict[Path, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._live, name="claims", daemon=True)

    def __enter__(self) -> "Claims":
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._heart.join()
        for chunk in list(self._mine):
            self.release(chunk)

    def take(self, chunk: int) -> bool:
        """Claim ``chunk``; false if somebody who seems alive has it.

        Raises:
            StorageError: the claim cannot be written.
        """
        newest = self._newest_generation(chunk)
        if newest >= 0 and not self._is_abandoned(self._path(chunk, newest)):
            return False
        path = self._path(chunk, newest + 1)
        with storage_errors(path):
            try:
                # With O_EXCL exactly one of several processes creates it, on network file systems too.
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return False
            try:
                os.write(descriptor, json.dumps(dataclasses.asdict(self._identity)).encode() + b"\n")
            finally:
                os.close(descriptor)
        with self._lock:
            self._mine[chunk] = path
        return True

    def release(self, chunk: int) -> None:
        """Give ``chunk`` back; after its part is committed, or when it is given up."""
        with self._lock:
            newest = self._mine.pop(chunk)
        with storage_errors(newest):
            # The oldest first: what a kill in between leaves has no generation 0 and claims nothing.
            for generation in range(int(newest.suffix[1:]) + 1):
                self._path(chunk, generation).unlink(missing_ok=True)

    def claimed(self) -> set[int]:
        """Chunks with a claim, whether or not its holder lives."""
        return {_chunk_of(path) for path in _claim_files(self._directory)}

    def beat(self) -> None:
        """One heartbeat for every claim of this process."""
        with self._lock:
            mine = list(self._mine.values())
        for path in mine:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            except OSError:
                # Gone, or the disk is full: at worst somebody else repeats the chunk.
                continue
            try:
                os.write(descriptor, b".")
            except OSError:
                continue
            finally:
                os.close(descriptor)

    def _live(self) -> None:
        while not self._ended.wait(self._expiry / _BEATS_PER_EXPIRY):
            self.beat()

    def _path(self, chunk: int, generation: int) -> Path:
        return self._directory / f"chunk-{chunk:08d}.{generation}"

    def _newest_generation(self, chunk: int) -> int:
        """-1 if there is no claim."""
        generation = 0
        while self._path(chunk, generation).exists():
            generation += 1
        return generation - 1

    def _is_abandoned(self, path: Path) -> bool:
        claim = _read_claim(path)
        if claim is None:
            return False  # released a moment ago
        if claim.holder is not None and claim.holder.is_known_dead():
            return True
        now = self._clock()
        beats, since = self._seen.get(path, (-1, now))
        if claim.beats != beats:
            self._seen[path] = (claim.beats, now)
            return False
        return now - since >= self._expiry


def read_claims(directory: Path) -> list[Claim]:
    """The newest claim of every claimed chunk, by chunk."""
    newest: dict[int, Claim] = {}
    for path in sorted(_claim_files(directory), key=lambda path: int(path.suffix[1:])):
        claim = _read_claim(path)
        if claim is not None:
            newest[claim.chunk] = claim
    return [newest[chunk] for chunk in sorted(newest)]


def _claim_files(directory: Path) -> list[Path]:
    return list(directory.glob("chunk-*.*"))


def _chunk_of(path: Path) -> int:
    return int(path.stem.removeprefix("chunk-"))


def _read_claim(path: Path) -> Claim | None:
    """``None`` if it is gone."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    line, newline, beats = content.partition(b"\n")
    try:
        holder = ProcessIdentity(**json.loads(line)) if newline else None
    except (ValueError, TypeError):
        holder = None
    return Claim(_chunk_of(path), holder, len(beats))
