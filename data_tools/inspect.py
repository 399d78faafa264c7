"""Describe packed data in figures, and draw samples with their boxes, as packed or as training sees them."""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, where this file would stand in for the standard library's module
    if "--augment" in sys.argv:
        from hvdyolo.engine.inspection import main
    else:
        from hvdyolo.data.inspection import main
    from hvdyolo.utils.errors import HvdyoloError

    try:
        sys.exit(main(sys.argv[1:]))
    except HvdyoloError as error:
        print(f"inspect: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
