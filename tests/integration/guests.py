"""Real servers of one instance, as their user reaches them."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openstack
import pytest
import yaml
from openstack.connection import Connection

from tests.integration.conftest import Shell

#: What the guest of the lab's image says on its console, followed by the image's instance.
MARKER = "openstackoid: this image is from"
#: The name of the key and of the security group, and how the names of all servers begin.
OURS = "test-guests"
#: Seconds that whatever a test waits for may take; a guest boots in a few.
PATIENCE = 60

_SSH = (
    *("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
    *("-o", "ConnectTimeout=3", "-o", "LogLevel=ERROR"),
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
)


def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {condition}", pytrace=True)
        time.sleep(0.2)


@dataclass(frozen=True)
class Guest:
    """The server *id* in *cloud*; *address* is its own, and *floating* the one from outside.

    There, ssh answers at *port*.
    """

    cloud: Cloud
    id: str
    address: str
    floating: str
    port: int = 22

    def ssh(self, command: str, key: str | Path = "") -> list[str]:
        """The command that runs *command* in the guest."""
        place = f"ssh://root@{self.floating}:{self.port}"
        return [*_SSH, "-i", str(key or self.cloud.key), place, command]

    def tries(self, command: str) -> str | None:
        """What *command* says in the guest; None if ssh does not get there, or it fails."""
        argv = self.ssh(command)
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return None if done.returncode else done.stdout

    def run(self, command: str) -> str:
        """What *command* says in the guest, as soon as it lets us in; the command must succeed."""
        said: list[str | None] = []

        def answers() -> bool:
            said.append(self.tries(command))
            return said[-1] is not None

        eventually(answers)
        return str(said[-1]).strip()

    def pings(self) -> bool:
        """Whether the guest answers a ping of the host."""
        ping = ("ping", "-c", "1", "-W", "1", self.floating)
        return subprocess.run(ping, capture_output=True, check=False).returncode == 0

    def ways_in(self) -> set[str]:
        """What reaches the guest, of ``ping`` and ``ssh``."""
        found = {"ping": self.pings(), "ssh": self.tries("true") is not None}
        return {name for name, reaches in found.items() if reaches}

    def becomes(self, status: str) -> None:
        """Wait until the server's status is *status*, and nova does nothing with it any more."""

        def is_there() -> bool:
            server = self.cloud.api.compute.get_server(self.id)
            assert status == "ERROR" or server.status != "ERROR", server.fault
            return server.status == status and server.task_state is None

        eventually(is_there)

    def says(self, text: str) -> None:
        """Wait until the console's log has *text*."""
        eventually(lambda: text in self.console())

    def console(self) -> str:
        """The console's log."""
        return str(self.cloud.api.compute.get_server_console_output(self.id)["output"])

    @property
    def boot_id(self) -> str:
        """What every boot of the guest has anew."""
        return self.run("cat /proc/sys/kernel/random/boot_id")


class Cloud:
    """The servers of a test in the instance of *shell*, with a key and a security group for them.

    The group lets pings and ssh in.
    """

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.key = shell.lab.host(shell.name).home / f"{OURS}.key"
        settings = yaml.safe_load((shell.lab.config.state / "clouds.yaml").read_text())
        self.api: Connection = openstack.connect(
            load_yaml_config=False, load_envvars=False, **settings["clouds"][shell.name]
        )
        self._floating: list[str] = []
        self.remove()
        shell.run("sh", "-c", f"umask 077; openstack keypair create {OURS} >{self.key}")
        group = self.api.network.create_security_group(name=OURS)
        self.allow(group.id, "icmp")
        self.allow(group.id, "tcp", 22)

    def allow(self, group: str, protocol: str, port: int | None = None) -> str:
        """Let the *protocol* in, to all members of *group*; the ID of this rule."""
        rule = self.api.network.create_security_group_rule(
            security_group_id=group,
            direction="ingress",
            protocol=protocol,
            port_range_min=port,
            port_range_max=port,
        )
        return str(rule.id)

    def boot(self, name: str, options: str = "--image cirros", user_data: str = "") -> Guest:
        """A new server with a floating IP, as soon as it is active."""
        id_ = self.create(name, f"{options} --wait", user_data)
        port = next(iter(self.api.network.ports(device_id=id_)))
        public = self.api.network.find_network("public", ignore_missing=False)
        floating = self.api.network.create_ip(floating_network_id=public.id, port_id=port.id)
        self._floating.append(floating.id)
        address = port.fixed_ips[0]["ip_address"]
        return Guest(self, id_, address, floating.floating_ip_address)

    def create(self, name: str, options: str, user_data: str = "") -> str:
        """The ID of a new server."""
        options += f" --flavor m1.nano --network private --key-name {OURS} --security-group {OURS}"
        if user_data:
            options += " --user-data /dev/stdin --config-drive true"
        line = f"openstack server create {OURS}-{name} -f value -c id {options}"
        made = self.shell.lab.ssh(self.shell.name, *shlex.split(line), stdin=user_data)
        return made.stdout.strip()

    def remove(self) -> None:
        """Remove everything, also what an earlier test has left that was killed."""
        network, compute = self.api.network, self.api.compute
        servers: list[Any] = list(compute.servers(name=f"^{OURS}"))
        for server in servers:
            compute.delete_server(server)
        for server in servers:
            compute.wait_for_delete(server, wait=PATIENCE)
        for floating in self._floating:
            network.delete_ip(floating)
        self._floating.clear()
        for image in self.api.list_images():
            if image.name.startswith(OURS):
                self.api.delete_image(image.id, wait=True)
        for group in network.security_groups(name=OURS):
            network.delete_security_group(group)
        compute.delete_keypair(OURS)
        self.shell.run("rm", "-f", str(self.key))
