"""The image that every instance offers: fetched once per host, or a placeholder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

#: Name of the file that stands for a real image.
PLACEHOLDER = "placeholder"
#: Size of the placeholder, in bytes.
PLACEHOLDER_SIZE = 1024 * 1024

_QCOW = b"QFI\xfb"


@dataclass(frozen=True)
class ImageFile:
    """The file at *path*, as an image with *properties* of glance."""

    path: str
    properties: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The image file as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ImageFile:
        """Read what :meth:`to_json` wrote."""
        return cls(**json.loads(text))


class ImageError(Exception):
    """The image cannot be fetched; its text says from where and why."""


def fetched(url: str, shared: Path) -> Path:
    """Where :func:`fetch` keeps the file behind *url*."""
    return shared / f"image-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def fetch(url: str, shared: Path) -> Path:
    """The file behind *url*, in the directory *shared* of the host; fetched the first time.

    :raises ImageError: when it cannot be fetched.
    """
    path = fetched(url, shared)
    with (shared / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            draft = path.with_suffix(".new")
            try:
                with (
                    urllib.request.urlopen(url, timeout=60) as source,  # noqa: S310 - lab.yaml's
                    draft.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target)
            except (OSError, ValueError) as error:
                raise ImageError(f"{url} cannot be fetched ({error})") from error
            draft.replace(path)
    return path


def require_disk(path: Path) -> None:
    """Make sure that a guest can boot from the image at *path*; remove it otherwise.

    :raises ImageError: when it is neither qcow2, nor a disk with a boot sector, which ends with
        0x55AA.
    """
    with path.open("rb") as stream:
        sector = stream.read(512)
    if disk_format(path) == "raw" and sector[510:] != b"\x55\xaa":
        path.unlink()
        begins = sector[:20].decode(errors="replace")
        raise ImageError(f"it is no disk image that boots, but begins with {begins!r}")


def obtain(url: str | None, shared: Path, note: Callable[[str], None]) -> ImageFile:
    """The file to make the image of, in *shared*; a placeholder where *url* is out of reach.

    *note* is told of the latter.
    """
    if url:
        try:
            return ImageFile(str(fetch(url, shared)))
        except ImageError as error:
            note(f"{error}; the image is a placeholder")
    return placeholder(shared)


def placeholder(directory: Path) -> ImageFile:
    """A file of zeros in *directory*, for a hypervisor that boots nothing."""
    path = directory / PLACEHOLDER
    if not path.exists() or path.stat().st_size != PLACEHOLDER_SIZE:
        draft = path.with_name(f".{PLACEHOLDER}.{os.getpid()}")
        draft.write_bytes(bytes(PLACEHOLDER_SIZE))
        draft.replace(path)
    return ImageFile(
        str(path),
        {
            "openstackoid_placeholder": "true",
            "description": "a placeholder for the fake hypervisor, which boots nothing",
        },
    )


def disk_format(path: Path) -> str:
    """What glance calls the format of the image at *path*: ``qcow2`` or ``raw``."""
    with path.open("rb") as stream:
        return "qcow2" if stream.read(len(_QCOW)) == _QCOW else "raw"
