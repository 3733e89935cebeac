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
from lab.providers.base import Host, Provider
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

    def require_up(self, name: str) -> None:
        """Make sure that the instance *name* is up.

        :raises LabError: when it is unknown or down.
        """
        self.lab.instance(name)
        if not any(host.name == name for host in self.hosts_up()):
            raise LabError(f"{name} is down: run ./setup-env.py up {name}")

    def up(self, names: Sequence[str] = ()) -> None:
        """Bring *names* (default: all instances) up, from any state.

        :raises LabError: naming what cannot be brought up.
        """
        chosen = _chosen(self.lab, names)
        apt.check(self.debian_packages)
        with locked(self.lab.state, "up"), Steps(self.lab.state / "log") as steps:
            lab = self.lab
            chosen_now = Choices(provider=lab.provider, stack=lab.stack, hypervisor=lab.hypervisor)
            self.choices.updated(chosen_now).keep(lab.state)
            steps.say(f"provider {lab.provider} ({lab.because}), stack {lab.stack}")
            if lab.hypervisor != "auto":
                steps.say(f"hypervisor {lab.hypervisor} ({lab.hypervisor_because})")
            apt.ensure(self.debian_packages, steps.say, self.lab.state / "log")
            self._stop_surplus()
            hosts = self.provider.up(chosen, self.stack.needs, steps)
            self.stack.up(hosts, steps)
            files.write(self.lab.state / "clouds.yaml", yaml.safe_dump(self.stack.clouds()))
            self.show()

    @property
    def _dashboard(self) -> Dashboard:
        return Dashboard(self.lab)

    def dashboard(self) -> str:
        """Bring the dashboard up, from any state, and return its URL.

        :raises LabError: when the lab is down, or the dashboard does not come up.
        """
        if not self.hosts_up():
            raise LabError("the lab is down: run ./setup-env.py up")
        with locked(self.lab.state, "dashboard"), Steps(self.lab.state / "log") as steps:
            self._dashboard.up(self.stack.clouds()["clouds"], steps)
        return self._dashboard.url

    def conformance(
        self, scopes: Sequence[str], regex: str, say: Callable[[str], None]
    ) -> list[Difference]:
        """Compare Tempest's ends without a scope and with *scopes*.

        :raises LabError: when the lab is down, a scope is invalid, or Tempest does not run.
        """
        from lab import conformance  # noqa: PLC0415 - few commands need it

        if not self.hosts_up():
            raise LabError("the lab is down: run ./setup-env.py up")
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
        with locked(self.lab.state, "halt"), Steps(self.lab.state / "log") as steps:
            hosts_up = self.hosts_up()
            hosts = [host for host in hosts_up if host.name in chosen]
            if hosts == hosts_up:
                self._dashboard.halt()
            if hosts:
                with steps.step(None, f"halt {self.stack.name}"):
                    self.stack.halt(hosts)
            with steps.step(None, "halt hosts"):
                self.provider.halt(chosen)

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

    def log_command(self, name: str, service: str | None, *, follow: bool) -> list[str]:
        """The command that prints the log of *service* in the instance *name*, which is up.

        Without a service, it prints the last lines of all logs.

        :raises LabError: when there is no such service.
        """
        host = next(host for host in self.hosts_up() if host.name == name)
        known = self.stack.logs(host)
        if service is not None and service not in known:
            raise LabError(f"unknown service {service!r}; known: {', '.join(sorted(known))}")
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
    """Make every other command that changes the lab wait."""
    state.mkdir(parents=True, exist_ok=True)
    path = state / "lock"
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text().strip() or "another command"
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
