"""`python -m pagewire` is the `pagewire` command."""

import sys

from pagewire.cli import main

if __name__ == "__main__":
    sys.exit(main())
