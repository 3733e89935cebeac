"""Existing machines: what the lab puts on them, and removes again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.guests import MARKER, eventually
from tests.machines.box import IMAGE
from tests.machines.conftest import Clone
from tests.machines.sandbox import PROXY

ADDRESSES = {"InstanceOne": "192.168.57.11", "InstanceTwo": "192.168.57.12"}
MACHINE = (
    *("--cap-add=SYS_ADMIN", "--cap-add=NET_ADMIN", "--security-opt=seccomp=unconfined"),
    "--device=/dev/net/tun",
    *("--cgroupns=private", "--tmpfs=/sys/fs/cgroup", "--tmpfs=/run", "--tmpfs=/tmp:exec"),
    *("--env=container=docker", "--stop-signal=SIGRTMIN+3"),
)
#: Lists everything on a machine, except its own logs, caches and package lists.
EVERYTHING = (
    "dpkg-query --show --showformat '${Package}\\n';"
    " find / -xdev -path /var/log -prune -o -path /var/cache -prune -o -path /var/lib/apt -prune"
    " -o -path /var/lib/dpkg -prune -o -path /var/lib/systemd -prune -o -path /var/lib/ucf -prune"
    " -o -print | sort; getent passwd"
)

#: What Debian's packages uuid-runtime and openvswitch-switch leave when they are purged.
LEFT_BY_PACKAGES = ("uuidd:", "/var/lib/libuuid", "/var/lib/openvswitch")

pytestmark = pytest.mark.usefixtures("docker_only")


@pytest.fixture(scope="module")
def lab(clone: Callable[[], Clone]) -> Iterator[Clone]:
    """A lab on two machines that it did not make, with sshd and sudo, but no haproxy."""
    one = clone()
    # Private to the sandbox: the key and known_hosts of the user who runs the lab.
    ssh = one.root.parent / "ssh"
    ssh.mkdir(mode=0o700)
    one.run("mkdir", "-p", "-m", "700", "/root/.ssh")
    one.run("mount", "--bind", str(ssh), "/root/.ssh")
    [key] = Path("/usr/share/rubygems-integration/all/gems").glob("vagrant-*/keys/vagrant")
    (ssh / "id_rsa").write_text(key.read_text())
    (ssh / "id_rsa").chmod(0o600)
    one.run("docker", "network", "create", "--subnet=192.168.57.0/24", "existing")
    for name, address in ADDRESSES.items():
        place = [f"--name={name}", f"--hostname={name}", "--network=existing", f"--ip={address}"]
        one.run("docker", "run", "--detach", *place, *MACHINE, IMAGE, "/sbin/init")
    for name in ADDRESSES:
        one.run("docker", "exec", name, "apt-get", "purge", "--yes", "--autoremove", "haproxy")
    instances = [
        {"name": name, "address": address, "ssh": f"vagrant@{address}"}
        for name, address in ADDRESSES.items()
    ]
    one.describe(
        provider="hosts", hypervisor="libvirt", instances=instances, mirrors={"proxy": PROXY}
    )
    yield one
    one.setup_env("destroy")
    for name in ADDRESSES:
        one.run("docker", "rm", "--force", name)
    one.run("docker", "network", "rm", "existing")
    one.run("umount", "/root/.ssh")


def everything(lab: Clone, name: str) -> set[str]:
    return set(lab.run("docker", "exec", name, "sh", "-c", EVERYTHING).stdout.splitlines())


def floating_address(lab: Clone, server: str) -> str:
    """A new floating IP of the *server* in InstanceOne, which answers pings from then on."""

    def openstack(line: str) -> str:
        return lab.setup_env("ssh", "InstanceOne", "--", "openstack", *line.split()).strip()

    openstack("security group create pings")
    openstack("security group rule create --protocol icmp pings")
    openstack(f"server add security group {server} pings")
    floating = openstack("floating ip create public -f value -c floating_ip_address")
    openstack(f"server add floating ip {server} {floating}")
    return floating


def test_machines_with_unknown_keys_are_refused_with_a_command_to_try(lab: Clone) -> None:
    said = lab.error("up", "--no-attach")
    for address in ADDRESSES.values():
        way_out = f"`ssh -o BatchMode=yes vagrant@{address}`"
        assert f"not found in known_hosts; check that {way_out} logs in" in said


def test_a_lab_on_existing_machines_lives_from_nothing_to_nothing(lab: Clone) -> None:
    for address in ADDRESSES.values():
        accept = ["-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes"]
        lab.run("ssh", *accept, f"vagrant@{address}", "true")
    before = {name: everything(lab, name) for name in ADDRESSES}

    assert re.search("Installing Debian packages: .*haproxy", lab.setup_env("up", "--no-attach"))
    create = "openstack server create found --image cirros --flavor m1.nano --network private"
    scope = ["--scope", "image=InstanceTwo", "--wait", "-f", "value", "-c", "status"]
    assert lab.setup_env("ssh", "InstanceOne", "--", *create.split(), *scope) == "ACTIVE\n"
    console = ["ssh", "InstanceOne", "--", "openstack", "console", "log", "show", "found"]
    eventually(lambda: f"{MARKER} InstanceTwo" in lab.setup_env(*console))
    ping = ["ping", "-c", "1", "-W", "60", floating_address(lab, "found")]
    for name in ADDRESSES:
        lab.setup_env("ssh", name, "--", *ping)

    assert "compute" in lab.setup_env("logs", "InstanceOne", "nova-compute")
    lab.setup_env("logs", "--export", "help.tar.gz")
    listed = lab.run("tar", "-tf", "help.tar.gz").stdout.splitlines()
    for name in ADDRESSES:
        assert f"help/versions/{name}.txt" in listed
        assert f"help/{name}/log/nova-compute.log" in listed
        assert f"help/{name}/etc/nova/nova.conf" in listed
    assert not [name for name in listed if "keys/" in name or "cookie" in name]
    configured = lab.run("tar", "-xOf", "help.tar.gz", "help/InstanceOne/etc/nova/nova.conf").stdout
    assert "rabbit://openstack:<removed:InstanceOne/messaging>@" in configured

    lab.setup_env("halt")
    for name in ADDRESSES:
        assert lab.run("docker", "exec", name, "pgrep", "-u", "stack", check=False).stdout == ""
        ours = ("pgrep", "-f", "/opt/stack/instance")
        assert lab.run("docker", "exec", name, *ours, check=False).stdout == ""
    lab.setup_env("up", "--no-attach")
    shown = lab.setup_env("ssh", "InstanceOne", "--", "openstack", "server", "list", "-f", "value")
    assert "found ACTIVE" in shown

    lab.setup_env("destroy")
    for name in ADDRESSES:
        changed = everything(lab, name) ^ before[name]
        assert {one for one in changed if not one.startswith(LEFT_BY_PACKAGES)} == set()


def test_a_machine_with_a_user_stack_of_somebody_elses_is_left_alone(lab: Clone) -> None:
    lab.run("docker", "exec", "InstanceTwo", "useradd", "--create-home", "stack")
    before = everything(lab, "InstanceTwo")
    assert lab.error("up", "--no-attach", "InstanceTwo") == (
        "error: InstanceTwo: the machine already has a user stack, not made by this lab: "
        "use another machine, or remove that"
    )
    lab.setup_env("destroy")
    assert everything(lab, "InstanceTwo") == before
    lab.run("docker", "exec", "InstanceTwo", "userdel", "--remove", "stack")


def test_a_machine_of_another_lab_is_left_alone(lab: Clone) -> None:
    mark = "mkdir /var/lib/openstackoid; echo somebody >/var/lib/openstackoid/owner"
    lab.run("docker", "exec", "InstanceOne", "sh", "-c", mark)
    before = everything(lab, "InstanceOne")
    assert "has an instance of another lab" in lab.error("up", "--no-attach", "InstanceOne")
    lab.setup_env("destroy")
    assert everything(lab, "InstanceOne") == before
