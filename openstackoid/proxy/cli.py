"""The ``openstackoid-proxy`` command turns a description into HAProxy's files."""

from __future__ import annotations

import functools
import json
import reprlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from inspect import signature
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, TextIO, TypeVar, get_args, get_origin, get_type_hints

import click

from openstackoid.proxy import endpoints
from openstackoid.proxy.config import (
    Https,
    Proxy,
    ProxyError,
    Tls,
    master,
    peer_states,
    reload,
    rotate_keys,
    write,
)
from openstackoid.proxy.log import audit
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
    if isinstance(description, dict) and "peers_from" in description:
        directory = description.pop("peers_from")
        if not isinstance(directory, str):
            raise ProxyError(f"description.peers_from must be a string, not {_quote(directory)}")
        _add_peers(description, Path(directory))
    return _build(Proxy, description, "description")


def _add_peers(description: dict[str, Any], directory: Path) -> None:
    """Add the peers that the files of *directory* describe, in the order of the files' names.

    Besides the keys of a peer, a file has ``issuer``, true if the peer's tokens are accepted, and
    ``policy``, what they may do.
    """
    if not directory.is_dir():
        raise ProxyError(f"description.peers_from: there is no directory {directory}")
    added: dict[str, list[object]] = {"peers": [], "issuers": [], "policies": []}
    for path in sorted(directory.glob("*.json")):
        try:
            peer = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise ProxyError(f"{path}: {error}") from error
        if not isinstance(peer, dict) or not isinstance(peer.get("name"), str):
            raise ProxyError(f"{path} must be a JSON object with the name of a peer")
        policy = peer.pop("policy", None)
        if not isinstance(policy, dict | None):
            raise ProxyError(f"{path}: policy must be a JSON object, not {_quote(policy)}")
        if _value(bool, peer.pop("issuer", False), f"{path}: issuer"):
            added["issuers"].append(peer["name"])
        if policy is not None:
            added["policies"].append({"issuer": peer["name"], **policy})
        added["peers"].append(peer)
    for key, items in added.items():
        known = description.get(key, [])
        description[key] = [*known, *items] if isinstance(known, list) else known


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
_ENDPOINT_OPTIONS = (
    click.option(
        "--endpoints",
        "lists",
        metavar="[NAME=]FILE",
        multiple=True,
        help="What `openstack endpoint list -f json` prints in an instance; repeat it for each. "
        "Instances are called like their regions, or NAME.",
    ),
    click.option("--instance", metavar="NAME", help="The instance of this proxy."),
    click.option("--bind", metavar="HOST:PORT", help="Default: identity's host, port 8888."),
    click.option("--directory", type=click.Path(path_type=Path), default=Path()),
    click.option(
        "--peer",
        "peers",
        metavar="NAME=[https://]HOST:PORT",
        multiple=True,
        help="Where the proxy of another instance takes its peers.",
    ),
    click.option(
        "--tls-bind", metavar="HOST:PORT", help="Where this proxy takes its peers, if by TLS."
    ),
    click.option("--certificate", metavar="PEM", help="Its certificate, with chain and key."),
    click.option("--ca", metavar="PEM", help="The authorities of the peers' certificates."),
    click.option(
        "--https-bind", metavar="HOST:PORT", help="Where it takes clients by HTTPS, besides --bind."
    ),
    click.option(
        "--https-certificate",
        metavar="PEM",
        help="The certificate for that, and for https endpoints of port style.",
    ),
    click.option(
        "--issuer",
        "issuers",
        metavar="NAME",
        multiple=True,
        help="A peer whose tokens count, except as admin.",
    ),
    click.option(
        "--behind", metavar="HOST", help="Where the services answer, on the ports of the endpoints."
    ),
    click.option(
        "--backend",
        "backends",
        metavar="TYPE=URL",
        multiple=True,
        help="Where the service of a type answers.",
    ),
    click.option(
        "--sealed/--unsealed",
        default=True,
        show_default=True,
        help="Whether peers get a form of the user's token that opens only what its scope needs.",
    ),
    click.option(
        "--interface",
        type=click.Choice(endpoints.INTERFACES),
        default=endpoints.INTERFACES[0],
        show_default=True,
        help="Whose endpoints say where services answer.",
    ),
)


def _describes_proxy(command: Callable[[Proxy], None]) -> Callable[..., None]:
    """Give *command* the proxy that DESCRIPTION, or the options about endpoints, describe."""

    @functools.wraps(command)
    def run(description: BinaryIO, **options: Any) -> None:  # noqa: ANN401 - click's own
        if options["instance"] is None and not options["lists"]:
            return command(read_description(description.read()))
        return command(_from_endpoints(**options))

    for option in reversed(_ENDPOINT_OPTIONS):
        run = option(run)
    return _DESCRIPTION(run)


def _from_endpoints(
    *,
    lists: tuple[str, ...],
    peers: tuple[str, ...],
    backends: tuple[str, ...],
    tls_bind: str | None,
    certificate: str | None,
    ca: str | None,
    https_bind: str | None,
    https_certificate: str | None,
    **others: Any,  # noqa: ANN401 - the fields of Wanted
) -> Proxy:
    if not (lists and others["instance"]):
        raise click.UsageError("--endpoints and --instance go together")
    tls = None
    if tls_bind or certificate or ca:
        if not (tls_bind and certificate and ca):
            raise click.UsageError("--tls-bind, --certificate and --ca go together")
        tls = Tls(Path(certificate), Path(ca), tls_bind)
    https = None
    if https_bind or https_certificate:
        if not (https_bind and https_certificate):
            raise click.UsageError("--https-bind and --https-certificate go together")
        https = Https(Path(https_certificate), https_bind)
    wanted = endpoints.Wanted(
        peers=_pairs("--peer", peers),
        backends=_pairs("--backend", backends),
        tls=tls,
        https=https,
        **others,
    )
    catalogs = endpoints.Catalogs()
    for text in lists:
        name, separator, path = text.rpartition("=")
        try:
            catalogs += endpoints.read(Path(path).read_text(), path, name if separator else None)
        except (OSError, UnicodeDecodeError) as error:
            raise ProxyError(f"--endpoints {text}: {error}") from error
    proxy, unused = endpoints.describe(catalogs, wanted)
    for line in unused:
        click.echo(f"not used: {line}", err=True)
    return proxy


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator and value) or name in pairs:
            raise click.UsageError(f"{option} {text}: write NAME=VALUE, each NAME once")
        pairs[name] = value
    return pairs


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

    With "peers_from": "/etc/openstackoid/peers.d", each file there describes a peer:

    \b
    {"name": "InstanceThree", "address": "127.0.3.1:8888", "issuer": true,
     "policy": {"services": ["image"], "methods": ["GET", "HEAD"]}}

    Run it with "haproxy -W -db -f DIRECTORY/haproxy.cfg"; reload it with SIGUSR2.
    """


@main.command()
@_describes_proxy
def render(proxy: Proxy) -> None:
    """Write the files, and print those that changed; without any, no reload is needed.

    Instead of DESCRIPTION, --endpoints and --instance tell it about existing clouds.
    """
    for path in write(proxy):
        click.echo(path)


@main.command("reload")
@_describes_proxy
def reload_(proxy: Proxy) -> None:
    """Write the files; if any changed, make the running proxy load them.

    Requests under way go on.
    """
    if write(proxy):
        reload(master(proxy.socket), proxy.socket)


@main.command()
@_describes_proxy
def describe(proxy: Proxy) -> None:
    """Print the description that --endpoints makes, to be edited and rendered later."""
    click.echo(json.dumps(asdict(proxy), indent=2, default=str))


@main.command()
@_describes_proxy
def check(proxy: Proxy) -> None:
    """Write the files and let HAProxy check them."""
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
def rotate(directory: Path) -> None:
    """Seal tokens with a new key once the proxy in DIRECTORY has been reloaded.

    What the last key sealed stays valid until its time is over; so wait for that time (sealed_for)
    between two rotations.
    """
    rotate_keys(directory)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
def peers(directory: Path) -> None:
    """Print the state of each peer, as the running proxy in DIRECTORY sees it."""
    for name, state in sorted(peer_states(directory / "admin.sock").items()):
        click.echo(f"{name} {state}")


@main.command("audit")
@click.argument("log", type=click.File(errors="replace"), default="-")
def audit_(log: TextIO) -> None:
    """Print what tokens of other instances did here, a JSON object for each request.

    LOG is the proxy's log; by default, standard input, which may be a log that still grows.
    """
    for request in audit(log):
        click.echo(json.dumps(asdict(request)))
