"""What an unfinished packing has done already, and what of it stands."""

from collections.abc import Sequence
from pathlib import Path

from hvdyolo.data.findings import LEFT_OUT
from hvdyolo.data.pack_plan import PackSettings, ShardTask
from hvdyolo.data.pack_shard import ShardReport, read_report, report_path
from hvdyolo.utils.files import storage_errors


def discard_outdated(out: Path, work: Path, tasks: Sequence[ShardTask], settings: PackSettings) -> None:
    """Remove finished shards that would be made otherwise now; rank 0 does so before any rank begins.

    Raises:
        StorageError: one cannot be removed.
    """
    wanted = {task.file for task in tasks}
    with storage_errors(out):
        for task in tasks:
            report = report_path(work, task.file)
            if report.exists() and not _stands(report, out, task, settings):
                report.unlink()  # before the shard: without it, the shard is not finished
                (out / task.file).unlink(missing_ok=True)
        # Of a source that had another size, and therefore another number of shards.
        for path in out.glob("*-of-*.h5"):
            if path.name not in wanted:
                report_path(work, path.name).unlink(missing_ok=True)
                path.unlink()


def _stands(path: Path, out: Path, task: ShardTask, settings: PackSettings) -> bool:
    try:
        report = read_report(path)
        size = (out / task.file).stat().st_size
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return False
    whole = size == report.record.bytes
    return whole and report.inputs == task.inputs and _decides_alike(report, settings)


def _decides_alike(report: ShardReport, settings: PackSettings) -> bool:
    """Whether the same images would be taken and left out."""
    if any(finding.kind in LEFT_OUT for finding in report.findings):
        return settings.skip_unreadable and settings.max_pixels == report.max_pixels
    return settings.max_pixels >= report.max_pixels
