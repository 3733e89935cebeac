"""Images that were fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import image

BOOT_SECTOR = bytes(510) + b"\x55\xaa"


@pytest.mark.parametrize("content", [b"QFI\xfb" + bytes(600), BOOT_SECTOR + bytes(600)])
def test_a_guest_may_boot_from_a_qcow2_image_and_from_a_disk_with_a_boot_sector(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    image.require_disk(path)
    assert path.exists()


@pytest.mark.parametrize("content", [b"<!doctype html>" + bytes(600), b"", bytes(2048)])
def test_what_is_no_disk_image_is_refused_and_fetched_anew_next_time(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(image.ImageError, match="no disk image that boots, but begins with"):
        image.require_disk(path)
    assert not path.exists()
