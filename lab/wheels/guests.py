"""Guests of an instance: what libvirt's QEMU driver needs inside nova-compute, and their end.

No libvirtd runs: nova-compute loads libvirt's driver itself (``qemu:///embed``), and a guest is a
QEMU process that outlives it. https://libvirt.org/drvqemu.html#embedded-driver
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, cast

import psutil

from lab import files, guest, processes
from lab.errors import LabError
from lab.parallel import for_each
from lab.wheels import netns
from lab.wheels.layout import Layout
from lab.wheels.ovn import make_emulator

#: Debian packages with the hypervisor, its Python binding, and what nova calls for guests' disks.
PACKAGES = (
    "genisoimage",
    # For whoever wants to see a guest answer.
    "iputils-ping",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "python3-libvirt",
    "qemu-system-x86",
    "qemu-utils",
)

#: Seconds that guests have to shut down once their power button was pressed.
PATIENCE = 10
#: Seconds in which a guest has to say something under KVM: the device can be there, and hang.
_KVM_PATIENCE = 10

_BINDING = Path("/usr/lib/python3/dist-packages")
_USER, _GROUPS = "libvirt-qemu", ("libvirt-qemu", "kvm")
_QEMU_CONF = """\
# Guests run as root, in the network namespace that nova-compute is in.
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
stdio_handler = "file"
namespaces = []
"""


def prepare(layout: Layout) -> None:
    """Make what libvirt's driver and nova-compute expect; the same again is no change.

    :raises LabError: when the Python binding does not fit, or a command fails.
    """
    _link_binding(layout.prefix)
    _write_host_files(layout)
    own = layout.data / "libvirt"
    (own / "etc").mkdir(parents=True, exist_ok=True)
    files.write(own / "etc" / "qemu.conf", _QEMU_CONF)
    layout.emulator.mkdir(parents=True, exist_ok=True)
    make_emulator(layout.emulator)
    if layout.libvirt.is_symlink():
        layout.libvirt.unlink()
    layout.libvirt.symlink_to(own)


def _write_host_files(layout: Layout) -> None:
    """Write what nova-compute sees instead of the host's own files in ``/etc``.

    libvirt looks its host's name up, and refuses to start without a user and groups that Debian's
    libvirt-daemon-system would make. Nothing runs as that user here.
    """
    texts = {
        "hosts": f"127.0.0.1 localhost {layout.spec.name}\n",
        "passwd": f"{_USER}:x:64055:64055::/nonexistent:/usr/sbin/nologin\n",
        "group": "".join(f"{name}:x:{64055 + n}:\n" for n, name in enumerate(_GROUPS)),
    }
    (layout.overlay / "etc").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        host = Path("/etc", name)
        before = host.read_text() if host.exists() else ""
        files.write(layout.overlay / "etc" / name, before + text)


def _link_binding(prefix: Path) -> None:
    """Have the virtual environment *prefix* see Debian's binding, and nothing else of Debian's.

    :raises LabError: when Debian built it for another Python.
    """
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    module = next(_BINDING.glob(f"libvirtmod.cpython-{version}-*.so"), None)
    if module is None:
        raise LabError(
            f"Debian's python3-libvirt is missing or is not for Python {sys.version.split()[0]}: "
            "install it, or choose the hypervisor fake in lab.yaml"
        )
    target = prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (_BINDING / "libvirt.py", module):
        with contextlib.suppress(FileExistsError):
            (target / "site-packages" / path.name).symlink_to(path)


def learn(layout: Layout) -> None:
    """Have libvirt ask QEMU what it can, and remember it: that takes nova-compute seconds later on.

    It is done once for an instance. Where it fails, nova-compute will say why.
    """
    if any((layout.data / "libvirt" / "cache" / "qemu" / "capabilities").glob("*.xml")):
        return
    code = (
        "import sys, libvirt\n"
        "libvirt.virEventRegisterDefaultImpl()\n"
        "libvirt.open(sys.argv[1]).getCapabilities()\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, f"qemu:///embed?root={layout.libvirt}"],
        env={**os.environ, "PATH": f"{layout.emulator}:{netns.SBIN}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def accelerator(shared: Path) -> tuple[str, str]:
    """What runs guests on this host, ``kvm`` or ``qemu`` (emulation), and why.

    A KVM device can be there and hang, so that the lab's own image is booted with it, once per boot
    of the host. The directory *shared* keeps the finding.
    """
    kept, boot = shared / "accelerator.json", Path("/proc/sys/kernel/random/boot_id").read_text()
    with (shared / "accelerator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(kept.read_text())
            if found["boot"] == boot:
                return found["name"], found["why"]
        name, why = _probe(shared)
        files.write(kept, json.dumps({"boot": boot, "name": name, "why": why}))
        return name, why


def _probe(shared: Path) -> tuple[str, str]:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "qemu", "there is no /dev/kvm"
    try:
        works = boots(shared, "kvm", _KVM_PATIENCE)
    except guest.GuestError as error:
        return "qemu", f"/dev/kvm is there, but there is no image to try it with: {error}"
    if works:
        return "kvm", "a guest boots with it"
    return "qemu", "/dev/kvm is there, but no guest boots with it"


def boots(shared: Path, accelerator: str, patience: float) -> bool:
    """Whether a guest boots with QEMU's *accelerator* within *patience* seconds.

    :raises GuestError: when there is no image in *shared*, and none can be made.
    """
    with tempfile.TemporaryDirectory(dir=shared, prefix=".probe-") as directory:
        image = Path(directory, "image")
        guest.personalise(guest.build(shared), "probe", image)
        return _speaks(image, accelerator, patience)


def _speaks(image: Path, accelerator: str, patience: float) -> bool:
    """Whether the kernel in *image*, one of ours, says something."""
    command = (
        *("qemu-system-x86_64", "-accel", accelerator, "-machine", "pc", "-m", "192"),
        *("-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"),
        *("-drive", f"file={image},format=raw,if=virtio"),
    )
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        output = cast("IO[bytes]", process.stdout)
        os.set_blocking(output.fileno(), False)
        deadline = time.monotonic() + patience
        said = b""
        while time.monotonic() < deadline and process.poll() is None:
            said += output.read() or b""
            if b"openstackoid" in said or b"KVM internal error" in said:
                break
            time.sleep(0.05)
        process.kill()
    return b"openstackoid" in said


def stop(layout: Layout) -> None:
    """Shut the guests of the instance down, as nova-compute would; it must not run."""
    guests = _guests([str(layout.libvirt)])
    monitors = list(layout.libvirt.glob("lib/qemu/domain-*/monitor.sock"))
    if guests and monitors:
        for_each(monitors, _shut_down)
    processes.stop(processes.wait(guests, 1), grace=2)


def _shut_down(monitor: Path) -> None:
    """Press the power button of the guest behind QEMU's *monitor*, and end QEMU once it is off.

    A guest that does not react in time, or a QEMU that does not, stays as it is.
    https://qemu.org/docs/master/interop/qmp-spec.html
    """
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(monitor))
        with connection.makefile("rw") as stream:
            stream.readline()
            for command in ("qmp_capabilities", "system_powerdown"):
                stream.write(json.dumps({"execute": command}) + "\n")
                stream.flush()
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                if json.loads(stream.readline()).get("event") == "SHUTDOWN":
                    break
            # libvirt starts QEMU so that it stays when the guest is off.
            stream.write(json.dumps({"execute": "quit"}) + "\n")
            stream.flush()


def remove(state: Path) -> None:
    """Remove every guest and every namespace of the lab in *state*; none is no error.

    :raises LabError: when a command fails.
    """
    if os.geteuid() != 0:
        # Only root can have made some, and only root may look for them.
        return
    links = list(Path("/run").glob(f"{netns.prefix(state)}*"))
    processes.stop(_guests(map(str, links)), grace=2)
    netns.remove(state)
    for link in links:
        if link.is_symlink():
            link.unlink()


def _guests(roots: Iterable[str]) -> list[psutil.Process]:
    """The QEMU processes of the embedded drivers whose directories are *roots*."""
    wanted = tuple(f"{root}/" for root in roots)
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if (process.info["name"] or "").startswith("qemu-system")
        and any(root in word for word in process.info["cmdline"] or () for root in wanted)
    ]
