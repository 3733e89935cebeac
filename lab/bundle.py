"""``bundle``: this repository, and everything that ``up --offline`` installs, in one file.

The file is a plain tar archive of a directory, so that a bare Debian unpacks it; its contents are
compressed already. :mod:`lab.unbundled` says what is where.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lab import guest, image
from lab.bootstrap import base_python
from lab.config import Lab
from lab.errors import LabError
from lab.offline import require_kind
from lab.parallel import for_each
from lab.providers.local import uv
from lab.unbundled import IMAGES, MADE_FOR, NAME, PACKAGES, WHEELS, kind

_DISTRIBUTIONS = ("pyproject.toml", "lab/pyproject.toml")
_EXTRAS = ("orchestrator", "wheels")
#: Packages for ``.venv``, which is made before anything knows the lab.
_FOR_VENV = ("python3-venv",)


def write(lab: Lab, packages: Iterable[str], target: Path, say: Callable[[str], None]) -> None:
    """Write a bundle of *lab*, which needs the Debian *packages*, into the file *target*.

    :raises LabError: when the lab cannot be brought up offline, something cannot be downloaded, or
        the file cannot be written.
    """
    if target.suffix != ".tar":
        raise LabError(f"{target}: give it a name that ends in .tar")
    require_kind(lab)
    files = [path for path in _files(lab.root) if (lab.root / path) != target.absolute()]
    wanted = {*packages, *_FOR_VENV, *(guest.DOWNLOADED if lab.has_guests else ())}
    try:
        with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".bundle-") as made:
            contents = Path(made, NAME)
            say("Downloading wheels, Debian packages and the image …")
            jobs: tuple[Callable[[], None], ...] = (
                lambda: _wheels(lab.root, contents / WHEELS),
                lambda: _packages(wanted, contents / PACKAGES),
                lambda: _images(lab, contents / IMAGES),
            )
            contents.mkdir()
            for_each(jobs, lambda job: job())
            (contents / MADE_FOR).write_text(json.dumps(kind(base_python())))
            say(f"Writing {target} …")
            draft = Path(made, target.name)
            with tarfile.open(draft, "w") as archive:
                for path in files:
                    archive.add(lab.root / path, f"{target.stem}/{path}", filter=_anybody)
                archive.add(contents, f"{target.stem}/{NAME}", filter=_anybody)
            draft.replace(target)
    except OSError as error:
        raise LabError(f"{target} cannot be written: {error.strerror or error}") from error


def requirements(root: Path) -> Iterator[str]:
    """What both distributions in the repository *root* need to be built, and to bring a lab up."""
    own = set()
    # For an editable installation, hatchling asks for one more: hatchling/builders/wheel.py.
    wanted = ["uv", "editables"]
    for file in _DISTRIBUTIONS:
        description = tomllib.loads((root / file).read_text())
        project = description["project"]
        own.add(project["name"])
        wanted += [*description["build-system"]["requires"], *project.get("dependencies", ())]
        for extra in _EXTRAS:
            wanted += project.get("optional-dependencies", {}).get(extra, ())
    return (one for one in dict.fromkeys(wanted) if one not in own)


def _files(root: Path) -> list[str]:
    """The files of the repository *root*, changes included."""
    listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    done = subprocess.run(
        [*listing, "--exclude-standard"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LabError(f"only a clone of the repository can make a bundle: {done.stderr.strip()}")
    every = dict.fromkeys(done.stdout.split("\0"))
    return [path for path in every if path and (root / path).is_file()]


def _anybody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _wheels(root: Path, directory: Path) -> None:
    """Put the wheels of all requirements into *directory*: of what has none, pip builds one."""
    constraints = str(root / "constraints.txt")
    with tempfile.TemporaryDirectory(dir=directory.parent.parent, prefix="venv-") as venv:
        python = f"{venv}/bin/python"
        # Only pip can keep wheels as files.
        _run([uv(), "venv", "--quiet", "--clear", "--seed", "--python", base_python(), venv])
        _run(
            [
                *(python, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(directory)),
                *("--constraint", constraints, *requirements(root)),
            ],
            PIP_CONSTRAINT=constraints,
        )


def _packages(wanted: Iterable[str], directory: Path) -> None:
    """Put the Debian packages *wanted* and all that they need into *directory*, with an index."""
    (directory / "partial").mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=directory.parent.parent, prefix="apt-") as state:
        Path(state, "lists", "partial").mkdir(parents=True)
        Path(state, "status").touch()
        options = {
            # As if nothing was installed: the other machine may have less than this one.
            "Dir::State::status": f"{state}/status",
            # Packages that are older than the other machine's do not fit there.
            "Dir::State::Lists": f"{state}/lists/",
            "Dir::Cache::archives": f"{directory}/",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            # Whoever may not install packages can download them.
            "Debug::NoLocking": "true",
            "APT::Sandbox::User": "",
        }
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        _run(["apt-get", *flags, "update"])
        install = ["--yes", "--no-install-recommends", "--download-only", "install"]
        _run(["apt-get", *flags, *install, *sorted(wanted)])
    (directory / "partial").rmdir()
    (directory / "Packages").write_text("\n".join(map(_entry, sorted(directory.glob("*.deb")))))


def _entry(path: Path) -> str:
    """What an index says about the Debian package at *path*.

    https://wiki.debian.org/DebianRepository/Format#A.22Packages.22_Indices
    """
    control = _run(["dpkg-deb", "--field", str(path)])
    content = path.read_bytes()
    return (
        f"{control.rstrip()}\nFilename: ./{path.name}\nSize: {len(content)}\n"
        f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
    )


def _images(lab: Lab, directory: Path) -> None:
    directory.mkdir()
    if lab.image.url:
        try:
            image.fetch(str(lab.image.url), directory)
        except image.ImageError as error:
            raise LabError(str(error)) from error
        (directory / "image.lock").unlink()


def _run(argv: list[str], **environment: str) -> str:
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1", "LC_ALL": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.splitlines() or [f"status {done.returncode}"])[-1]
        raise LabError(f"`{' '.join(argv[:4])} …` failed: {last}")
    return done.stdout
