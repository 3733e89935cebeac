"""The programs of an instance, as supervisor runs them."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab import logs
from lab.wheels import launch
from lab.wheels.layout import CONSOLE_PORT, DATABASE_PORT, MESSAGING_PORT, Layout
from lab.wheels.netns import SBIN
from lab.wheels.services import Service
from lab.wheels.spec import HTTPS_PORT, PROXY_PORT, TLS_PORT
from openstackoid.proxy.config import ENVIRONMENT


@dataclass(frozen=True)
class Program:
    """One program: its name under supervisor, its command and environment.

    ``files`` are the configuration files (below the instance's ``etc``) that it reads at its
    start: it restarts when they change. ``patience`` is how many seconds it has to end; nova waits
    ten for threads that sleep. ``listens`` are the addresses and ports that it has for itself.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    patience: int = 15
    listens: tuple[tuple[str, int], ...] = ()

    @property
    def command_line(self) -> str:
        """The command as supervisor's configuration wants it: quoted, percent signs doubled."""
        return shlex.join(self.command).replace("%", "%%")


def fork_servers(layout: Layout) -> Path:
    """Where the fork servers of this host have their sockets: they are of one installation."""
    return layout.prefix / "forkservers"


def _mariadb(layout: Layout) -> Program:
    command = (
        executable("mariadbd"),
        f"--defaults-file={layout.etc / 'mariadb.cnf'}",
    )
    listens = ((layout.spec.address, DATABASE_PORT),)
    return Program("mariadb", command, files=("mariadb.cnf", "accounts.sql"), listens=listens)


def _epmd(layout: Layout) -> Program:
    command = ("epmd", "-port", str(layout.epmd_port), "-address", layout.spec.address)
    # On 127.0.0.1 it listens in any case.
    listens = tuple((address, layout.epmd_port) for address in (layout.spec.address, "127.0.0.1"))
    return Program("epmd", command, listens=listens)


def _rabbitmq(layout: Layout) -> Program:
    etc, data = layout.etc / "rabbitmq", layout.data / "rabbitmq"
    interface = layout.spec.address.replace(".", ",")
    environment = {
        "HOME": str(data),
        "RABBITMQ_CONF_ENV_FILE": str(etc / "rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(etc / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(etc / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
        "RABBITMQ_LOG_BASE": str(layout.log),
        "RABBITMQ_NODENAME": "rabbit@localhost",
        "RABBITMQ_DIST_PORT": str(layout.erlang_port),
        "ERL_EPMD_PORT": str(layout.epmd_port),
        "ERL_EPMD_ADDRESS": layout.spec.address,
        # One scheduler that sleeps when idle: a lab has many brokers and few cores.
        "ERL_AFLAGS": f"-kernel inet_dist_use_interface {{{interface}}} +S 1:1 +sbwt none",
        # The script becomes Erlang. Otherwise Erlang lives on when the script is killed.
        "RUNNING_UNDER_SYSTEMD": "true",
    }
    # Not the wrapper in PATH: it insists on the user rabbitmq.
    server = "/usr/lib/rabbitmq/bin/rabbitmq-server"
    return Program(
        "rabbitmq",
        (server,),
        environment,
        files=("rabbitmq/rabbitmq.conf",),
        listens=tuple((layout.spec.address, port) for port in (MESSAGING_PORT, layout.erlang_port)),
    )


def _haproxy(layout: Layout) -> Program:
    configuration = str(layout.etc / "proxy" / "haproxy.cfg")
    command: tuple[str, ...] = (executable("haproxy"), "-W", "-db", "-f", configuration)
    ports = [PROXY_PORT]
    if layout.spec.tls:
        ports.append(TLS_PORT)
    if layout.spec.https:
        ports.append(HTTPS_PORT)
    if layout.has_ports:
        ports += [service.port for service in layout.services]
    if layout.spec.has_guests:
        command += ("-f", str(layout.etc / "namespace.cfg"))
        ports.append(CONSOLE_PORT)
    listens = tuple((layout.spec.address, port) for port in ports)
    return Program("haproxy", command, ENVIRONMENT, listens=listens)


def _for_guests(layout: Layout) -> Iterator[Program]:
    """What guests need that are real: Open vSwitch and OVN, and an end to their logs."""
    if layout.spec.has_guests:
        for name, command in layout.ovn.programs.items():
            yield Program(name, command, layout.ovn.environment)
        consoles = layout.data / "nova" / "instances" / "*" / "console.log"
        own = layout.data / "libvirt" / "log" / "qemu" / "*.log"
        yield Program("guest-logs", tuple(logs.trimmer(str(consoles), str(own))))


def _launched(layout: Layout, service: Service, name: str, entry: str, *argv: str) -> Program:
    """The program *name* of *service*: a fork that calls *entry* with *argv*."""
    launcher = (sys.executable, "-I", "-S", str(Path(launch.__file__)))
    return Program(
        name,
        (*launcher, service.fork_server, str(fork_servers(layout)), entry, name, *argv),
        layout.environment(service),
        files=service.configuration,
        patience=3,
    )


def _service(layout: Layout, service: Service) -> Iterator[Program]:
    """The programs of *service*: its API, then its workers."""
    argv = (service.name, layout.root(service), *map(layout.fill, service.arguments))
    api = _launched(layout, service, service.program, "lab.wheels.wsgi:serve", *argv)
    yield replace(api, listens=((layout.spec.address, layout.port(service)),))
    for worker in service.workers:
        configuration = worker.configuration or service.configuration[0]
        argv = ("--config-file", str(layout.etc / configuration))
        program = _launched(layout, service, worker.name, worker.entry, *argv)
        own = {name: layout.fill(text) for name, text in worker.environment.items()}
        environment = {**program.environment, **own}
        yield replace(program, environment=environment)


def programs(layout: Layout) -> tuple[Program, ...]:
    """All programs of the instance, in the order in which they start."""
    return (
        _mariadb(layout),
        _epmd(layout),
        _rabbitmq(layout),
        _haproxy(layout),
        *_for_guests(layout),
        *(program for service in layout.services for program in _service(layout, service)),
    )


def executable(name: str) -> str:
    """The path of a server that Debian keeps in ``/usr/sbin``."""
    return shutil.which(name, path=SBIN) or name
