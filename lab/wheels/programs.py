"""The programs of an instance, as supervisor runs them."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab.wheels import launch
from lab.wheels.layout import DATABASE_PORT, MESSAGING_PORT, PROXY_PORT, Layout

#: Where servers are that a user's PATH may not have.
SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"


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


def service_environment(layout: Layout) -> dict[str, str]:
    """How the services find their configuration: the variables that their WSGI modules read."""
    return {
        "OS_KEYSTONE_CONFIG_FILES": str(layout.etc / "keystone" / "keystone.conf"),
        "OS_GLANCE_CONFIG_DIR": str(layout.etc / "glance"),
        "OS_NOVA_CONFIG_DIR": str(layout.etc / "nova"),
        "OS_PLACEMENT_CONFIG_DIR": str(layout.etc / "placement"),
        "OS_NEUTRON_CONFIG_DIR": str(layout.etc / "neutron"),
        "OS_NEUTRON_CONFIG_FILES": "neutron.conf;ml2_conf.ini",
        "OS_NOVA_DISABLE_EVENTLET_PATCHING": "1",
    }


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
    command = (executable("haproxy"), "-W", "-db", "-f", configuration)
    return Program("haproxy", command, listens=((layout.spec.address, PROXY_PORT),))


def _service(layout: Layout, kind: str, name: str, entry: str, *argv: str) -> Program:
    command = (
        sys.executable,
        "-I",
        "-S",
        str(Path(launch.__file__)),
        kind,
        str(fork_servers(layout)),
        entry,
        name,
        *argv,
    )
    files = {
        "keystone": ("keystone/keystone.conf",),
        "glance": ("glance/glance-api.conf",),
        "nova": ("nova/nova.conf",),
        "placement": ("placement/placement.conf",),
        "neutron": ("neutron/neutron.conf", "neutron/ml2_conf.ini"),
    }[kind]
    return Program(name, command, service_environment(layout), files, patience=3)


def _api(layout: Layout, kind: str, name: str, module: str, service_type: str) -> Program:
    api = layout.api(service_type)
    argv = (module, api.prefix, layout.spec.address, str(api.port))
    service = _service(layout, kind, name, "lab.wheels.wsgi:serve", *argv)
    return replace(service, listens=((layout.spec.address, api.port),))


def _nova(layout: Layout, name: str) -> Program:
    entry = f"nova.cmd.{name}:main"
    configuration = str(layout.etc / "nova" / "nova.conf")
    return _service(layout, "nova", f"nova-{name}", entry, "--config-file", configuration)


def programs(layout: Layout) -> tuple[Program, ...]:
    """All programs of the instance, in the order in which they start."""
    return (
        _mariadb(layout),
        _epmd(layout),
        _rabbitmq(layout),
        _haproxy(layout),
        _api(layout, "keystone", "keystone", "keystone.wsgi.api", "identity"),
        _api(layout, "placement", "placement", "placement.wsgi.api", "placement"),
        _nova(layout, "conductor"),
        _api(layout, "glance", "glance-api", "glance.wsgi.api", "image"),
        _api(layout, "neutron", "neutron-api", "neutron.wsgi.api", "network"),
        _api(layout, "nova", "nova-api", "nova.wsgi.osapi_compute", "compute"),
        _nova(layout, "scheduler"),
        _nova(layout, "compute"),
    )


def executable(name: str) -> str:
    """The path of a server that Debian keeps in ``/usr/sbin``."""
    return shutil.which(name, path=SBIN) or name
