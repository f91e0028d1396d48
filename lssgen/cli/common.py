"""What the commands share: one way to end, whatever happens."""

import sys
from collections.abc import Callable

from lssgen.errors import LssgenError


def run(command: str, work: Callable[[], None]) -> int:
    """Do the work; turn an expected failure into one line and an exit status.

    Returns:
        0, or 1 after an `LssgenError`, or 130 after Ctrl-C, as shells expect.
    """
    try:
        work()
    except LssgenError as error:
        print(f"{command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: stopped", file=sys.stderr)
        return 130
    return 0
