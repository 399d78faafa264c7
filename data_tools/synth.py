"""Draw a small dataset that a detector can learn, in YOLO's layout."""

import sys

from hvdyolo.data.synth import main
from hvdyolo.utils.errors import HvdyoloError

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HvdyoloError as error:
        print(f"synth: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
