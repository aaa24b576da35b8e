"""``python -m hypermask_fast`` is the command ``hypermask``."""

from hypermask_fast.cli import main
from hypermask_fast.commands.torchrun import leave

if __name__ == "__main__":
    try:
        status: int | str | None = main()
    except SystemExit as error:
        status = error.code
    leave(status)
