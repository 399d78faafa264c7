"""Compares what is installed in the interpreter that runs this with requirement files.

usage: python scripts/check_pins.py REQUIREMENT_OR_FILE…

One line for each difference; exit 0 when there is none, 1 when there is one.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit("packaging is not installed")


def read_requirements(argument: str) -> Iterator[Requirement]:
    lines = (
        Path(argument).read_text(encoding="utf-8").splitlines() if argument.endswith(".txt") else [argument]
    )
    for line in lines:
        text = line.split("#")[0].split(" --hash")[0].strip()
        if text:
            yield Requirement(text)


def differences(arguments: list[str]) -> Iterator[str]:
    for argument in arguments:
        for requirement in read_requirements(argument):
            if requirement.marker is not None and not requirement.marker.evaluate():
                continue
            try:
                installed = version(requirement.name)
            except PackageNotFoundError:
                yield f"{requirement.name} is not installed"
                continue
            # A damaged installation answers with no version at all.
            if not installed or not requirement.specifier.contains(installed, prereleases=True):
                yield f"{requirement.name} is {installed or 'damaged'}, not {requirement.specifier}"


def main() -> None:
    found = list(differences(sys.argv[1:]))
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
