"""``python -m whimbrel.cli``: the same as the command ``whimbrel``."""

import sys

from whimbrel.cli import main

if __name__ == "__main__":
    sys.exit(main())
