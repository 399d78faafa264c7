"""Draw a small dataset that a detector can learn, in YOLO's layout."""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose inspect.py would stand in for the standard library's
    from hvdyolo.data.synth import main
    from hvdyolo.utils.errors import HvdyoloError

    try:
        sys.exit(main(sys.argv[1:]))
    except HvdyoloError as error:
        print(f"synth: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
