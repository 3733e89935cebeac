"""Servers that run: what their user and the operator of the cloud do with them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
import websocket

from lab.wheels import netns
from tests.conftest import RunningLab
from tests.integration.conftest import Shell
from tests.integration.guests import MARKER, OURS, PATIENCE, Cloud, Guest, eventually

USER_DATA = "#!/bin/sh\necho from $(hostname) >/data/user-data\n"


@pytest.fixture(scope="module")
def clouds(lab: RunningLab, shell: Callable[[str], Shell]) -> Iterator[Callable[[str], Cloud]]:
    """Returns what makes servers in an instance, the same one each time; they end with it."""
    if not lab.config.has_guests:
        pytest.skip(f"the hypervisor is {lab.config.hypervisor}: servers run nothing")
    made: dict[str, Cloud] = {}

    def cloud(name: str) -> Cloud:
        return made.get(name) or made.setdefault(name, Cloud(shell(name)))

    yield cloud
    for one in made.values():
        one.remove()


@pytest.fixture(scope="module")
def cloud(clouds: Callable[[str], Cloud]) -> Cloud:
    return clouds("InstanceOne")


@pytest.fixture(scope="module")
def guest(cloud: Cloud) -> Guest:
    """The guest of most tests, with a file that has to survive them."""
    found = cloud.boot("first", user_data=USER_DATA)
    found.run("echo kept >/data/kept")
    return found


@pytest.fixture(scope="module")
def neighbour(cloud: Cloud) -> Guest:
    """A second one in the same network."""
    return cloud.boot("neighbour")


def _check_data(guest: Guest) -> None:
    guest.becomes("ACTIVE")
    assert guest.run("cat /data/kept") == "kept"
    guest.says("Linux version ")
    guest.says(f"{MARKER} InstanceOne")


def test_name_and_user_data_reach_a_guest(guest: Guest) -> None:
    assert guest.run("cat /data/user-data") == f"from {OURS}-first"
    assert guest.run("hostname") == f"{OURS}-first"
    assert f"{OURS}-first login:" in guest.console()


def _log_in(url: str) -> None:
    """Log in at the serial console at *url*, ask for the terminal's name, and log out again."""
    with contextlib.closing(websocket.create_connection(url, timeout=PATIENCE)) as console:
        for question, answer in (
            ("", ""),
            ("login: ", "root"),
            ("Password: ", "openstackoid"),
            ("# ", "tty; exit"),
            ("/dev/ttyS0", ""),
        ):
            said = b""
            while question.encode() not in said:
                said += console.recv_data()[1]
            console.send_binary(f"{answer}\n".encode())


def test_a_person_logs_in_at_the_serial_console(cloud: Cloud, guest: Guest) -> None:
    show = f"console url show --serial {guest.id} -f value -c url"
    for _ in range(2):
        _log_in(cloud.shell.openstack(show))


def test_a_user_has_the_whole_use_of_a_guest_in_another_instance(
    one: Shell, clouds: Callable[[str], Cloud]
) -> None:
    there = "--scope compute=InstanceTwo,network=InstanceTwo"

    def openstack(line: str) -> str:
        return one.openstack(f"{line} {there}")

    options = "--image cirros --flavor m1.nano --network private --wait -f value -c id"
    id_ = openstack(f"server create {OURS}-there {options}")
    guest = Guest(clouds("InstanceTwo"), id_, "", "")
    try:
        _log_in(openstack(f"console url show --serial {id_} -f value -c url"))
        for action, status in (
            ("stop", "SHUTOFF"),
            ("start", "ACTIVE"),
            ("pause", "PAUSED"),
            ("unpause", "ACTIVE"),
            ("suspend", "SUSPENDED"),
            ("resume", "ACTIVE"),
        ):
            openstack(f"server {action} {id_}")
            guest.becomes(status)
        for how in ("soft", "hard"):
            openstack(f"server reboot --{how} --wait {id_}")
        eventually(lambda: f"{MARKER} InstanceOne" in openstack(f"console log show {id_}"))
        openstack(f"server rebuild --image cirros --wait {id_}")
        openstack(f"server resize --flavor m1.tiny --wait {id_}")
        openstack(f"server resize confirm {id_}")
        guest.becomes("ACTIVE")
    finally:
        openstack(f"server delete --wait {id_}")


def test_a_guest_lets_its_key_in_and_nobody_else(guest: Guest) -> None:
    shell = guest.cloud.shell
    assert guest.run("hostname") == f"{OURS}-first"
    assert shell.run(*guest.ssh("hostname")) == f"{OURS}-first\n"
    without = guest.ssh("hostname", "/dev/null")
    refused = subprocess.run(without, capture_output=True, text=True, check=False)
    assert "Permission denied (publickey)" in refused.stderr


def test_a_guest_is_reached_only_as_its_security_group_says(cloud: Cloud, guest: Guest) -> None:
    network = cloud.api.network
    [port] = network.ports(device_id=guest.id)
    project = cloud.api.current_project_id
    [default] = network.security_groups(name="default", project_id=project)
    own = port.security_group_ids
    network.update_port(port, security_groups=[default.id])
    rules = []
    try:
        eventually(lambda: guest.ways_in() == set())
        rules.append(cloud.allow(default.id, "icmp"))
        eventually(lambda: guest.ways_in() == {"ping"})
        rules.append(cloud.allow(default.id, "tcp", 22))
        eventually(lambda: guest.ways_in() == {"ping", "ssh"})
    finally:
        for rule in rules:
            network.delete_security_group_rule(rule)
    eventually(lambda: guest.ways_in() == set())
    network.update_port(port, security_groups=own)
    eventually(lambda: guest.ways_in() == {"ping", "ssh"})


def test_guests_of_a_network_reach_each_other(guest: Guest, neighbour: Guest) -> None:
    guest.run(f"ping -c 1 -W 5 {neighbour.address}")
    neighbour.run(f"ping -c 1 -W 5 {guest.address}")


def test_guests_of_two_instances_reach_each_other_by_floating_addresses(
    clouds: Callable[[str], Cloud], guest: Guest
) -> None:
    abroad = clouds("InstanceTwo").boot("abroad")
    guest.run(f"ping -c 1 -W 5 {abroad.floating}")
    abroad.run(f"ping -c 1 -W 5 {guest.floating}")


def test_a_port_of_a_floating_address_leads_to_a_guest(cloud: Cloud) -> None:
    network = cloud.api.network
    id_ = cloud.create("behind", "--image cirros --wait")
    [port] = network.ports(device_id=id_)
    address = port.fixed_ips[0]["ip_address"]
    public = network.find_network("public", ignore_missing=False)
    floating = network.create_ip(floating_network_id=public.id)
    try:
        network.create_floating_ip_port_forwarding(
            floating,
            internal_port_id=port.id,
            internal_ip_address=address,
            internal_port=22,
            external_port=2222,
            protocol="tcp",
        )
        guest = Guest(cloud, id_, address, floating.floating_ip_address, 2222)
        assert guest.run("hostname") == f"{OURS}-behind"
    finally:
        # Neutron keeps a floating IP that has a forwarding.
        for forwarding in list(network.floating_ip_port_forwardings(floating)):
            network.delete_floating_ip_port_forwarding(floating, forwarding)
        network.delete_ip(floating)


def test_a_policy_limits_the_bandwidth_of_a_guest(cloud: Cloud, neighbour: Guest) -> None:
    network = cloud.api.network
    [port] = network.ports(device_id=neighbour.id)

    def seconds() -> float:
        began = time.monotonic()
        neighbour.run("head -c 1000000 /dev/zero >&2")
        return time.monotonic() - began

    neighbour.run("true")
    free = seconds()
    policy = network.create_qos_policy(name=OURS)
    network.create_qos_bandwidth_limit_rule(policy, max_kbps=1000, direction="egress")
    network.update_port(port, qos_policy_id=policy.id)
    try:
        limited = seconds()
    finally:
        network.update_port(port, qos_policy_id=None)
        network.delete_qos_policy(policy)
    print(f"1 MB out of a guest: {free:.1f} s, with a limit of 1 Mbit/s {limited:.1f} s")
    assert limited > free + 3


def test_a_trunk_tags_the_packets_of_its_subports(cloud: Cloud) -> None:
    network = cloud.api.network
    private = network.find_network("private", ignore_missing=False)
    parent, sub = (network.create_port(network_id=private.id, name=OURS) for _ in range(2))
    segment = {"port_id": sub.id, "segmentation_type": "vlan", "segmentation_id": 101}
    trunk = network.create_trunk(name=OURS, port_id=parent.id, sub_ports=[segment])
    try:
        database = f"--db=unix:{cloud.shell.directory}/run/ovn/db.sock"
        get = ("ovn-nbctl", database, "get", "Logical_Switch_Port", sub.id, "parent_name", "tag")
        assert cloud.shell.run(*get).split() == [f'"{parent.id}"', "101"]
    finally:
        network.delete_trunk(trunk)
        for port in (sub, parent):
            network.delete_port(port)


@pytest.mark.parametrize(
    ("away", "status", "back", "boots"),
    [
        ("stop", "SHUTOFF", "start", True),
        ("pause", "PAUSED", "unpause", False),
        ("suspend", "SUSPENDED", "resume", False),
    ],
)
def test_a_guest_that_was_away_is_back_with_its_data(
    guest: Guest, away: str, status: str, back: str, boots: bool
) -> None:
    cloud = guest.cloud
    compute = cloud.shell.pid("nova-compute")
    before = guest.boot_id
    cloud.shell.openstack(f"server {away} {guest.id}")
    guest.becomes(status)
    assert not guest.pings()
    cloud.shell.openstack(f"server {back} {guest.id}")
    guest.becomes("ACTIVE")
    assert guest.run("cat /data/kept") == "kept"
    assert (guest.boot_id != before) is boots
    if status != "SUSPENDED":
        # QEMU begins a new log for a guest that goes on.
        guest.says(f"{MARKER} InstanceOne")
    # It has read the console of a guest that has ended since.
    assert cloud.shell.pid("nova-compute") == compute


@pytest.mark.parametrize("how", ["soft", "hard"])
def test_a_guest_keeps_its_data_through_a_reboot(cloud: Cloud, guest: Guest, how: str) -> None:
    before = guest.boot_id
    cloud.shell.openstack(f"server reboot --{how} --wait {guest.id}")
    _check_data(guest)
    assert guest.boot_id != before


def test_a_resized_guest_has_more_memory_and_its_data(cloud: Cloud, guest: Guest) -> None:
    memory = "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"
    before = int(guest.run(memory))
    cloud.shell.openstack(f"server resize --flavor m1.tiny --wait {guest.id}")
    guest.becomes("VERIFY_RESIZE")
    cloud.shell.openstack(f"server resize confirm {guest.id}")
    guest.becomes("ACTIVE")
    assert guest.run("cat /data/kept") == "kept"
    assert int(guest.run(memory)) > 2 * before
    # Nova still sees the guest as it was, with a serial port (_serial_ports_already_defined), and
    # makes none. The guest has no console before its next start.
    cloud.shell.openstack(f"server reboot --hard --wait {guest.id}")
    _check_data(guest)


def test_an_interface_that_stayed_down_is_up_when_another_guest_starts(
    lab: RunningLab, cloud: Cloud, guest: Guest, neighbour: Guest
) -> None:
    namespace = f"{netns.prefix(lab.config.state)}-{cloud.shell.name}"
    [port] = cloud.api.network.ports(device_id=guest.id)
    interface = f"tap{port.id[:11]}"
    subprocess.run(["ip", "-n", namespace, "link", "set", interface, "down"], check=True)
    assert not guest.pings()
    cloud.shell.openstack(f"server reboot --hard --wait {neighbour.id}")
    eventually(guest.pings)


def test_a_rebuilt_guest_has_a_new_disk_and_its_old_address(cloud: Cloud, neighbour: Guest) -> None:
    neighbour.run("echo lost >/data/lost")
    cloud.shell.openstack(f"server rebuild --image cirros --wait {neighbour.id}")
    neighbour.becomes("ACTIVE")
    assert neighbour.run("ls /data") == "lost+found"
    assert neighbour.address in neighbour.run("ip -4 addr show dev eth0")
    neighbour.says(f"{MARKER} InstanceOne")


def test_nothing_is_left_of_a_deleted_guest(cloud: Cloud, neighbour: Guest) -> None:
    shell = cloud.shell
    disks = shell.directory / "data" / "nova" / "instances"
    switch = f"ovs-vsctl --db=unix:{shell.directory}/run/ovn/db.sock list-ports br-int"
    [port] = cloud.api.network.ports(device_id=neighbour.id)

    def traces() -> list[bool]:
        return [
            f"-uuid {neighbour.id}" in shell.run("ps", "-ww", "-eo", "args"),
            neighbour.id in shell.run("ls", str(disks)),
            f"tap{port.id[:11]}" in shell.run(*switch.split()),
            any(cloud.api.network.ports(device_id=neighbour.id)),
        ]

    assert all(traces())
    shell.openstack(f"server delete --wait {neighbour.id}")
    assert not any(traces())


def test_a_snapshot_in_another_instance_has_the_data(
    cloud: Cloud, clouds: Callable[[str], Cloud], guest: Guest
) -> None:
    there, openstack = "--scope image=InstanceTwo", cloud.shell.openstack
    image = openstack(
        f"server image create {guest.id} --name {OURS}-snapshot --wait -f value -c id {there}"
    )
    try:
        assert openstack(f"image show {image} -f value -c status {there}") == "active"
        # It is a project's of InstanceOne, and nobody else's.
        openstack(f"image set --community {image} {there}")
        copy = clouds("InstanceTwo").boot("copy", f"--image {image}")
        assert copy.run("cat /data/kept") == "kept"
        assert copy.run("hostname") == f"{OURS}-copy"
    finally:
        openstack(f"image delete {image} {there}")
    guest.becomes("ACTIVE")


def _kill(shell: Shell, program: str) -> None:
    """Kill *program*, and wait until it runs again."""
    before = shell.pid(program)
    shell.run("kill", "-KILL", str(before))
    eventually(lambda: shell.pid(program) not in (0, before))


def test_a_guest_outlives_nova_compute(cloud: Cloud, guest: Guest) -> None:
    before = guest.boot_id
    _kill(cloud.shell, "nova-compute")
    assert guest.boot_id == before
    cloud.shell.openstack(f"server stop {guest.id}")
    guest.becomes("SHUTOFF")
    cloud.shell.openstack(f"server start {guest.id}")
    _check_data(guest)
    assert guest.boot_id != before


@pytest.mark.parametrize(
    "program", ["ovsdb-server", "ovs-vswitchd", "ovn-northd", "ovn-controller"]
)
def test_a_guest_is_reached_again_after_a_kill(cloud: Cloud, guest: Guest, program: str) -> None:
    before = guest.boot_id
    _kill(cloud.shell, program)
    eventually(guest.pings, 30)
    assert guest.boot_id == before


@pytest.fixture(scope="module")
def large(clouds: Callable[[str], Cloud]) -> str:
    """The ID of an image in InstanceTwo whose download takes a while."""
    shell = clouds("InstanceTwo").shell
    own, file = shell.directory / "data" / "images" / shell.image, f"{OURS}.raw"
    shell.run("sh", "-c", f"cp {own} {file} && truncate -s 256M {file}")
    create = f"image create {OURS}-large --disk-format raw --file {file} -f value -c id"
    made = shell.openstack(create)
    shell.run("rm", file)
    return made


def test_a_server_whose_image_stops_halfway_says_why_and_the_next_one_works(
    cloud: Cloud, two: Shell, large: str
) -> None:
    nova = cloud.shell.directory / "data" / "nova" / "instances"
    cached = nova / "_base" / hashlib.sha1(large.encode()).hexdigest()
    options = f"--image {large} --scope image=InstanceTwo"
    proxy = two.pid("haproxy")
    cut_off = Guest(cloud, cloud.create("cut-off", options), "", "")
    eventually(cached.with_suffix(".part").exists)
    os.killpg(proxy, signal.SIGKILL)
    cut_off.becomes("ERROR")
    assert "IncompleteRead" in cloud.api.compute.get_server(cut_off.id).fault["message"]
    assert not cached.exists()

    eventually(lambda: two.pid("haproxy") not in (0, proxy))
    seen = len(two.proxy_log())
    whole = cloud.boot("whole", options)
    whole.says(f"{MARKER} InstanceTwo")
    original = two.directory / "data" / "images" / large
    [one, other] = two.run("sha256sum", str(original), str(cached)).splitlines()
    assert one.split()[0] == other.split()[0]
    [line] = [line for line in two.proxy_log(seen) if line.uri == f"/image/v2/images/{large}/file"]
    assert line.method == "GET"
    assert line.bytes > original.stat().st_size


def test_a_guest_is_back_after_halt_and_up(lab: RunningLab, guest: Guest) -> None:
    before = guest.boot_id
    lab.setup_env("halt")
    lab.setup_env("up", "--no-attach")
    _check_data(guest)
    assert guest.boot_id != before
