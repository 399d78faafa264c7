"""Check packed data, a detection output or a checkpoint: the same as ``hvdyolo verify``."""

import sys

from hvdyolo.cli import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
