"""What the benchmarks print: claims, each with the figure measured, its bar and a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A figure and what it has to reach.

    Attributes:
        least: the figure has to be at least this, or, if ``at_most``, at most.
        note: what it was measured on or against.
    """

    name: str
    figure: float
    bar: float
    at_most: bool = False
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the bar is reached."""
        return self.figure <= self.bar if self.at_most else self.figure >= self.bar


def print_claims(claims: Sequence[Claim]) -> int:
    """Print a table in Markdown; returns 1 if a claim falls short."""
    print("| claim | figure | bar | | |\n|---|---|---|---|---|")
    for claim in claims:
        relation = "≤" if claim.at_most else "≥"
        verdict = "holds" if claim.holds else "short"
        print(f"| {claim.name} | {claim.figure:.3g} | {relation} {claim.bar:g} | {verdict} | {claim.note} |")
    return int(not all(claim.holds for claim in claims))
