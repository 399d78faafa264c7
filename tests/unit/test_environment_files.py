"""setup.py, requirements/, environment.yml and the set-up scripts name the same things."""

import re
import runpy
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYTHONS = ["3.10", "3.11", "3.12"]

# Needed to build Horovod or to run it, and by nothing that hvdyolo imports itself.
FOR_HOROVOD = {"cffi", "cloudpickle", "cmake", "packaging", "psutil", "setuptools", "wheel"}
# torch pins these itself, exactly, and only its builds with CUDA have them.
PINNED_BY_TORCH = re.compile(r"^(nvidia|cuda)-|^triton$")


def read_requirements(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    texts = (line.split("#")[0].split(" --hash")[0].strip() for line in lines)
    return [Requirement(text) for text in texts if text]


def all_requirements() -> list[Requirement]:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    return [requirement for file in files for requirement in read_requirements(file.stem)]


def pins(python: str) -> dict[str, str]:
    """Version by canonical name, as one Python sees the files; fails where a name has two."""
    found: dict[str, str] = {}
    for requirement in all_requirements():
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} is pinned twice for Python {python}"
        (specifier,) = requirement.specifier
        found[name] = specifier.version
    return found


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    handed: dict[str, Any] = {}
    original = setuptools.setup
    setuptools.setup = lambda **settings: handed.update(settings)
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        setuptools.setup = original
    return handed


@pytest.fixture(scope="module")
def conda() -> dict[str, Any]:
    parsed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert isinstance(parsed, dict)
    return parsed


def conda_packages(conda: dict[str, Any]) -> dict[str, str]:
    plain = [entry for entry in conda["dependencies"] if isinstance(entry, str)]
    return {name: version for name, _, version in (entry.partition("=") for entry in plain)}


def pip_packages(conda: dict[str, Any]) -> dict[str, Requirement]:
    (section,) = (entry for entry in conda["dependencies"] if isinstance(entry, dict))
    found = [Requirement(text) for text in section["pip"]]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


@pytest.mark.parametrize("requirement", all_requirements(), ids=str)
def test_every_pin_is_exact(requirement: Requirement) -> None:
    assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(requirement.specifier))


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_satisfy_what_setup_declares(declared: dict[str, Any], python: str) -> None:
    pinned = pins(python)
    wanted = declared["install_requires"] + declared["extras_require"]["dev"]
    for requirement in map(Requirement, wanted + declared["extras_require"]["cluster"]):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_indirect_dependencies_are_pinned_too() -> None:
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    for name in pinned:
        try:
            needed = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            pytest.fail(f"{name} is pinned and not installed: run make env")
        for requirement in needed:
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                dependency = canonicalize_name(requirement.name)
                assert dependency in pinned or PINNED_BY_TORCH.search(dependency), (
                    f"{name} needs {requirement}, which is not pinned"
                )


def test_conda_environment_holds_what_setup_declares(declared: dict[str, Any], conda: dict[str, Any]) -> None:
    runtime = {canonicalize_name(Requirement(text).name) for text in declared["install_requires"]}
    assert set(pip_packages(conda)) == runtime | {"mpi4py"} | FOR_HOROVOD


def test_conda_environment_has_the_pinned_versions(conda: dict[str, Any]) -> None:
    python = conda_packages(conda)["python"].removesuffix(".*")
    pinned = pins(python)
    for name, requirement in pip_packages(conda).items():
        assert str(requirement.specifier) == f"=={pinned[name]}"


def test_conda_environment_can_build_horovod(declared: dict[str, Any], conda: dict[str, Any]) -> None:
    packages = conda_packages(conda)
    assert {"cxx-compiler", "make", "cuda-nvcc", "cuda-cudart-dev", "nccl"} <= set(packages)
    # horovodrun of 0.28.1 passes options that mpirun of Open MPI 5 refuses.
    assert packages["openmpi"] == "4.1.*"
    python = packages["python"].removesuffix(".*")
    assert setuptools_specifier(declared["python_requires"]).contains(f"{python}.0")
    assert "horovod" not in pip_packages(conda), "pip would build it for whatever it finds"


def setuptools_specifier(text: str) -> Any:
    return Requirement(f"python{text}").specifier


def test_pythons_are_the_same_everywhere(declared: dict[str, Any]) -> None:
    allowed = setuptools_specifier(declared["python_requires"])
    candidates = [f"3.{minor}" for minor in range(8, 16)]
    assert [python for python in candidates if allowed.contains(f"{python}.0")] == PYTHONS
    script = (ROOT / "scripts" / "make_env.sh").read_text(encoding="utf-8")
    assert "(3, 10) <= sys.version_info < (3, 13)" in script


def test_one_horovod(declared: dict[str, Any]) -> None:
    version = pins("3.11")["horovod"]
    script = (ROOT / "scripts" / "build_horovod.sh").read_text(encoding="utf-8")
    assert f"readonly HOROVOD_VERSION={version}\n" in script
    assert f"horovod=={version}" in declared["extras_require"]["cluster"]


def test_setuptools_is_one_that_horovod_builds_with() -> None:
    assert all(int(pins(python)["setuptools"].split(".")[0]) < 81 for python in PYTHONS)


def test_package_data_is_all_packaged(declared: dict[str, Any]) -> None:
    package = ROOT / "hvdyolo"
    patterns = declared["package_data"]["hvdyolo"]
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    present = {path for path in package.rglob("*.yaml") if "__pycache__" not in path.parts}
    present |= set((package / "slurm_scripts").glob("*.sh"))
    present -= {package / "slurm_scripts" / "site.sh"}
    assert present
    assert present <= packaged


class TestCheckPins:
    """scripts/check_pins.py, on packages that are nothing but their metadata."""

    @staticmethod
    def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "check_pins.py"), *arguments],
            env={"PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    @staticmethod
    def install(folder: Path, name: str, version: str) -> None:
        metadata = folder / f"{name}-{version}.dist-info"
        metadata.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (metadata / "METADATA").write_text(text, encoding="utf-8")

    def test_wrong_version_is_named(self, tmp_path: Path) -> None:
        self.install(tmp_path, "torch", "2.9.1")
        ended = self.run(tmp_path, "torch==2.13.0")
        assert (ended.returncode, ended.stdout) == (1, "torch is 2.9.1, not ==2.13.0\n")

    def test_local_build_counts_as_its_version(self, tmp_path: Path) -> None:
        self.install(tmp_path, "torch", "2.13.0+cu130")
        assert self.run(tmp_path, "torch==2.13.0").returncode == 0

    def test_missing_package_is_named(self, tmp_path: Path) -> None:
        ended = self.run(tmp_path, "no-such-package==1.0")
        assert (ended.returncode, ended.stdout) == (1, "no-such-package is not installed\n")

    def test_lines_for_other_pythons_are_passed_over(self, tmp_path: Path) -> None:
        file = tmp_path / "requirements.txt"
        file.write_text('# words\nno-such-package==1; python_version < "3"\n', encoding="utf-8")
        assert self.run(tmp_path, str(file)).returncode == 0


def test_every_subpackage_is_in_the_import_contracts() -> None:
    """The forbidden-module contracts list their sources by hand; a new subpackage must join them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contracts = text.split("[[tool.importlinter.contracts]]")
    package = ROOT / "hvdyolo"
    modules = {
        path.stem
        for path in package.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file()) and path.stem != "__init__"
    }
    owners = {'["horovod", "mpi4py"]': {"distributed"}, '["h5py", "PIL"]': {"data"}}
    for forbidden, allowed in owners.items():
        (contract,) = (part for part in contracts if f"forbidden_modules = {forbidden}" in part)
        assert set(re.findall(r'"hvdyolo\.(\w+)"', contract)) == modules - allowed
