"""The databases: their schema is built once per host and copied for every instance.

A file beside each data directory names the installation that made its schema. When that is another
one, the template is built again, and an instance's data is migrated.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pymysql

from lab.wheels import launch
from lab.wheels.layout import Layout
from lab.wheels.programs import executable, fork_servers
from lab.wheels.services import Command, Service

_SOCKET = "mariadb.sock"
#: Seconds that MariaDB may take to answer.
_PATIENCE = 60


class DatabaseError(Exception):
    """A schema could not be built or migrated; its text names the commands and their logs."""


def prepare(layout: Layout) -> None:
    """Give the instance a data directory, unless it has one.

    :raises DatabaseError: when commands that build the schema fail, naming all of them.
    """
    data = _data(layout)
    if data.exists():
        return
    template = _template(layout)
    fresh = layout.data / f".mariadb.{os.getpid()}"
    for leftover in layout.data.glob(".mariadb.*"):
        shutil.rmtree(leftover)
    subprocess.run(
        ["cp", "--archive", "--reflink=auto", str(template), str(fresh)],
        check=True,
    )
    fresh.replace(data)
    _maker(data).write_text(_installation(layout))


def is_current(layout: Layout) -> bool:
    """Whether the schema of the instance's data is that of the installation."""
    return _made_by(_data(layout)) == _installation(layout)


def migrate(layout: Layout) -> None:
    """Bring the schema in the instance's running database to that of the installation.

    None of its services may run.

    :raises DatabaseError: when commands fail, naming all of them and the way out; the data counts
        as not migrated then.
    """
    maker = _maker(_data(layout))
    # From the first command on, the schema may be half of one installation, half of the other.
    maker.unlink(missing_ok=True)

    def sync(service: Service) -> None:
        configuration = layout.etc / service.configuration[0]
        environment = {**os.environ, **layout.environment(service)}
        log = layout.log / f"migration-{service.name}.log"
        servers, commands = fork_servers(layout), service.sync
        _run(servers, service, commands, configuration, environment=environment, log=log)

    try:
        _side_by_side(layout.services, sync)
    except DatabaseError as error:
        raise DatabaseError(
            f"the data is not of the installed OpenStack's schema, and its migration fails: {error}"
            "; `./setup-env.py up` tries again, `./setup-env.py destroy` gives the data up"
        ) from error
    maker.write_text(_installation(layout))


def _data(layout: Layout) -> Path:
    return layout.data / "mariadb"


def _installation(layout: Layout) -> str:
    """The digest that :mod:`lab.wheels.install` leaves in the virtual environment."""
    return (layout.shared / "venv" / "installed").read_text()


def _maker(data: Path) -> Path:
    """The file with the installation that made the schema in *data*."""
    return data.with_name(f"{data.name}.installed")


def _made_by(data: Path) -> str:
    maker = _maker(data)
    return maker.read_text() if data.exists() and maker.exists() else ""


def _template(layout: Layout) -> Path:
    """The data directory with every schema in it; built by the first who asks."""
    shared, servers = layout.shared, fork_servers(layout)
    template = shared / "database"
    with _lock(shared / "database.lock"):
        if _made_by(template) != _installation(layout):
            _maker(template).unlink(missing_ok=True)
            shutil.rmtree(template, ignore_errors=True)
            building = shared / "database.new"
            _stop_leftover(building)
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            _build(building, servers, layout.services)
            (building / "data").replace(template)
            _maker(template).write_text(_installation(layout))
            shutil.rmtree(building)
    return template


def _stop_leftover(building: Path) -> None:
    """Stop the server of a build that was killed."""
    argument = f"--datadir={building / 'data'}"
    for process in psutil.process_iter(["cmdline"]):
        if argument in (process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait(10)


def _build(building: Path, servers: Path, services: Sequence[Service]) -> None:
    data = building / "data"
    log = building / "mariadb.log"
    install = [
        executable("mariadb-install-db"),
        "--no-defaults",
        f"--user={getpass.getuser()}",
        f"--datadir={data}",
        # Root comes in through the socket of its own account only, and there are no others.
        "--auth-root-authentication-method=socket",
        f"--auth-root-socket-user={getpass.getuser()}",
        "--skip-test-db",
        "--skip-name-resolve",
        "--innodb-log-file-size=16M",
    ]
    with log.open("wb") as stream:
        if subprocess.run(install, stdout=stream, stderr=stream, check=False).returncode:
            raise DatabaseError(f"mariadb-install-db failed (log: {log})")
        with _server(data, stream.fileno(), services):
            _side_by_side(services, lambda service: _build_schema(building, servers, service))


def _side_by_side(services: Sequence[Service], sync: Callable[[Service], None]) -> None:
    """Call *sync* for each of *services*.

    :raises DatabaseError: when some fail, with the words of all of them.
    """
    with ThreadPoolExecutor(len(services)) as pool:
        jobs = {service.name: pool.submit(sync, service) for service in services}
    failed = {name: error for name, job in jobs.items() if (error := job.exception())}
    if failed:
        texts = (
            str(error) if isinstance(error, DatabaseError) else f"{name}: {error!r}"
            for name, error in failed.items()
        )
        raise DatabaseError("; ".join(texts)) from next(iter(failed.values()))


@contextlib.contextmanager
def _server(data: Path, log: int, services: Sequence[Service]) -> Iterator[None]:
    """A MariaDB for the time of the build, on a socket below *building* and nowhere else."""
    process = subprocess.Popen(
        [
            executable("mariadbd"),
            "--no-defaults",
            f"--user={getpass.getuser()}",
            f"--datadir={data}",
            "--skip-networking",
            # Relative to the data directory: an absolute path may be too long for a socket.
            f"--socket={_SOCKET}",
            "--pid-file=mariadb.pid",
            "--skip-log-bin",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-doublewrite=OFF",
            "--innodb-log-file-size=16M",
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        _create_databases(process, data, services)
        yield
    finally:
        process.terminate()
        process.wait()


def _create_databases(
    server: subprocess.Popen[bytes], data: Path, services: Sequence[Service]
) -> None:
    deadline = time.monotonic() + _PATIENCE
    with _directory(data) as directory:
        while True:
            try:
                connection = pymysql.connect(
                    unix_socket=f"{directory}/{_SOCKET}", user=getpass.getuser()
                )
                break
            except pymysql.err.OperationalError as error:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise DatabaseError(f"MariaDB did not start: {error}") from error
                time.sleep(0.05)
    with connection, connection.cursor() as cursor:
        for database in (database for service in services for database in service.databases):
            cursor.execute(f"CREATE DATABASE {database.name} CHARACTER SET utf8mb3")


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[str]:
    """A short name for *path*: the address of a Unix socket has 108 bytes at the most."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _build_schema(building: Path, servers: Path, service: Service) -> None:
    """Run the commands of *service* on the new database below *building*."""
    configuration = building / f"{service.name}.conf"
    configuration.write_text(
        # Nova wants a well-formed URL of a message queue; none is called.
        "[DEFAULT]\nuse_stderr = true\ntransport_url = rabbit://nobody:none@localhost:5672/\n"
        + "".join(
            f"[{database.section}]\nconnection = {_url(database.name)}\n"
            for database in service.databases
            if database.section
        )
    )
    environment = {
        **os.environ,
        # Where the process works: the socket in the URL is relative to it.
        "HOME": str(building / "data"),
        **service.switches,
    }
    commands = service.sync + service.first_sync
    log = building / f"{service.name}.log"
    _run(servers, service, commands, configuration, environment=environment, log=log)


def _run(
    servers: Path,
    service: Service,
    commands: Iterable[Command],
    configuration: Path,
    *,
    environment: dict[str, str],
    log: Path,
) -> None:
    """Run *commands* one after another, in forks of the server for *service*.

    :raises DatabaseError: when one fails, naming it and the file *log*.
    """
    with log.open("wb") as output, Path(os.devnull).open("rb") as null:
        streams = (null.fileno(), output.fileno(), output.fileno())
        for command in commands:
            argv = [command.name, "--config-file", str(configuration), *command.arguments]
            failed = f"{' '.join((command.name, *command.arguments[:2]))} failed"
            try:
                process = launch.launch(
                    service.fork_server,
                    str(servers),
                    command.entry,
                    argv,
                    environment,
                    streams=streams,
                )
                status = process.wait()
            except (launch.LaunchError, OSError) as error:
                raise DatabaseError(f"{failed}: {error} (log: {log})") from error
            if status:
                raise DatabaseError(f"{failed}: status {status} (log: {log})")


def _url(name: str) -> str:
    return f"mysql+pymysql://{getpass.getuser()}:@localhost:3306/{name}?unix_socket={_SOCKET}"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
