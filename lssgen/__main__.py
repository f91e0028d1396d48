"""`python -m lssgen` is `lssgen`."""

import sys

from lssgen.cli import main

if __name__ == "__main__":
    sys.exit(main())
