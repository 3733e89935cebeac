"""Snapshots: copies of a lab's state, to which the lab can return."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from lab import files, processes
from lab.bootstrap import ROOT
from lab.config import Lab
from lab.errors import LabError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: What a snapshot says of itself, beside the directory with what it has.
_DESCRIPTION, _CONTENT = "snapshot.json", "content"
# Most of MariaDB's files are zeros.
_COPY = ("cp", "--archive", "--reflink=auto", "--sparse=always", "--parents")
#: What of an instance is in no snapshot: logs tell what happened, and the rest is made anew.
_KEPT = ("log", "run", "home/.cache")


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of ``created`` (UTC) that takes *size* bytes; *misfit* is why it cannot return."""

    name: str
    created: str
    size: int
    misfit: str


class Snapshots:
    """The snapshots of *lab*; whoever makes, restores or removes one has the lab's lock.

    They are in ``.lab/snapshots``, so ``destroy`` removes them, too. A name with a dot in front is
    that of something unfinished.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._directory = lab.state / "snapshots"
        self._draft = self._directory / ".draft"
        self._replaced = self._directory / ".replaced"
        #: Names the snapshot whose parts a restore is putting into their places.
        self._mark = self._directory / ".restoring"

    def all(self) -> list[Snapshot]:
        """All snapshots, the oldest first."""
        found = []
        for path in self._directory.glob(f"*/{_DESCRIPTION}"):
            if _NAME.fullmatch(name := path.parent.name):
                created = json.loads(path.read_text())["created"]
                found.append(Snapshot(name, created, _size(path.parent), self._misfit(name)))
        return sorted(found, key=lambda one: one.created)

    def require_new(self, name: str) -> None:
        """Make sure that a snapshot *name* can be made.

        :raises LabError: when it cannot: a wrong name, one that is taken, no whole lab.
        """
        self._require_support()
        if not _NAME.fullmatch(name):
            raise LabError(
                f"{name!r} is no name of a snapshot: use at most 64 letters, digits and . _ -, "
                "with a letter or a digit in front"
            )
        if (self._directory / name).exists():
            raise LabError(
                f"there is a snapshot {name}: choose another name, or remove it with "
                f"./setup-env.py snapshot --delete {name}"
            )
        self.require_whole()
        for instance in self._lab.names:
            if not (self._lab.state / instance / "login").exists():
                raise LabError(f"{instance} has no state yet: run ./setup-env.py up {instance}")

    def require(self, name: str, *, fitting: bool = True) -> None:
        """Make sure that there is a snapshot *name*, and that it fits the lab if *fitting*.

        :raises LabError: when there is none, or it is of another lab or another installation.
        """
        self._require_support()
        names = [one.name for one in self.all()]
        if name not in names:
            raise LabError(f"no snapshot {name!r}; there are: {', '.join(names) or 'none'}")
        if fitting and (misfit := self._misfit(name)):
            raise LabError(
                f"the snapshot {name} does not fit: {misfit}; undo that, or remove the snapshot "
                f"with ./setup-env.py snapshot --delete {name}"
            )

    def require_whole(self) -> None:
        """Make sure that no restore was interrupted while it changed the lab.

        :raises LabError: with the command that ends it.
        """
        if self._mark.exists():
            name = self._mark.read_text()
            raise LabError(
                f"the restore of the snapshot {name} was interrupted: repeat it with "
                f"./setup-env.py restore {name}"
            )

    def make(self, name: str) -> None:
        """Make the snapshot *name* of the lab, which is down.

        :raises LabError: when it cannot be written; then there is none.
        """
        self._tidy()
        self._copy(self._lab.state, self._draft / _CONTENT)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = json.dumps({"created": now, "of": self._origin()}, indent=2)
        files.write(self._draft / _DESCRIPTION, text + "\n")
        self._draft.replace(self._directory / name)

    def restore(self, name: str) -> None:
        """Make the lab, which is down, what it was in the snapshot *name*.

        :raises LabError: when there is no room for a copy; then nothing has changed.
        """
        state, draft = self._lab.state, self._draft
        self._tidy()
        self._copy(self._directory / name / _CONTENT, draft)
        files.write(self._mark, name)
        for source, target in ((state, self._replaced), (draft, state)):
            for part in self._parts(source):
                (target / part).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                (source / part).replace(target / part)
        self._mark.unlink()
        self._tidy()

    def remove(self, name: str) -> None:
        """Remove the snapshot *name*; interrupted, it is gone, too."""
        self._tidy()
        (self._directory / name).replace(self._replaced)
        self._tidy()

    def _require_support(self) -> None:
        lab = self._lab
        if not lab.state.exists():
            raise LabError("there is no lab: run ./setup-env.py up")
        if lab.provider not in ("auto", "local") or lab.stack != "wheels":
            raise LabError(
                "only a lab with the provider local and the stack wheels has snapshots; this one "
                f"has the provider {lab.provider} and the stack {lab.stack}"
            )

    def _origin(self) -> dict[str, str]:
        """What a lab and its snapshots have in common; each key is read in an error message."""
        lab = self._lab
        return {
            "the version": version("openstackoid"),
            "constraints.txt": hashlib.sha256((ROOT / "constraints.txt").read_bytes()).hexdigest(),
            "the path": str(lab.root),
            "the hypervisor": lab.hypervisor,
            "the list of instances": ", ".join(
                f"{one.name} {one.address} {one.public}" for one in lab.instances
            ),
        }

    def _misfit(self, name: str) -> str:
        made = json.loads((self._directory / name / _DESCRIPTION).read_text())["of"]
        for key, now in self._origin().items():
            if (then := made.get(key)) != now:
                return f"{key} was {then}, and is {now}"
        return ""

    def _parts(self, base: Path) -> list[str]:
        """What of the lab is in a snapshot: paths below *base*, the lab's state or a copy of it."""
        parts = [Path("secrets")] if (base / "secrets").exists() else []
        for name in self._lab.names:
            below = [*base.glob(f"{name}/*"), *base.glob(f"{name}/home/*")]
            left = {base / name / kept for kept in ("home", *_KEPT)}
            parts += [path.relative_to(base) for path in below if path not in left]
        return sorted(map(str, parts))

    def _copy(self, source: Path, target: Path) -> None:
        target.mkdir(mode=0o700, parents=True)
        done = subprocess.run(
            [*_COPY, *self._parts(source), str(target)],
            cwd=source,
            # If this process is killed, the next one stops the copying.
            env={**os.environ, "LC_ALL": "C", **processes.marks(self._lab.state)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr.splitlines() or [f"cp: status {done.returncode}"])[-1]
            self._tidy()
            raise LabError(f"the copy failed, and nothing has changed: {last}")

    def _tidy(self) -> None:
        """Remove what an interrupted command left."""
        _remove((self._draft, self._replaced))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            shutil.rmtree(path)


def _size(directory: Path) -> int:
    """How many bytes *directory* takes on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))
