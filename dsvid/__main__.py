"""`python -m dsvid` is the `dsvid` command."""

import sys

from dsvid.cli import main

if __name__ == "__main__":
    sys.exit(main())
