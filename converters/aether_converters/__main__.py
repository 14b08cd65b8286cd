"""`python -m aether_converters` is the command `aethernet`, for a Python without a PATH."""

import sys

from aether_converters.command_line.main import main

if __name__ == "__main__":
    sys.exit(main())
