"""The lab in use: its description, its provider and its stack, and what the commands do to it."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab import packages, processes, providers, stacks
from lab.description import Choices, Lab, load
from lab.errors import LabError
from lab.providers.base import Host, Provider
from lab.ssh import Remote
from lab.stacks.base import InstanceStatus, Stack
from lab.steps import Steps


@dataclass
class Running:
    """A lab with the provider and the stack that were chosen for it."""

    lab: Lab
    choices: Choices
    provider: Provider
    stack: Stack
    _remotes: dict[str, Remote] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        root: Path,
        number: int | None = None,
        provider: str | None = None,
        stack: str | None = None,
    ) -> Running:
        """The lab of the repository *root*, with what the command line chose now and earlier.

        :raises LabError: when lab.yaml is wrong, or what was chosen is not there yet.
        """
        choices = Choices.of(root / ".lab").updated(number, provider, stack)
        lab = load(root, choices)
        return cls(lab, choices, providers.provider(lab), stacks.stack(lab.stack))

    @property
    def debian_packages(self) -> tuple[str, ...]:
        """What this machine needs of Debian for the lab."""
        return (*self.provider.debian_packages, *self.stack.debian_packages, "tmux")

    def connect(self, host: Host) -> Remote:
        """The connection to *host*; one for all who ask."""
        if host.name not in self._remotes:
            self._remotes[host.name] = Remote(self.provider.ssh_config, host.name)
        return self._remotes[host.name]

    def hosts_up(self) -> list[Host]:
        """The hosts that ssh reaches."""
        return [host for host in self.provider.hosts() if self.provider.is_up(host.name)]

    def require_up(self, name: str) -> None:
        """Nothing, where the instance *name* is within reach.

        :raises LabError: where it is unknown or down.
        """
        self.lab.instance(name)
        if not any(host.name == name for host in self.hosts_up()):
            raise LabError(f"{name} is down: ./setup-env.py up {name}")

    def up(self, names: Sequence[str] = ()) -> None:
        """Bring *names* (default: all instances) up, from any state.

        :raises LabError: naming what cannot be brought up.
        """
        chosen = _chosen(self.lab, names)
        needed = (*self.provider.debian_packages, *self.stack.debian_packages, "tmux")
        packages.check(needed)
        with locked(self.lab.state, "up"), Steps(self.lab.state / "log") as steps:
            self.choices.keep(self.lab.state)
            _, why = providers.choose(self.lab.provider)
            steps.say(f"provider {self.provider.name} ({why}), stack {self.stack.name}")
            packages.ensure(needed, steps.say, self.lab.state / "log")
            self._stop_surplus()
            hosts = self.provider.up(chosen, steps)
            self.stack.up(self.lab, hosts, self.connect, steps)
            _write_secret(
                self.lab.state / "clouds.yaml", yaml.safe_dump(self.stack.clouds(self.lab))
            )
            self.show()

    def show(self) -> None:
        """Have the tmux session show what is up.

        :raises LabError: when tmux refuses.
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
            hosts = [host for host in self.hosts_up() if host.name in chosen]
            if hosts:
                with steps.step(None, f"halt {self.stack.name}"):
                    self.stack.halt(self.lab, hosts, self.connect)
            with steps.step(None, "halt hosts"):
                self.provider.halt(chosen)

    def status(self) -> dict[str, Any]:
        """All that ``status`` shows, as plain data.

        :raises LabError: when an instance that is up cannot be asked.
        """
        hosts = {host.name: host for host in self.hosts_up()}
        instances = []
        for one in self.lab.instances:
            seen = InstanceStatus(one.name, str(one.address))
            if one.name in hosts:
                seen = self.stack.status(self.lab, hosts[one.name], self.connect)
            instances.append({**asdict(seen), "up": one.name in hosts})
        return {
            "provider": self.provider.name,
            "stack": self.stack.name,
            "instances": instances,
        }

    def logs(self, name: str) -> dict[str, Path]:
        """The log files of the instance *name*, which is up.

        :raises LabError: when it cannot be asked.
        """
        host = next(host for host in self.hosts_up() if host.name == name)
        return self.stack.logs(self.lab, host, self.connect)

    def _stop_surplus(self) -> None:
        """Stop instances that the lab had and, after another ``-n``, has no more."""
        for login in self.lab.state.glob("*/login"):
            if login.parent.name not in self.lab.names:
                processes.stop(processes.marked(self.lab.state, login.parent.name))


def destroy(root: Path) -> None:
    """Remove the lab of the repository *root*, from any state, even with a broken lab.yaml.

    :raises LabError: when something of it cannot be removed.
    """
    from lab import tmux  # noqa: PLC0415

    state = root.absolute() / ".lab"
    if state.exists():
        with locked(state, "destroy"):
            try:
                running = Running.of(root)
                hosts = running.hosts_up()
                running.stack.destroy(running.lab, hosts, running.connect)
                running.provider.destroy()
            except LabError as error:
                print(f"note: {error}; removing by force", file=sys.stderr)
            processes.stop_all(state)
            _remove(state)
    tmux.remove()


@contextmanager
def locked(state: Path, purpose: str) -> Iterator[None]:
    """Keep every other command that changes the lab waiting while inside."""
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
        # A `destroy` that we waited for has removed the file that we hold.
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


def _write_secret(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def _remove(state: Path) -> None:
    try:
        shutil.rmtree(state)
    except OSError as error:
        raise LabError(f"{error.filename} cannot be removed: {error.strerror}") from error
