"""``trace``: run a command, and show every request that it caused in all instances."""

from __future__ import annotations

import fcntl
import json
import queue
import re
import shlex
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import jinja2
import yaml

from lab import files
from lab.errors import LabError
from openstackoid.proxy.log import LogLine, parse_log_line
from openstackoid.proxy.trace import Request, attribute, with_trace

if TYPE_CHECKING:
    from lab.lifecycle import Lifecycle
    from lab.providers.base import Host

#: The file, in the lab's state, with the last trace.
LAST = "trace.json"
#: Seconds without a request of the command after which its trace is complete, and their limit.
_QUIET, _PATIENCE = 1.0, 15.0
#: Lines of each log that are read again, in case that requests precede the reader.
_OVERLAP = "100"
_PROXY = "haproxy"
_ID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}")


@dataclass
class Trace:
    """A command, in the instance *home*, and its requests.

    *requests* and *others* are those of ``Request.as_dict``: what the command caused, and what
    happened beside it or cannot be attributed.
    """

    command: str
    home: str
    started: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)


def run(
    lifecycle: Lifecycle, home: str, argv: Sequence[str], say: Callable[[str], None]
) -> tuple[int, Trace]:
    """Run *argv* in the instance *home*; *say* gets a line for each request once it has ended.

    Returns the command's status and its trace, which the lab keeps as its last one.

    :raises LabError: when the lab is down or its stack has no traces.
    """
    name, started = uuid.uuid4().hex, datetime.now(UTC)
    hosts = lifecycle.hosts_up()
    host = next(one for one in hosts if one.name == home)
    with ExitStack() as stack:
        stack.enter_context(_tracing(lifecycle, hosts))
        logs = stack.enter_context(_followed(lifecycle, hosts))
        clouds = stack.enter_context(_traced_clouds(lifecycle, host, name))
        words = ["env", f"OS_CLIENT_CONFIG_FILE={clouds}", *argv]
        process = subprocess.Popen(
            ["ssh", "-F", str(lifecycle.provider.ssh_config), home, shlex.join(words)]
        )
        lines = _collect(logs, name, started, process, say)
    ours, others = attribute(lines, name)
    trace = Trace(
        shlex.join(argv),
        home,
        started.astimezone().isoformat(timespec="milliseconds"),
        [one.as_dict() for one in ours],
        [one.as_dict() for one in others],
    )
    files.write(lifecycle.lab.state / LAST, json.dumps(vars(trace)))
    return process.returncode, trace


def last(state: Path) -> Trace:
    """The last trace of the lab in *state*.

    :raises LabError: when there is none.
    """
    try:
        return Trace(**json.loads((state / LAST).read_text()))
    except FileNotFoundError as error:
        raise LabError(
            "there is no trace yet: run ./setup-env.py trace -- openstack image list, for example"
        ) from error


def follow(lifecycle: Lifecycle, say: Callable[[str], None]) -> None:
    """Say a heading, and then a line for each request in the lab, until a Ctrl-C.

    :raises LabError: when the lab is down or its stack has no traces.
    """
    hosts = lifecycle.hosts_up()
    started = datetime.now(UTC)
    with _tracing(lifecycle, hosts), _followed(lifecycle, hosts) as logs:
        say("status, time, request, and who served it:")
        while True:
            request = logs.get()
            if request.line.time >= started:
                say(line_of(request.as_dict()))


@contextmanager
def _tracing(lifecycle: Lifecycle, hosts: Sequence[Host]) -> Iterator[None]:
    """Have the proxies of *hosts* note what a trace needs; the last trace to end stops that."""
    with (lifecycle.lab.state / "tracing").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        lifecycle.stack.trace(hosts, on=True)
        try:
            yield
        finally:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                lifecycle.stack.trace(hosts, on=False)


@contextmanager
def _followed(lifecycle: Lifecycle, hosts: Sequence[Host]) -> Iterator[queue.Queue[Request]]:
    """The requests that the proxies of *hosts* log."""
    found: queue.Queue[Request] = queue.Queue()

    def read(name: str, log: IO[str]) -> None:
        for text in log:
            if line := parse_log_line(text):
                found.put(Request(name, line))

    readers = []
    for host in hosts:
        command = lifecycle.stack.log_command(host, [_PROXY], lines=_OVERLAP, follow=True)
        ssh = ["ssh", "-F", str(lifecycle.provider.ssh_config), host.name, shlex.join(command)]
        reader = subprocess.Popen(
            ssh, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
        )
        readers.append(reader)
        threading.Thread(target=read, args=(host.name, reader.stdout), daemon=True).start()
    try:
        yield found
    finally:
        for reader in readers:
            reader.terminate()
            reader.wait()


@contextmanager
def _traced_clouds(lifecycle: Lifecycle, host: Host, name: str) -> Iterator[Path]:
    """A ``clouds.yaml`` on *host* whose logins are of the trace *name*."""
    clouds = yaml.safe_load(lifecycle.stack.homes([host])[host.name])
    for cloud in clouds["clouds"].values():
        cloud["auth"]["auth_url"] = with_trace(cloud["auth"]["auth_url"], name)
    path = host.home / ".config" / "openstack" / f"trace-{name}.yaml"
    remote = lifecycle.stack.connect(host)
    remote.put(yaml.safe_dump(clouds), path, 0o600)
    try:
        yield path
    finally:
        remote.run(["rm", "-f", str(path)])


def _collect(
    logs: queue.Queue[Request],
    name: str,
    started: datetime,
    process: subprocess.Popen[bytes],
    say: Callable[[str], None],
) -> list[tuple[str, LogLine]]:
    """What is logged until *process* has ended, and some time after it."""
    lines: list[tuple[str, LogLine]] = []
    shown: set[int] = set()
    ended, latest = None, 0.0
    while ended is None or time.monotonic() < min(ended + _PATIENCE, max(ended, latest) + _QUIET):
        with suppress(queue.Empty):
            request = logs.get(timeout=0.1)
            if request.line.time >= started:
                lines.append((request.instance, request.line))
            for root in attribute(lines, name)[0]:
                for one in root.all():
                    if id(one.line) not in shown:
                        shown.add(id(one.line))
                        latest = time.monotonic()
                        say(line_of(Request(one.instance, one.line).as_dict()))
        if ended is None and process.poll() is not None:
            ended = time.monotonic()
    return lines


def line_of(request: dict[str, Any]) -> str:
    """One request as a line: status, time, method and path, and who served it."""
    where = f"{request['service'] or 'proxy'} of {request['instance']}"
    if others := [name for name in request["through"] if name != request["instance"]]:
        where += f" through {' and '.join(others)}"
    times = f"  ({request['times']} times)" if request.get("times", 1) > 1 else ""
    return (
        f"{request['status']:>3} {request['milliseconds']:>6} ms  {request['method']:<6} "
        f"{short(request['path'])}  {where}{times}"
    )


def short(path: str) -> str:
    """*path* with the beginning of each id only."""
    return _ID.sub(lambda match: f"{match[0][:8]}…", path)


def tree(trace: Trace) -> str:
    """The trace as an indented tree; repeated requests are one line."""
    lines = [f"$ {trace.command}    (in {trace.home}, {trace.started})"]

    def add(requests: Sequence[dict[str, Any]], indent: str) -> None:
        every = folded(requests)
        for one in every:
            is_last = one is every[-1]
            lines.append(f"{indent}{'└─' if is_last else '├─'} {line_of(one)}")
            add(one["caused"], f"{indent}{'   ' if is_last else '│  '}")

    add(trace.requests, "")
    if trace.others:
        count = sum(1 for one in trace.others for _ in _every(one))
        lines.append(
            f"not attributed, or of others meanwhile: {count} requests (--json shows them)"
        )
    return "\n".join(lines)


def folded(requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """*requests* where those that repeat the one before are one, with their number as ``times``."""

    def same(request: dict[str, Any]) -> tuple[object, ...]:
        keys = ("method", "path", "service", "instance", "through", "status")
        inner = tuple(same(one) for one in folded(request["caused"]))
        return (*(str(request[key]) for key in keys), inner)

    found = []
    for _, group in groupby(requests, same):
        first, *more = group
        found.append({**first, "times": 1 + len(more)})
    return found


def _every(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield request
    for one in request["caused"]:
        yield from _every(one)


#: Pixels of the diagram: between lanes, between rows, and around all.
_LANE, _ROW, _MARGIN = 190, 26, 24
#: Elements of a path, the last ones, that an arrow shows.
_WORDS = 2
#: Pixels of a character of the command.
_CHARACTER = 8


def svg(trace: Trace) -> str:
    """The trace as a sequence diagram: a lane for the client, and for each service of an instance.

    Each arrow is a request, with its status and time; those of one service are below the request
    that it serves.
    """
    lanes: list[tuple[str, str]] = [(trace.home, "client")]
    arrows: list[dict[str, Any]] = []

    def lane(where: tuple[str, str]) -> int:
        if where not in lanes:
            lanes.append(where)
        return lanes.index(where)

    def add(requests: Sequence[dict[str, Any]], asker: int) -> None:
        for one in folded(requests):
            served_by = lane((one["instance"], one["service"] or "proxy"))
            arrow = {**one, "from": asker, "to": served_by, "label": _label(one)}
            arrows.append(arrow)
            add(one["caused"], served_by)

    add(trace.requests, 0)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lab"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("trace.svg.j2").render(
        command=trace.command,
        home=trace.home,
        lanes=lanes,
        arrows=arrows,
        x=[_MARGIN + _LANE // 2 + n * _LANE for n in range(len(lanes))],
        width=2 * _MARGIN + max(_LANE * len(lanes), _CHARACTER * (len(trace.command) + 2)),
        height=110 + _ROW * (len(arrows) + 1),
        top=96,
        row=_ROW,
    )


def _label(request: dict[str, Any]) -> str:
    words = short(request["path"]).strip("/").split("/")
    path = "/".join(["…" if words[:-_WORDS] else "", *words[-_WORDS:]])
    times = f" ({request['times']}x)" if request["times"] > 1 else ""
    return f"{request['method']} {path}{times}"
