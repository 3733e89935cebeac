"""The stack ``devstack``: DevStack with our plugin, on a machine of its own."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2

from lab.certificates import certificates
from lab.config import Instance, Lab
from lab.errors import LabError
from lab.parallel import for_each
from lab.passwords import passwords
from lab.providers.base import Host, Needs
from lab.resources import Resources
from lab.ssh import Remote, Result
from lab.stacks.base import InstanceStatus, ServiceState, Stack
from lab.steps import Steps
from lab.wheels.spec import PROXY_PORT, TLS_PORT
from openstackoid.proxy.config import FILES

#: Our ordinary user: DevStack's own ones have the administrator's password.
MEMBER = "visitor"
#: The accounts whose passwords are in local.conf, and that user.
ACCOUNTS = ("admin", "database", "messaging", "service", MEMBER)

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("lab.stacks"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - a configuration file, not HTML
)
_TEMPLATES.filters["quoted"] = shlex.quote
# The output of stack.sh with VERBOSE=False: a time, and the next task (tools/outfilter.py).
_SUMMARY = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \| (?P<title>[A-Z].*)")
_COMPLETED = re.compile(r"stack\.sh completed in (\d+) seconds")
#: Seconds within which nova's workers have to report for the first time.
_PATIENCE = 180
#: How many last lines of DevStack's log go into ours if it fails.
_LAST_LINES = 30

_DEVSTACK = Path("/opt/stack/devstack")
_PLUGIN = Path("/opt/stack/openstackoid")
_LOG = Path("/opt/stack/logs/stack.sh.log")
#: The files for TLS, by the keys of the proxy's description.
_PEM = {
    "certificate": _DEVSTACK / "openstackoid-certificate.pem",
    "ca": _DEVSTACK / "openstackoid-ca.pem",
}
_VENV = Path("/opt/stack/data/venv")
_PROXY = Path("/etc/openstackoid/proxy.json")
_UNITS = "devstack@*.service"
_NOVA_WORKERS = {
    "nova-compute": ["devstack@n-cpu*.service"],
    "nova-conductor": ["devstack@n-cond*.service", "devstack@n-super-cond.service"],
    "nova-scheduler": ["devstack@n-sch*.service"],
}
# Variables of local.conf whose changes need no stack.sh: the proxy gets them otherwise, or nobody.
_PROXY_LATER = (
    "OPENSTACKOID_PEERS=",
    "OPENSTACKOID_ISSUERS=",
    "OPENSTACKOID_POLICIES=",
    "OPENSTACKOID_SEALED=",
    "OPENSTACKOID_TLS_",
    "no_proxy=",
)


class DevStack(Stack):
    """DevStack on each host, from the branch that lab.yaml names."""

    name = "devstack"
    # DevStack installs lsb-release without fetching apt's lists, which a fresh machine lacks
    # (functions-common:_ensure_lsb_release). With lua-luaossl, `sealed` needs no further stack.sh.
    needs = Needs(packages=("git", "lsb-release", "lua-luaossl"), root=True)
    accounts = ACCOUNTS
    member = MEMBER

    def up(self, hosts: Sequence[Host], steps: Steps) -> None:
        """Run stack.sh to its end on all *hosts* in parallel, unless it has already run."""
        clouds = self.homes(hosts)

        def one(host: Host) -> None:
            machine = self._machine(host)
            with steps.step(host.name, "DevStack and plugin") as step:
                machine.fetch(step.log)
            if machine.is_stacked():
                with steps.step(host.name, "OpenStack services"):
                    machine.start()
                with steps.step(host.name, "proxy"):
                    machine.meet_peers()
            else:
                machine.stack(steps)
            machine.log_in(clouds[host.name])
            with steps.step(host.name, "nova's workers"):
                machine.await_nova()
            with steps.step(host.name, "flavors, networks and image") as step:
                machine.offer(step.log)

        for_each(hosts, one)

    def halt(self, hosts: Sequence[Host]) -> None:
        """Stop DevStack's services; everything else stops with the machines."""
        for_each(hosts, lambda host: self._machine(host).stop())

    def destroy(self, hosts: Sequence[Host]) -> None:
        """Run unstack.sh and clean.sh on machines that outlive the lab."""
        kept = [host for host in hosts if host.outlives_lab]
        for_each(kept, lambda host: self._machine(host).clean())

    def auth_url(self, instance: Instance) -> str:
        """The identity endpoint of *instance*, through its own proxy."""
        return f"http://{instance.address}:{PROXY_PORT}/identity/v3"

    def regions(self, name: str) -> Mapping[str, Mapping[str, str]]:
        """The regions that the plugin makes; it alone knows their scopes, which are empty here."""
        words = str(self.lab.devstack.settings.get("OPENSTACKOID_REGIONS", "")).replace(",", " ")
        regions = (word.partition(":")[0] for word in words.split())
        return {region: {} for region in regions if region != name}

    def status(self, host: Host) -> InstanceStatus:
        """The state of DevStack's units from systemd, and of each peer from the proxy."""
        machine = self._machine(host)
        return InstanceStatus(host.name, host.address, machine.services(), machine.peers())

    def logs(self, host: Host) -> tuple[str, ...]:
        """DevStack's units, and stack.sh itself."""
        services = self._machine(host).services()
        return ("stack.sh", *(service.name for service in services))

    def log_command(
        self, host: Host, services: Sequence[str], *, lines: str, follow: bool
    ) -> list[str]:
        """A command that reads the journal or, for stack.sh, its file."""
        if list(services) == ["stack.sh"]:
            return ["tail", "-n", lines, *(["-F"] if follow else []), "--", str(_LOG)]
        units = [f"--unit=devstack@{name}.service" for name in services if name != "stack.sh"]
        number = "all" if lines == "+1" else lines
        flags = ["--no-pager", "--output=cat", f"--lines={number}", *(["-f"] if follow else [])]
        return ["sudo", "journalctl", *flags, *units]

    def _machine(self, host: Host) -> _Machine:
        return _Machine(self.lab, host, self.connect(host))


class _Machine:
    """The DevStack of one host."""

    def __init__(self, lab: Lab, host: Host, remote: Remote) -> None:
        self._lab = lab
        self._host = host
        self._remote = remote
        self._stamp = host.directory / "stacked"

    def fetch(self, log: Callable[[str], None]) -> None:
        """Clone DevStack's repository, and make ours a repository that DevStack can clone."""
        if not self._succeeds("test", "-e", str(_DEVSTACK / "stack.sh")):
            settings = self._lab.devstack
            self._remote.run(["rm", "-rf", f"{_DEVSTACK}.new"])
            clone = ["git", "clone", "--quiet", "--branch", settings.branch, settings.repository]
            self._remote.run([*clone, f"{_DEVSTACK}.new"], on_line=log, env=self._host.environment)
            self._remote.run(["mv", f"{_DEVSTACK}.new", str(_DEVSTACK)])
        git = ["git", "-C", str(self._host.source)]
        self._remote.run([*git, "init", "--quiet", "--initial-branch=master"])
        self._remote.run([*git, "add", "--all"])
        if not self._succeeds(*git, "diff", "--cached", "--quiet", "HEAD"):
            who = ["-c", "user.name=openstackoid", "-c", "user.email=openstackoid@localhost"]
            self._remote.run([*git, *who, "commit", "--quiet", "--message", "The lab's source"])
        # DevStack does not update a plugin that it has cloned (functions-common:git_clone).
        if self._succeeds("test", "-e", str(_PLUGIN)):
            clone = ["git", "-C", str(_PLUGIN)]
            self._remote.run([*clone, "fetch", "--quiet", "origin", "master"])
            self._remote.run([*clone, "reset", "--quiet", "--hard", "FETCH_HEAD"])

    def is_stacked(self) -> bool:
        """Whether the last complete run of stack.sh used the present local.conf."""
        found = self._remote.run(["cat", str(self._stamp)], check=False)
        if not found.ok or found.stdout != self._digest():
            return False
        return any(service.name == "openstackoid-proxy" for service in self.services())

    def stack(self, steps: Steps) -> None:
        """Run stack.sh, and turn its output into steps.

        :raises LabError: naming what failed, and where its log is.
        """
        name = self._host.name
        # stack.sh does not restart running units. nova-compute, for example, would be missing in
        # the new database, and stack.sh waits for it (functions-common:_run_under_systemd).
        if self.services():
            with steps.step(name, "unstack.sh") as step:
                self._run_script("unstack.sh", step.log)
        self._certify()
        self._remote.put(self._local_conf(), _DEVSTACK / "local.conf", 0o600)
        self._remote.run(["rm", "-f", str(_DEVSTACK / "local.sh")])
        if self._lab.devstack.settings.get("VIRT_DRIVER") == "fake":
            script = _TEMPLATES.get_template("local.sh").render()
            self._remote.put(script, _DEVSTACK / "local.sh", 0o755)
        summary = _Summary(steps, name, passwords(self._lab, name, ACCOUNTS).values())
        result = self._run_script("stack.sh", summary.line)
        if not result.ok:
            tail = self._remote.run(["tail", "-n", str(_LAST_LINES), str(_LOG)], check=False)
            summary.fail(result.status, tail.stdout)
        summary.end()
        self._remote.put(self._digest(), self._stamp)

    def _run_script(self, script: str, on_line: Callable[[str], None]) -> Result:
        """Run one of DevStack's scripts to its end, after any that an interrupted ``up`` left.

        If a script fails, systemd ends its background jobs (inc/async): ssh would wait for them.
        """
        variables = [f"--setenv={key}={value}" for key, value in self._host.environment.items()]
        service = [
            "--pipe",
            "--wait",
            "--collect",
            "--quiet",
            f"--uid={self._host.user}",
            *variables,
        ]
        return self._remote.run(
            [
                *("sudo", "systemd-run", *service, f"--working-directory={_DEVSTACK}", "--"),
                *("flock", "--close", f"{_DEVSTACK}.lock", f"./{script}"),
            ],
            on_line=on_line,
            check=False,
        )

    def meet_peers(self) -> None:
        """Update the proxy to the peers in lab.yaml and to our source, dropping no connection."""
        known = json.loads(self._remote.run(["cat", str(_PROXY)]).stdout)
        wanted = {**known, **self._proxy()}
        loaded = self._host.directory / "proxy-loaded"
        if wanted != known:
            self._remote.run(["rm", "-f", str(loaded)])
            self._remote.put(json.dumps(wanted, indent=2) + "\n", _PROXY)
        # Debian installs haproxy in /usr/sbin, which is only in root's PATH.
        certified = self._certify()
        check = [str(_VENV / "bin" / "openstackoid-proxy"), "check", str(_PROXY)]
        self._remote.run(check, env={"PATH": "/usr/sbin:/usr/bin"})
        files = "\n".join([self._proxy_files(), *certified])
        if self._remote.run(["cat", str(loaded)], check=False).stdout != files:
            self._remote.run(["sudo", "systemctl", "reload", "devstack@openstackoid-proxy"])
            self._remote.put(files, loaded)

    def start(self) -> None:
        """Start DevStack's units; when a machine starts, they start by themselves."""
        self._remote.run(["sudo", "systemctl", "start", "--all", _UNITS])

    def stop(self) -> None:
        """Stop DevStack's units."""
        self._remote.run(["sudo", "systemctl", "stop", _UNITS], check=False)

    def clean(self) -> None:
        """Undo what stack.sh did, as far as DevStack can."""
        if self._succeeds("test", "-e", str(_DEVSTACK / "stack.sh")):
            for script in ("unstack.sh", "clean.sh"):
                self._run_script(script, lambda _: None)

    def log_in(self, clouds: str) -> None:
        """Make ``openstack`` work at once in the instance's shell."""
        home = self._host.home
        # Without the virtual environment's PATH: stack.sh would use another Python
        # (inc/python:setup_devstack_virtualenv). It has put `openstack` into /usr/local/bin.
        self._remote.put(f"export OS_CLOUD={self._host.name}\n", home / ".profile")
        self._remote.run(["mkdir", "-p", str(home / ".config" / "openstack")])
        self._remote.put(clouds, home / ".config" / "openstack" / "clouds.yaml", 0o600)

    def await_nova(self) -> None:
        """Wait until nova's workers have reported since they started: servers fail before that.

        :raises LabError: when one does not report in time.
        """
        started = {worker: self._started(units) for worker, units in _NOVA_WORKERS.items()}
        deadline = time.monotonic() + _PATIENCE
        while silent := self._silent(started):
            if time.monotonic() > deadline:
                name = self._host.name
                raise LabError(
                    f"{name}: {', '.join(silent)} did not report for {_PATIENCE} s: "
                    f"see ./setup-env.py logs {name}"
                )
            time.sleep(1)

    def _started(self, units: Sequence[str]) -> float:
        """When the last of *units* started; 0 if none did."""
        show = ["systemctl", "show", "--timestamp=unix", "--property=ActiveEnterTimestamp"]
        shown = self._remote.run([*show, "--value", *units]).stdout
        return max((float(stamp.removeprefix("@")) for stamp in shown.split()), default=0)

    def _silent(self, started: Mapping[str, float]) -> list[str]:
        """Nova's workers that have not reported since they *started*."""
        if not any(started.values()):
            return []
        command = ["openstack", "compute", "service", "list", "-f", "json"]
        listing = self._remote.run(command, check=False)
        if not listing.ok:
            return ["nova-api"]
        return [
            row["Binary"]
            for row in json.loads(listing.stdout)
            if _seconds(row["Updated At"]) < started.get(row["Binary"], 0)
        ]

    def offer(self, log: Callable[[str], None]) -> None:
        """Create the flavors, networks and image in lab.yaml, and an ordinary user."""
        python = str(_VENV / "bin" / "python")
        wanted = Resources(
            tuple(flavor.model_dump() for flavor in self._lab.flavors),
            tuple(network.model_dump(mode="json") for network in self._lab.networks),
            self._lab.image.model_dump(mode="json"),
            {"name": MEMBER, "password": passwords(self._lab, self._host.name, ACCOUNTS)[MEMBER]},
        )
        self._remote.run(
            [
                "env",
                "-C",
                str(self._host.source),
                python,
                "-m",
                "lab.resources",
                "/opt/stack/shared",
            ],
            stdin=wanted.to_json(),
            on_line=log,
            env={"OS_CLOUD": self._host.name},
        )

    def services(self) -> list[ServiceState]:
        """DevStack's units; ``running`` means active in systemd."""
        flags = ["--all", "--plain", "--no-legend", "--no-pager"]
        listing = self._remote.run(["systemctl", "list-units", *flags, _UNITS], check=False).stdout
        found = []
        for unit, _, active, sub in (line.split()[:4] for line in listing.splitlines()):
            name = unit.removeprefix("devstack@").removesuffix(".service")
            found.append(ServiceState(name, "running" if active == "active" else active, sub))
        return found

    def peers(self) -> dict[str, str]:
        """The proxy's view of each peer; empty if the proxy does not run."""
        command = [str(_VENV / "bin" / "openstackoid-proxy"), "peers", "/etc/openstackoid"]
        shown = self._remote.run(command, check=False)
        return dict(line.split(" ", 1) for line in shown.stdout.splitlines()) if shown.ok else {}

    def _proxy_files(self) -> str:
        """Names and digests of HAProxy's files."""
        names = [word for name in FILES for word in ("-o", "-name", name)][1:]
        find = ["find", str(_PROXY.parent), "(", *names, ")", "-exec", "sha256sum", "{}", "+"]
        return "\n".join(sorted(self._remote.run(find).stdout.splitlines()))

    def _certify(self) -> list[str]:
        """Put the files for TLS between proxies beside local.conf; return their digests."""
        made = certificates(self._lab, self._host.name) if self._lab.tls else {}
        for name, text in made.items():
            self._remote.put(text, _PEM[name], 0o600)
        return [hashlib.sha256(text.encode()).hexdigest() for text in made.values()]

    def _proxy(self) -> dict[str, Any]:
        """The parts of the proxy's description that change without stack.sh."""
        lab, name = self._lab, self._host.name
        protection = {key: True for key in ("sealed", "tls") if getattr(lab, key)}
        tls = {key: str(path) for key, path in _PEM.items()}
        return {
            "peers": [
                {"name": peer, "address": address, **protection}
                for peer, address in lab.peer_addresses(name).items()
            ],
            "issuers": [issuer for issuer in lab.issuers(name) if issuer != name],
            "policies": [{"issuer": one, **limits} for one, limits in lab.limits(name).items()],
            "tls": {**tls, "bind": f"{self._host.address}:{TLS_PORT}"} if lab.tls else None,
        }

    def _local_conf(self) -> str:
        lab, name, proxy = self._lab, self._host.name, self._proxy()
        return _TEMPLATES.get_template("local.conf.j2").render(
            lab=lab,
            host=self._host,
            passwords=passwords(lab, name, ACCOUNTS),
            proxy=proxy,
            policies=json.dumps(proxy["policies"]),
            port=PROXY_PORT,
            log=_LOG,
        )

    def _digest(self) -> str:
        """A digest of the settings that need stack.sh; the proxy learns of peers without it."""
        lines = self._local_conf().splitlines()
        kept = [line for line in lines if not line.startswith(_PROXY_LATER)]
        return hashlib.sha256("\n".join(kept).encode()).hexdigest()

    def _succeeds(self, *argv: str) -> bool:
        return self._remote.run(argv, check=False).ok


def _seconds(text: str | None) -> float:
    """Nova's UTC time *text* in seconds since 1970; 0 if there is none."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() if text else 0


class _Summary:
    """Turns the output of stack.sh into steps, and removes the *secrets* that it traces."""

    def __init__(self, steps: Steps, instance: str, secrets: Iterable[str]) -> None:
        self._secrets = re.compile("|".join(map(re.escape, secrets)))
        self._steps = steps
        self._instance = instance
        self._step = steps.begin(instance, "stack.sh")
        self._completed = False

    def line(self, text: str) -> None:
        """Process one line of stack.sh's output."""
        self._completed = self._completed or bool(_COMPLETED.search(text))
        found = _SUMMARY.match(text)
        if found and not self._completed:
            self._steps.end(self._step)
            self._step = self._steps.begin(self._instance, found["title"])
        else:
            self._step.log(self._secrets.sub("…", text))

    def end(self) -> None:
        """End the last step: stack.sh has succeeded."""
        self._steps.end(self._step)

    def fail(self, status: int, last: str) -> NoReturn:
        """Fail the last step: stack.sh has ended with *status* and the log lines *last*.

        :raises LabError: always.
        """
        self._step.log(self._secrets.sub("…", last))
        error = LabError(
            f"{self._instance}: stack.sh failed with status {status} at “{self._step.title}”: "
            f"see ./setup-env.py logs {self._instance} stack.sh"
        )
        self._steps.fail(self._step, error)
        raise error
