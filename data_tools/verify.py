"""Check packed data, a detection output or a checkpoint: the same as ``hvdyolo verify``."""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose inspect.py would stand in for the standard library's
    from hvdyolo.cli import main

    sys.exit(main(["verify", *sys.argv[1:]]))
