"""Bring one instance to "all up" from any state, and down again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import amqp
import pymysql

from lab import files, image, ports
from lab.supervision import Supervisor
from lab.wheels import configure, database, launch
from lab.wheels.forkserver import KINDS, retire
from lab.wheels.layout import APIS, DATABASE_PORT, MESSAGING_PORT, PROXY_PORT, Layout
from lab.wheels.programs import Program, fork_servers, programs, service_environment
from openstackoid.proxy.config import ProxyError, peer_states, reload

#: Seconds that a service may take from its start to its first answer, on a slow machine.
PATIENCE = 180
#: Seconds in which all programs have to run and go on running, once they have answered.
_SETTLING = 60
#: Seconds in which a port becomes free when what had it was stopped, or ours counts as settled.
_CLOSING = 4

_BACKING = ("epmd", "rabbitmq", "haproxy")
_LAST = "nova-compute"

Step = Callable[[str], AbstractContextManager[None]]


class InstanceError(Exception):
    """Something of the instance does not come up; its text names it and its log."""


class Instance:
    """The instance at *layout*.

    *step* wraps each named step of its coming up; *note* takes a line that the user should read.
    """

    def __init__(self, layout: Layout, step: Step, note: Callable[[str], None]) -> None:
        self.layout = layout
        self.supervisor = Supervisor(
            layout.supervisor_socket,
            layout.etc / "supervisord.conf",
            layout.log / "supervisord.out",
        )
        self._step = step
        self._note = note
        self._servers = str(fork_servers(layout))

    def up(self) -> None:
        """Bring it up; what runs already stays as it is.

        :raises InstanceError: naming the program that does not come up, or who has its port.
        """
        with self._alone():
            self._up()

    def _up(self) -> None:
        ready = self.layout.data / "ready"
        resources = self.layout.spec.resources
        complete = ready.exists() and ready.read_text() == resources
        with self._step("database, message queue and proxy"):
            self._start_backing(complete)
        if not database.is_current(self.layout):
            with self._step("databases' schema"):
                self._migrate()
        with self._step("OpenStack services"):
            self._start_services(complete)
        if not complete:
            with self._step("accounts, flavors, networks and image"):
                self._fill()
                files.write(ready, resources)
        self._settle()

    def halt(self) -> None:
        """Stop everything in order; what is stopped already is no error."""
        with self._alone():
            self.supervisor.stop(self._services())
            self.supervisor.stop_leftovers()
            retire(Path(self._servers))

    def peers(self) -> dict[str, str]:
        """The proxy's view of each peer; empty when it does not run."""
        try:
            return peer_states(configure.proxy(self.layout).socket)
        except ProxyError:
            return {}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until nobody else changes the instance: an `up` that lost its caller goes on."""
        self.layout.run.mkdir(parents=True, exist_ok=True)
        with (self.layout.run / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _start_backing(self, complete: bool) -> None:
        self.supervisor.stop_leftovers()
        self._check_ports()
        Path(self._servers).mkdir(parents=True, exist_ok=True)
        # Start what others wait for first.
        launch.spawn(self._servers, *(kind for kind in KINDS if kind != "client" or not complete))
        running = self.supervisor.states().get("haproxy") == "RUNNING"
        changed = configure.configure(self.layout)
        self.supervisor.start(
            {
                name: value
                for name, value in os.environ.items()
                if not name.startswith("OS_") and name != "PYTHONDONTWRITEBYTECODE"
            }
        )
        self.supervisor.ensure(_BACKING)
        database.prepare(self.layout)
        self.supervisor.ensure(("mariadb",))
        if changed and running:
            reload(self.supervisor.pid("haproxy"), configure.proxy(self.layout).socket)
        self._wait("mariadb", self._connects(DATABASE_PORT))
        self._wait("haproxy", self._connects(PROXY_PORT))

    def _check_ports(self) -> None:
        """Make sure that the programs that do not run yet will have their ports.

        :raises InstanceError: naming each port that another program has.
        """
        deadline = time.monotonic() + _CLOSING
        while taken := self._taken():
            if time.monotonic() > deadline:
                raise InstanceError(
                    f"{', '.join(taken)}: stop that, or change the address in lab.yaml"
                )
            time.sleep(0.1)

    def _taken(self) -> list[str]:
        """Each port of ours that is taken; a program of ours that has settled has its own."""
        return [
            f"{address}:{port} is taken by {who}"
            for program in self._unsettled()
            for address, port in program.listens
            if (who := ports.taker(address, port))
        ]

    def _unsettled(self) -> list[Program]:
        settled = self.supervisor.settled()
        return [program for program in programs(self.layout) if program.name not in settled]

    def _services(self) -> list[str]:
        """The programs of OpenStack: they end before what they need."""
        backing = {"mariadb", *_BACKING}
        return [program.name for program in programs(self.layout) if program.name not in backing]

    def _migrate(self) -> None:
        for name in self._services():
            self.supervisor.stop_program(name)
        database.migrate(self.layout)

    def _start_services(self, complete: bool) -> None:
        names = [program.name for program in programs(self.layout)]
        names.remove(_LAST)
        if not complete:
            self._bootstrap()
        self.supervisor.ensure(names)
        self._wait("keystone", self._answers("identity"))
        if not complete:
            self._client("accounts")
        self._wait("placement", self._answers("placement"))
        self._wait("rabbitmq", self._connects(MESSAGING_PORT))
        # A call to a conductor that does not listen yet is lost, and repeated after 10 s.
        self._wait("nova-conductor", self._consumes("conductor"))
        self.supervisor.ensure((_LAST,))
        for api in APIS:
            program = next(
                name for name in names if name.removesuffix("-api") == _PROGRAMS[api.type]
            )
            self._wait(program, self._answers(api.type))
        self._wait("nova-scheduler", self._consumes("scheduler"))
        self._wait("nova-compute", self._consumes(f"compute.{self.layout.spec.name}"))
        self._wait("nova-compute", self._compute_counts_as_up)

    def _fill(self) -> None:
        file = image.obtain(self.layout.spec.image["url"], self.layout.shared, self._note)
        self._client("resources", {"IMAGE": str(file)})
        self._run("nova", "nova.cmd.manage:main", "nova-manage", "cell_v2", "discover_hosts")

    def _bootstrap(self) -> None:
        """Keys, and the first account and endpoint, by keystone's own commands."""
        entry, name = "keystone.cmd.manage:main", "keystone-manage"
        spec, etc = self.layout.spec, self.layout.etc / "keystone"
        owner = (f"--keystone-user={os.getuid()}", f"--keystone-group={os.getgid()}")
        if not any((etc / "fernet-keys").iterdir()):
            self._run("keystone", entry, name, "fernet_setup", *owner)
        if not any((etc / "credential-keys").iterdir()):
            self._run("keystone", entry, name, "credential_setup", *owner)
        self._run(
            "keystone",
            entry,
            name,
            "bootstrap",
            f"--bootstrap-region-id={spec.name}",
            f"--bootstrap-public-url={self.layout.endpoint('identity')}",
            environment={"OS_BOOTSTRAP_PASSWORD": spec.passwords["admin"]},
        )

    def _client(self, phase: str, environment: Mapping[str, str] | None = None) -> None:
        whole = {"SPEC": self.layout.spec.to_json(), **(environment or {})}
        entry = "lab.wheels.resources:main"
        self._run("client", entry, "resources", phase, environment=whole)

    def _run(
        self,
        kind: str,
        entry: str,
        *argv: str,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Run a command of OpenStack in a fork.

        :raises InstanceError: when it fails.
        """
        configuration = {
            "keystone": ["--config-file", str(self.layout.etc / "keystone" / "keystone.conf")],
            "nova": ["--config-file", str(self.layout.etc / "nova" / "nova.conf")],
        }.get(kind, [])
        arguments = [argv[0], *configuration, *argv[1:]]
        whole = {**os.environ, **service_environment(self.layout), **(environment or {})}
        path = self.layout.log / f"{argv[0]}.log"
        with path.open("ab") as log, Path(os.devnull).open("rb") as null:
            streams = (null.fileno(), log.fileno(), log.fileno())
            process = launch.launch(kind, self._servers, entry, arguments, whole, streams=streams)
            status = process.wait()
        if status:
            command = " ".join(argv[:2])
            raise InstanceError(f"{command} failed with status {status} (log: {path})")

    def _settle(self) -> None:
        """Wait until every program runs and goes on running.

        :raises InstanceError: naming one that does not.
        """
        deadline = time.monotonic() + _SETTLING
        while late := self._unsettled():
            name = late[0].name
            self._give_up(name, self.supervisor.states().get(name), deadline)
            time.sleep(0.1)

    def _wait(self, program: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self._give_up(program, self.supervisor.states().get(program), deadline)
            time.sleep(0.1)

    def _give_up(self, program: str, state: str | None, deadline: float) -> None:
        """Go on waiting for *program*, unless that is in vain.

        :raises InstanceError: naming it and its log.
        """
        if state not in {"FATAL", None} and time.monotonic() < deadline:
            return
        log = self.layout.log / f"{program}.log"
        raise InstanceError(
            f"{program} does not come up ({state or 'supervisord has ended'}; log: {log})"
        )

    def _connects(self, port: int) -> Callable[[], bool]:
        import socket  # noqa: PLC0415

        def connects() -> bool:
            with contextlib.suppress(OSError):
                socket.create_connection((self.layout.spec.address, port), 1).close()
                return True
            return False

        return connects

    def _answers(self, service_type: str) -> Callable[[], bool]:
        url = f"{self.layout.url(service_type)}{self.layout.api(service_type).prefix}/"

        def answers() -> bool:
            try:
                urllib.request.urlopen(url, timeout=10).close()  # noqa: S310 - our own service
            except urllib.error.HTTPError as error:
                return error.code < 500  # noqa: PLR2004
            except OSError:
                return False
            return True

        return answers

    def _consumes(self, queue: str) -> Callable[[], bool]:
        """Whether a service listens to its *queue*: then a call to it is not lost."""

        def consumes() -> bool:
            with (
                contextlib.suppress(OSError, amqp.AMQPError),
                amqp.Connection(
                    f"{self.layout.spec.address}:{MESSAGING_PORT}",
                    userid="openstack",
                    password=self.layout.spec.passwords["messaging"],
                ) as connection,
            ):
                declared = connection.channel().queue_declare(queue, passive=True)
                return bool(declared.consumer_count)
            return False

        return consumes

    def _compute_counts_as_up(self) -> bool:
        """Whether the scheduler would choose the compute: it has reported within 50 s.

        (nova's ``service_down_time`` is 60 s.)
        """
        with self._database("nova") as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT COUNT(*) FROM services s JOIN compute_nodes n ON s.host = n.host"
                " WHERE s.`binary` = 'nova-compute' AND s.deleted = 0 AND n.deleted = 0"
                " AND COALESCE(s.last_seen_up, s.created_at) > UTC_TIMESTAMP() - INTERVAL 50 SECOND"
            )
            return bool(cursor.fetchone()[0])

    @contextlib.contextmanager
    def _database(self, name: str) -> Iterator[pymysql.Connection]:
        connection = pymysql.connect(
            host=self.layout.spec.address,
            port=DATABASE_PORT,
            user="openstack",
            password=self.layout.spec.passwords["database"],
            database=name,
        )
        with connection:
            yield connection


_PROGRAMS = {
    "identity": "keystone",
    "image": "glance",
    "compute": "nova",
    "placement": "placement",
    "network": "neutron",
}
