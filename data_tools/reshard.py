"""Copy packed data into shards of another size, without decoding."""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose inspect.py would stand in for the standard library's
    from hvdyolo.data.reshard import main
    from hvdyolo.utils.errors import HvdyoloError

    try:
        sys.exit(main(sys.argv[1:]))
    except HvdyoloError as error:
        print(f"reshard: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
