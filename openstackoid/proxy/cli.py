"""The ``openstackoid-proxy`` command turns a description into HAProxy's files."""

from __future__ import annotations

import json
import reprlib
import subprocess
import sys
from dataclasses import is_dataclass
from inspect import signature
from pathlib import Path
from types import UnionType
from typing import BinaryIO, TypeVar, get_args, get_origin, get_type_hints

import click

from openstackoid.proxy.config import Proxy, ProxyError, peer_states, write
from openstackoid.scope import Scope, ScopeError

_Part = TypeVar("_Part")
#: The types of a description's fields, as error messages name them.
_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "a number",
    str: "a string",
    Path: "a string",
}


def read_description(text: str | bytes) -> Proxy:
    """The proxy that the JSON *text* describes; the keys are the fields of ``Proxy``.

    :raises ProxyError: naming the key that is wrong.
    """
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProxyError(f"the description is not JSON: {error}") from error
    return _build(Proxy, description, "description")


def _build(kind: type[_Part], item: object, where: str) -> _Part:
    if not isinstance(item, dict):
        raise ProxyError(f"{where} must be a JSON object, not {_quote(item)}")
    kinds = get_type_hints(kind)
    for key in item:
        if key not in kinds:
            raise ProxyError(f"{where}: unknown key {key!r}; known: {', '.join(kinds)}")
    for name, parameter in signature(kind).parameters.items():
        if parameter.default is parameter.empty and name not in item:
            raise ProxyError(f"{where} has no {name!r}")
    values = {key: _value(kinds[key], value, f"{where}.{key}") for key, value in item.items()}
    try:
        return kind(**values)
    except ValueError as error:  # from urlsplit
        url = _quote(item.get("url"))
        raise ProxyError(f"{where}.url: {url} is not a URL: write http://HOST:PORT") from error


def _value(kind: object, value: object, where: str) -> object:
    """*value* converted to the type *kind* of a field: ``str | None``, ``tuple[Peer, ...]``, …"""
    if isinstance(kind, UnionType):
        return None if value is None else _value(get_args(kind)[0], value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ProxyError(f"{where} must be a JSON array, not {_quote(value)}")
        of = get_args(kind)[0]
        return tuple(_value(of, one, f"{where}.{n}") for n, one in enumerate(value))
    if isinstance(kind, type) and is_dataclass(kind):
        return _build(kind, value, where)
    # Not isinstance: a bool is an int.
    if type(value) is not (str if kind is Path else kind):
        raise ProxyError(f"{where} must be {_WORDS[kind]}, not {_quote(value)}")
    return value


def _quote(value: object) -> str:
    return reprlib.repr(value)


class _Command(click.Group):
    """A group of commands with one-line errors."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; show a ``ProxyError`` like click's own errors."""
        try:
            return super().invoke(ctx)
        except ProxyError as error:
            raise click.ClickException(str(error)) from error


_DESCRIPTION = click.argument("description", type=click.File("rb"), default="-")


@click.group(cls=_Command)
def main() -> None:
    """Write, check and query the scope-aware proxy of one instance.

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
def render(description: BinaryIO) -> None:
    """Write the files, and print those that changed; without any, no reload is needed."""
    for path in write(read_description(description.read())):
        click.echo(path)


@main.command()
@_DESCRIPTION
def check(description: BinaryIO) -> None:
    """Write the files and let HAProxy check them."""
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
@_DESCRIPTION
@click.argument("scope")
def prefix(description: BinaryIO, scope: str) -> None:
    """Print the path that makes a region's endpoints carry SCOPE.

    SCOPE is TYPE=INSTANCE,TYPE=INSTANCE, or the name of an instance that provides everything but
    identity: clients log in before they choose a region.
    """
    proxy = read_description(description.read())
    types = [service for service in proxy.service_types if service != "identity"]
    try:
        is_pairs = "=" in scope
        wanted = Scope.parse(scope) if is_pairs else Scope(dict.fromkeys(types, scope))
    except ScopeError as error:
        raise ProxyError(str(error)) from error
    for service, instance in wanted.items():
        if service not in types:
            raise ProxyError(f"{service!r} cannot be in a region: use {', '.join(types)}")
        if instance not in proxy.instances:
            raise ProxyError(f"unknown instance {instance!r}: use {', '.join(proxy.instances)}")
    click.echo(f"/{wanted.url_segment()}")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
def peers(directory: Path) -> None:
    """Print the state of each peer, as the running proxy in DIRECTORY sees it."""
    for name, state in sorted(peer_states(directory / "admin.sock").items()):
        click.echo(f"{name} {state}")
