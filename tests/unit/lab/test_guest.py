"""The parts of the guest's image that need neither Debian's archive nor QEMU."""

from __future__ import annotations

import stat
import struct
from pathlib import Path

import pytest

from lab import guest
from lab.guest import GuestError, Node, archive, build, personalise
from lab.image import ImageError

FILE = Node(stat.S_IFREG | 0o644, b"text\n")


def unpack(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content of what is in a cpio archive, in its order; as cpio(5) describes newc."""
    found: dict[str, tuple[int, bytes]] = {}
    position = 0
    while True:
        header = [int(data[at : at + 8], 16) for at in range(position + 6, position + 110, 8)]
        assert data[position : position + 6] == b"070701"
        mode, owner, size, length = header[1], header[2:4], header[6], header[11]
        assert owner == [0, 0]
        name = data[position + 110 : position + 110 + length - 1].decode()
        start = (position + 110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[start : start + size])
        position = (start + size + 3) // 4 * 4


@pytest.fixture
def no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory where tools are looked for, but for root's; it is empty."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def test_an_archive_has_the_directories_before_what_is_in_them() -> None:
    found = unpack(archive({"usr/bin/tool": FILE, "init": Node(stat.S_IFLNK | 0o777, b"usr")}))
    assert list(found) == ["init", "usr", "usr/bin", "usr/bin/tool"]
    assert found["usr"] == (stat.S_IFDIR | 0o755, b"")
    assert found["usr/bin/tool"] == (FILE.mode, b"text\n")


def test_an_archive_does_not_depend_on_the_order_of_its_files() -> None:
    assert archive({"a": FILE, "b/c": FILE}) == archive({"b/c": FILE, "a": FILE})


def test_modules_come_after_those_that_they_need(tmp_path: Path) -> None:
    needs = {"virtio": "virtio_ring", "virtio_ring": "", "virtio-rng": "", "virtio_pci": "virtio"}
    for name, others in needs.items():
        (tmp_path / f"{name}.ko").write_bytes(b"\0depends=" + others.encode() + b"\0")
    (tmp_path / "virtio_net.ko").write_bytes(b"\0depends=virtio,built_in\0")
    nodes = guest._modules(tmp_path)
    order = nodes["lib/modules/order"].data.decode().replace(".ko", "").splitlines()
    assert order == [
        "virtio_ring",
        "virtio",
        "virtio_pci",
        "virtio_net csum=0 gso=0",
        "virtio_rng",
    ]


def test_the_second_partition_reaches_to_the_end_of_any_disk() -> None:
    sector = guest._partition_table(b"loader", 4096 * 512)
    assert len(sector) == 512
    assert sector.startswith(b"loader")
    assert sector.endswith(b"\x55\xaa")
    first, second = (struct.unpack_from("<8xII", sector, at) for at in (446, 462))
    assert first == (128, 4096)
    assert second == (128 + 4096, 2**32 - 1 - 128 - 4096)


@pytest.mark.parametrize("name", ["", "two words", "a\nb", "{instance}"])
def test_what_is_no_name_of_an_instance_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GuestError, match="no name of an instance"):
        personalise(tmp_path / "base", name, tmp_path / "image")


def test_a_missing_tool_is_named_with_the_line_to_type(tmp_path: Path, no_tools: Path) -> None:
    (tmp_path / "base").write_bytes(b"new")
    target = tmp_path / "image"
    target.write_bytes(b"old")
    with pytest.raises(ImageError, match=r"^mcopy is missing: sudo apt-get install .*mtools") as e:
        personalise(tmp_path / "base", "InstanceOne", target)
    assert "\n" not in str(e.value)
    assert target.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"base", "bin", "image"}


def test_a_failure_of_apt_is_one_line_with_a_way_out(tmp_path: Path, no_tools: Path) -> None:
    for name in ("apt-cache", "apt-get"):
        (no_tools / name).write_text(
            "#!/bin/sh\necho 'W: so' >&2\necho 'E: no lists' >&2\nexit 100\n"
        )
        (no_tools / name).chmod(0o755)
    with pytest.raises(GuestError, match=r"^apt-cache fails: E: no lists; try `apt-get update`$"):
        build(tmp_path / "cache")
