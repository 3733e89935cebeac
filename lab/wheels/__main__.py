"""``python -m lab.wheels COMMAND``, with a specification on standard input.

The commands are ``up``, ``halt``, ``status``, ``trace``, ``net``, ``kill`` and ``destroy``.

It reports on standard output, one JSON object a line: ``{"started": …}`` and ``{"step": …,
"seconds": …}`` around each step, ``{"note": …}`` for a line that the user should read and
``{"error": …}`` when a step fails; ``status`` answers
``{"programs": …, "peers": …}``, the state of each by its name. ``net PEER FAULT`` breaks a link,
``net --heal [PEER…]`` heals links, and ``net`` answers ``{"links": …}``. ``kill SERVICE…`` ends
services until the next ``up``, and ``kill --hang SERVICE…`` freezes them. ``trace on`` has the
proxy note what a trace needs, until ``trace off``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

from lab.errors import LabError
from lab.faults import Fault
from lab.wheels import guests
from lab.wheels.database import DatabaseError
from lab.wheels.instance import Instance, InstanceError
from lab.wheels.launch import LaunchError
from lab.wheels.layout import Layout
from lab.wheels.spec import Spec
from openstackoid.proxy.config import ProxyError


def _say(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _step(title: str) -> Iterator[None]:
    started = time.monotonic()
    _say(started=title)
    yield
    _say(step=title, seconds=time.monotonic() - started)


def main() -> int:
    """Do what the one argument says."""
    # What an instance writes, its logs too, is for its user only.
    os.umask(0o077)
    instance = Instance(
        Layout(Spec.from_json(sys.stdin.read())), _step, lambda text: _say(note=text)
    )
    try:
        match sys.argv[1:]:
            case ["up"]:
                instance.up()
            case ["halt"]:
                instance.halt()
            case ["status"]:
                frozen = dict.fromkeys(instance.supervisor.frozen(), "FROZEN")
                programs = {**instance.supervisor.states(), **frozen}
                _say(programs=programs, peers=instance.peers())
            case ["trace", "on" | "off" as state]:
                instance.trace(on=state == "on")
            case ["destroy"]:
                # A machine has one instance: remove what lies outside of its directory, too.
                instance.halt()
                guests.remove(instance.layout.directory.parent)
            case ["net"]:
                _say(links=[asdict(link) for link in instance.links.report()])
            case ["net", "--heal", *peers]:
                instance.links.heal(peers)
            case ["net", peer, fault]:
                instance.links.set(peer, Fault.from_json(fault))
            case ["kill", "--hang", *names]:
                instance.supervisor.freeze_programs(names)
            case ["kill", *names]:
                instance.supervisor.kill_programs(names)
            case _:
                sys.stderr.write("usage: python -m lab.wheels COMMAND < SPECIFICATION\n")
                return 2
    except (InstanceError, LabError, DatabaseError, LaunchError, ProxyError) as error:
        _say(error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
