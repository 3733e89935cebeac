"""What the commands do to a lab: to its description, its provider and its stack."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lab import apt, files, processes, providers, stacks
from lab.config import Choices, Decide, Lab, load
from lab.dashboard import Dashboard
from lab.errors import LabError
from lab.faults import Fault
from lab.parallel import for_each
from lab.providers.base import Host, Provider
from lab.snapshots import Snapshots
from lab.stacks.base import InstanceStatus, Stack
from lab.steps import Steps

if TYPE_CHECKING:
    from lab.conformance import Difference


@dataclass
class Lifecycle:
    """A lab with its provider and its stack."""

    lab: Lab
    choices: Choices
    provider: Provider
    stack: Stack

    @classmethod
    def of(
        cls,
        root: Path,
        given: Choices | None = None,
        decide: Decide | None = None,
    ) -> Lifecycle:
        """The lab of the repository *root*, with the present choices (*given*) and earlier ones.

        *decide* chooses the provider if nobody has; with it, the hypervisor is decided, too.

        :raises LabError: when lab.yaml is wrong, or a choice is not available.
        """
        kept = Choices.of(root / ".lab")
        if kept.provider and not kept.hypervisor:
            # It was made by a version that had no other.
            kept = kept.updated(Choices(hypervisor="fake"))
        choices = kept.updated(given or Choices())
        lab = load(root, choices, decide)
        for key in ("provider", "stack", "hypervisor"):
            made, wanted = getattr(kept, key), getattr(lab, key)
            if made not in (None, "auto", wanted):
                raise LabError(
                    f"the lab has the {key} {made}: run ./setup-env.py destroy before you choose "
                    f"the {key} {wanted}"
                )
        provider_ = providers.provider(lab)
        if decide and lab.provider != "auto":
            is_here = provider_.is_here
            name, why = stacks.stack_class(lab.stack).hypervisor(lab, is_here=is_here)
            lab = lab.model_copy(update={"hypervisor": name, "hypervisor_because": why})
        found = cls(lab, choices, provider_, stacks.stack(lab, provider_.connect))
        # A lab without a provider has no hosts yet.
        if lab.provider != "auto" and found.stack.needs.root and found.provider.is_here:
            raise LabError(
                f"the stack {lab.stack} takes over a whole machine: use --provider vagrant or hosts"
            )
        return found

    @property
    def debian_packages(self) -> tuple[str, ...]:
        """The Debian packages that this machine needs for the lab."""
        of_hosts = self.stack.needs.packages if self.provider.is_here else ()
        return (*self.provider.debian_packages, *of_hosts, "tmux")

    def hosts_up(self) -> list[Host]:
        """The hosts that ssh reaches."""
        return [host for host in self.provider.hosts() if self.provider.is_up(host.name)]

    def require_hosts(self) -> list[Host]:
        """The hosts that ssh reaches.

        :raises LabError: when there are none.
        """
        hosts = self.hosts_up()
        if not hosts:
            raise LabError("the lab is down: run ./setup-env.py up")
        return hosts

    def require_up(self, name: str) -> Host:
        """The host of the instance *name*.

        :raises LabError: when it is unknown or down.
        """
        self.lab.instance(name)
        for host in self.hosts_up():
            if host.name == name:
                return host
        raise LabError(f"{name} is down: run ./setup-env.py up {name}")

    def up(self, names: Sequence[str] = ()) -> None:
        """Bring *names* (default: all instances) up, from any state.

        :raises LabError: naming what cannot be brought up.
        """
        chosen = _chosen(self.lab, names)
        apt.check(self.debian_packages)
        with self._changing("up") as steps:
            lab = self.lab
            chosen_now = Choices(provider=lab.provider, stack=lab.stack, hypervisor=lab.hypervisor)
            self.choices.updated(chosen_now).keep(lab.state)
            steps.say(f"provider {lab.provider} ({lab.because}), stack {lab.stack}")
            if lab.hypervisor != "auto":
                steps.say(f"hypervisor {lab.hypervisor} ({lab.hypervisor_because})")
            apt.ensure(self.debian_packages, steps.say, self.lab.state / "log")
            self._up(chosen, steps)

    def _up(self, names: Sequence[str], steps: Steps) -> None:
        self.snapshots.require_whole()
        self._stop_surplus()
        hosts = self.provider.up(names, self.stack.needs, steps)
        self.stack.up(hosts, steps)
        files.write(self.lab.state / "clouds.yaml", yaml.safe_dump(self.stack.clouds()))
        self.show()

    @property
    def snapshots(self) -> Snapshots:
        """The snapshots of the lab."""
        return Snapshots(self.lab)

    def snapshot(self, name: str) -> None:
        """Make the snapshot *name*; the lab is down in the meantime.

        :raises LabError: when it cannot be made; then there is none.
        """
        self.snapshots.require_new(name)
        with self._changing(f"snapshot {name}") as steps:
            self.snapshots.require_new(name)
            with self._down(steps), steps.step(None, "copy into the snapshot"):
                self.snapshots.make(name)

    def restore(self, name: str) -> None:
        """Make the lab what it was in the snapshot *name*; then it is up if it was up before.

        :raises LabError: when that snapshot does not fit, or cannot be copied.
        """
        self.snapshots.require(name)
        with self._changing(f"restore {name}") as steps:
            self.snapshots.require(name)
            with self._down(steps), steps.step(None, "copy from the snapshot"):
                self.snapshots.restore(name)

    def remove_snapshot(self, name: str) -> None:
        """Remove the snapshot *name*.

        :raises LabError: when there is none.
        """
        self.snapshots.require(name, fitting=False)
        with locked(self.lab.state, f"snapshot --delete {name}"):
            self.snapshots.require(name, fitting=False)
            self.snapshots.remove(name)

    @contextmanager
    def _changing(self, purpose: str) -> Iterator[Steps]:
        """Change the lab alone, for *purpose*, in steps."""
        with locked(self.lab.state, purpose), Steps(self.lab.state / "log") as steps:
            yield steps

    @contextmanager
    def _down(self, steps: Steps) -> Iterator[None]:
        """Have the lab down for the body, and afterwards up as it was; after a LabError, too."""
        names = [host.name for host in self.hosts_up()]
        self._halt(self.lab.names, steps)
        # The copying of a command that was killed may go on.
        processes.stop(processes.marked(self.lab.state))
        try:
            yield
        except LabError:
            if names:
                self._up(names, steps)
            raise
        if names:
            self._up(names, steps)

    @property
    def _dashboard(self) -> Dashboard:
        return Dashboard(self.lab)

    def dashboard(self) -> str:
        """Bring the dashboard up, from any state, and return its URL.

        :raises LabError: when the lab is down, or the dashboard does not come up.
        """
        self.require_hosts()
        with self._changing("dashboard") as steps:
            self._dashboard.up(self.stack.clouds()["clouds"], steps)
        return self._dashboard.url

    def conformance(
        self, scopes: Sequence[str], regex: str, say: Callable[[str], None]
    ) -> list[Difference]:
        """Compare Tempest's ends without a scope and with *scopes*.

        :raises LabError: when the lab is down, a scope is invalid, or Tempest does not run.
        """
        from lab import conformance  # noqa: PLC0415 - few commands need it

        self.require_hosts()
        clouds = self.stack.clouds()["clouds"]
        return conformance.compare(self.lab, clouds, scopes, regex, say)

    def show(self) -> None:
        """Make the tmux session show the instances that are up.

        :raises LabError: when tmux fails.
        """
        from lab import tmux  # noqa: PLC0415 - slow to import, and few commands need it

        tmux.arrange([host.name for host in self.hosts_up()], self.provider.ssh_config)

    def halt(self, names: Sequence[str] = ()) -> None:
        """Stop *names* (default: all instances), keeping their data; from any state.

        :raises LabError: naming what cannot be stopped.
        """
        chosen = _chosen(self.lab, names)
        if not self.lab.state.exists():
            return
        with self._changing("halt") as steps:
            self._halt(chosen, steps)

    def _halt(self, names: Sequence[str], steps: Steps) -> None:
        hosts_up = self.hosts_up()
        hosts = [host for host in hosts_up if host.name in names]
        if hosts == hosts_up:
            self._dashboard.halt()
        if hosts:
            with steps.step(None, f"halt {self.stack.name}"):
                self.stack.halt(hosts)
        with steps.step(None, "halt hosts"):
            self.provider.halt(names)

    def status(self) -> dict[str, Any]:
        """Everything that ``status`` shows, as plain data.

        :raises LabError: when an instance that is up does not answer.
        """
        hosts = {host.name: host for host in self.hosts_up()}
        instances = []
        for one in self.lab.instances:
            seen = InstanceStatus(one.name, str(one.address))
            if one.name in hosts:
                seen = self.stack.status(hosts[one.name])
            instances.append({**asdict(seen), "up": one.name in hosts})
        return {
            "provider": self.lab.provider,
            "stack": self.stack.name,
            "instances": instances,
            "dashboard": {"state": self._dashboard.state(), "url": self._dashboard.url},
        }

    def links(self) -> list[dict[str, Any]]:
        """Every link between instances that are up: ``from``, and what the stack says of it.

        :raises LabError: when the lab is down, or its links cannot be broken.
        """
        hosts = self.require_hosts()
        found = for_each(hosts, self.stack.links)
        return [
            {"from": host.name, **link}
            for host, links in zip(hosts, found, strict=True)
            for link in links
        ]

    def break_link(self, name: str, peer: str, fault: Fault) -> None:
        """Give the link from the instance *name* to *peer* this *fault*.

        :raises LabError: when that is no link, or *name* is down.
        """
        if self.lab.instance(name) is self.lab.instance(peer):
            raise LabError(f"{name} has no link to itself: name two instances")
        host = self.require_up(name)
        with locked(self.lab.state, "net"):
            self.stack.break_link(host, peer, fault)

    def heal(self, name: str | None = None, peer: str | None = None) -> None:
        """Take the fault of one link away; without names, those of all.

        :raises LabError: when an instance is unknown.
        """
        hosts = [self.require_up(name)] if name else self.hosts_up()
        peers = [self.lab.instance(peer).name] if peer else []
        if not hosts:
            return
        with locked(self.lab.state, "net"):
            for_each(hosts, lambda host: self.stack.heal(host, peers))

    def kill(self, name: str, service: str | None, *, hang: bool) -> None:
        """Kill *service* of the instance *name*, or all of its services; with *hang*, freeze them.

        :raises LabError: when the instance is down, or has no such service.
        """
        host = self.require_up(name)
        known = self._known(host, service)
        with locked(self.lab.state, "kill"):
            self.stack.kill(host, [service] if service else known, hang=hang)

    def _known(self, host: Host, service: str | None) -> tuple[str, ...]:
        """The services on *host*.

        :raises LabError: when *service* is none of them.
        """
        known = self.stack.logs(host)
        if service is not None and service not in known:
            raise LabError(f"unknown service {service!r}; known: {', '.join(sorted(known))}")
        return known

    def log_command(self, name: str, service: str | None, *, follow: bool) -> list[str]:
        """The command that prints the log of *service* in the instance *name*.

        Without a service, it prints the last lines of all logs.

        :raises LabError: when the instance is unknown or down, or has no such service.
        """
        host = self.require_up(name)
        known = self._known(host, service)
        lines = "+1" if service and not follow else "20"
        services = [service] if service else known
        return self.stack.log_command(host, services, lines=lines, follow=follow)

    def _stop_surplus(self) -> None:
        """Stop former instances that the lab no longer has, after another ``-n``."""
        for login in self.lab.state.glob("*/login"):
            if login.parent.name not in self.lab.names:
                processes.stop(processes.marked(self.lab.state, login.parent.name))


def destroy(root: Path) -> None:
    """Remove the lab of the repository *root*, from any state, even with a broken lab.yaml.

    :raises LabError: when something of it cannot be removed.
    """
    from lab import tmux  # noqa: PLC0415
    from lab.wheels import guests  # noqa: PLC0415

    state = root.absolute() / ".lab"
    if state.exists():
        with locked(state, "destroy"):
            lifecycle = _readable(root)
            if lifecycle is not None:
                hosts = lifecycle.hosts_up()
                lifecycle.stack.destroy(hosts)
                lifecycle.provider.destroy()
            processes.kill_all(state)
            guests.remove(state)
            _remove(state)
    tmux.remove()


def _readable(root: Path) -> Lifecycle | None:
    """The lab; None if lab.yaml is wrong, but everything is on this machine.

    :raises LabError: when lab.yaml is wrong and something may be on other machines.
    """
    try:
        return Lifecycle.of(root)
    except LabError as error:
        if Choices.of(root / ".lab").provider not in (None, "auto", "local"):
            raise
        print(f"note: {error}; removing by force", file=sys.stderr)
        return None


@contextmanager
def locked(state: Path, purpose: str) -> Iterator[None]:
    """Make every other command that changes the lab wait.

    Commands that the holder of the lock runs do not wait for it: :data:`lab.processes.LOCK_HOLDER`.
    """
    state.mkdir(parents=True, exist_ok=True)
    path = state / "lock"
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text().strip() or "another command"
            if f"(process {os.environ.get(processes.LOCK_HOLDER)})" in holder:
                os.close(lock)
                yield
                return
            print(f"waiting for {holder} …", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        # If we waited for a `destroy`, it has removed the file that we locked.
        if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
            break
        os.close(lock)
        state.mkdir(parents=True, exist_ok=True)
    try:
        path.write_text(f"`{purpose}` (process {os.getpid()})\n")
        yield
    finally:
        os.close(lock)


def _chosen(lab: Lab, names: Sequence[str]) -> list[str]:
    return [lab.instance(name).name for name in names] or list(lab.names)


def _remove(state: Path) -> None:
    try:
        shutil.rmtree(state)
    except OSError as error:
        raise LabError(f"{error.filename} cannot be removed: {error.strerror}") from error
