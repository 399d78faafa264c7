"""The living, the dead and the unknown."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hvdyolo.utils.process_identity import ProcessIdentity


@pytest.fixture
def child() -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def identity_of(pid: int) -> ProcessIdentity:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return replace(ProcessIdentity.current(), pid=pid, started=int(fields[19]))


def test_this_process_lives() -> None:
    me = ProcessIdentity.current()
    assert me.pid == os.getpid()
    assert me == identity_of(os.getpid())
    assert not me.is_known_dead()


def test_a_stopped_process_lives_and_a_zombie_does_not(child: "subprocess.Popen[bytes]") -> None:
    identity = identity_of(child.pid)
    assert not identity.is_known_dead()
    child.send_signal(signal.SIGSTOP)
    assert not identity.is_known_dead()
    child.kill()
    deadline = time.monotonic() + 30
    while not identity.is_known_dead():  # a zombie: nobody has waited for it
        assert time.monotonic() < deadline
    child.wait()
    assert identity.is_known_dead()


def test_the_number_used_again_is_another_process(child: "subprocess.Popen[bytes]") -> None:
    identity = identity_of(child.pid)
    assert replace(identity, started=identity.started - 1).is_known_dead()


def test_of_another_machine_nothing_is_known(child: "subprocess.Popen[bytes]") -> None:
    identity = replace(identity_of(child.pid), machine="another boot")
    child.kill()
    child.wait()
    assert not identity.is_known_dead()
