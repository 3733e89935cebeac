"""The network namespace of an instance, and its way to the host, to its peers and outside.

Everything has a name that begins with three letters and a digest of the lab's state directory, so
that two labs on a machine do not meet, and a lab finds what is its own without a list.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lab import processes
from lab.errors import LabError

#: The namespace's end of the way to the host: a port of the bridge ``br-ex``.
UPLINK = "uplink"

#: Where servers are that a user's PATH may not have.
SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"

_NAMESPACES = Path("/run/netns")
_SYSCTL = Path("/proc/sys/net/ipv4/conf")
# Who needs an interface to forward that did not before: a directory for each such interface.
_FORWARDING = Path("/run/openstackoid-forwarding")
# linux/sockios.h and linux/ethtool.h
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
# linux/sched.h; os has them from Python 3.12 on.
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWNET = 0x40000000
# sys/mount.h
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
# Marks our routes (rtnetlink(7), rtm_protocol); no routing daemon of rt_protos has this number.
_PROTOCOL = "79"
# Between an instance and its lab's state directory in the alias of an interface.
_OF = " of "
# 0.0.0.0/0, and the two halves of it that VPNs set in its place.
_LONGEST_DEFAULT = 1


@dataclass(frozen=True)
class Namespace:
    """The network namespace of *instance* of the lab in *state*.

    *gateway* is the host's address in the instance's external range, with the range's prefix.
    With *reach_peers*, guests reach the external ranges of the lab's other instances; with
    *reach_outside*, they reach what the host reaches, as the host. Nobody outside reaches them.
    *peers* maps the external ranges of instances on other hosts to the addresses of these hosts.
    What is inside reaches the instance's own services at *address*, as it does outside.
    """

    state: Path
    instance: str
    gateway: ipaddress.IPv4Interface
    reach_peers: bool = True
    reach_outside: bool = True
    peers: Mapping[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"

    @cached_property
    def name(self) -> str:
        """The name for ``ip netns`` and HAProxy."""
        return _name(self.state, self.instance)

    @cached_property
    def device(self) -> str:
        """The host's end of the way in, and the nftables table."""
        return _device(self.state, self.instance)

    @cached_property
    def mac(self) -> str:
        """The host's MAC address there, always the same: OVN's routers never forget one."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))

    def create(self) -> bool:
        """Make it, or what it lacks; whether its way to the host is new.

        Then a running ovs-vswitchd has to be restarted: it holds on to the former one.

        :raises LabError: when its range is taken, naming by whom, or when a command fails.
        """
        self._check_range()
        # First, so that what is half made is fenced in, and has a trace that remove() looks for.
        run("nft", "-f", "-", text=self.ruleset())
        path = _NAMESPACES / self.name
        if not _is_namespace(path):
            path.unlink(missing_ok=True)
            run("ip", "netns", "add", self.name)
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        if not ipaddress.ip_address(self.address).is_loopback:
            own = f"{self.address}/32"
            run("ip", "-n", self.name, "address", "replace", own, "dev", "lo")
        new = self._connect()
        _sysctl(self.device, "1" if self.reach_peers or self.reach_outside else "0")
        ways_out = _ways_out() if self.reach_outside else set()
        if self.reach_peers:
            metric = _metric(self.state)
            ways_out |= {_add_route(range_, host, metric) for range_, host in self.peers.items()}
        for device in ways_out:
            _claim_forwarding(device, self.device)
        _release_forwarding(self.device, keep=ways_out)
        return new

    def ruleset(self) -> str:
        """What nftables has to know: who may pass, and who leaves with the host's address."""
        peers, ours = f'"{prefix(self.state)}*"', f'"{self.device}"'
        to_peers = "accept" if self.reach_peers else "drop"
        outside = "accept" if self.reach_outside else "drop"
        to_abroad = from_abroad = but_abroad = ""
        if self.peers:
            ranges = f"{{ {', '.join(self.peers)} }}"
            senders = f"{{ {', '.join([*self.peers, *self.peers.values()])} }}"
            to_abroad = f"iifname {ours} ip daddr {ranges} {to_peers}"
            from_abroad = f"ip saddr {senders} oifname {ours} {to_peers}"
            # Other machines have a route to the guests, which keep their addresses there.
            but_abroad = f"ip daddr != {ranges} "
        # The first two lines: a table that is there already is replaced in the same transaction.
        return f"""\
table ip {self.device}
delete table ip {self.device}
table ip {self.device} {{
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname {ours} oifname {peers} {to_peers}
        oifname {ours} iifname {peers} {to_peers}
        {to_abroad}
        {from_abroad}
        iifname {ours} {outside}
        oifname {ours} ct state established,related accept
        oifname {ours} drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {self.gateway.network} oifname != {peers} {but_abroad}masquerade
    }}
}}
"""

    def _connect(self) -> bool:
        new = not (_exists(self.device) and _exists(UPLINK, self.name))
        if new:
            # One end alone leads into a namespace that had our name before.
            _delete_link(self.device)
            peer = ("peer", "name", UPLINK, "netns", self.name)
            run("ip", "link", "add", self.device, "address", self.mac, "type", "veth", *peer)
        run("ip", "link", "set", self.device, "alias", f"{self.instance}{_OF}{self.state}"[:255])
        # Without this the host would announce itself, and listen, at an IPv6 address there.
        run("ip", "link", "set", self.device, "addrgenmode", "none")
        run("ip", "-n", self.name, "link", "set", UPLINK, "addrgenmode", "none", "up")
        run("ip", "address", "replace", str(self.gateway), "dev", self.device)
        run("ip", "link", "set", self.device, "up")
        # OVS in userspace hands a packet on as it is: nobody would fill in the checksum that the
        # host's kernel leaves to its network card.
        transmit_checksums(self.device, on=False)
        return new

    def _check_range(self) -> None:
        """Make sure that nobody else has the external range.

        An instance of another lab has it only while it runs: a halted or killed one makes its
        network again when it comes up.

        :raises LabError: naming the interface that has it, and its lab.
        """
        wanted = self.gateway.network
        for device, taken in list(_networks()):
            # What is being deleted has lost its name, but not yet its routes.
            if device == self.device or not taken.overlaps(wanted) or not _exists(device):
                continue
            owner = _owner(device)
            if owner and not _lives(*owner):
                _remove_one(*owner)
                continue
            where = f" ({owner[1]} of the lab in {owner[0].parent})" if owner else ""
            way_out = "halt that, or choose" if owner else "choose"
            raise LabError(
                f"the range {wanted} of {self.instance} is taken: interface {device}{where} has "
                f"{taken}; {way_out} another range in lab.yaml"
            )


def prefix(state: Path) -> str:
    """How the names of all interfaces, namespaces and tables of the lab in *state* begin."""
    return f"osd{_digest(str(state))}"


def dropping_chain() -> str | None:
    """The chain of the host's firewall that drops what nobody accepts; guests reach no peer then.

    A chain of ours could not overrule it (nft(8), VERDICT STATEMENT). Those of iptables-legacy are
    not seen.

    :raises LabError: when nftables does not answer.
    """
    for entry in json.loads(run("nft", "-j", "list", "chains"))["nftables"]:
        chain = entry.get("chain", {})
        forwards = chain.get("hook") == "forward" and chain["family"] in ("ip", "inet")
        if forwards and chain.get("policy") == "drop":
            return f"{chain['family']} {chain['table']} {chain['name']}"
    return None


def remove(state: Path) -> None:
    """Remove every namespace of the lab in *state*, whatever is left of it; none is no error.

    Whoever still runs in one keeps it, without a name and without a way out: stop them first.

    :raises LabError: when a command fails.
    """
    if not shutil.which("nft", path=SBIN):
        return
    own = prefix(state)
    tables = re.findall(rf"^table ip ({own}\w+)$", run("nft", "list", "tables"), re.MULTILINE)
    for table in tables:
        run("nft", "delete", "table", "ip", table)
    for link in _ip("link", "show"):
        if link["ifname"].startswith(own):
            _delete_link(link["ifname"])
    for path in _NAMESPACES.glob(f"{own}-*"):
        _delete_namespace(path)
    _release_forwarding(f"{own}*")
    metric = _metric(state)
    for route in _ip("route", "show", "protocol", _PROTOCOL):
        if route.get("metric") == metric:
            run("ip", "route", "delete", route["dst"], "metric", str(metric))
    _remove_mount()


def enter(namespace: str, hostname: str, overlay: Path | None = None) -> None:
    """Have this process, which must have one thread, live in *namespace* and be called *hostname*.

    A file ``PATH`` in the directory *overlay* hides the file ``/PATH``. The process's ``/sys``
    shows the namespace's interfaces too, as with ``ip netns exec`` (ip-netns(8)).

    :raises LabError: when it has several threads: each would be in a world of its own.
    :raises OSError: when the namespace is missing, or we may not.
    """
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - a count
    if threads > 1:
        raise LabError(f"a process with {threads} threads cannot enter namespace {namespace}")
    libc = ctypes.CDLL(None, use_errno=True)
    with (_NAMESPACES / namespace).open() as file:
        _check(libc.setns(file.fileno(), _CLONE_NEWNET))
    _check(libc.unshare(_CLONE_NEWUTS | _CLONE_NEWNS))
    socket.sethostname(hostname)
    # Mounts come in from the host, and ours stay here.
    _check(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None))
    _check(libc.mount(b"sysfs", b"/sys", b"sysfs", ctypes.c_ulong(0), None))
    for path in overlay.rglob("*") if overlay else ():
        target = Path("/", path.relative_to(overlay or "/"))
        if target.exists() and not path.is_dir():
            source, place = os.fsencode(path), os.fsencode(target)
            _check(libc.mount(source, place, None, ctypes.c_ulong(_MS_BIND), None))


def transmit_checksums(device: str, *, on: bool) -> None:
    """Have *device* take packets whose checksum is not filled in, or not (ethtool's ``tx``).

    :raises OSError: when it is missing, or we may not.
    """
    value = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_STXCSUM, on))
    request = struct.pack("16sP", device.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def run(*command: str, text: str = "", environment: Mapping[str, str] | None = None) -> str:
    """Run *command* with *text* as its input; what it prints.

    :raises LabError: when it fails or is missing, with what it says.
    """
    whole = {**os.environ, "PATH": SBIN, **(environment or {})}
    try:
        done = subprocess.run(
            command, input=text, env=whole, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is missing") from error
    if done.returncode:
        raise LabError(f"{' '.join(command)} fails: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _name(state: Path, instance: str) -> str:
    return f"{prefix(state)}-{instance}"


def _device(state: Path, instance: str) -> str:
    """An interface's name has 15 characters at most."""
    return prefix(state) + _digest(instance)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _check(status: int) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(*arguments: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = json.loads(run("ip", "-json", *arguments) or "[]")
    return result


def _networks() -> Iterator[tuple[str, ipaddress.IPv4Network]]:
    """Every interface with an IPv4 network that it has or leads to."""
    for link in _ip("-4", "address", "show"):
        for address in link["addr_info"]:
            text = f"{address['local']}/{address['prefixlen']}"
            yield link["ifname"], ipaddress.IPv4Interface(text).network
    for route in _ip("-4", "route", "show", "table", "all"):
        if route["dst"] != "default" and "dev" in route:
            network = ipaddress.IPv4Network(route["dst"])
            if network.prefixlen > _LONGEST_DEFAULT:
                yield route["dev"], network


def _ways_out() -> set[str]:
    return {route["dev"] for route in _ip("-4", "route", "show", "default") if "dev" in route}


def _owner(device: str) -> tuple[Path, str] | None:
    """The state directory and the name of the instance of a lab whose *device* it is."""
    alias = _ip("link", "show", "dev", device)[0].get("ifalias", "")
    instance, _, state = alias.partition(_OF)
    if device != _device(Path(state), instance):
        return None
    return Path(state), instance


def _lives(state: Path, instance: str) -> bool:
    """Whether a process of *instance* of the lab in *state* is there, in its namespace or not."""
    name = _name(state, instance)
    inside = _is_namespace(_NAMESPACES / name) and run("ip", "netns", "pids", name).strip()
    return bool(inside or processes.marked(state, instance))


def _remove_one(state: Path, instance: str) -> None:
    """Remove the network of *instance* of the lab in *state*, which nobody uses."""
    device = _device(state, instance)
    run("nft", "-f", "-", text=f"table ip {device}\ndelete table ip {device}\n")
    _delete_link(device)
    _delete_namespace(_NAMESPACES / _name(state, instance))
    _release_forwarding(device)


def _delete_namespace(path: Path) -> None:
    if _is_namespace(path):
        run("ip", "netns", "delete", path.name)
    else:
        path.unlink(missing_ok=True)


def _metric(state: Path) -> int:
    """What tells the routes of the lab in *state* from those of others."""
    return int(_digest(str(state)), 16)


def _add_route(network: str, host: str, metric: int) -> str:
    """Route *network* through *host*, and return the interface that leads there.

    :raises LabError: when the host is not a neighbour.
    """
    try:
        mark = ("protocol", _PROTOCOL, "metric", str(metric))
        run("ip", "route", "replace", network, "via", host, *mark)
    except LabError as error:
        raise LabError(
            f"{error}: guests reach a peer's range only if its host is in the same network; set "
            "public.reach_peers to false in lab.yaml"
        ) from error
    return str(_ip("route", "get", host)[0]["dev"])


def _exists(device: str, namespace: str | None = None) -> bool:
    where = ("-n", namespace) if namespace else ()
    return any(link["ifname"] == device for link in _ip(*where, "link", "show"))


def _delete_link(device: str) -> None:
    if _exists(device):
        run("ip", "link", "delete", device)


def _is_namespace(path: Path) -> bool:
    """Whether something is mounted on *path*, rather than a file that a mount has left."""
    return path.exists() and path.stat().st_dev != path.parent.stat().st_dev


def _remove_mount() -> None:
    """Undo what ``ip netns add`` did for the first namespace, once there is none."""
    with contextlib.suppress(OSError):
        if any(_NAMESPACES.iterdir()):
            return
        # It is mounted on itself, which Path.is_mount() does not see.
        with contextlib.suppress(LabError):
            while True:
                run("umount", str(_NAMESPACES))
        _NAMESPACES.rmdir()


def _sysctl(device: str, value: str) -> None:
    path = _SYSCTL / device / "forwarding"
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        raise LabError(f"{path} cannot be set to {value}: {error.strerror}") from error


def _claim_forwarding(device: str, user: str) -> None:
    """Have *device* forward for *user*; others may need that too.

    The kernel asks the interface that a packet comes from: answers come from *device*.
    """
    users = _FORWARDING / device
    if users.exists() or (_SYSCTL / device / "forwarding").read_text().strip() == "0":
        users.mkdir(parents=True, exist_ok=True)
        (users / user).touch()
        _sysctl(device, "1")


def _release_forwarding(users: str, keep: Collection[str] = ()) -> None:
    """Forget *users* (a pattern) of every interface but *keep*; the last one turns it off."""
    for path in _FORWARDING.glob(f"*/{users}"):
        device = path.parent.name
        if device in keep:
            continue
        path.unlink(missing_ok=True)
        # It fails while there is another user, or when another has done it.
        with contextlib.suppress(OSError):
            path.parent.rmdir()
            # Whoever had the whole host forward in the meantime needs it.
            everywhere = (_SYSCTL / "all" / "forwarding").read_text().strip() == "1"
            if (_SYSCTL / device).exists() and not everywhere:
                _sysctl(device, "0")
    with contextlib.suppress(OSError):
        _FORWARDING.rmdir()
