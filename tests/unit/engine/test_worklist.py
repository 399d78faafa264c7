"""Workers that share nothing but a directory do every chunk once, also after some have died."""

import json
import threading
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hvdyolo.engine.claims import Claims
from hvdyolo.engine.detection_plan import Plan
from hvdyolo.engine.parts import Failed, Parts
from hvdyolo.engine.worklist import claimed_chunks
from hvdyolo.utils.process_identity import ProcessIdentity

PLAN = Plan(40, 1, "", (), "", {})


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    (tmp_path / "parts").mkdir()
    (tmp_path / "claims").mkdir()
    return Parts(tmp_path, PLAN)


def commit(parts: Parts, chunk: int) -> bool:
    return parts.commit(chunk, [Failed(str(chunk), chunk, "missing", "")])


def work(parts: Parts, claims: Claims, chunks: int = PLAN.chunks) -> list[int]:
    done = []
    for chunk in claimed_chunks(parts, chunks, claims, threading.Event(), lambda: None):
        assert commit(parts, chunk)
        done.append(chunk)
    return done


def test_one_worker_does_all(parts: Parts, tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims", 60)
    assert sorted(work(parts, claims)) == list(range(40))
    assert claims.claimed() == set()
    assert work(parts, claims) == []


def test_many_workers_do_each_chunk_once(parts: Parts, tmp_path: Path) -> None:
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda: done.extend(work(parts, Claims(tmp_path / "claims", 60))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(done) == Counter(range(40))
    assert parts.finished() == set(range(40))


def test_only_what_is_missing_is_done(parts: Parts, tmp_path: Path) -> None:
    for chunk in range(0, 40, 2):
        commit(parts, chunk)
    assert sorted(work(parts, Claims(tmp_path / "claims", 60))) == list(range(1, 40, 2))


def test_a_chunk_that_was_finished_before_it_was_claimed_is_not_done_again(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(parts, 0)
    listings = iter([set(), {0}])
    monkeypatch.setattr(Parts, "finished", lambda self: next(listings))
    claims = Claims(tmp_path / "claims", 60)
    assert work(parts, claims, chunks=1) == []
    assert claims.claimed() == set()


def test_chunks_of_a_silent_holder_come_back(parts: Parts, tmp_path: Path) -> None:
    elsewhere = replace(ProcessIdentity.current(), machine="another boot")
    (tmp_path / "claims/chunk-00000003.0").write_text(json.dumps(asdict(elsewhere)) + "\n")
    assert sorted(work(parts, Claims(tmp_path / "claims", 0.1))) == list(range(40))


def test_halt_ends_the_wait_for_others_and_gives_chunks_back(parts: Parts, tmp_path: Path) -> None:
    claims, halt = Claims(tmp_path / "claims", 60), threading.Event()
    chunks = claimed_chunks(parts, 40, claims, halt, lambda: None)
    chunk = next(chunks)
    assert claims.claimed() == {chunk}
    halt.set()
    assert list(chunks) == []
    assert claims.claimed() == set()


def test_an_abandoned_worklist_gives_its_chunk_back(parts: Parts, tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims", 60)
    chunks = claimed_chunks(parts, 40, claims, threading.Event(), lambda: None)
    next(chunks)
    chunks.close()
    assert claims.claimed() == set()
