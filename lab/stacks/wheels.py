"""The stack ``wheels``: OpenStack's releases from PyPI, under supervisor.

This is the orchestrator's side; :mod:`lab.wheels` does the work on each host.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import guest, logs
from lab.certificates import authority_file, certificates
from lab.config import Instance, Lab
from lab.errors import LabError
from lab.faults import Fault
from lab.parallel import for_each
from lab.passwords import passwords
from lab.providers.base import Host, Needs
from lab.stacks.base import Connect, InstanceStatus, ServiceState, Stack
from lab.steps import Step, Steps
from lab.wheels import guests, ovn
from lab.wheels.layout import Layout, endpoint_url
from lab.wheels.services import SERVICES, Hypervisor, program_names
from lab.wheels.spec import ACCOUNTS, Spec

#: What real guests need on a host: the hypervisor, the network, and the tools that make the image.
GUEST_PACKAGES = (*guests.PACKAGES, *ovn.PACKAGES, *guest.PACKAGES)


class Wheels(Stack):
    """OpenStack from PyPI with MariaDB, RabbitMQ and HAProxy from Debian."""

    name = "wheels"
    # For the memory, see docs/measurements.org.
    needs = Needs(
        packages=("haproxy", "lua-luaossl", "mariadb-server", "rabbitmq-server"), memory=1100
    )
    accounts = ACCOUNTS
    has_traces = True

    def __init__(self, lab: Lab, connect: Connect) -> None:
        super().__init__(lab, connect)
        self._hypervisor: Hypervisor = "libvirt" if lab.has_guests else "fake"
        #: Whether the instance runs as another user than the one who logs in.
        self._as_root = lab.has_guests and not lab.is_here
        if lab.has_guests:
            packages = (*self.needs.packages, *GUEST_PACKAGES)
            if self._as_root:
                packages += ("sudo",)
            self.needs = replace(self.needs, packages=packages, root=self._as_root)

    @classmethod
    def hypervisor(cls, lab: Lab, *, is_here: bool) -> tuple[str, str]:
        """Libvirt where it works: it needs root on the host, and network namespaces.

        Machines have it only on request, since it costs each of them packages and memory.
        """
        if lab.hypervisor == "fake" or (lab.hypervisor == "libvirt" and not is_here):
            return lab.hypervisor, "as chosen"
        fault = unusable(is_here=is_here)
        if lab.hypervisor == "libvirt" and fault:
            raise LabError(f"the hypervisor libvirt cannot be had: {fault}")
        return ("fake", fault) if fault else ("libvirt", "this machine can run guests")

    def up(self, hosts: Sequence[Host], steps: Steps) -> None:
        """Install and start OpenStack on all *hosts* side by side."""
        clouds = self.homes(hosts)

        def one(host: Host) -> None:
            remote = self.connect(host)
            with steps.step(host.name, "OpenStack from PyPI") as step:
                installer = str(host.source / "lab" / "wheels" / "install.py")
                remote.run(
                    [host.python, installer, host.uv, str(host.source), str(host.shared)],
                    on_line=step.log,
                    env=host.environment,
                )
            self._host_up(host, steps)
            path = _clouds_file(host)
            remote.run(["mkdir", "-p", str(path.parent)])
            remote.put(clouds[host.name], path, 0o600)
            if self.lab.https:
                remote.put(authority_file(self.lab).read_text(), path.with_name("ca.pem"))

        for_each(hosts, one)

    def halt(self, hosts: Sequence[Host]) -> None:
        """Stop what runs on *hosts*; the databases end in order."""
        for_each(hosts, lambda host: self._ask(host, "halt"))

    def destroy(self, hosts: Sequence[Host]) -> None:
        """Remove what root has on machines; all else is in the instances' directories."""
        if self._as_root:
            for_each(hosts, lambda host: self._ask(host, "destroy"))

    def status(self, host: Host) -> InstanceStatus:
        """What supervisor says of each program, and the proxy of each peer."""
        answer = self._ask(host, "status")
        states: Mapping[str, str] = answer.get("programs", {})
        services = [
            ServiceState(name, states.get(name, "STOPPED").lower())
            for name in program_names(self._hypervisor)
        ]
        return InstanceStatus(host.name, host.address, services, dict(answer.get("peers", {})))

    def logs(self, host: Host) -> tuple[str, ...]:
        """Every program that supervisor runs."""
        return program_names(self._hypervisor)

    def log_command(
        self, host: Host, services: Sequence[str], *, lines: str, follow: bool
    ) -> list[str]:
        """One file per program, shown by tail; of one program, also what was rotated away."""
        log = Layout(_spec(self.lab, host)).log
        paths = [str(log / f"{name}.log") for name in services]
        if lines == "+1" and len(paths) == 1 and not follow:
            return [*self.prefix(host), *logs.reader(paths[0])]
        return [*self.prefix(host), "tail", "-n", lines, *(["-F"] if follow else []), "--", *paths]

    def trace(self, hosts: Sequence[Host], *, on: bool) -> None:
        """Write the proxies' configurations anew, and reload them."""
        for_each(hosts, lambda host: self._ask(host, "trace", "on" if on else "off"))

    def links(self, host: Host) -> list[dict[str, Any]]:
        """What the host's proxy and a request through each link say."""
        return list(self._ask(host, "net").get("links", ()))

    def break_link(self, host: Host, peer: str, fault: Fault) -> None:
        """Have the proxy of *host* reach *peer* through a relay."""
        self._ask(host, "net", peer, fault.to_json())

    def heal(self, host: Host, peers: Sequence[str]) -> None:
        """Have the proxy of *host* reach *peers* directly."""
        self._ask(host, "net", "--heal", *peers)

    def kill(self, host: Host, services: Sequence[str], *, hang: bool) -> None:
        """Kill or freeze programs of supervisor's."""
        self._ask(host, "kill", *(["--hang"] if hang else []), *services)

    def auth_url(self, instance: Instance) -> str:
        """The identity endpoint of *instance*, through its own proxy."""
        (keystone,) = (one for one in SERVICES["fake"] if one.type == "identity")
        ports = instance.endpoints == "ports"
        return endpoint_url(str(instance.address), keystone, ports=ports, https=self.lab.https)

    def cacert(self, host: Host | None = None) -> str | None:
        """The lab's authority, if clients need it."""
        if not self.lab.https:
            return None
        return str(_clouds_file(host).with_name("ca.pem") if host else authority_file(self.lab))

    def regions(self, name: str) -> Mapping[str, Mapping[str, str]]:
        """Each other instance, and each named scope."""
        return _regions(self.lab, name)

    def _host_up(self, host: Host, steps: Steps) -> None:
        """Have the host bring its instance up; its steps become ours."""
        spec = _spec(self.lab, host).to_json()
        events = _Events(steps, host.name)
        result = self.connect(host).run(
            self._command(host, "up"), stdin=spec, on_line=events.line, check=False
        )
        events.end(result.ok)

    def prefix(self, host: Host) -> list[str]:
        """``sudo``, if the instance runs as root and another user logs in."""
        # Python's caches go to the home of the instance's user, which `destroy` removes.
        return ["sudo", "-n", "--", "env", f"HOME={host.home}"] if self._as_root else []

    def _command(self, host: Host, *command: str) -> list[str]:
        """``python -m lab.wheels COMMAND…`` on the *host*, as the user whose instance it is."""
        python = str(host.shared / "venv" / "bin" / "python")
        return [*self.prefix(host), python, "-m", "lab.wheels", *command]

    def _ask(self, host: Host, *command: str) -> dict[str, Any]:
        """What ``python -m lab.wheels COMMAND…`` answers on the host; {} where it is not there."""
        result = self.connect(host).run(
            self._command(host, *command),
            stdin=_spec(self.lab, host).to_json(),
            check=False,
        )
        lines = result.stdout.splitlines()
        answer: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        if "error" in answer:
            raise LabError(f"{host.name}: {answer['error']}")
        return answer


def unusable(*, is_here: bool) -> str:
    """Why the hypervisor libvirt cannot be had, as half a sentence; nothing where it can."""
    if not is_here:
        return "machines have real guests only with hypervisor: libvirt"
    if os.geteuid() != 0:
        return "guests need root: run setup-env.py as root"
    try:
        done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return "unshare is missing: apt-get install util-linux"
    return "this machine allows no network namespaces" if done.returncode else ""


def _clouds_file(host: Host) -> Path:
    """Where clients on the *host* look for their clouds."""
    return host.home / ".config" / "openstack" / "clouds.yaml"


class _Events:
    """Turns what the host reports, a JSON object a line, into steps."""

    def __init__(self, steps: Steps, instance: str) -> None:
        self._steps = steps
        self._instance = instance
        self._step: Step | None = None
        self._error = ""

    def line(self, text: str) -> None:
        """Take one line of the host's output; what is no event goes into the log."""
        try:
            event = json.loads(text)
        except ValueError:
            event = {"log": text}
        if not isinstance(event, dict):
            event = {"log": text}
        if "started" in event:
            self._step = self._steps.begin(self._instance, event["started"])
        elif "step" in event:
            self._end_step()
        elif "note" in event:
            self._steps.say(f"{self._instance}: {event['note']}")
        elif "error" in event:
            self._error = event["error"]
        elif self._step:
            self._step.log(text)

    def end(self, ok: bool) -> None:
        """The host is done; with *ok* false the step that was under way has failed.

        :raises LabError: when it has.
        """
        if ok:
            return
        log = self._steps.log_path(self._instance)
        what = self._error or f"lab.wheels ended without an error; see {log}"
        error = LabError(f"{self._instance}: {what}")
        if self._step:
            self._steps.fail(self._step, error)
        raise error

    def _end_step(self) -> None:
        step, self._step = self._step, None
        if step:
            self._steps.end(step)


def _spec(lab: Lab, host: Host) -> Spec:
    return Spec(
        name=host.name,
        address=host.address,
        directory=str(host.directory),
        shared=str(host.shared),
        home=str(host.home),
        peers=lab.peer_addresses(host.name),
        issuers=lab.issuers(host.name),
        sealed=lab.sealed,
        tls=lab.tls,
        https=lab.https,
        certificates=certificates(lab, host.name) if lab.tls or lab.https else {},
        policies=lab.limits(host.name),
        passwords=passwords(lab, host.name, ACCOUNTS),
        flavors=tuple(flavor.model_dump() for flavor in lab.flavors),
        networks=tuple(network.model_dump(mode="json") for network in lab.networks),
        image=lab.image.model_dump(mode="json"),
        token_cache=lab.token_cache,
        regions=_regions(lab, host.name),
        endpoints=lab.instance(host.name).endpoints,
        dashboard=lab.dashboard,
        **_real(lab, host.name),
    )


def _regions(lab: Lab, name: str) -> dict[str, dict[str, str]]:
    """The regions in the catalog of the instance *name*, besides its own, and their scopes.

    A scope here names no issuer: a client logs in before it chooses a region.
    """
    if not lab.regions:
        return {}
    types = [service.type for service in SERVICES["fake"]]
    peers = {peer.name: dict.fromkeys(types, peer.name) for peer in lab.peers(name)}
    return {
        region: {service: one for service, one in scope.items() if service != "identity"}
        for region, scope in {**peers, **lab.plain_scopes}.items()
    }


def _real(lab: Lab, name: str) -> dict[str, Any]:
    """What the instance *name* has to know besides where guests are real."""
    public = lab.instance(name).public
    if not lab.has_guests or public is None:
        return {}
    return {
        "hypervisor": "libvirt",
        "public": {
            "gateway": f"{public[1]}/{public.prefixlen}",
            "reach_peers": lab.public.reach_peers,
            "reach_outside": lab.public.reach_outside,
            # On this machine, the peers' ranges are behind interfaces of its own.
            "peers": {
                str(peer.public): str(peer.address) for peer in lab.peers(name) if not lab.is_here
            },
        },
    }
