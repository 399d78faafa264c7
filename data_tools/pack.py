"""Pack images and labels into shards: the same as ``hvdyolo pack``."""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose inspect.py would stand in for the standard library's
    from hvdyolo.cli import main

    sys.exit(main(["pack", *sys.argv[1:]]))
