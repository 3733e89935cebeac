"""A small Linux for the lab's servers: one bootable disk, made of Debian's packages.

It boots in seconds without KVM and in little memory, and does what a user of a cloud tries first:
DHCP, host name, ssh keys and user data by config drive or metadata service, a console, the power
button, snapshots. ``root`` logs in by ssh with a key of the server, and on the console with the
password ``openstackoid``. The system itself is in memory; ``/data`` is on the disk.

``python -m lab.guest DIRECTORY NAME`` makes the image of the instance NAME in DIRECTORY. Nothing is
mounted and root is not needed. The same packages make the same bytes.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from lzma import decompress
from pathlib import Path

from lab.apt import install_line
from lab.bootstrap import ROOT
from lab.image import ImageError, ImageFile
from lab.unbundled import Unbundled

#: The Debian packages that must be installed to make the image.
PACKAGES = ("dosfstools", "mtools", "syslinux")
_KERNEL = "linux-image-cloud-amd64"
_PROGRAMS = ("busybox-static", "dropbear-bin", "e2fsprogs", "syslinux-common")
#: Those that are only downloaded: the image is made of them, and of the libraries that they need.
DOWNLOADED = (_KERNEL, *_PROGRAMS)

_HERE = Path(__file__).parent
_SCRIPTS = {
    "etc/acpi/PWRF/00000080": "power",
    "etc/boot": "boot",
    "etc/cloud": "cloud",
    "etc/dhcp": "dhcp",
    "etc/halt": "halt",
    "etc/inittab": "inittab",
    "usr/bin/sudo": "sudo",
}
_TEXTS = {
    "etc/group": "root:x:0:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    # `openssl passwd -6 -salt openstackoid openstackoid`
    "etc/shadow": "root:$6$openstackoid$vQGwql3J54JQGkexrMGjFquxouUlF/0TVGyOYcABuEjss9Z1J225l3E1mR"
    "U46zbUbvmPA2MHwrgd5YMHYwxcs1:20000:0:99999:7:::\n",
}
_MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng"),
    *("ata_piix", "sd_mod", "sr_mod", "isofs"),
    *("button", "evdev"),
)
# Userspace Open vSwitch loses packets whose checksum a guest leaves to its network device.
_PARAMETERS = {"virtio_net": " csum=0 gso=0"}

_SECTOR = 512
#: Where the first partition starts, a FAT file system with the kernel.
_START = 128 * _SECTOR
#: The room for the second, the guest's /data, in a disk that no flavor has made larger.
_DATA = 1024 * 1024
#: The room for the boot loader and for what FAT itself takes.
_SLACK = 320 * 1024
_INSTANCE = re.compile(r"[A-Za-z0-9._-]+")
_ENVIRONMENT = {
    "LC_ALL": "C",
    "MTOOLSRC": "/dev/null",
    "SOURCE_DATE_EPOCH": "1735689600",
    "TZ": "UTC",
}
_UNBUNDLED = Unbundled(ROOT)
_WAYS_OUT = {
    "apt-cache": "; try `apt-get update`",
    "apt-get": "; try `apt-get update`",
    "dpkg-query": f"; try `{install_line(PACKAGES)}`",
}


class GuestError(ImageError):
    """The guest's image cannot be made; its text is one line that says why and the way out."""


@dataclass(frozen=True)
class Node:
    """What an archive has under one name: *data* is a file's content, or where a link points to."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build(cache: Path) -> Path:
    """The image of no instance in particular; made in the directory *cache* the first time.

    :raises GuestError: when a tool is missing, or a package cannot be downloaded.
    :raises OSError: when it cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "guest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        debs = _debs()
        base = _base(cache, debs)
        if not base.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix=".guest-") as directory:
                draft = _make(debs, Path(directory))
                base.with_suffix(".txt").write_text(_main_packages(debs))
                draft.replace(base)
    return base


def is_built(cache: Path) -> bool:
    """Whether :func:`build` has made the image in *cache*, of the packages of today.

    :raises GuestError: when a tool is missing, or apt knows no packages.
    """
    return _base(cache, _debs()).exists()


def made_of(base: Path) -> str:
    """The names and versions of the packages in *base*, which :func:`build` made; one line."""
    return base.with_suffix(".txt").read_text()


def image_of(instance: str, cache: Path, target: Path) -> ImageFile:
    """The image of *instance* in the file *target*, made of the one in *cache*.

    :raises GuestError: as :func:`build` and :func:`personalise` do.
    """
    base = build(cache)
    personalise(base, instance, target)
    return ImageFile(str(target), {"openstackoid:made_of": made_of(base), "hw_rng_model": "virtio"})


def personalise(base: Path, instance: str, target: Path) -> None:
    """Make *target*, the image of *instance*, of *base*: it says whose it is when it boots.

    :raises GuestError: when a tool is missing, or *instance* is no name.
    :raises OSError: when it cannot be written; what *target* was before stays.
    """
    if not _INSTANCE.fullmatch(instance):
        raise GuestError(f"{instance!r} is no name of an instance: use letters, digits, '.-_'")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".guest-") as directory:
        draft, settings = Path(directory, "image"), Path(directory, "syslinux.cfg")
        shutil.copyfile(base, draft)
        template = (_HERE / "files" / "syslinux.cfg").read_text()
        settings.write_text(template.format(instance=instance))
        _run("mcopy", "-i", f"{draft}@@{_START}", str(settings), "::/")
        draft.replace(target)


def archive(nodes: Mapping[str, Node]) -> bytes:
    """*nodes* as a cpio archive that the kernel unpacks, with the directories they are in."""
    every = dict(nodes)
    for name in nodes:
        for parent in list(Path(name).parents)[:-1]:
            every.setdefault(str(parent), Node(stat.S_IFDIR | 0o755))
    result = bytearray()
    # In alphabetical order a directory comes before what is in it.
    for number, (name, node) in enumerate([*sorted(every.items()), ("TRAILER!!!", Node(0))], 1):
        path = name.encode() + b"\0"
        size = len(node.data)
        fields = (number, node.mode, 0, 0, 1, 0, size, 0, 0, *node.device, len(path), 0)
        result += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        result += bytes(-len(result) % 4) + node.data
        result += bytes(-len(result) % 4)
    return bytes(result)


def _debs() -> list[str]:
    """The names of the files to download, ``NAME_VERSION_ARCHITECTURE.deb`` each."""
    # This one has nothing but a dependency, on the kernel of the day.
    kernel = _run("apt-cache", "depends", "--important", _KERNEL)
    names = re.findall(r"Depends: (linux-image-\S+)", kernel)
    tree = _run("apt-cache", "depends", "--important", "--recurse", *_PROGRAMS)
    names += re.findall(r"^\w\S*", tree, re.MULTILINE)
    listing = _run("apt-get", "--print-uris", "download", *sorted(set(names)))
    return sorted(line.split()[1] for line in listing.splitlines() if line.startswith("'"))


def _base(cache: Path, debs: list[str]) -> Path:
    return cache / f"guest-{_key(debs)}.img"


def _main_packages(debs: list[str]) -> str:
    main = ("busybox-static_", "dropbear-bin_", "e2fsprogs_", "linux-image-")
    pairs = (deb.replace("%3a", ":").split("_")[:2] for deb in debs if deb.startswith(main))
    return ", ".join(" ".join(pair) for pair in pairs)


def _key(debs: list[str]) -> str:
    """What changes when the image would: with the packages, the tools and this module."""
    digest = hashlib.sha256()
    digest.update(_run("dpkg-query", "--show", *PACKAGES).encode())
    digest.update("\n".join(debs).encode())
    for path in sorted([*_HERE.glob("*.py"), *(_HERE / "files").iterdir()]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _make(debs: list[str], work: Path) -> Path:
    """The image, in the directory *work*."""
    names = [f"{name}={version}" for name, version in (deb.split("_")[:2] for deb in debs)]
    _run("apt-get", "download", *(name.replace("%3a", ":") for name in names), cwd=work)
    tree = work / "tree"
    for deb in debs:
        _run("dpkg-deb", "--extract", deb, str(tree), cwd=work)
    fat = _boot_partition(tree, work)
    image = work / "image"
    with image.open("wb") as file:
        file.write(_partition_table(_one(tree, "mbr.bin").read_bytes(), fat.stat().st_size))
        file.seek(_START)
        file.write(fat.read_bytes())
        file.truncate(_START + fat.stat().st_size + _DATA)
    return image


def _boot_partition(tree: Path, work: Path) -> Path:
    kernel, initrd, fat = _one(tree, "vmlinuz-*"), work / "initrd", work / "fat"
    initrd.write_bytes(gzip.compress(archive(_system(tree)), mtime=0))
    room = kernel.stat().st_size + initrd.stat().st_size + _SLACK
    with fat.open("wb") as file:
        file.truncate(-(-room // 65536) * 65536)
    geometry = ["-F", "16", "-s", "4", "-h", str(_START // _SECTOR)]
    _run("mkfs.fat", "--invariant", *geometry, str(fat))
    _run("syslinux", "--install", str(fat))
    _run("mcopy", "-i", str(fat), str(kernel), "::/vmlinuz")
    _run("mcopy", "-i", str(fat), str(initrd), "::/initrd")
    return fat


def _partition_table(loader: bytes, first: int) -> bytes:
    """The disk's first sector: *loader* starts the first partition, which is of *first* bytes.

    The second says that it is as large as can be; the kernel takes that for the end of the disk.
    """
    start, length = _START // _SECTOR, first // _SECTOR
    rest = start + length
    entry = struct.Struct("<B3sB3sII")
    lba = b"\xfe\xff\xff"
    table = entry.pack(0x80, lba, 0x0E, lba, start, length)
    table += entry.pack(0, lba, 0x83, lba, rest, 0xFFFFFFFF - rest)
    return loader.ljust(446, b"\0")[:446] + table.ljust(64, b"\0") + b"\x55\xaa"


def _system(tree: Path) -> dict[str, Node]:
    """The guest's files, of the packages that are unpacked in *tree*."""
    busybox = _one(tree, "bin/busybox")
    nodes = {
        "bin/busybox": _program(busybox),
        "dev/console": Node(stat.S_IFCHR | 0o600, device=(5, 1)),
        "init": _link("bin/busybox"),
        "root/.profile": _file(b"export PS1='\\u@\\h:\\w# '\n"),
    }
    for applet in _run(str(busybox), "--list-full").split():
        nodes.setdefault(applet, _link("/bin/busybox"))
    nodes |= _programs(tree) | _modules(tree)
    nodes |= {name: _program(_HERE / "files" / source) for name, source in _SCRIPTS.items()}
    nodes |= {name: _file(text.encode()) for name, text in _TEXTS.items()}
    return nodes


def _programs(tree: Path) -> dict[str, Node]:
    """The programs that are not busybox, and the libraries that their own loader finds for them."""
    loader, programs = _one(tree, "ld-linux-x86-64.so.2"), ("usr/sbin/dropbear", "sbin/mke2fs")
    where = ":".join(str(tree / path / "x86_64-linux-gnu") for path in ("lib", "usr/lib"))
    nodes = {"lib64/ld-linux-x86-64.so.2": _program(loader)}
    for name in programs:
        path = _one(tree, f"sbin/{Path(name).name}")
        nodes[name] = _program(path)
        listing = _run(str(loader), "--library-path", where, "--list", str(path))
        for library in re.findall(rf"=> ({re.escape(str(tree))}/\S+)", listing):
            nodes[f"lib/{Path(library).name}"] = _program(Path(library))
    return nodes


def _modules(tree: Path) -> dict[str, Node]:
    """The kernel's modules in one directory, and the order in which to load them."""
    files = {path.name.split(".")[0].replace("-", "_"): path for path in tree.rglob("*.ko*")}
    content: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in content or name not in files:
            return  # What is not a file is a part of the kernel.
        data = files[name].read_bytes()
        data = decompress(data) if files[name].suffix == ".xz" else data
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in needs[1].decode().split(",") if needs else []:
            add(other.replace("-", "_"))
        content[name] = data

    for name in _MODULES:
        add(name)
    order = "".join(f"{name}.ko{_PARAMETERS.get(name, '')}\n" for name in content)
    return {
        "lib/modules/order": _file(order.encode()),
        **{f"lib/modules/{name}.ko": _file(data) for name, data in content.items()},
    }


def _one(tree: Path, pattern: str) -> Path:
    """The file in *tree* that *pattern* means."""
    for path in sorted(tree.rglob(pattern)):
        if path.is_file():
            return path
    raise GuestError(f"Debian's packages have no file {pattern} any more: the image needs it")


def _file(data: bytes) -> Node:
    return Node(stat.S_IFREG | 0o644, data)


def _program(path: Path) -> Node:
    return Node(stat.S_IFREG | 0o755, path.read_bytes())


def _link(target: str) -> Node:
    return Node(stat.S_IFLNK | 0o777, target.encode())


def _run(*argv: str, cwd: Path | None = None) -> str:
    """What the command *argv* says.

    :raises GuestError: when it is missing or fails.
    """
    path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env={**os.environ, **_ENVIRONMENT, **_UNBUNDLED.apt_environment, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise GuestError(f"{argv[0]} is missing: {install_line(PACKAGES)}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("W:")]
        text = f"{Path(argv[0]).name} fails: {' '.join(lines[:1])}"
        raise GuestError(text + _WAYS_OUT.get(argv[0], ""))
    return done.stdout
