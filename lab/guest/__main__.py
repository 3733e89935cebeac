"""``python -m lab.guest DIRECTORY NAME``: see the package's documentation."""

from __future__ import annotations

import sys
from pathlib import Path

from lab.guest import GuestError, build, made_of, personalise


def main() -> None:
    """Make the image of one instance, and say where it is and what it is made of."""
    match sys.argv[1:]:
        case [directory, name]:
            # The tools run in directories of their own.
            target = Path(directory, f"guest-{name}.raw").absolute()
        case _:
            sys.exit("usage: python -m lab.guest DIRECTORY NAME")
    try:
        base = build(target.parent)
        personalise(base, name, target)
    except GuestError as error:
        sys.exit(f"error: {error}")
    print(f"{target}: {made_of(base)}")


if __name__ == "__main__":
    main()
