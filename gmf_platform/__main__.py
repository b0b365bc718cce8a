"""python -m gmf_platform."""

import sys

from gmf_platform.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
