"""The command line with a stand-in stack, to test everything above the stacks.

Run as ``python placeholder.py ROOT ARGUMENTS…``, like ``setup-env.py ARGUMENTS…`` in ROOT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lab import stacks
from lab.cli import main
from lab.config import Instance
from lab.providers.base import Host
from lab.stacks.base import InstanceStatus, ServiceState, Stack
from lab.steps import Steps


class Placeholder(Stack):
    """Writes a profile and starts a process that outlives the login, as a real stack does."""

    name = "wheels"

    def up(self, hosts: Sequence[Host], steps: Steps) -> None:
        for host in hosts:
            with steps.step(host.name, "service") as step:
                remote = self.connect(host)
                profile = f"export OS_CLOUD={host.name} FROM_PROFILE=yes\n"
                remote.put(profile, host.home / ".profile")
                start = f"setsid sleep 86400 >>{host.directory}/service.log 2>&1 & echo $!"
                remote.run(["sh", "-c", f"echo started > {host.directory}/service.log"])
                remote.run(["sh", "-c", start], on_line=step.log)

    def halt(self, hosts: Sequence[Host]) -> None:
        pass

    def destroy(self, hosts: Sequence[Host]) -> None:
        pass

    def status(self, host: Host) -> InstanceStatus:
        peers = {peer.name: "UP" for peer in self.lab.peers(host.name)}
        return InstanceStatus(host.name, host.address, [ServiceState("sleep", "running")], peers)

    def logs(self, host: Host) -> tuple[str, ...]:
        return ("sleep",)

    def log_command(
        self, host: Host, services: Sequence[str], *, lines: str, follow: bool
    ) -> list[str]:
        return ["cat", f"{host.directory}/service.log"]

    def auth_url(self, instance: Instance) -> str:
        return f"http://{instance.address}:8888/identity/v3"


if __name__ == "__main__":
    root, *sys.argv[1:] = sys.argv[1:]
    sys.modules["placeholder"] = sys.modules["__main__"]
    stacks.STACKS["wheels"] = "placeholder:Placeholder"
    main(Path(root))
