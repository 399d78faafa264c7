"""The command ``hvdyolo``: parse, run, and end with the exit code that tells what happened."""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from hvdyolo.utils.errors import HvdyoloError, InternalError, StorageError, UsageError

Command = Callable[[Sequence[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except HvdyoloError as error:
        _tell(error)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read the output has left, as `head` does. Nor may the interpreter's last flush fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return StorageError.exit_code
    except Exception:
        # A bug: its traceback, and an exit code that pipelines do not take for something else.
        traceback.print_exc()
        return InternalError.exit_code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else UsageError.exit_code
    if words[0] == "--version":
        from hvdyolo import __version__

        print(f"hvdyolo {__version__}")
        return 0
    if words[0] not in _COMMANDS:
        close = difflib.get_close_matches(words[0], _COMMANDS, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise UsageError(f"Unknown command '{words[0]}'{hint}; commands are {', '.join(_COMMANDS)}.")
    return _COMMANDS[words[0]](words[1:])


def _train(words: Sequence[str]) -> int:
    """Train on packed data; the same command resumes."""
    parser = Parser("train", _train)
    parser.add_argument(
        "--config",
        required=True,
        action="append",
        help="recipe or YAML file; of several, later ones win",
    )
    parser.add_argument("--data", required=True, type=Path, help="packed dataset")
    parser.add_argument("--run", required=True, type=Path, help="directory of this run")
    parser.add_argument("--resume", default="auto", help="auto, never or a checkpoint's directory")
    parser.add_argument("--dry-run", action="store_true", help="check, print all settings, stop")
    options, overrides = parser.parse_known_args(words)
    from hvdyolo.engine.training import train
    from hvdyolo.settings import read_config

    train(
        read_config(options.config, overrides),
        options.data,
        options.run,
        options.resume,
        options.dry_run,
    )
    return 0


def _eval(words: Sequence[str]) -> int:
    """Score weights on a packed split by COCO's average precision."""
    parser = Parser("eval", _eval)
    parser.add_argument("--weights", required=True, type=Path, help="safetensors file")
    parser.add_argument("--data", required=True, type=Path, help="packed dataset")
    parser.add_argument("--split", default="val", help="split to score (default: val)")
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    options, overrides = parser.parse_known_args(words)
    from hvdyolo.engine.evaluation import evaluate_weights
    from hvdyolo.settings import read_config

    evaluate_weights(read_config(None, overrides), options.weights, options.data, options.split, options.json)
    return 0


def _pack(words: Sequence[str]) -> int:
    """Pack images and labels into shards."""
    from hvdyolo.data.pack import main as pack
    from hvdyolo.distributed.world import World, launched_world

    # Ranks only share the shards out here; nothing of MPI is needed, so nothing of it is started.
    world = launched_world() or World.alone()
    return pack(words, world.rank, world.size)


def _verify(words: Sequence[str]) -> int:
    """Check every checksum of packed data, a detection output or a checkpoint."""
    parser = Parser("verify", _verify)
    parser.add_argument("path", type=Path)
    path = parser.parse_args(words).path
    from hvdyolo.engine.verification import verify

    print(verify(path))
    return 0


def _detect(words: Sequence[str]) -> int:
    """Detect on every image of a source; the same command finishes what is missing."""
    parser = Parser("detect", _detect)
    parser.add_argument("--weights", type=Path, help="safetensors file")
    parser.add_argument("--source", type=Path, help="directory, list of images, or packed dataset")
    parser.add_argument("--out", required=True, type=Path, help="directory of this output")
    parser.add_argument("--max-bad", type=float, default=0.05, help="largest share of unusable images")
    parser.add_argument("--dry-run", action="store_true", help="check everything, detect nothing")
    parser.add_argument("--status", action="store_true", help="tell how far an output is")
    options, overrides = parser.parse_known_args(words)
    if options.status:
        from hvdyolo.engine.detection_status import detection_status

        print("\n".join(detection_status(options.out).lines()))
        return 0
    for name in ("weights", "source"):
        if getattr(options, name) is None:
            parser.error(f"the following arguments are required: --{name}")
    from hvdyolo.engine.batch_detection import detect
    from hvdyolo.settings import read_config

    detect(
        read_config(None, overrides),
        options.weights,
        options.source,
        options.out,
        options.max_bad,
        dry_run=options.dry_run,
    )
    return 0


def _merge(words: Sequence[str]) -> int:
    """Join the parts of a finished detection into one file."""
    parser = Parser("merge", _merge)
    parser.add_argument("out", type=Path, help="output of hvdyolo detect")
    parser.add_argument("--format", required=True, help="coco, hdf5, yolo or csv")
    options = parser.parse_args(words)
    from hvdyolo.engine.merge import merge_detections

    print(merge_detections(options.out, options.format))
    return 0


def _weights(words: Sequence[str]) -> int:
    """Import published weights (.pt), or show what a weights file holds."""
    actions: dict[str, Command] = {"import": _import_weights, "show": _show_weights}
    if words and words[0] in actions:
        return actions[words[0]](words[1:])
    parser = Parser("weights", _weights)
    parser.add_argument("action", choices=actions, help="import SRC.pt DST.safetensors, or show FILE")
    parser.parse_args(words)
    return 0


def _import_weights(words: Sequence[str]) -> int:
    """Read a .pt file of YOLOv5 (v5.0 to v7.0) without running its code, and write safetensors."""
    parser = Parser("weights import", _import_weights)
    parser.add_argument("source", type=Path, metavar="SRC.pt")
    parser.add_argument("destination", type=Path, metavar="DST.safetensors")
    parser.add_argument(
        "--image-size", type=int, help="pixels; by default what the file tells, or is published"
    )
    options = parser.parse_args(words)
    from hvdyolo.engine.weights_files import import_weights

    print(import_weights(options.source, options.destination, options.image_size))
    return 0


def _show_weights(words: Sequence[str]) -> int:
    """Print classes, strides, anchors and size of a weights file."""
    parser = Parser("weights show", _show_weights)
    parser.add_argument("file", type=Path)
    path = parser.parse_args(words).file
    from hvdyolo.engine.weights_files import describe_weights

    print(describe_weights(path))
    return 0


def _slurm(words: Sequence[str]) -> int:
    """Copy the batch scripts out of the installed package."""
    parser = Parser("slurm", _slurm)
    parser.add_argument("directory", type=Path, help="where the scripts go")
    options = parser.parse_args(words)
    from hvdyolo.engine.batch_scripts import copy_batch_scripts

    for path in copy_batch_scripts(options.directory):
        print(path)
    return 0


_COMMANDS: dict[str, Command] = {
    "pack": _pack,
    "verify": _verify,
    "train": _train,
    "eval": _eval,
    "detect": _detect,
    "merge": _merge,
    "weights": _weights,
    "slurm": _slurm,
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, and which leaves ``--section.key VALUE`` alone."""

    def __init__(self, command: str, action: Command) -> None:
        super().__init__(
            prog=f"hvdyolo {command}",
            description=action.__doc__,
            epilog="Settings are changed with --section.key VALUE; hvdyolo/config.py lists them."
            if command in ("train", "eval", "detect")
            else None,
            # An abbreviation that works today may be ambiguous tomorrow, in somebody's batch script.
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help.")


def _usage() -> str:
    lines = ["usage: hvdyolo COMMAND …", ""]
    lines += [f"  {name:8} {command.__doc__}" for name, command in _COMMANDS.items()]
    return "\n".join([*lines, "", "hvdyolo COMMAND --help tells the options of one."])


def _tell(error: HvdyoloError) -> None:
    """Once a job, not once a rank."""
    from hvdyolo.distributed.world import launched_world

    world = launched_world()
    if world is None or world.rank == 0:
        print(f"hvdyolo: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
