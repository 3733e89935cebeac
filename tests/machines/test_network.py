"""Two instances' networks side by side, with namespaces as guests: real packets, real OVN."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab import processes
from lab.errors import LabError
from lab.parallel import for_each
from lab.wheels import netns
from lab.wheels.netns import Namespace, run
from lab.wheels.ovn import PACKAGES, Ovn

_COMMANDS = ("ip", "nft", "ovs-vswitchd", "ovsdb-server", "ovn-controller", "ovn-northd")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
#: A network beyond the host, as for documentation (RFC 5737).
OUTSIDE, OUTSIDE_HOST = "198.51.100.2", "198.51.100.1"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(
        not all(shutil.which(name, path=_PATH) for name in _COMMANDS),
        reason=f"needs the packages {' '.join(PACKAGES)}",
    ),
]


@dataclass
class World:
    """One instance: its namespace, its OVN, and a guest with a floating IP."""

    state: Path
    instance: str
    number: int
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def namespace(self) -> Namespace:
        gateway = ipaddress.IPv4Interface(f"172.24.{self.number}.1/24")
        return Namespace(self.state, self.instance, gateway)

    @property
    def ovn(self) -> Ovn:
        own = self.state / self.instance
        return Ovn(self.instance, self.namespace.name, own / "run", own / "data", own / "log")

    @property
    def guest(self) -> str:
        return f"guest{self.number}-{netns.prefix(self.state)}"

    @property
    def fixed(self) -> str:
        return f"10.0.{self.number}.11"

    @property
    def floating(self) -> str:
        return f"172.24.{self.number}.111"

    def up(self) -> None:
        self.namespace.create()
        self.ovn.prepare()
        self.start("ovsdb-server")
        self.ovn.configure()
        for name in list(self.ovn.programs)[1:]:
            self.start(name)
        self.ovn.wait()

    def start(self, name: str) -> None:
        with (self.ovn.log / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                self.ovn.programs[name],
                env={**os.environ, "PATH": _PATH, **self.ovn.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self, number: int = signal.SIGTERM) -> None:
        for process in reversed(self.running.values()):
            process.send_signal(number)
            process.wait()
        self.running.clear()

    def add_guest(self) -> None:
        """A guest with DHCP's facts set by hand, and the network that neutron would make."""
        n, mac = self.number, f"02:aa:00:00:{self.number:02x}:11"
        words = f"""
            ls-add net
            lsp-add net guest
            lsp-set-addresses guest "{mac} {self.fixed}"
            ls-add ext
            lsp-add ext wire
            lsp-set-type wire localnet
            lsp-set-addresses wire unknown
            lsp-set-options wire network_name=public
            lr-add router
            lrp-add router inner 02:bb:00:00:{n:02x}:01 10.0.{n}.1/24
            lrp-add router outer 02:cc:00:00:{n:02x}:01 172.24.{n}.100/24
            lsp-add net net-router
            lsp-set-type net-router router
            lsp-set-addresses net-router router
            lsp-set-options net-router router-port=inner
            lsp-add ext ext-router
            lsp-set-type ext-router router
            lsp-set-addresses ext-router router
            lsp-set-options ext-router router-port=outer
            lr-route-add router 0.0.0.0/0 172.24.{n}.1
            lrp-set-gateway-chassis outer {self.instance}
            lr-nat-add router snat 172.24.{n}.100 10.0.{n}.0/24
            lr-nat-add router dnat_and_snat {self.floating} {self.fixed}
        """
        for line in words.strip().splitlines():
            verb, *rest = line.split(maxsplit=1)
            arguments = rest[0].split('"') if rest else []
            plain = arguments[0].split() + arguments[1:2] if arguments else []
            self.ovn.ctl("ovn-nbctl", verb, *plain)
        run("ip", "netns", "add", self.guest)
        name = self.namespace.name
        run(*f"ip -n {name} link add port type veth peer name eth0 netns {self.guest}".split())
        run("ip", "-n", name, "link", "set", "port", "up")
        run(*f"ip -n {self.guest} link set eth0 address {mac} mtu 1442 up".split())
        run(*f"ip -n {self.guest} address add {self.fixed}/24 dev eth0".split())
        run(*f"ip -n {self.guest} route add default via 10.0.{n}.1".split())
        # A guest whose card takes no unfinished checksums, like ours.
        inside(self.guest, "netns.transmit_checksums('eth0', on=False)")
        port = "-- set Interface port external_ids:iface-id=guest"
        self.ovn.ctl("ovs-vsctl", *f"--may-exist add-port br-int port {port}".split())
        self.ovn.ctl("ovn-nbctl", "wait-until", "Logical_Switch_Port", "guest", "up=true")
        self.ovn.ctl("ovn-nbctl", "--wait=hv", "sync")


def inside(namespace: str, code: str) -> str:
    """What Python prints that runs *code* in *namespace*."""
    program = (
        "import socket, sys; sys.path.insert(0, sys.argv[1]); from lab.wheels import netns;"
        f"netns.enter(sys.argv[2], 'inside'); {code}"
    )
    root = str(Path(__file__).parents[2])
    return run(sys.executable, "-c", program, root, namespace)


@contextlib.contextmanager
def echo(namespace: str) -> Iterator[None]:
    """A server in *namespace* that tells every caller the caller's address and 100 kB more."""
    program = (
        "import socket, sys; sys.path.insert(0, sys.argv[1]); from lab.wheels import netns;"
        "netns.enter(sys.argv[2], 'inside'); server = socket.create_server(('', 7777));"
        "print('ready', flush=True)\n"
        "while True:\n"
        " with server.accept()[0] as s: s.sendall(s.getpeername()[0].ljust(100000).encode())"
    )
    root = str(Path(__file__).parents[2])
    command = (sys.executable, "-c", program, root, namespace)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield
        finally:
            server.kill()


_ASK = """
with socket.create_connection(({address!r}, 7777), 5) as s:
    data = b''.join(iter(lambda: s.recv(65536), b''))
assert len(data) == 100000
print(data.decode().strip())
"""


def ask(namespace: str | None, address: str) -> str:
    """As whom the echo server at *address* sees a caller in *namespace*, or in the host's."""
    code = _ASK.format(address=address)
    if namespace is None:
        return run(sys.executable, "-c", f"import socket{code}").strip()
    return inside(namespace, f"\n{code}").strip()


def traces(state: Path) -> list[str]:
    """What the kernel has of networks, but for what another lab has."""
    forwarding = Path("/proc/sys/net/ipv4/conf").glob("*/forwarding")
    lines = [
        *run("ip", "-o", "-br", "link").splitlines(),
        *run("ip", "netns").splitlines(),
        *run("ip", "route").splitlines(),
        *run("nft", "list", "tables").splitlines(),
        *Path("/proc/self/mounts").read_text().splitlines(),
        *(f"{path} {path.read_text()}" for path in forwarding),
        *map(str, Path("/run").glob("openstackoid*/*/*")),
    ]
    foreign = re.compile(rf"\bosd(?!{netns.prefix(state)[3:]})[0-9a-f]{{6}}")
    return sorted(line for line in lines if not foreign.search(line))


def own_traces(state: Path) -> list[str]:
    """What the kernel has of the networks of the lab in *state*."""
    return [line for line in traces(state) if netns.prefix(state) in line]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, World]]:
    state = tmp_path_factory.mktemp("lab")
    both = World(state, "InstanceOne", 201), World(state, "InstanceTwo", 202)
    before = traces(state)
    try:
        for_each(both, World.up)
        for world in both:
            world.add_guest()
        yield both
    finally:
        for world in both:
            world.end()
            with contextlib.suppress(LabError):
                run("ip", "netns", "delete", world.guest)
        netns.remove(state)
        netns.remove(state)
    assert traces(state) == before


@pytest.fixture
def outside(worlds: tuple[World, World]) -> Iterator[str]:
    """A namespace that stands for the world, at the far end of a last way out of the host."""
    name = f"world-{netns.prefix(worlds[0].state)}"
    run("ip", "netns", "add", name)
    try:
        run(*f"ip link add osdtest type veth peer name eth0 netns {name}".split())
        run(*f"ip address add {OUTSIDE_HOST}/24 dev osdtest".split())
        run("ip", "link", "set", "osdtest", "up")
        run(*f"ip -n {name} address add {OUTSIDE}/24 dev eth0".split())
        run(*f"ip -n {name} link set eth0 up".split())
        run(*f"ip route add default via {OUTSIDE} metric 4000000".split())
        for world in worlds:
            world.namespace.create()
        yield name
    finally:
        run("ip", "netns", "delete", name)
        for world in worlds:
            world.namespace.create()


def test_a_floating_ip_answers_the_host_and_the_guests_of_the_other_instance(
    worlds: tuple[World, World],
) -> None:
    one, two = worlds
    with echo(two.guest):
        assert ask(None, two.floating) == "172.24.202.1"
        assert ask(one.guest, two.floating) == one.floating


def test_a_guest_reaches_outside_as_the_host_and_nobody_outside_reaches_it(
    worlds: tuple[World, World], outside: str
) -> None:
    one = worlds[0]
    with echo(outside):
        assert ask(one.guest, OUTSIDE) == OUTSIDE_HOST
    run("ip", "-n", outside, "route", "add", "default", "via", OUTSIDE_HOST)
    with echo(one.guest), pytest.raises(LabError, match=r"timed out|unreachable"):
        ask(outside, one.floating)


def test_guests_talk_again_after_everything_was_killed(worlds: tuple[World, World]) -> None:
    one = worlds[0]
    one.end(signal.SIGKILL)
    one.up()
    deadline = time.monotonic() + 10
    with echo(one.guest):
        while time.monotonic() < deadline:
            with contextlib.suppress(LabError):
                assert ask(None, one.floating) == "172.24.201.1"
                return
    pytest.fail("the guest does not answer")


def test_a_guest_finds_out_again_after_its_way_to_the_host_was_made_anew(
    worlds: tuple[World, World],
) -> None:
    one, two = worlds
    run("ip", "link", "delete", one.namespace.device)
    assert one.namespace.create()
    one.running["ovs-vswitchd"].kill()
    one.running["ovs-vswitchd"].wait()
    one.start("ovs-vswitchd")
    one.ovn.wait()
    with echo(two.guest):
        assert ask(one.guest, two.floating) == one.floating


def test_what_is_there_stays_when_the_namespace_is_made_again(worlds: tuple[World, World]) -> None:
    before = traces(worlds[0].state)
    assert not worlds[0].namespace.create()
    assert traces(worlds[0].state) == before


def test_a_taken_range_is_refused_by_the_name_of_who_has_it(worlds: tuple[World, World]) -> None:
    one = worlds[0].namespace
    other = Namespace(one.state, "InstanceThree", ipaddress.IPv4Interface("172.24.201.129/25"))
    owner = rf"\({one.instance} of the lab in {one.state.parent}\)"
    with pytest.raises(LabError, match=rf"172\.24\.201\.128/25 .*interface {one.device} {owner}"):
        other.create()


def test_a_range_is_free_once_no_process_of_its_instance_is_left(tmp_path: Path) -> None:
    range_ = ipaddress.IPv4Interface("172.24.204.1/24")
    halted, other = (Namespace(tmp_path / lab, "One", range_) for lab in ("halted", "other"))
    before = traces(tmp_path)
    halted.create()
    marks = {**os.environ, **processes.marks(halted.state, halted.instance)}
    with subprocess.Popen(["sleep", "60"], env=marks) as last:
        with pytest.raises(LabError, match="halt that, or choose another range"):
            other.create()
        last.kill()
    try:
        other.create()
        assert not own_traces(halted.state)
        with pytest.raises(LabError, match="One of the lab"), echo(other.name):
            halted.create()
        halted.create()
        assert not own_traces(other.state)
    finally:
        netns.remove(halted.state)
        netns.remove(other.state)
    assert traces(tmp_path) == before


@pytest.mark.parametrize("lost", ["device", "name"])
def test_half_of_a_namespace_is_made_whole_or_removed(tmp_path: Path, lost: str) -> None:
    space = Namespace(tmp_path, "Half", ipaddress.IPv4Interface("172.24.203.1/24"))
    before = traces(tmp_path)
    for last in (space.create, lambda: None):
        space.create()
        if lost == "device":
            run("ip", "link", "delete", space.device)
        else:
            run("ip", "netns", "delete", space.name)
            (Path("/run/netns") / space.name).touch()
        last()
    netns.remove(tmp_path)
    assert traces(tmp_path) == before


def test_a_process_that_enters_sees_its_own_interfaces_and_name_and_the_host_keeps_its(
    worlds: tuple[World, World],
) -> None:
    before = (os.uname().nodename, sorted(Path("/sys/class/net").iterdir()))
    code = "import os; print(os.uname().nodename, *sorted(os.listdir('/sys/class/net')))"
    name, *interfaces = inside(worlds[0].namespace.name, code).split()
    assert name == "inside"
    assert {"br-ex", "br-int", "lo", "port", "uplink"} <= set(interfaces)
    assert (os.uname().nodename, sorted(Path("/sys/class/net").iterdir())) == before


@pytest.mark.parametrize(
    ("chain", "found"),
    [
        ("type filter hook forward priority 0; policy drop;", "inet firewall passing"),
        ("type filter hook forward priority 0; policy accept;", None),
        ("type filter hook input priority 0; policy drop;", None),
        ("", None),
    ],
)
def test_a_firewall_that_drops_what_guests_send_is_found(chain: str, found: str | None) -> None:
    rules = f"table inet firewall {{ chain passing {{ {chain} }}; }}"
    code = (
        "import sys; from lab.wheels.netns import dropping_chain, run\n"
        "run('nft', '-f', '-', text=sys.argv[1]); print(dropping_chain())"
    )
    # In a network namespace of its own, for no other packet to be dropped.
    command = ["unshare", "--net", sys.executable, "-c", code, rules]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{found}\n"
