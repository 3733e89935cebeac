"""Open vSwitch and OVN of one instance, in its namespace: they share nothing with another's."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lab import files
from lab.errors import LabError
from lab.wheels.netns import UPLINK, run

INTEGRATION_BRIDGE = "br-int"
EXTERNAL_BRIDGE = "br-ex"
#: What neutron calls the network behind the external bridge.
PHYSICAL_NETWORK = "public"
#: The Debian packages that have the programs below; their own units must not run.
PACKAGES = ("iproute2", "nftables", "openvswitch-switch", "ovn-central", "ovn-host")
#: Seconds that something may take to answer.
PATIENCE = 60

_EMULATOR = Path("/usr/bin/qemu-system-x86_64")
_SCHEMAS = {
    "conf": Path("/usr/share/openvswitch/vswitch.ovsschema"),
    "nb": Path("/usr/share/ovn/ovn-nb.ovsschema"),
    "sb": Path("/usr/share/ovn/ovn-sb.ovsschema"),
}


@dataclass(frozen=True)
class Ovn:
    """The four programs of *instance* in *namespace*; they write below *run*, *data* and *log*."""

    instance: str
    namespace: str
    run: Path
    data: Path
    log: Path

    @cached_property
    def database(self) -> str:
        """Where all three databases answer: for neutron, for os-vif, for the commands."""
        return f"unix:{self.run / 'db.sock'}"

    @cached_property
    def environment(self) -> Mapping[str, str]:
        """The environment of the programs, of nova-compute, and of ``ovs-vsctl`` and the like."""
        return {
            "OVS_RUNDIR": str(self.run),
            "OVS_DBDIR": str(self.data),
            "OVS_LOGDIR": str(self.log),
            "OVS_SYSCONFDIR": str(self.data),
            "OVN_RUNDIR": str(self.run),
            "OVN_DBDIR": str(self.data),
            "OVN_LOGDIR": str(self.log),
            "OVN_SYSCONFDIR": str(self.data),
            "OVN_NB_DB": self.database,
            "OVN_SB_DB": self.database,
        }

    @cached_property
    def programs(self) -> Mapping[str, tuple[str, ...]]:
        """The name and the command of each program, in the order in which they start.

        They stay in the foreground, and write what they have to say to their standard error.
        """
        inside = ("ip", "netns", "exec", self.namespace)
        says = ("-vsyslog:off", "-vfile:off", "-vconsole:info")
        databases = tuple(str(self.data / f"{name}.db") for name in _SCHEMAS)
        listens = (f"--remote=p{self.database}", f"--unixctl={self.run / 'ovsdb-server.ctl'}")
        return {
            "ovsdb-server": ("ovsdb-server", *says, *listens, *databases),
            "ovs-vswitchd": (*inside, "ovs-vswitchd", *says, self.database),
            "ovn-northd": (
                "ovn-northd",
                *says,
                f"--ovnnb-db={self.database}",
                f"--ovnsb-db={self.database}",
            ),
            "ovn-controller": (*inside, "ovn-controller", *says, self.database),
        }

    def prepare(self) -> None:
        """Make the databases that are missing, and bring old ones to the installed schema.

        Call it before the programs start: what a killed one has left is removed too.

        :raises LabError: when a command fails, as while the server of an old database runs.
        """
        for directory in (self.run, self.data, self.log):
            directory.mkdir(parents=True, exist_ok=True)
        for path in self.run.iterdir():
            if path.is_socket() and not _answers(path):
                path.unlink()
        for name, schema in _SCHEMAS.items():
            path = self.data / f"{name}.db"
            if not path.exists():
                # A name of its own, so that a half-written one never counts.
                draft = path.with_suffix(".new")
                draft.unlink(missing_ok=True)
                run("ovsdb-tool", "create", str(draft), str(schema))
                draft.rename(path)
            elif run("ovsdb-tool", "needs-conversion", str(path), str(schema)).strip() == "yes":
                run("ovsdb-tool", "convert", str(path), str(schema))

    def configure(self) -> None:
        """Wait for ovsdb-server, and tell it bridges and identity; the same again is no change.

        :raises LabError: when it does not answer in time.
        """
        deadline = time.monotonic() + PATIENCE
        while not _answers(self.run / "db.sock"):
            if time.monotonic() > deadline:
                raise LabError(f"ovsdb-server of {self.instance} does not answer")
            time.sleep(0.02)
        kind = datapath()
        identity = {
            "system-id": self.instance,
            "hostname": self.instance,
            "ovn-remote": self.database,
            "ovn-encap-type": "geneve",
            "ovn-encap-ip": "127.0.0.1",
            "ovn-bridge": INTEGRATION_BRIDGE,
            "ovn-bridge-datapath-type": kind,
            "ovn-bridge-mappings": f"{PHYSICAL_NETWORK}:{EXTERNAL_BRIDGE}",
            "ovn-cms-options": "enable-chassis-as-gw",
        }
        # br-ex learns addresses like a switch; br-int does only what ovn-controller tells it.
        modes = {INTEGRATION_BRIDGE: "secure", EXTERNAL_BRIDGE: "standalone"}
        words = ["--no-wait"]
        for bridge, mode in modes.items():
            words += ["--", "--may-exist", "add-br", bridge]
            words += ["--", "set", "Bridge", bridge, f"datapath_type={kind}", f"fail_mode={mode}"]
        words += ["--", "--may-exist", "add-port", EXTERNAL_BRIDGE, UPLINK]
        words += ["--", "set", "Open_vSwitch", "."]
        words += [f'external_ids:{key}="{value}"' for key, value in identity.items()]
        self.ctl("ovs-vsctl", *words)

    def wait(self) -> None:
        """Wait until the switch has done what it was told, and OVN has reached it.

        :raises LabError: when that takes too long.
        """
        self.ctl("ovs-vsctl", "set", "Open_vSwitch", ".", f"external_ids:hostname={self.instance}")
        self.ctl("ovn-sbctl", "wait-until", "Chassis", self.instance)
        self.ctl("ovn-nbctl", "--wait=hv", "sync")

    def ctl(self, command: str, *arguments: str) -> str:
        """What ``ovs-vsctl``, ``ovn-nbctl`` or ``ovn-sbctl`` prints.

        :raises LabError: when it fails, or has no answer in time.
        """
        options = (f"--db={self.database}", f"--timeout={PATIENCE}")
        return run(command, *options, *arguments, environment=self.environment)


def _answers(path: Path) -> bool:
    """Whether somebody listens at the socket *path*."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def make_emulator(directory: Path) -> None:
    """Put a QEMU into *directory* whose guests finish their checksums, and whose interfaces are up.

    libvirt takes the first ``qemu-system-x86_64`` in its PATH. The card of a guest usually leaves
    a checksum to whoever sends the packet on. Open vSwitch in userspace does not do that, and with
    its ``userspace-tso-enable`` its NAT (3.1) still spoils such a checksum: another instance's
    guests drop the packet.

    os-vif makes an interface and sets it up. Open vSwitch in userspace adds it meanwhile, and may
    write the flags that it has read before (update_flags in lib/netdev-linux.c): the interface
    stays down. Seen with one guest in 235.
    """
    files.write(
        directory / _EMULATOR.name,
        "#!/bin/sh\n"
        "for tap in /sys/class/net/tap*; do\n"
        '    /sbin/ip link set "${tap##*/}" up 2>/dev/null\n'
        "done\n"
        f'exec {_EMULATOR} -global virtio-net-device.csum=off "$@"\n',
        0o755,
    )


def datapath() -> str:
    """The kernel's datapath where there is one, else the one in userspace."""
    if not Path("/sys/module/openvswitch").exists():
        try:
            run("modprobe", "openvswitch")
        except LabError:
            return "netdev"
    return "system"
