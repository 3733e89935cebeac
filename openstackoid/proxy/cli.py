"""The ``openstackoid-proxy`` command: from a description to the files of a running HAProxy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from openstackoid.proxy.config import Peer, Proxy, ProxyError, Service, peer_states, write

_Part = TypeVar("_Part")


def read_description(text: str) -> Proxy:
    """The proxy that the JSON *text* describes; its keys are the fields of ``Proxy``.

    :raises ProxyError: naming the key that is wrong.
    """
    try:
        description = json.loads(text)
        if not isinstance(description, dict):
            raise ProxyError("the description of a proxy is a JSON object")
        return Proxy(
            **{
                **description,
                "services": tuple(_build(Service, item) for item in description["services"]),
                "peers": tuple(_build(Peer, item) for item in description.get("peers", ())),
            }
        )
    except json.JSONDecodeError as error:
        raise ProxyError(f"the description is no JSON: {error}") from error
    except KeyError as error:
        raise ProxyError(f"the description has no {error.args[0]!r}") from error
    except TypeError as error:
        raise ProxyError(f"the description is wrong: {error}") from error


def _build(kind: type[_Part], item: Mapping[str, Any]) -> _Part:
    try:
        return kind(**item)
    except TypeError as error:
        raise ProxyError(f"{item!r} is no {kind.__name__.lower()}: {error}") from error


class _Command(click.Group):
    """A group of commands whose errors are one line."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a ``ProxyError`` is shown as click shows its own."""
        try:
            return super().invoke(ctx)
        except ProxyError as error:
            raise click.ClickException(str(error)) from error


_DESCRIPTION = click.argument("description", type=click.File(), default="-")


@click.group(cls=_Command)
def main() -> None:
    """Write, check and ask the scope-aware proxy of one instance.

    DESCRIPTION is a JSON file, or standard input:

    \b
    {"name": "InstanceOne", "bind": "127.0.1.1:8888", "directory": "/etc/openstackoid",
     "services": [{"type": "identity", "prefix": "/identity", "url": "http://127.0.1.1:5000"},
                  {"type": "image", "prefix": "/image", "url": "http://127.0.1.1:9292"}],
     "peers": [{"name": "InstanceTwo", "address": "127.0.2.1:8888"}],
     "issuers": ["InstanceTwo"]}

    Run it with "haproxy -W -db -f DIRECTORY/haproxy.cfg"; reload it with SIGUSR2.
    """


@main.command()
@_DESCRIPTION
def render(description: TextIO) -> None:
    """Write the files, and print those that changed: no line, no reload."""
    for path in write(read_description(description.read())):
        click.echo(path)


@main.command()
@_DESCRIPTION
def check(description: TextIO) -> None:
    """Write the files and let HAProxy judge them."""
    proxy = read_description(description.read())
    write(proxy)
    try:
        judged = subprocess.run(
            ["haproxy", "-c", "-f", str(proxy.directory / "haproxy.cfg")],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise ProxyError(f"cannot run haproxy: {error}; is it installed?") from error
    if judged.returncode != 0:
        click.echo(judged.stderr, err=True, nl=False)
    sys.exit(judged.returncode)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
def peers(directory: Path) -> None:
    """Print how the running proxy in DIRECTORY sees each peer."""
    for name, state in sorted(peer_states(directory / "admin.sock").items()):
        click.echo(f"{name} {state}")
