"""A parent that has imported a service once and forks it for every instance of the host.

``python -m lab.wheels.forkserver DIRECTORY KIND…`` listens on ``DIRECTORY/KIND.sock`` for each.
Each request (:mod:`~lab.wheels.launch`) names a function of the vanilla service, with
its arguments, environment and standard streams; the fork becomes that service. Nothing is
configured before the fork, so instances share code and memory, and nothing else. Measured on two
cores: the imports of all services are 16 s of CPU, once per host instead of once per instance.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import fcntl
import gc
import importlib
import importlib.abc
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.wheels.services import SERVICES

#: Seconds without a child after which a fork server ends.
IDLE = 10

#: Seconds that a process has to clean up once its function has returned.
_ENDING = 10

_F_SETSIG = 10

_SERVICES = {one.fork_server: one for services in SERVICES.values() for one in services}
#: What each kind of fork server imports.
KINDS: Mapping[str, tuple[str, ...]] = {
    **{kind: service.imports for kind, service in _SERVICES.items()},
    "client": ("openstack.connection", "lab.wheels.client"),
}

#: What most kinds import: done once for all that start together. Nothing in it needs eventlet.
_COMMON = (
    "alembic.migration",
    "cryptography.fernet",
    "dogpile.cache.region",
    "jsonschema",
    "keystonemiddleware.auth_token",
    "lab.wheels.wsgi",
    "oslo_db.sqlalchemy.enginefacade",
    "oslo_middleware.cors",
    "oslo_policy.policy",
    "paste.deploy",
    "pymysql",
    "routes.middleware",
    "sqlalchemy.dialects.mysql.pymysql",
    "webob.dec",
)


class _WithoutEventlet(importlib.abc.MetaPathFinder):
    """For this while, eventlet is not installed: nova insists on being the first to import it."""

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> None:
        """Nothing, but for eventlet an error."""
        if fullname.partition(".")[0] == "eventlet":
            raise ImportError(f"{fullname} is left to the services")


def preload_common() -> None:
    """Import what the kinds have in common."""
    with _WithoutEventlet():
        for module in _COMMON:
            importlib.import_module(module)


def preload(kind: str) -> None:
    """Import all that a service of *kind* needs."""
    if service := _SERVICES.get(kind):
        os.environ.update(service.switches)
        if service.patch:
            importlib.import_module(service.patch).patch(backend="threading")
    for module in KINDS[kind]:
        importlib.import_module(module)
    # Relations between tables appear on the models with this. It comes with the first query
    # otherwise, and where neutron's first request lists ports, that is too late for it.
    importlib.import_module("sqlalchemy.orm").configure_mappers()


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    descriptors = array.array("i")
    data, ancillary, _flags, _address = connection.recvmsg(65536, socket.CMSG_SPACE(4 * 4))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) // 4 * 4])
    while len(data) < 4 + int.from_bytes(data[:4], "big"):
        more = connection.recv(65536)
        if not more:
            raise ConnectionError("a launcher left in the middle of its request")
        data += more
    return json.loads(data[4:]), list(descriptors)


def _become(request: dict[str, Any], descriptors: list[int], connection: socket.socket) -> None:
    """Be the process that was asked for; never returns."""
    pid = os.getpid()
    status = 1
    try:
        # A group, not a session of its own: the leader of a session that reads a guest's terminal
        # (nova-compute does) gets it as its own, and ends with the guest by SIGHUP.
        os.setpgrp()
        gc.enable()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for target, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, target)
            os.close(descriptor)
        lifeline = descriptors[3]
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, pid)
        fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(os.environ.get("HOME", "/"))
        connection.sendall(pid.to_bytes(4, "big"))
        sys.argv[:] = request["argv"]
        _title(" ".join(sys.argv))
        module, _, function = request["entry"].partition(":")
        result = getattr(importlib.import_module(module), function)()
        status = int(result or 0)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        if os.getpid() == pid:
            sys.stderr.write(f"{sys.argv[0]} ends with status {status}\n")
        # A thread that does not end must not keep the process from it.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_ENDING)
        # A service forks workers of its own; only the process that was asked for reports.
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        if os.getpid() == pid:
            with contextlib.suppress(OSError):
                connection.sendall((status & 0xFF).to_bytes(4, "big"))
        os._exit(status & 0xFF)


def _title(title: str) -> None:
    """Show *title* in ``ps``."""
    with contextlib.suppress(ImportError):
        import setproctitle  # noqa: PLC0415

        setproctitle.setproctitle(title)


def retire(directory: Path) -> None:
    """Have the fork servers in *directory* end that have no children left."""
    for lock in directory.glob("*.lock"):
        with lock.open() as stream, contextlib.suppress(OSError, ValueError):
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                # It holds the lock, so that the process of this number is the fork server.
                os.kill(int(stream.read()), signal.SIGTERM)


def _reap(children: set[int]) -> None:
    for child in tuple(children):
        if os.waitpid(child, os.WNOHANG)[0]:
            children.discard(child)


def compile_all() -> None:
    """Have Python compile all that is imported here, once per installation.

    A process that has compiled is larger by what that needed, and so are all its forks: seen,
    170 MiB for an instance.
    """
    preload_common()
    children = []
    # Of two kinds of one service, the second imports what the first does, too.
    last = {service.name: kind for kind, service in _SERVICES.items()}
    for kind in (*last.values(), "client"):
        child = os.fork()
        if child == 0:
            preload(kind)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


class _Place:
    """The lock and the socket of the one fork server of *kind* in the working directory.

    The socket is there before the imports, so that who comes early waits.

    :raises BlockingIOError: when another process has the lock.
    """

    def __init__(self, kind: str) -> None:
        self._lock = Path(f"{kind}.lock").open("a+")  # noqa: SIM115 - held as long as we live
        self.path = Path(f"{kind}.sock")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise
        self.path.unlink(missing_ok=True)
        self.listener.bind(str(self.path))
        self.path.chmod(0o600)
        self.listener.listen(128)

    def sign(self) -> None:
        """Say in the lock whose it is."""
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def close(self) -> None:
        """Leave it, for this process."""
        self._lock.close()
        self.listener.close()


def serve(kind: str, place: _Place) -> None:
    """Fork for whoever asks, until nobody has for :data:`IDLE` seconds and no child is left.

    SIGTERM ends it at once, unless it has children.
    """
    place.sign()
    # The first call finds the place of the title; in a fork with another environment it cannot.
    _title(f"fork server of {kind}")
    preload(kind)
    # The children share what is here already: a collection would write to all of it.
    gc.freeze()
    children: set[int] = set()

    def retire(*_: object) -> None:
        _reap(children)
        if not children:
            place.path.unlink(missing_ok=True)
            os._exit(0)

    place.listener.settimeout(IDLE)
    signal.signal(signal.SIGTERM, retire)
    while True:
        try:
            connection, _address = place.listener.accept()
        except TimeoutError:
            retire()
            continue
        _reap(children)
        with connection:
            try:
                connection.settimeout(10)
                request, descriptors = _receive(connection)
                connection.settimeout(None)
            except (OSError, ValueError) as error:
                sys.stderr.write(f"ignored a request: {error}\n")
                continue
            child = os.fork()
            if child == 0:
                place.close()
                _become(request, descriptors, connection)
            children.add(child)
            for descriptor in descriptors:
                os.close(descriptor)


def main() -> None:
    """Be the fork servers of the kinds in ``sys.argv`` that have none, one process each."""
    directory = Path(sys.argv[1])
    # Imports make millions of objects and hardly any garbage.
    gc.disable()
    os.chdir(directory)
    places: dict[str, _Place] = {}
    for kind in sys.argv[2:]:
        with contextlib.suppress(BlockingIOError):
            places[kind] = _Place(kind)
    if not places:
        return
    preload_common()
    for kind, place in places.items():
        if os.fork() == 0:
            for other in places.keys() - {kind}:
                places[other].close()
            serve(kind, place)


if __name__ == "__main__":
    main()
