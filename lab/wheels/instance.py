"""Bring one instance to "all up" from any state, and down again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import amqp
import pymysql

from lab import files, guest, image, ports
from lab.image import ImageFile
from lab.supervision import Supervisor
from lab.wheels import catalog, configure, database, guests, launch, netns
from lab.wheels.forkserver import retire
from lab.wheels.layout import DATABASE_PORT, MESSAGING_PORT, Layout
from lab.wheels.links import Links
from lab.wheels.programs import Program, fork_servers, programs
from lab.wheels.services import BACKING, Command, Service
from lab.wheels.spec import PROXY_PORT
from openstackoid.proxy.config import ProxyError, peer_states, reload, write

#: Seconds in which all programs have to run and go on running, once they have answered.
_SETTLING = 60
#: Seconds in which a port becomes free when what had it was stopped, or ours counts as settled.
_CLOSING = 4

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
        self.links = Links(layout)
        self._step = step
        self._note = note
        self._servers = str(fork_servers(layout))
        self._backing = BACKING[layout.spec.hypervisor]
        self._pool = ThreadPoolExecutor(3)
        self._image_file: Future[ImageFile] | None = None
        self._learning: Future[None] | None = None

    def up(self) -> None:
        """Bring it up; what runs already stays as it is.

        :raises InstanceError: naming the program that does not come up, or who has its port.
        """
        with self._alone():
            self.supervisor.thaw()
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
            self.supervisor.thaw()
            self.supervisor.stop_all(self._services())
            # Guests end once nova-compute has, which would take that for a fault.
            ending = (
                self._pool.submit(guests.stop, self.layout) if self.layout.spec.has_guests else None
            )
            self.supervisor.stop_all(self._backing)
            self.supervisor.shutdown()
            self.supervisor.stop_leftovers()
            if ending:
                ending.result()
            retire(Path(self._servers))

    def peers(self) -> dict[str, str]:
        """The proxy's view of each peer; empty when it does not run."""
        try:
            return peer_states(configure.proxy(self.layout).socket)
        except ProxyError:
            return {}

    def trace(self, *, on: bool) -> None:
        """Have the proxy note what a trace needs, until the next `up` at the latest.

        :raises ProxyError: when the proxy does not run.
        """
        with self._alone():
            proxy = replace(configure.proxy(self.layout), traces=on)
            with self.links.kept():
                if write(proxy):
                    reload(self.supervisor.pid("haproxy"), proxy.socket)

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
        if self.layout.spec.has_guests:
            self._prepare_guests(complete=complete)
        # Start what others wait for first.
        kinds = [service.fork_server for service in self.layout.services]
        launch.spawn(self._servers, *kinds, *(() if complete else ("client",)))
        running = self.supervisor.states().get("haproxy") == "RUNNING"
        changed = configure.configure(self.layout)
        self.supervisor.start(
            {
                name: value
                for name, value in os.environ.items()
                if not name.startswith("OS_") and name != "PYTHONDONTWRITEBYTECODE"
            }
        )
        if self.layout.spec.has_guests:
            # Without its configuration, ovn-controller would crash.
            self.supervisor.ensure(("ovsdb-server",))
            self.layout.ovn.configure()
        # The database has no data yet.
        self.supervisor.ensure([name for name in self._backing if name != "mariadb"])
        database.prepare(self.layout)
        self.supervisor.ensure(("mariadb",))
        if changed and running:
            reload(self.supervisor.pid("haproxy"), configure.proxy(self.layout).socket)
        self._wait("mariadb", self._connects(DATABASE_PORT))
        self._wait("haproxy", self._connects(PROXY_PORT))
        self.links.heal()

    def _prepare_guests(self, *, complete: bool) -> None:
        """Make what guests and their network need."""
        if self.layout.namespace.create():
            # They would hold on to the earlier one, and to its way to the host.
            inside = ("nova-compute", "nova-serialproxy", "ovn-controller", "ovs-vswitchd")
            for name in (*inside, "haproxy"):
                self.supervisor.stop_program(name)
        if chain := netns.dropping_chain():
            self._note(
                f"guests do not reach other instances or the outside: the firewall's chain {chain} "
                f"drops what it does not accept. Have it accept {self.layout.namespace.device}"
            )
        self.layout.ovn.prepare()
        guests.prepare(self.layout)
        # They take seconds, and nobody needs them yet.
        if not complete:
            self._image_file = self._pool.submit(self._image)
        self._accelerator = self._pool.submit(guests.accelerator, self.layout.shared)
        if not self.supervisor.running():
            self._learning = self._pool.submit(guests.learn, self.layout)

    def _configure_guests(self, *, complete: bool) -> None:
        """Tell nova-compute what runs guests, and the user when that is new."""
        if self._learning:
            self._learning.result()
        name, why = self._accelerator.result()
        configure.configure_guests(self.layout, name)
        if not complete:
            self._note(f"{'KVM runs guests' if name == 'kvm' else 'guests are emulated'}: {why}")

    def _image(self) -> ImageFile:
        """The image that the instance offers.

        :raises InstanceError: when ``image.url`` is no image.
        """
        layout, url = self.layout, self.layout.spec.image["url"]
        if not self.layout.spec.has_guests:
            return image.obtain(url, layout.shared, self._note)
        if url:
            try:
                return self._checked(image.fetch(url, layout.shared), url)
            except image.ImageError as error:
                self._note(f"{error}; the lab's own image takes its place")
        try:
            return guest.image_of(layout.spec.name, layout.shared, layout.data / "image")
        except guest.GuestError as error:
            self._note(f"{error}; the image is a placeholder")
            return image.placeholder(layout.shared)

    def _checked(self, path: Path, url: str) -> ImageFile:
        """The image at *path*, which came from *url*.

        :raises InstanceError: when no guest can boot from it.
        """
        try:
            image.require_disk(path)
        except image.ImageError as error:
            raise InstanceError(
                f"{url} (image.url in lab.yaml): {error}; write the URL of a raw or qcow2 image"
            ) from error
        return ImageFile(str(path))

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
        return [name for name in self.layout.program_names if name not in self._backing]

    def _migrate(self) -> None:
        for name in self._services():
            self.supervisor.stop_program(name)
        database.migrate(self.layout)

    def _start_services(self, complete: bool) -> None:
        if not complete:
            for service in self.layout.services:
                self._manage(service, service.bootstrap)
        self._write_catalog()
        if self.layout.spec.has_guests:
            self._configure_guests(complete=complete)
        waiting = [
            worker for service in self.layout.services for worker in service.workers if worker.after
        ]
        late = {worker.name for worker in waiting}
        if not complete:
            # The others log in to keystone when they start.
            self.supervisor.ensure(("keystone",))
            self._wait_for("keystone")
            self._client("accounts")
        self.supervisor.ensure([name for name in self.layout.program_names if name not in late])
        self._wait_for("keystone")
        self._wait("rabbitmq", self._connects(MESSAGING_PORT))
        for worker in waiting:
            for name in worker.after:
                self._wait_for(name)
            self.supervisor.ensure((worker.name,))
        for service in self.layout.services:
            for name in service.programs:
                self._wait_for(name)

    def _write_catalog(self) -> None:
        """Make keystone's catalog what it shall be, unless it is.

        At first that happens before keystone starts: it takes no request then.
        """
        written = self.layout.data / "catalog"
        wanted = catalog.digest(self.layout)
        if written.exists() and written.read_text() == wanted:
            return
        runs = self.supervisor.states().get("keystone") in {"RUNNING", "STARTING"}
        if runs:
            self._wait_for("keystone")
        keystone = self.layout.service("identity")
        environment = {"SPEC": self.layout.spec.to_json(), "KEYSTONE_RUNS": str(int(runs))}
        self._run(keystone.fork_server, "lab.wheels.catalog:main", ("catalog",), environment)
        files.write(written, wanted)

    def _wait_for(self, program: str) -> None:
        """Wait until the program *program* of a service is ready."""
        for service in self.layout.services:
            if service.program == program:
                self._wait(program, self._answers(service))
            for worker in service.workers:
                if worker.name == program and worker.queue:
                    self._wait(program, self._consumes(self.layout.fill(worker.queue)))
                if worker.name == program and worker.counts:
                    self._wait(program, self._counts(worker.database, worker.counts))

    def _fill(self) -> None:
        file = self._image_file.result() if self._image_file else self._image()
        if self.layout.spec.has_guests:
            self.layout.ovn.wait()
        self._client("resources", {"IMAGE": file.to_json()})
        (self.layout.data / "image").unlink(missing_ok=True)
        for service in self.layout.services:
            self._manage(service, service.finish)

    def _manage(self, service: Service, commands: Iterable[Command]) -> None:
        """Run *commands* of *service*, one after another."""
        configuration = self.layout.etc / service.configuration[0]
        for command in commands:
            if command.unless and any((self.layout.etc / command.unless).iterdir()):
                continue
            fill = self.layout.fill
            self._run(
                service.fork_server,
                command.entry,
                (command.name, *map(fill, command.arguments)),
                {
                    **self.layout.environment(service),
                    **{name: fill(text) for name, text in command.environment.items()},
                },
                ("--config-file", str(configuration)),
            )

    def _client(self, phase: str, environment: Mapping[str, str] | None = None) -> None:
        whole = {"SPEC": self.layout.spec.to_json(), **(environment or {})}
        self._run("client", "lab.wheels.client:main", ("resources", phase), whole)

    def _run(
        self,
        kind: str,
        entry: str,
        argv: tuple[str, ...],
        environment: Mapping[str, str],
        options: tuple[str, ...] = (),
    ) -> None:
        """Run a command, with *options* before its arguments, in a fork of the server for *kind*.

        :raises InstanceError: when it fails.
        """
        path = self.layout.log / f"{argv[0]}.log"
        with path.open("ab") as log, Path(os.devnull).open("rb") as null:
            streams = (null.fileno(), log.fileno(), log.fileno())
            whole = {**os.environ, **environment}
            process = launch.launch(
                kind, self._servers, entry, [argv[0], *options, *argv[1:]], whole, streams=streams
            )
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
        deadline = time.monotonic() + launch.PATIENCE
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

    def _answers(self, service: Service) -> Callable[[], bool]:
        url = f"{self.layout.root(service)}/"

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

    def _counts(self, database_: str, query: str) -> Callable[[], bool]:
        """Whether *query* counts something in the database *database_*."""

        def counts() -> bool:
            with self._database(database_) as connection, connection.cursor() as cursor:
                cursor.execute(query)
                return bool(cursor.fetchone()[0])

        return counts

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
