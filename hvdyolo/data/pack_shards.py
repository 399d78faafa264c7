"""A rank's share of a packing: its shards, one after the other or by several processes."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hvdyolo.data.pack_plan import PackSettings, ShardTask
from hvdyolo.data.pack_progress import Progress
from hvdyolo.data.pack_shard import ShardOrder, ShardReport, make_shard, read_report, report_path
from hvdyolo.data.pack_workers import PackWorkers
from hvdyolo.data.sources.source import Source

_WAIT_SECONDS = 0.05
# A process takes 0.3 s to start, and as many seconds to pack 64 MiB of photographs as a core does: one.
_BYTES_A_PROCESS = 64 << 20


class ShardPacker:
    """Writes shards into ``out``, and its reports of them into ``work``."""

    def __init__(
        self, source: Source, settings: PackSettings, out: Path, work: Path, progress: Progress
    ) -> None:
        self._source = source
        self._settings = settings
        self._out = out
        self._work = work
        self._progress = progress

    def pack(self, tasks: Sequence[ShardTask], workers: int) -> None:
        """Make the shards that are not there yet, by ``workers`` processes where that many have work.

        Raises:
            HvdyoloError: an image cannot be used, nothing can be written, or another rank failed.
        """
        left = []
        for task in tasks:
            if report_path(self._work, task.file).exists():
                self._progress.add(len(task.places))
            else:
                left.append(task)
        worth = sum(task.source_bytes for task in left) // _BYTES_A_PROCESS
        processes = min(workers, len(left), worth)
        if processes < 2:
            for order in self._orders(left):
                make_shard(order, self._progress.add)
            return
        with PackWorkers(processes) as packers:
            packers.make(self._orders(left), self._progress)

    def await_report(self, task: ShardTask) -> ShardReport:
        """What is known of a shard, once it is written, by whichever rank.

        Raises:
            HvdyoloError: another rank failed.
        """
        path = report_path(self._work, task.file)
        while not path.exists():
            self._progress.look()
            time.sleep(_WAIT_SECONDS)
        return read_report(path)

    def _orders(self, tasks: Sequence[ShardTask]) -> Iterator[ShardOrder]:
        for task in tasks:
            images = [self._source.splits[task.split][place] for place in task.places]
            yield ShardOrder(
                task=task,
                images=images,
                labels=self._source.labels_of(images),
                names=self._source.names,
                settings=self._settings,
                out=self._out,
                work=self._work,
                report=report_path(self._work, task.file),
            )
