import errno
import os
import random
import weakref
from pathlib import Path

import pytest

from hvdyolo.data import block_writer
from hvdyolo.data.block_writer import BlockWriter


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_writer, "_BLOCK_BYTES", 100)


class Piece(bytearray):
    """Bytes that can be seen to be let go."""


def write(path: Path, pieces: list[bytes], announced: int, offset: int) -> None:
    path.touch()
    with BlockWriter(path, announced) as writer:
        for piece in pieces:
            writer.add(piece)
        writer.finish(offset)


@pytest.mark.parametrize("sizes", [[100, 100], [99, 1, 1], [350], [0, 30, 0, 500, 0], [1] * 220, [37] * 30])
def test_pieces_lie_back_to_back_from_the_offset_on(tmp_path: Path, sizes: list[int]) -> None:
    pieces = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    write(tmp_path / "a", pieces, 13, 13)
    assert (tmp_path / "a").read_bytes() == bytes(13) + b"".join(pieces)


def test_what_is_less_than_a_block_can_still_go_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "a", [b"ab", b"c" * 97], 13, 20)
    assert (tmp_path / "a").read_bytes() == bytes(20) + b"ab" + b"c" * 97


def test_what_lies_around_the_pieces_is_written_last(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with BlockWriter(tmp_path / "a", 3) as writer:
        writer.add(b"x" * 150)
        writer.finish(3, [(0, b"ab"), (153, b"yz"), (0, b"c")])
    assert (tmp_path / "a").read_bytes() == b"cb\0" + b"x" * 150 + b"yz"


def test_two_blocks_are_the_most_that_is_held(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    pieces: list[weakref.ref[Piece]] = []
    held = []
    with BlockWriter(tmp_path / "a", 0) as writer:
        for _ in range(200):
            piece = Piece(b"x" * 20)
            pieces.append(weakref.ref(piece))
            writer.add(piece)  # type: ignore[arg-type]
            del piece
            held.append(sum(each() is not None for each in pieces) * 20)
        writer.finish(0)
    assert max(held) <= 200


def test_all_is_on_the_disk_in_the_end_and_on_its_way_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, ...]] = []
    advise, fsync = os.posix_fadvise, os.fsync
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *what: (sent.append(what), advise(fd, *what)))
    monkeypatch.setattr(os, "fsync", lambda fd: (sent.append((os.fstat(fd).st_size,)), fsync(fd)))
    write(tmp_path / "a", [bytes(50)] * 5, 7, 7)
    assert sent == [(7, 100, os.POSIX_FADV_DONTNEED), (107, 100, os.POSIX_FADV_DONTNEED), (257,)]


@pytest.mark.parametrize("pieces", [3, 40])
def test_a_block_that_cannot_be_written_is_told_at_the_latest_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", full)
    before = open_files()
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a", [bytes(50)] * pieces, 0, 0)
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
