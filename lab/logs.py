"""How large the logs of a lab become; hosts use this module too."""

from __future__ import annotations

from pathlib import Path

#: How many MiB a log of supervisor or of a program of its has, before a new one takes its place.
MIB = 10
#: How many earlier ones stay.
BACKUPS = 1
#: Seconds between two looks at the files that no supervisor writes.
_TRIM_EVERY = 10


def limits(option: str) -> str:
    """Lines of supervisor's configuration that limit the log which *option* names.

    Everything that runs in a lab says what it has to say to supervisor; guests alone have logs of
    their own (:func:`trimmer`). https://supervisord.org/configuration.html
    """
    return f"{option}_maxbytes = {MIB}MB\n{option}_backups = {BACKUPS}"


def trimmer(*patterns: str) -> list[str]:
    """A command that keeps the disk from filling with files that no supervisor writes.

    Such a file matches one of the shell's *patterns*. Its writer, QEMU, goes on where it was: the
    file keeps its length, but gives back the blocks of what is long before its end (fallocate(1)).
    """
    keep = MIB * 2**20
    trim = (
        f'size=$(stat -c %s "$one" 2>/dev/null) && [ "$size" -gt {(BACKUPS + 1) * keep} ] && '
        f'fallocate --punch-hole --offset 0 --length "$((size - {keep}))" "$one"'
    )
    loop = f"while sleep {_TRIM_EVERY}; do for one in {' '.join(patterns)}; do {trim}; done; done"
    return ["sh", "-c", loop]


def bound(programs: int) -> int:
    """How many MiB the logs of *programs* and of their supervisor take at the most."""
    return (programs + 1) * (BACKUPS + 1) * MIB


def reader(path: str) -> list[str]:
    """A command that prints the log at *path*, after those whose place it took."""
    earlier = (f'[ ! -e "$0.{n}" ] || cat -- "$0.{n}"; ' for n in range(BACKUPS, 0, -1))
    return ["sh", "-c", f'{"".join(earlier)}cat -- "$0"', path]


def read(path: Path) -> str:
    """The log at *path* after those whose place it took; any other file as it is.

    It begins with a whole line: what would come before may be gone.

    :raises OSError: when one of them cannot be read.
    """
    # Opened first: when it makes room for another one meanwhile, nothing is missing in between.
    with path.open(errors="surrogateescape") as last:
        names = (Path(f"{path}.{n}") for n in range(BACKUPS, 0, -1))
        earlier = [one.read_text(errors="surrogateescape") for one in names if one.exists()]
        text = "".join((*earlier, last.read()))
    return text.partition("\n")[2] if earlier else text
