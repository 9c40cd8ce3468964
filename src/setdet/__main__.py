"""`python -m setdet` is the command `setdet`."""

import sys

from setdet.cli import main

if __name__ == "__main__":
    sys.exit(main())
