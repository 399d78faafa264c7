"""Claims with their figures and bars, and the table that tells which hold.

A benchmark ends with :func:`report`. Where several run one after the other, each also appends its claims to
the file that ``CLAIMS_FILE`` names, and ``python benchmarks/claims.py FILE`` prints them all as one table.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Claim:
    """One measured claim."""

    name: str
    figure: float
    relation: Literal["<=", ">="]
    bar: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        """Whether the figure keeps to the bar; one that is not a number does not."""
        return self.figure <= self.bar if self.relation == "<=" else self.figure >= self.bar

    def row(self) -> tuple[str, str, str, str]:
        """Name, figure, bar and verdict as text."""
        unit = f" {self.unit}" if self.unit else ""
        return (
            self.name,
            f"{self.figure:.4g}{unit}",
            f"{self.relation} {self.bar:.4g}{unit}",
            "holds" if self.holds else "short",
        )


def report(claims: Sequence[Claim]) -> int:
    """Print the table, and keep it for the whole one; a benchmark's exit code: 1 if any claim is short."""
    if kept := os.environ.get("CLAIMS_FILE"):
        with Path(kept).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(claim)) + "\n" for claim in claims)
    print_table(claims)
    return int(not all(claim.holds for claim in claims))


def print_table(claims: Sequence[Claim]) -> None:
    """A line a claim."""
    rows = [("claim", "figure", "bar", ""), *(claim.row() for claim in claims)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, figure, bar, verdict in rows:
        line = f"{name:<{widths[0]}}  {figure:>{widths[1]}}  {bar:>{widths[2]}}  {verdict}"
        sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print the claims of a file; returns 1 if any is short or there is none."""
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    claims = [Claim(**json.loads(line)) for line in lines]
    print_table(claims)
    return int(not claims or not all(claim.holds for claim in claims))


if __name__ == "__main__":
    sys.exit(main())
