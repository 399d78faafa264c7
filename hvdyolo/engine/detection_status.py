"""How far a batch detection is, seen from outside."""

from dataclasses import dataclass
from pathlib import Path

from hvdyolo.engine.claims import CLAIMS_DIRECTORY, Claim, read_claims
from hvdyolo.engine.detection_plan import Plan, read_plan
from hvdyolo.engine.parts import Parts


@dataclass(frozen=True)
class DetectionTotals:
    """What is in the finished parts."""

    chunks: int
    images: int
    boxes: int
    errors: int


@dataclass(frozen=True)
class DetectionStatus:
    """Attributes:
    plan: all there is to do.
    done: what is done.
    claims: who works on what now, or died at it.
    """

    plan: Plan
    done: DetectionTotals
    claims: tuple[Claim, ...]

    @property
    def finished(self) -> bool:
        """Every chunk has its part."""
        return self.done.chunks == self.plan.chunks

    def lines(self) -> list[str]:
        """The status in words."""
        plan, done = self.plan, self.done
        percent = 100 * done.images / plan.images
        lines = [
            f"{done.images} of {plan.images} images ({percent:.1f} %), "
            f"{done.chunks} of {plan.chunks} chunks, {done.boxes} boxes, {done.errors} bad images"
        ]
        for claim in self.claims:
            holder = claim.holder
            who = f"process {holder.pid} on {holder.host}" if holder else "someone"
            dead = " (dead)" if holder is not None and holder.is_known_dead() else ""
            lines.append(f"chunk {claim.chunk}: {who}{dead}, {claim.beats} heartbeats")
        return [*lines, "finished" if self.finished else "not finished"]


def detection_status(out: Path) -> DetectionStatus:
    """The state of a running or finished output; reads only, and disturbs nobody.

    Raises:
        UsageError: ``out`` is no output of ``hvdyolo detect``.
        DataError: a part is damaged.
    """
    plan = read_plan(out)
    return DetectionStatus(plan, count_parts(Parts(out, plan)), tuple(read_claims(out / CLAIMS_DIRECTORY)))


def count_parts(parts: Parts) -> DetectionTotals:
    """Sum of the last lines of all parts.

    Raises:
        DataError: a part is damaged.
    """
    totals = [parts.totals(chunk) for chunk in sorted(parts.finished())]
    return DetectionTotals(
        chunks=len(totals),
        images=sum(part.images for part in totals),
        boxes=sum(part.boxes for part in totals),
        errors=sum(part.errors for part in totals),
    )


def check_parts(parts: Parts, plan: Plan) -> DetectionTotals:
    """Read every record of every part.

    Raises:
        DataError: a part is missing or damaged.
    """
    parts.check_complete()
    for chunk in range(plan.chunks):
        for _ in parts.records(chunk):
            pass
    return count_parts(parts)
