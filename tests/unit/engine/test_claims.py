"""One holder a chunk; the dead and the silent lose theirs."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hvdyolo.engine.claims import Claims, read_claims
from hvdyolo.utils.errors import StorageError
from hvdyolo.utils.process_identity import ProcessIdentity

ELSEWHERE = replace(ProcessIdentity.current(), host="elsewhere", machine="another boot")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def leave_claim(directory: Path, name: str, holder: ProcessIdentity, beats: int = 0) -> Path:
    path = directory / name
    path.write_text(json.dumps(asdict(holder)) + "\n" + "." * beats)
    return path


def dead_process() -> ProcessIdentity:
    """Identity of a process of this machine that was killed."""
    program = "import json, dataclasses, os, signal;" + (
        "from hvdyolo.utils.process_identity import ProcessIdentity as P;"
        "print(json.dumps(dataclasses.asdict(P.current())), flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return ProcessIdentity(**json.loads(result.stdout))


def test_a_chunk_has_one_holder(tmp_path: Path) -> None:
    first, second = Claims(tmp_path, 60), Claims(tmp_path, 60)
    assert first.take(7)
    assert not second.take(7)
    assert not first.take(7)
    assert second.take(8)
    assert first.claimed() == {7, 8}


def test_of_many_threads_one_wins(tmp_path: Path) -> None:
    together = threading.Barrier(16)
    wins: list[int] = []

    def grab(number: int) -> None:
        claims = Claims(tmp_path, 60)
        together.wait()
        wins.extend(chunk for chunk in range(50) if claims.take(chunk))

    threads = [threading.Thread(target=grab, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == list(range(50))


def test_a_released_chunk_is_free(tmp_path: Path) -> None:
    first, second = Claims(tmp_path, 60), Claims(tmp_path, 60)
    assert first.take(3)
    first.release(3)
    assert first.claimed() == set()
    assert second.take(3)


def test_the_dead_of_this_machine_lose_their_claims_at_once(tmp_path: Path) -> None:
    leave_claim(tmp_path, "chunk-00000005.0", dead_process())
    claims = Claims(tmp_path, 1e9)
    assert claims.take(5)
    assert [claim.holder for claim in read_claims(tmp_path)] == [ProcessIdentity.current()]
    claims.release(5)
    assert list(tmp_path.iterdir()) == []


def test_a_process_number_used_again_is_another_process(tmp_path: Path) -> None:
    me = ProcessIdentity.current()
    leave_claim(tmp_path, "chunk-00000001.0", replace(me, started=me.started - 1))
    leave_claim(tmp_path, "chunk-00000002.0", me)
    claims = Claims(tmp_path, 1e9)
    assert claims.take(1)
    assert not claims.take(2)


def test_a_counter_that_stands_still_loses_the_claim(tmp_path: Path) -> None:
    clock = Clock()
    path = leave_claim(tmp_path, "chunk-00000004.0", ELSEWHERE, beats=3)
    claims = Claims(tmp_path, 60, clock)
    assert not claims.take(4)  # first sight: how long it has stood still is not known
    clock.now += 59
    assert not claims.take(4)
    path.write_text(path.read_text() + ".")  # it lives after all
    clock.now += 59
    assert not claims.take(4)
    clock.now += 59
    assert not claims.take(4)
    clock.now += 2
    assert claims.take(4)


def test_only_one_takes_over(tmp_path: Path) -> None:
    clock = Clock()
    leave_claim(tmp_path, "chunk-00000004.0", ELSEWHERE)
    first, second = Claims(tmp_path, 60, clock), Claims(tmp_path, 60, clock)
    assert not first.take(4)
    assert not second.take(4)
    clock.now += 61
    assert first.take(4)
    assert not second.take(4)
    # The new holder is judged by its own counter, not by the time its forerunner was silent.
    clock.now += 10
    assert not second.take(4)


def test_a_claim_cut_short_while_written_expires_too(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "chunk-00000000.0").write_text('{"host": "els')
    claims = Claims(tmp_path, 60, clock)
    assert [claim.holder for claim in read_claims(tmp_path)] == [None]
    assert not claims.take(0)
    clock.now += 61
    assert claims.take(0)


def test_claims_are_kept_alive_and_released_in_the_end(tmp_path: Path) -> None:
    with Claims(tmp_path, expiry=0.06) as claims:
        claims.take(1)
        deadline = time.monotonic() + 30
        while read_claims(tmp_path)[0].beats < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_heartbeat_never_brings_a_claim_back(tmp_path: Path) -> None:
    claims = Claims(tmp_path, 60)
    claims.take(1)
    (tmp_path / "chunk-00000001.0").unlink()
    claims.beat()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_claim_that_cannot_be_written_is_an_error(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "claims"
    if kind == "file":
        directory.write_text("")
    with pytest.raises(StorageError, match="claims"):
        Claims(directory, 60).take(0)
