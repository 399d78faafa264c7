"""Claims with their figures and bars, and the table that tells which hold."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
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
    """Print the table; the exit code of a benchmark: 1 if any claim is short."""
    rows = [("claim", "figure", "bar", ""), *(claim.row() for claim in claims)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, figure, bar, verdict in rows:
        line = f"{name:<{widths[0]}}  {figure:>{widths[1]}}  {bar:>{widths[2]}}  {verdict}"
        sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()
    return int(not all(claim.holds for claim in claims))
