"""The databases: their schema is built once per host and copied for every instance."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pymysql

from lab.wheels import launch
from lab.wheels.layout import Layout
from lab.wheels.programs import executable, fork_servers

#: The databases of an instance.
DATABASES = ("keystone", "glance", "nova_api", "nova_cell0", "nova", "placement", "neutron")

# Nova keeps the URLs of its cells in a table. In this form it fills in what stands in the nova.conf
# of whoever reads it, so that the table can be copied.
# https://docs.openstack.org/nova/latest/admin/cells.html#template-urls-in-cell-mappings
_CELL = "{scheme}://{username}:{password}@{hostname}:{port}"
_CELL0_DATABASE = f"{_CELL}/nova_cell0?{{query}}"
_CELL1_DATABASE = f"{_CELL}/{{path}}?{{query}}"
_CELL1_TRANSPORT = f"{_CELL}/{{path}}"

#: Per fork server, the commands that build the schema, one after another.
_COMMANDS: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "keystone": (("keystone.cmd.manage:main", "keystone-manage", ("db_sync",)),),
    "glance": (("glance.cmd.manage:main", "glance-manage", ("db", "sync")),),
    "placement": (("placement.cmd.manage:main", "placement-manage", ("db", "sync")),),
    "neutron": (("neutron.db.migration.cli:main", "neutron-db-manage", ("upgrade", "heads")),),
    "nova": (
        ("nova.cmd.manage:main", "nova-manage", ("api_db", "sync")),
        (
            "nova.cmd.manage:main",
            "nova-manage",
            ("cell_v2", "map_cell0", "--database_connection", _CELL0_DATABASE),
        ),
        ("nova.cmd.manage:main", "nova-manage", ("db", "sync")),
        (
            "nova.cmd.manage:main",
            "nova-manage",
            (
                "cell_v2",
                "create_cell",
                "--name=cell1",
                f"--database_connection={_CELL1_DATABASE}",
                f"--transport-url={_CELL1_TRANSPORT}",
            ),
        ),
    ),
}

#: Which section of a service's configuration names which database.
_CONNECTIONS = {
    "keystone": (("database", "keystone"),),
    "glance": (("database", "glance"),),
    "placement": (("placement_database", "placement"),),
    "neutron": (("database", "neutron"),),
    "nova": (("api_database", "nova_api"), ("database", "nova")),
}

_SOCKET = "mariadb.sock"
#: Seconds that MariaDB may take to answer.
_PATIENCE = 60


class DatabaseError(Exception):
    """The schema could not be built; its text names the command and its log."""


def prepare(layout: Layout) -> None:
    """Give the instance a data directory, unless it has one.

    :raises DatabaseError: when a command that builds the schema fails.
    """
    data = layout.data / "mariadb"
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


def _template(layout: Layout) -> Path:
    """The data directory with every schema in it; built by the first who asks."""
    shared, servers = layout.shared, fork_servers(layout)
    template = shared / "database"
    with _lock(shared / "database.lock"):
        if not template.exists():
            building = shared / "database.new"
            _stop_leftover(building)
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            _build(building, servers)
            (building / "data").replace(template)
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


def _build(building: Path, servers: Path) -> None:
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
        with _server(data, stream.fileno()), ThreadPoolExecutor(len(_COMMANDS)) as pool:
            for kind in _COMMANDS:
                pool.submit(_sync, building, servers, kind)
    failed = sorted(building.glob("*.failed"))
    if failed:
        raise DatabaseError(
            "; ".join(f"{path.read_text()} (log: {path.with_suffix('.log')})" for path in failed)
        )


@contextlib.contextmanager
def _server(data: Path, log: int) -> Iterator[None]:
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
        _create_databases(process, data)
        yield
    finally:
        process.terminate()
        process.wait()


def _create_databases(server: subprocess.Popen[bytes], data: Path) -> None:
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
        for name in DATABASES:
            cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb3")


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[str]:
    """A short name for *path*: the address of a Unix socket has 108 bytes at the most."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _sync(building: Path, servers: Path, kind: str) -> None:
    """Run the commands of *kind*; what fails leaves a note for :func:`_build`."""
    configuration = building / f"{kind}.conf"
    sections = _CONNECTIONS[kind]
    configuration.write_text(
        # Nova wants a well-formed URL of a message queue; none is called.
        "[DEFAULT]\nuse_stderr = true\ntransport_url = rabbit://nobody:none@localhost:5672/\n"
        + "".join(f"[{section}]\nconnection = {_url(name)}\n" for section, name in sections)
    )
    environment = {
        **os.environ,
        # Where the process works: the socket in the URL is relative to it.
        "HOME": str(building / "data"),
        "OS_NOVA_DISABLE_EVENTLET_PATCHING": "1",
    }
    with (building / f"{kind}.log").open("wb") as log, Path(os.devnull).open("rb") as null:
        for entry, name, arguments in _COMMANDS[kind]:
            argv = [name, "--config-file", str(configuration), *arguments]
            streams = (null.fileno(), log.fileno(), log.fileno())
            try:
                process = launch.launch(
                    kind, str(servers), entry, argv, environment, streams=streams
                )
                problem = f"status {status}" if (status := process.wait()) else ""
            except launch.LaunchError as error:
                problem = str(error)
            if problem:
                message = f"{name} {' '.join(arguments[:2])} failed: {problem}"
                (building / f"{kind}.failed").write_text(message)
                return


def _url(name: str) -> str:
    return f"mysql+pymysql://{getpass.getuser()}:@localhost:3306/{name}?unix_socket={_SOCKET}"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
