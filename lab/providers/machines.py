"""Hosts that are real machines: the common code for Vagrant's and existing machines.

Each machine already has an account that ssh reaches and that may become root. Through it, the lab
adds a user with the lab's key, this repository's source and the Debian packages of the stack.
"""

from __future__ import annotations

import json
import socket
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import files
from lab.config import Lab
from lab.errors import LabError
from lab.parallel import for_each
from lab.providers import login_shell, provision
from lab.providers.base import Host, Needs, Provider
from lab.providers.provision import HOME, USER, Administrator
from lab.ssh import Remote
from lab.steps import Steps

_PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class SshEndpoint:
    """How ssh reaches a machine: host name, port, host keys and an optional proxy command."""

    hostname: str
    port: int
    keys: tuple[str, ...]
    proxy_command: str = ""

    def known_hosts(self) -> str:
        """Lines for a known_hosts file."""
        usual = self.port == 22  # noqa: PLR2004 - sshd(8), SSH_KNOWN_HOSTS FILE FORMAT
        place = self.hostname if usual else f"[{self.hostname}]:{self.port}"
        return "".join(f"{place} {key}\n" for key in self.keys)

    def ssh_config(self, name: str, provider: Path) -> str:
        """A section of ``ssh_config`` for logins as the instance's user."""
        lines = [
            f"Host {name}",
            f"HostName {self.hostname}",
            f"Port {self.port}",
            f"User {USER}",
            f"IdentityFile {provider}/key",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            f"UserKnownHostsFile {provider}/known_hosts",
            "GlobalKnownHostsFile /dev/null",
            "StrictHostKeyChecking yes",
            "PasswordAuthentication no",
            "LogLevel ERROR",
        ]
        if self.proxy_command:
            lines.append(f"ProxyCommand {self.proxy_command}")
        return "\n    ".join(lines) + "\n"


class Machines(Provider):
    """Machines that an administrator can log in to, with the ssh_config ``NAME.administrator``."""

    #: Whether the machines outlive the lab.
    machines_stay = False

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._directory = lab.state / "provider"
        self._administrators: dict[str, Administrator] = {}

    @abstractmethod
    def _start(self, names: Sequence[str], steps: Steps) -> Mapping[str, str]:
        """Start the machines *names*; return an ssh_config section for each administrator.

        :raises LabError: when one of them does not start.
        """

    @abstractmethod
    def _way_in(self, name: str) -> str:
        """The command by which a user logs in to the machine *name* without the lab."""

    def up(self, names: Sequence[str], needs: Needs, steps: Steps) -> list[Host]:
        """Start the machines, and prepare each for its instance."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        key = login_shell.key(self._directory / "key")
        sections = self._start(names, steps)
        for name in names:
            (self._directory / f"{name}.administrator").write_text(sections[name])
        preparation = provision.Preparation(
            key, provision.Source.of(self.lab.root), needs, self.lab.mirrors
        )

        def prepare(name: str) -> SshEndpoint:
            with steps.step(name, "user, source and packages") as step:
                administrator = self.administrator(name)
                preparation.apply(administrator, name, step.log, steps.say)
                return self._endpoint(name, administrator)

        endpoints = self._endpoints() | dict(zip(names, for_each(names, prepare), strict=True))
        self._write_endpoints(endpoints)
        hosts = [host for host in self.hosts() if host.name in names]
        for_each(hosts, self._install_uv)
        return hosts

    def hosts(self) -> list[Host]:
        """The machines that were prepared."""
        endpoints = self._endpoints()
        return [
            Host(
                name=one.name,
                address=str(one.address),
                directory=HOME / "instance",
                shared=HOME / "shared",
                home=HOME,
                source=provision.SOURCE,
                python=_PYTHON,
                uv=str(HOME / "shared" / "uv" / "bin" / "uv"),
                environment=provision.environment(self.lab.mirrors),
                user=USER,
                outlives_lab=self.machines_stay,
            )
            for one in self.lab.instances
            if one.name in endpoints
        ]

    def is_up(self, name: str) -> bool:
        """Whether sshd greets at the last address of *name*; behind a proxy, whether we get in."""
        endpoint = self._endpoints().get(name)
        if endpoint is None:
            return False
        if endpoint.proxy_command:
            try:
                return self._remote(name).run(["true"], check=False).ok
            except LabError:
                return False
        try:
            with socket.create_connection(
                (endpoint.hostname, endpoint.port), timeout=5
            ) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def administrator(self, name: str) -> Administrator:
        """The account on the machine *name* that may become root."""
        if name not in self._administrators:
            config = self._directory / f"{name}.administrator"
            remote = Remote(config, name, f"check that `{self._way_in(name)}` logs in")
            self._administrators[name] = Administrator(remote)
        return self._administrators[name]

    def _remote(self, name: str) -> Remote:
        return Remote(self.ssh_config, name)

    def _endpoint(self, name: str, administrator: Administrator) -> SshEndpoint:
        import paramiko  # noqa: PLC0415 - slow to import

        config = paramiko.SSHConfig.from_path(str(self._directory / f"{name}.administrator"))
        found = config.lookup(name)
        return SshEndpoint(
            hostname=found["hostname"],
            port=int(found.get("port", 22)),
            keys=tuple(provision.host_keys(administrator)),
            proxy_command=found.get("proxycommand", ""),
        )

    def _endpoints(self) -> dict[str, SshEndpoint]:
        try:
            kept = json.loads((self._directory / "endpoints.json").read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise LabError(f"{self._directory}/endpoints.json cannot be read: {error}") from error
        return {
            name: SshEndpoint(**{**endpoint, "keys": tuple(endpoint["keys"])})
            for name, endpoint in kept.items()
        }

    def _write_endpoints(self, endpoints: Mapping[str, SshEndpoint]) -> None:
        texts = {
            self._directory / "endpoints.json": json.dumps(
                {name: asdict(endpoint) for name, endpoint in endpoints.items()}, indent=1
            ),
            self._directory / "known_hosts": "".join(
                endpoint.known_hosts() for endpoint in endpoints.values()
            ),
            self.ssh_config: "# Made by setup-env.py: ssh -F with this file reaches every instance."
            + "".join(
                f"\n\n{endpoint.ssh_config(name, self._directory)}"
                for name, endpoint in endpoints.items()
            ),
        }
        for path, text in texts.items():
            files.write(path, text)

    def _install_uv(self, host: Host) -> None:
        provision.install_uv(self._remote(host.name), host)
