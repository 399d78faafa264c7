"""The set-up on machines where something is missing, full, altered or half done.

Every test works on a copy of the scripts in a folder of its own. All but the last stop the set-up
before it installs anything, or keep pip from every index, so they take seconds.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINNED_TORCH = (ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8").split()[-1]
COMPILERS = {"c++", "g++", "clang++", "gcc", "cc", "clang"}


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    errors: str

    @property
    def sentence(self) -> str:
        """The one line that tells the user what is wrong."""
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.errors
        assert "Traceback" not in self.errors
        return lines[0]


class Copy:
    """A copy of what the set-up is made of, away from the repository and from every package index."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.venv = folder / ".venv"
        folder.mkdir()
        for name in ("scripts", "requirements"):
            shutil.copytree(ROOT / name, folder / name)
        for name in ("setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PIP_")
        } | {
            "PYTHON": getattr(sys, "_base_executable", sys.executable),
            "HVDYOLO_CACHE": str(cache),
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
        }
        for name in ("CXX", "MPI", "TORCH", "HVDYOLO_DEVICE", "HVDYOLO_MIN_FREE_MB"):
            self.environment.pop(name, None)

    def start(self, script: str, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(self.folder / "scripts" / script), *arguments],
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str, timeout: float = 120, **variables: str) -> Ended:
        process = self.start(script, *arguments, **variables)
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            pytest.fail(f"{script} was still running after {timeout} s\n{output}\n{errors}")
        return Ended(process.returncode, output, errors)

    def make_env(self, *arguments: str, timeout: float = 120, **variables: str) -> Ended:
        return self.run("make_env.sh", *arguments, timeout=timeout, **variables)

    def create_venv(self) -> None:
        venv.create(self.venv, with_pip=False, symlinks=True)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "copy", tmp_path / "cache")


@pytest.fixture(scope="module")
def path_without_compilers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything on PATH, less the compilers."""
    folder = tmp_path_factory.mktemp("bin")
    for directory in os.environ["PATH"].split(os.pathsep):
        for program in Path(directory).iterdir() if Path(directory).is_dir() else []:
            link = folder / program.name
            if program.name not in COMPILERS and not link.is_symlink():
                link.symlink_to(program)
    return folder


def test_no_compiler_is_said_before_anything_is_installed(copy: Copy, path_without_compilers: Path) -> None:
    ended = copy.make_env(PATH=str(path_without_compilers))
    assert ended.code == 2
    assert ended.sentence.startswith("error: no C++ compiler found")
    assert "apt install g++" in ended.sentence
    assert not copy.venv.exists()


def test_build_alone_says_that_there_is_no_compiler(copy: Copy, path_without_compilers: Path) -> None:
    ended = copy.run("build_horovod.sh", "--python", sys.executable, PATH=str(path_without_compilers))
    assert ended.code == 2
    assert ended.sentence.startswith("error: no C++ compiler found")


def test_full_disk_is_said_before_anything_is_installed(copy: Copy) -> None:
    ended = copy.make_env(HVDYOLO_MIN_FREE_MB="999999999")
    assert ended.code == 74
    assert f"needs 999999999 MB in {copy.folder}, and " in ended.sentence
    assert not copy.venv.exists()


@pytest.mark.parametrize("script", ["make_env.sh", "build_horovod.sh"])
def test_cache_that_cannot_be_written_is_named(copy: Copy, tmp_path: Path, script: str) -> None:
    # Below a file: not even root can write there.
    blocked = tmp_path / "file" / "cache"
    blocked.parent.write_text("", encoding="utf-8")
    arguments = [] if script == "make_env.sh" else ["--python", sys.executable]
    ended = copy.run(script, *arguments, HVDYOLO_CACHE=str(blocked))
    assert ended.code == 74
    assert f"cannot write to {blocked}" in ended.sentence
    assert "HVDYOLO_CACHE" in ended.sentence


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"PYTHON": "/no/such/python"}, "PYTHON names /no/such/python"),
        ({"MPI": "mpich"}, "MPI is wheel or site, not 'mpich'"),
        ({"HVDYOLO_DEVICE": "tpu"}, "HVDYOLO_DEVICE is auto, cpu or cuda, not 'tpu'"),
        ({"MPI": "site", "MPICC": "/no/such/mpicc"}, "there is no mpicc"),
    ],
)
def test_variables_that_make_no_sense(copy: Copy, variables: dict[str, str], named: str) -> None:
    ended = copy.make_env(**variables)
    assert ended.code == 2
    assert named in ended.sentence
    assert not copy.venv.exists()


def test_unknown_argument(copy: Copy) -> None:
    for script in ("make_env.sh", "build_horovod.sh"):
        ended = copy.run(script, "--fast")
        assert ended.code == 2
        assert "'--fast'" in ended.sentence


def test_folder_that_is_no_environment_is_left_alone(copy: Copy) -> None:
    copy.venv.mkdir()
    (copy.venv / "thesis.txt").write_text("the only copy", encoding="utf-8")
    ended = copy.make_env()
    assert ended.code == 2
    assert f"{copy.venv} exists and is no virtual environment" in ended.sentence
    assert (copy.venv / "thesis.txt").read_text(encoding="utf-8") == "the only copy"


class TestRepair:
    """An environment that cannot be kept is made anew, and the reason is said.

    pip then finds no index, so each ends there, with a sentence of its own.
    """

    @staticmethod
    def made_anew(copy: Copy, reason: str) -> None:
        (copy.venv / "old").write_text("", encoding="utf-8")
        ended = copy.make_env()
        assert f"making .venv anew: {reason}" in ended.output, ended
        assert f"{PINNED_TORCH} could not be installed" in ended.sentence
        assert not (copy.venv / "old").exists()
        assert not (copy.venv / ".ready").exists()

    def test_killed_while_pip_was_changing_it(self, copy: Copy) -> None:
        copy.create_venv()
        (copy.venv / ".being-changed").touch()
        self.made_anew(copy, "an earlier set-up was killed in the middle")

    def test_killed_before_it_was_one(self, copy: Copy) -> None:
        copy.venv.mkdir()
        (copy.venv / ".being-changed").touch()
        self.made_anew(copy, "an earlier set-up was killed in the middle")

    def test_its_python_has_vanished(self, copy: Copy, tmp_path: Path) -> None:
        copy.create_venv()
        python = copy.venv / "bin" / "python"
        python.unlink()
        python.symlink_to(tmp_path / "uninstalled")
        self.made_anew(copy, "its Python does not run any more")

    def test_it_has_no_pip(self, copy: Copy) -> None:
        copy.create_venv()
        self.made_anew(copy, "its pip does not run")

    def test_it_was_moved(self, copy: Copy, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere" / ".venv"
        venv.create(elsewhere, with_pip=False, symlinks=True)
        elsewhere.rename(copy.venv)
        self.made_anew(copy, "it was made for another folder")


def test_stamp_that_does_not_match_is_no_stamp(copy: Copy) -> None:
    copy.create_venv()
    (copy.venv / ".ready").write_text("made from something else", encoding="utf-8")
    ended = copy.make_env(HVDYOLO_MIN_FREE_MB="999999999")
    assert ended.output.startswith("setting up .venv: what it is made from has changed\n")
    assert ended.code == 74


class TestKeptWheel:
    """Wheels that an earlier build left, with a stand-in for the wheel."""

    @staticmethod
    def build(copy: Copy, *arguments: str) -> Ended:
        return copy.run("build_horovod.sh", "--python", sys.executable, *arguments)

    def keep(self, copy: Copy, content: bytes = b"a wheel") -> Path:
        key = self.build(copy, "--key").output.strip()
        folder = Path(copy.environment["HVDYOLO_CACHE"]) / "wheels" / key
        folder.mkdir(parents=True)
        wheel = folder / "horovod-0.28.1-cp3-none-linux.whl"
        wheel.write_bytes(content)
        digest = hashlib.sha256(b"a wheel").hexdigest()
        (folder / "SHA256SUMS").write_text(f"{digest}  {wheel.name}\n", encoding="utf-8")
        return wheel

    def test_key_names_every_version(self, copy: Copy) -> None:
        import torch

        key = self.build(copy, "--key").output.strip()
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
        for part in ("horovod0.28.1", f"torch{torch.__version__}", tag, os.uname().machine):
            assert part in key.split("-")

    def test_whole_wheel_is_taken_without_compiling(self, copy: Copy, path_without_compilers: Path) -> None:
        wheel = self.keep(copy)
        assert self.build(copy, "--wheel").output.strip() == str(wheel)
        copy.environment["PATH"] = str(path_without_compilers)
        assert self.build(copy, "--no-install").code == 0

    def test_damaged_wheel_is_not_taken(self, copy: Copy, path_without_compilers: Path) -> None:
        self.keep(copy, b"half a wh")
        assert self.build(copy, "--wheel").code == 1
        copy.environment["PATH"] = str(path_without_compilers)
        assert "no C++ compiler" in self.build(copy, "--no-install").sentence

    def test_second_build_waits_for_the_first_and_takes_its_wheel(self, copy: Copy) -> None:
        wheels = Path(copy.environment["HVDYOLO_CACHE"]) / "wheels"
        wheels.mkdir(parents=True)
        with (wheels / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = copy.start("build_horovod.sh", "--python", sys.executable, "--no-install")
            assert process.stdout is not None
            waiting = process.stdout.readline()
            self.keep(copy)
        output, errors = process.communicate(timeout=60)
        assert "a build of Horovod is under way in another process" in waiting
        assert process.returncode == 0, errors
        assert "compiling" not in output


def test_the_library_is_found_beside_its_checkout(tmp_path: Path) -> None:
    (tmp_path / "hvdyolo" / "hvdyolo").mkdir(parents=True)  # a checkout's name and layout
    line = "from hvdyolo import Detector; print(Detector.__name__)"
    ended = subprocess.run([sys.executable, "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout == "Detector\n", ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_ends_what_was_started(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    script = f"""
        set -euo pipefail
        source '{ROOT}/scripts/steps.sh'
        trap_interrupts
        watched naps '{log}' bash -c 'sleep 300 & echo $! $$; wait'
    """
    process = subprocess.Popen(
        ["bash", "-c", script],
        start_new_session=True,
        # A background job and nohup hand it down ignored, and bash cannot trap it then.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    pids = wait_for_pids(log)
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + {signal.SIGHUP: 15}.get(number, number)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a process outlived the interrupt"
        time.sleep(0.05)


def wait_for_pids(log: Path) -> list[str]:
    deadline = time.monotonic() + 30
    while not log.exists() or not log.read_text(encoding="utf-8").endswith("\n"):
        assert time.monotonic() < deadline, "the command did not start"
        time.sleep(0.05)
    return log.read_text(encoding="utf-8").split()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("OSError: [Errno 28] No space left on device", 74, "no space left"),
        ("c++: fatal error: Killed signal terminated program cc1plus", 70, "out of memory"),
        ("Temporary failure in name resolution", 74, "package index cannot be reached"),
        ("error: 'foo' was not declared in this scope", 70, "full log: "),
    ],
)
def test_known_reasons_are_told_from_a_log(tmp_path: Path, words: str, code: int, said: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"Collecting torch\n{words}\n" + "more\n" * 50, encoding="utf-8")
    script = f"set -euo pipefail; source '{ROOT}/scripts/steps.sh'; explain_failure It '{log}'"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
    assert ended.returncode == code
    assert said in Ended(ended.returncode, ended.stdout, ended.stderr).sentence
    if code == 70 and "out of memory" not in said:
        assert words in ended.stderr


@pytest.fixture
def real_copy(tmp_path: Path) -> Iterator[Copy]:
    """A copy with the package, the real cache of wheels, and pip as this machine has it."""
    copy = Copy(tmp_path / "copy", tmp_path / "cache")
    shutil.copytree(ROOT / "hvdyolo", copy.folder / "hvdyolo", symlinks=True)
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy.folder)
    python = copy.environment["PYTHON"]
    copy.environment = dict(os.environ) | {"PYTHON": python}
    # As `make test` was called, but as a user, who sets nothing of Open MPI's.
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        copy.environment.pop(name, None)
    kept = copy.run("build_horovod.sh", "--python", sys.executable, "--wheel")
    if kept.code != 0:
        pytest.skip("Horovod's wheel is not kept here, and building it again takes minutes")
    yield copy
    shutil.rmtree(copy.venv, ignore_errors=True)


@pytest.mark.slow
def test_killed_altered_and_repaired_for_real(real_copy: Copy) -> None:
    # What a site may have set, and what would make pip do something else.
    site = {"PIP_USER": "1", "PIP_TARGET": "/no/such/folder", "PIP_REQUIRE_HASHES": "1"}
    killed = real_copy.start("make_env.sh", **site)
    try:
        deadline = time.monotonic() + 300
        while not any(real_copy.venv.glob("lib/python3*/site-packages/torch/*")):
            assert killed.poll() is None, killed.communicate()
            assert time.monotonic() < deadline, "pip did not come to installing torch"
            time.sleep(0.1)
    finally:
        end_everything_in(real_copy.folder)
    killed.communicate(timeout=30)
    assert (real_copy.venv / ".being-changed").exists()
    assert not (real_copy.venv / ".ready").exists()

    repaired = real_copy.make_env(timeout=500, **site)
    assert repaired.code == 0, repaired
    assert "making .venv anew: an earlier set-up was killed in the middle" in repaired.output
    assert "Horovod 0.28.1 (mpi, gloo" in repaired.output

    assert real_copy.make_env(**site) == Ended(0, "", "")

    (site_packages,) = real_copy.venv.glob("lib/python3*/site-packages")
    (metadata,) = site_packages.glob("tqdm-*.dist-info")
    text = (metadata / "METADATA").read_text(encoding="utf-8")
    altered = "\n".join(
        "Version: 4.1.0" if line.startswith("Version: ") else line for line in text.splitlines()
    )
    (metadata / "METADATA").write_text(altered, encoding="utf-8")
    again = real_copy.make_env(timeout=500, **site)
    assert again.code == 0, again
    assert again.output.startswith("setting up .venv: tqdm is 4.1.0, not ==")
    assert "making .venv anew" not in again.output


def end_everything_in(folder: Path) -> None:
    """SIGKILL, at once, to the set-up and to the pip that it started, which has its own group."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in command and int(process.name) != os.getpid():
            os.kill(int(process.name), signal.SIGKILL)
