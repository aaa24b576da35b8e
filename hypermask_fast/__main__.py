"""``python -m hypermask_fast`` is the command ``hypermask``."""

import sys

from hypermask_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
