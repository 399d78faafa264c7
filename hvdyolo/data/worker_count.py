"""How many loader workers a rank has."""

from dataclasses import replace

from hvdyolo.config import LoaderConfig
from hvdyolo.utils.cores import available_cores

_MOST_WORKERS = 8


def with_workers(settings: LoaderConfig, cores: int) -> LoaderConfig:
    """``settings`` with a worker for each of a rank's ``cores``, at most 8, unless they give a number."""
    if settings.workers is not None:
        return settings
    return replace(settings, workers=min(_MOST_WORKERS, cores))


def worker_count(settings: LoaderConfig) -> int:
    """Loader workers of this rank."""
    workers = with_workers(settings, available_cores()).workers
    assert workers is not None
    return workers
