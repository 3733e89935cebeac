#!/usr/bin/env python3
"""Several real OpenStacks side by side, from one command: try `./setup-env.py --help`."""

# Every Python can parse this file, so that an old one can say what is wrong.
import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("error: setup-env.py needs Python 3.11 or newer, this is " + sys.version.split()[0])

from lab.bootstrap import main

if __name__ == "__main__":
    main()
