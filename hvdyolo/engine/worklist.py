"""Which chunk to do next, when nobody is in charge."""

import random
from collections.abc import Callable, Generator
from threading import Event

from hvdyolo.engine.claims import Claims
from hvdyolo.engine.parts import Parts

# Seconds between looks at what others do, once nothing is free: soon at first, then seldom.
_FIRST_POLL = 0.05
_LAST_POLL = 2.0


def claimed_chunks(
    parts: Parts, chunks: int, claims: Claims, halt: Event, pulse: Callable[[], None]
) -> Generator[int, None, None]:
    """Chunks that the caller alone works on, until all ``chunks`` have their parts or ``halt`` is set.

    The caller commits the part before it asks for the next chunk. At the end this waits for the others,
    calling ``pulse`` at each look: a chunk whose holder dies comes back to whoever is still there.
    """
    poll = _FIRST_POLL
    while not halt.is_set():
        pulse()
        missing = set(range(chunks)) - parts.finished()
        if not missing:
            return
        free = missing - claims.claimed()
        worked = False
        for chunk in _from_random_start(free or missing):
            if halt.is_set():
                return
            if not claims.take(chunk):
                if free:
                    break  # met another worker: look again where nobody is
                continue
            try:
                # Done between the look at the parts and the claim?
                if parts.path(chunk).exists():
                    break
                worked = True
                yield chunk
            finally:
                claims.release(chunk)
        if worked:
            poll = _FIRST_POLL
        else:
            halt.wait(poll)
            poll = min(2 * poll, _LAST_POLL)


def _from_random_start(chunks: set[int]) -> list[int]:
    """All of them, in order from a random one on: workers begin far apart and read neighbours."""
    ordered = sorted(chunks)
    start = random.randrange(len(ordered))  # no influence on any result
    return ordered[start:] + ordered[:start]
