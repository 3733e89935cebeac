"""Build the machine's root file system from Debian's packages, without downloading a box."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

#: The Docker image that a sandbox makes from the box.
IMAGE = "openstackoid-box"

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
# Docker manages hardware and networks; a test's machine is too short-lived for timers.
_MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
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
_DROP_INS = {
    # DevStack uses Debian's services, which start with the machine; the wheels start their own.
    "mariadb": "[Unit]\nConditionPathExists=/opt/stack/devstack\n",
    "rabbitmq-server": "[Unit]\nConditionPathExists=/opt/stack/devstack\n",
    # A container has no kernel modules: the iSCSI daemon would fail, and stack.sh with it
    # (lib/nova:configure_nova).
    "iscsid": "[Unit]\nConditionPathExists=/sys/class/iscsi_transport\n",
    # OVN's own bridge ignores OVS_DATAPATH_TYPE (lib/neutron_plugins/ovn_agent:_start_ovs).
    "ovn-controller": (
        "[Service]\nExecStartPre=ovs-vsctl --no-wait set open_vswitch . "
        "external-ids:ovn-bridge-datapath-type=netdev\n"
    ),
}
# Commands for the root file system, $1, after its packages and our files are installed.
_HOOKS = (
    'chroot "$1" useradd --no-create-home --shell /bin/bash vagrant',
    'cp -r --no-clobber "$1/etc/skel/." "$1/home/vagrant"',
    'chroot "$1" chown -R vagrant:vagrant /home/vagrant',
    'chroot "$1" chmod -R go= /home/vagrant/.ssh',
    'chroot "$1" locale-gen',
    'chroot "$1" update-ca-certificates',
    f'chroot "$1" systemctl disable {" ".join(_DISABLED)}',
    'chroot "$1" systemctl enable net-settings.service',
    f'chroot "$1" systemctl mask {" ".join(_MASKED)}',
    # Each machine generates its own.
    'rm -f "$1"/etc/ssh/ssh_host_*',
    ': > "$1/etc/machine-id"',
)
_VAGRANT_KEYS = "/usr/share/rubygems-integration/all/gems/vagrant-*/keys/vagrant.pub"
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_PACKAGED_CERTIFICATES = Path("/usr/share/ca-certificates")
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", re.DOTALL)


class BoxError(Exception):
    """The box could not be built; the text says why."""


@dataclass(frozen=True)
class _Recipe:
    """Everything besides this file that the box depends on."""

    suite: str
    key: str
    certificates: tuple[str, ...]
    apt_options: tuple[str, ...]

    @property
    def digest(self) -> str:
        source = Path(__file__).read_bytes()
        return hashlib.sha256(source + repr(self).encode()).hexdigest()[:16]


def build(directory: Path) -> Path:
    """The box as a tar file in *directory*; building a missing one takes about a minute.

    :raises BoxError: when it cannot be built.
    """
    recipe = _recipe()
    box = directory / f"box-{recipe.digest}.tar"
    if box.exists():
        return box
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="openstackoid-box-", dir="/var/tmp") as name:
        scratch = Path(name)
        files = _write_files(recipe, scratch / "files")
        unfinished = directory / f"{box.name}.{os.getpid()}.unfinished"
        try:
            _mmdebstrap(recipe, files, unfinished, scratch)
            unfinished.rename(box)
        finally:
            unfinished.unlink(missing_ok=True)
    for former in directory.glob("box-*.tar"):
        if former != box:
            former.unlink()
    return box


def _recipe() -> _Recipe:
    return _Recipe(
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
        "etc/systemd/system/net-settings.service": _WRITABLE_NET_SETTINGS,
        "etc/systemd/system/ssh.service.d/host-keys.conf": (
            "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\n"
        ),
        "home/vagrant/.ssh/authorized_keys": recipe.key,
    }
    for unit, text in _DROP_INS.items():
        texts[f"etc/systemd/system/{unit}.service.d/container.conf"] = text
    for number, certificate in enumerate(recipe.certificates, start=1):
        texts[f"usr/local/share/ca-certificates/host-{number}.crt"] = certificate
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _mmdebstrap(recipe: _Recipe, files: Path, box: Path, scratch: Path) -> None:
    done = subprocess.run(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=tar",
            f"--include={','.join((*_SYSTEM, *_STACK))}",
            *(f"--aptopt={option}" for option in recipe.apt_options),
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            f'--customize-hook=cp -r --no-preserve=ownership {files}/. "$1/"',
            *(f"--customize-hook={hook}" for hook in _HOOKS),
            recipe.suite,
            str(box),
        ],
        # mmdebstrap builds the root file system below TMPDIR.
        env={**os.environ, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise BoxError("mmdebstrap failed:\n" + "\n".join(done.stdout.splitlines()[-20:]))
