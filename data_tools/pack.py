"""Pack images and labels into shards: the same as ``hvdyolo pack``."""

import sys

from hvdyolo.cli import main

if __name__ == "__main__":
    sys.exit(main(["pack", *sys.argv[1:]]))
