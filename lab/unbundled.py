"""What a clone out of a bundle has in ``.offline``: wheels, Debian packages, images.

:mod:`lab.bundle` writes it, ``up --offline`` uses it. This module needs the standard library only:
setting up ``.venv`` may need a package.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from lab.errors import LabError

#: The directory of the contents of a bundle, in the repository.
NAME = ".offline"
#: Its parts. ``MADE_FOR`` has :func:`kind` of the machine that made it.
WHEELS, PACKAGES, IMAGES, MADE_FOR = "wheels", "packages", "images", "made-for.json"

# Written here, because apt wants absolute paths: apt.conf(5), sources.list(5).
_LISTS, _SOURCES, _CONFIGURATION = "lists", "sources.list", "apt.conf"
_APT = """\
Dir::Etc::SourceList "{directory}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "{directory}/lists/";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "root";
"""


def kind(python: str) -> dict[str, str]:
    """What has to be the same on the machine that makes a bundle and on the one that uses it.

    *python* is the path of an interpreter, whose name has its version.
    """
    release = platform.freedesktop_os_release()
    return {
        "system": f"{release.get('ID', '?')} {release.get('VERSION_ID', '?')}",
        "machine": platform.machine(),
        "python": Path(python).name,
    }


class Unbundled:
    """The contents of a bundle in the repository *root*."""

    def __init__(self, root: Path) -> None:
        self.directory = root / NAME

    def __bool__(self) -> bool:
        """Whether the repository comes out of a bundle."""
        return self.directory.is_dir()

    def use(self, python: str) -> None:
        """Have pip, uv and apt of this process, and of those that it starts, install from it.

        A second call does nothing.

        :raises LabError: when it is not complete or for another kind of machine, or apt cannot read
            it.
        """
        if self.apt_environment and self.apt_environment.items() <= os.environ.items():
            return
        try:
            made_for = json.loads((self.directory / MADE_FOR).read_text())
        except (OSError, ValueError) as error:
            raise LabError(
                f"{self.directory} is not a whole bundle: unpack it again, or remove it"
            ) from error
        if made_for != kind(python):
            theirs, ours = (", ".join(one.values()) for one in (made_for, kind(python)))
            raise LabError(f"this bundle is for {theirs}; this machine has {ours}")
        wheels = str(self.directory / WHEELS)
        os.environ.update(UV_NO_INDEX="1", UV_FIND_LINKS=wheels, PIP_FIND_LINKS=wheels)
        packages = urllib.parse.quote(str(self.directory / PACKAGES))
        (self.directory / _LISTS / "partial").mkdir(parents=True, exist_ok=True)
        (self.directory / _SOURCES).write_text(f"deb [trusted=yes] file:{packages} ./\n")
        (self.directory / _CONFIGURATION).write_text(_APT.format(directory=self.directory))
        os.environ.update(self.apt_environment)
        done = subprocess.run(["apt-get", "update"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.splitlines() or ["it does not say why"])[-1]
            raise LabError(f"apt-get cannot read the packages in {self.directory}: {last}")

    @property
    def apt_environment(self) -> Mapping[str, str]:
        """The environment in which apt knows its packages and no others, once it is in use."""
        configuration = self.directory / _CONFIGURATION
        return {"APT_CONFIG": str(configuration)} if configuration.exists() else {}

    def has(self, package: str) -> bool:
        """Whether it has the Debian *package*."""
        return any((self.directory / PACKAGES).glob(f"{package}_*.deb"))

    def hand_over_images(self, shared: Path) -> None:
        """Put the images where a host looks for those that it has fetched."""
        for image in (self.directory / IMAGES).glob("*"):
            shared.mkdir(parents=True, exist_ok=True)
            if not (shared / image.name).exists():
                draft = shared / f".{image.name}"
                shutil.copyfile(image, draft)
                draft.replace(shared / image.name)
