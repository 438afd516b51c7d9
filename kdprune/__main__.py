"""`python -m kdprune`: the `kdprune` command."""

import sys

from kdprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
