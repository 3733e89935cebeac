"""``up --offline``: what has to be on this machine, so that nothing needs a network."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from lab import apt, guest, image
from lab.bootstrap import VENV, go_offline
from lab.config import Lab
from lab.errors import LabError
from lab.providers.local import uv
from lab.unbundled import Unbundled
from lab.wheels import install

#: How uv names what its cache lacks: a package, or a file.
_LACKS = re.compile(r"Because (\S+) was not found in the cache|found in the cache for: (\S+)")


def require(lab: Lab, packages: Iterable[str]) -> None:
    """Make sure that *lab* comes up without a network, and that nothing uses one.

    *packages* are the Debian packages that it needs.

    :raises LabError: naming all that is missing; nothing has changed then.
    """
    require_kind(lab)
    go_offline()
    shared = lab.state / "shared"
    unbundled = Unbundled(lab.root)
    missing = [
        f"the Debian package {name}"
        for name in apt.missing(packages)
        if not (unbundled and unbundled.has(name))
    ]
    missing += _wheels(lab.root, shared)
    if not unbundled and not missing:
        # The image is made with some of the packages.
        missing += _image(lab, shared)
    if missing:
        raise LabError(
            f"--offline, and this machine lacks {', '.join(missing)}: run ./setup-env.py up "
            "without --offline once"
        )
    unbundled.hand_over_images(shared)


def require_kind(lab: Lab) -> None:
    """Make sure that *lab* is of the kind that comes up without a network.

    :raises LabError: when it has another provider or another stack.
    """
    if lab.provider != "local" or lab.stack != "wheels":
        raise LabError(
            "only a lab with the provider local and the stack wheels comes up with --offline; this "
            f"one has the provider {lab.provider} and the stack {lab.stack}"
        )


def _wheels(source: Path, shared: Path) -> Iterator[str]:
    """What the cache of wheels lacks, by a trial: only an installation needs every file."""
    if install.is_installed(source, shared):
        return
    with tempfile.TemporaryDirectory(dir=VENV, prefix=".trial-") as directory:
        for command in install.commands(uv(), source, Path(directory, "venv")):
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "NO_COLOR": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                words = " ".join(done.stderr.split())
                lacks = _LACKS.search(words)
                yield f"the wheel {lacks[1] or lacks[2]}" if lacks else f"wheels ({words})"
                return


def _image(lab: Lab, shared: Path) -> Iterator[str]:
    url = lab.image.url and str(lab.image.url)
    if url and not url.startswith("file:") and not image.fetched(url, shared).exists():
        yield f"the image {url}"
    complete = all((lab.state / name / "data" / "ready").exists() for name in lab.names)
    if lab.has_guests and not url and not complete:
        try:
            built = guest.is_built(shared)
        except guest.GuestError:
            built = False
        if not built:
            yield "the image of guests, which is made of packages of Debian"
