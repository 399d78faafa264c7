"""Import published weights (.pt) as safetensors: the same as ``hvdyolo weights import``."""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose inspect.py would stand in for the standard library's
    from hvdyolo.cli import main

    sys.exit(main(["weights", "import", *sys.argv[1:]]))
