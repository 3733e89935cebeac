"""Build a machine from Debian's packages: an image for Docker, or a box for Vagrant's libvirt.

``python -m tests.machines.box DIRECTORY`` builds the box for libvirt by hand, about a minute.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

#: What a sandbox calls the Docker image or Vagrant box that it makes from what is built here.
IMAGE = "openstackoid-box"
#: Debian packages that :func:`build_disk` needs besides mmdebstrap.
DISK_PACKAGES = ("e2fsprogs", "fdisk", "grub-common", "grub-pc-bin", "qemu-utils")

_SYSTEM = (
    "ca-certificates",
    "curl",
    "dbus",
    "git",
    "hostname",
    "iproute2",
    "iptables",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "locales",
    "openssh-server",
    "procps",
    "python3",
    "python3-venv",
    "rsync",
    "sudo",
    "systemd",
    "systemd-sysv",
)
#: Packages for the stacks; none of their services starts by itself.
_STACK = ("haproxy", "lua-luaossl", "mariadb-server", "rabbitmq-server")
_DISABLED = ("epmd.service", "epmd.socket", "haproxy.service")
# A test's machine is too short-lived for timers.
_TIMERS = ("apt-daily-upgrade.timer", "apt-daily.timer")
# Docker manages hardware and networks.
_DOCKERS = (
    "console-getty.service",
    "getty.target",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-udevd.service",
)
# Docker mounts /proc/sys read-only. DevStack and Neutron write to net, which belongs to the machine
# alone; the rest is the host's.
_WRITABLE_NET_SETTINGS = """\
[Unit]
Description=Make the network settings writable
After=systemd-sysctl.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=mount --bind /proc/sys/net /proc/sys/net
ExecStart=mount -o remount,bind,rw /proc/sys/net

[Install]
WantedBy=multi-user.target
"""
# DevStack uses Debian's services, which start with the machine; the wheels start their own.
_WITH_DEVSTACK = "[Unit]\nConditionPathExists=/opt/stack/devstack\n"
# A container has no kernel modules: the iSCSI daemon would fail, and stack.sh with it
# (lib/nova:configure_nova).
_WITH_ISCSI = "[Unit]\nConditionPathExists=/sys/class/iscsi_transport\n"
# OVN's own bridge ignores OVS_DATAPATH_TYPE (lib/neutron_plugins/ovn_agent:_start_ovs).
_IN_USERSPACE = """\
[Service]
ExecStartPre=ovs-vsctl --no-wait set open_vswitch . external-ids:ovn-bridge-datapath-type=netdev
"""
# A network card gets its address by DHCP until Vagrant configures it. The lab's own interfaces have
# other names.
_DHCP = """\
[Match]
Name=en*

[Network]
DHCP=yes
"""
# The firmware starts GRUB in front of the partition, which starts the kernel.
_GRUB = """\
linux /vmlinuz root=/dev/vda1 ro console=ttyS0
initrd /initrd.img
boot
"""
_GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "normal")
_GRUB_FILES = Path("/usr/lib/grub/i386-pc")
#: The virtual disk's size in GiB, and where its only partition begins, in bytes.
_DISK_SIZE, _PARTITION = 16, 1 << 20
# Commands for the root file system, $1, after its packages and our files are installed.
_HOOKS = (
    'chroot "$1" useradd --no-create-home --shell /bin/bash vagrant',
    'cp -r --no-clobber "$1/etc/skel/." "$1/home/vagrant"',
    'chroot "$1" chown -R vagrant:vagrant /home/vagrant',
    'chroot "$1" chmod -R go= /home/vagrant/.ssh',
    'chroot "$1" locale-gen',
    'chroot "$1" update-ca-certificates',
    f'chroot "$1" systemctl disable {" ".join(_DISABLED)}',
    # Each machine generates its own.
    'rm -f "$1"/etc/ssh/ssh_host_*',
    ': > "$1/etc/machine-id"',
)
_VAGRANT_KEYS = "/usr/share/rubygems-integration/all/gems/vagrant-*/keys/vagrant.pub"
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_PACKAGED_CERTIFICATES = Path("/usr/share/ca-certificates")
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", re.DOTALL)


#: Makes the file (third argument) from a recipe and our own files, with space in a directory.
_Make = Callable[["_Recipe", Path, Path, Path], None]


class BoxError(Exception):
    """The box could not be built; the text says why."""


def _drop_in(unit: str, text: str) -> dict[str, str]:
    return {f"etc/systemd/system/{unit}.service.d/box.conf": text}


@dataclass(frozen=True)
class _Kind:
    """What differs between a container and a virtual machine."""

    name: str
    packages: tuple[str, ...]
    masked: tuple[str, ...]
    enabled: str
    files: Mapping[str, str]


_CONTAINER = _Kind(
    name="container",
    packages=(),
    masked=(*_TIMERS, *_DOCKERS),
    enabled="net-settings.service",
    files={
        "etc/systemd/system/net-settings.service": _WRITABLE_NET_SETTINGS,
        **_drop_in("iscsid", _WITH_ISCSI),
        **_drop_in("ovn-controller", _IN_USERSPACE),
    },
)
_VIRTUAL = _Kind(
    name="virtual",
    packages=("initramfs-tools", "linux-image-cloud-amd64", "udev"),
    masked=_TIMERS,
    enabled="systemd-networkd.service",
    files={
        "boot/grub/grub.cfg": _GRUB,
        "etc/fstab": "/dev/vda1 / ext4 errors=remount-ro 0 1\n",
        "etc/systemd/network/80-first.network": _DHCP,
    },
)


@dataclass(frozen=True)
class _Recipe:
    """Everything besides this file that the box depends on."""

    kind: _Kind
    suite: str
    key: str
    certificates: tuple[str, ...]
    apt_options: tuple[str, ...]

    @property
    def digest(self) -> str:
        source = Path(__file__).read_bytes()
        return hashlib.sha256(source + repr(self).encode()).hexdigest()[:16]


def build(directory: Path) -> Path:
    """Docker's image as a tar file in *directory*; building a missing one takes about a minute.

    :raises BoxError: when it cannot be built.
    """
    return _build(directory, _CONTAINER, _mmdebstrap)


def build_disk(directory: Path) -> Path:
    """The box for Vagrant's libvirt as a file in *directory*, built if it is missing.

    :raises BoxError: when it cannot be built.
    """
    return _build(directory, _VIRTUAL, _virtual_box)


def _build(directory: Path, kind: _Kind, make: _Make) -> Path:
    recipe = _recipe(kind)
    box = directory / f"box-{kind.name}-{recipe.digest}.tar"
    if box.exists():
        return box
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="openstackoid-box-", dir="/var/tmp") as name:
        scratch = Path(name)
        files = _write_files(recipe, scratch / "files")
        unfinished = directory / f"{box.name}.{os.getpid()}.unfinished"
        try:
            make(recipe, files, unfinished, scratch)
            unfinished.rename(box)
        finally:
            unfinished.unlink(missing_ok=True)
    for former in directory.glob(f"box-{kind.name}-*.tar"):
        if former != box:
            former.unlink()
    return box


def _recipe(kind: _Kind) -> _Recipe:
    return _Recipe(
        kind=kind,
        suite=platform.freedesktop_os_release()["VERSION_CODENAME"],
        key=_insecure_key(),
        certificates=_own_certificates(),
        apt_options=_apt_options(),
    )


def _insecure_key() -> str:
    """The public key with which Vagrant logs in to a fresh machine."""
    keys = sorted(Path("/").glob(_VAGRANT_KEYS.lstrip("/")))
    if not keys:
        raise BoxError("the package vagrant is missing: it has the key for a fresh machine")
    return keys[-1].read_text()


def _own_certificates() -> tuple[str, ...]:
    """The certificates that this host trusts and Debian does not: a closed network's, say."""
    if not _BUNDLE.exists():
        return ()
    packaged = "".join(path.read_text() for path in _PACKAGED_CERTIFICATES.rglob("*.crt"))
    trusted = _CERTIFICATE.findall(_BUNDLE.read_text())
    return tuple(sorted(set(trusted) - set(_CERTIFICATE.findall(packaged))))


def _apt_options() -> tuple[str, ...]:
    """The options of this host's apt, about its mirrors, that the box needs as well."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    wanted = ("Acquire::Check-Date ", "Acquire::Check-Valid-Until ")
    return tuple(line for line in dump.splitlines() if line.startswith(wanted))


def _write_files(recipe: _Recipe, root: Path) -> Path:
    """Write the files that differ from the packages', below *root*."""
    texts = {
        "etc/locale.gen": "en_US.UTF-8 UTF-8\n",
        "etc/sudoers.d/vagrant": "vagrant ALL=(ALL) NOPASSWD: ALL\n",
        **_drop_in("mariadb", _WITH_DEVSTACK),
        **_drop_in("rabbitmq-server", _WITH_DEVSTACK),
        "etc/systemd/system/ssh.service.d/host-keys.conf": (
            "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\n"
        ),
        "home/vagrant/.ssh/authorized_keys": recipe.key,
        **recipe.kind.files,
    }
    for number, certificate in enumerate(recipe.certificates, start=1):
        texts[f"usr/local/share/ca-certificates/host-{number}.crt"] = certificate
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _mmdebstrap(recipe: _Recipe, files: Path, target: Path, scratch: Path) -> None:
    """Make the root file system: *target* is a directory, or else a tar file."""
    units = (
        f'chroot "$1" systemctl enable {recipe.kind.enabled}',
        f'chroot "$1" systemctl mask {" ".join(recipe.kind.masked)}',
    )
    _run(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            f"--format={'directory' if target.is_dir() else 'tar'}",
            f"--include={','.join((*_SYSTEM, *_STACK, *recipe.kind.packages))}",
            *(f"--aptopt={option}" for option in recipe.apt_options),
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            f'--customize-hook=cp -r --no-preserve=ownership {files}/. "$1/"',
            *(f"--customize-hook={hook}" for hook in (*_HOOKS, *units)),
            recipe.suite,
            str(target),
        ],
        # mmdebstrap builds the root file system below TMPDIR.
        env={**os.environ, "TMPDIR": str(scratch)},
    )


def _virtual_box(recipe: _Recipe, files: Path, box: Path, scratch: Path) -> None:
    """A box with a disk of one partition that boots by itself; nothing is mounted for it."""
    root, raw, grub = scratch / "root", scratch / "disk.raw", scratch / "core.img"
    root.mkdir(mode=0o755)
    _mmdebstrap(recipe, files, root, scratch)
    with raw.open("wb") as disk:
        disk.truncate(_DISK_SIZE << 30)
    _run(["sfdisk", "--quiet", str(raw)], text=f"start={_PARTITION >> 9}, type=83, bootable\n")
    size = f"{((_DISK_SIZE << 30) - _PARTITION) >> 10}k"
    _run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), f"-Eoffset={_PARTITION}", str(raw), size])
    prefix = "--prefix=(hd0,msdos1)/boot/grub"
    _run(["grub-mkimage", "--format=i386-pc", f"--output={grub}", prefix, *_GRUB_MODULES])
    with raw.open("r+b") as disk:
        # boot.img loads the second sector, where the image of GRUB begins; the partition table
        # is behind the first 440 bytes.
        disk.write((_GRUB_FILES / "boot.img").read_bytes()[:440])
        disk.seek(512)
        disk.write(grub.read_bytes())
    _run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(scratch / "box.img")])
    # The format of version 1: https://vagrant-libvirt.github.io/vagrant-libvirt/boxes.html
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": _DISK_SIZE}
    (scratch / "metadata.json").write_text(json.dumps(metadata))
    (scratch / "Vagrantfile").write_text("")
    with tarfile.open(box, "w") as archive:
        for name in ("metadata.json", "Vagrantfile", "box.img"):
            archive.add(scratch / name, name)


def _run(argv: list[str], text: str = "", env: Mapping[str, str] | None = None) -> None:
    """Run *argv* with *text* as its input.

    :raises BoxError: when it fails, with its last words.
    """
    done = subprocess.run(
        argv,
        env=env,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        said = "\n".join(done.stdout.splitlines()[-20:])
        raise BoxError(f"{argv[0]} failed:\n{said}")


if __name__ == "__main__":
    print(build_disk(Path(sys.argv[1])))
