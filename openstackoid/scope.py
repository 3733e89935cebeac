"""A scope: which instance provides which service, for one request.

This module alone knows how a scope is written: as JSON, in shorthand, as the tag of a token and
inside an auth URL.
"""

from __future__ import annotations

import base64
import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import urlsplit

from os_service_types import ServiceTypes

#: Separates a token from its scope in ``X-Auth-Token``.
TAG_MARK = "!SCOPE!"
#: The first path element of a scoped auth URL.
URL_PREFIX = "scope"
#: The form of an instance's name, which is also a host name, a region and a file name.
INSTANCE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?")

_OPERATORS = frozenset("&|*()")
_AUTHORITY = ServiceTypes()
_QUOTE = reprlib.Repr()
_QUOTE.maxstring = _QUOTE.maxother = 80


class ScopeError(ValueError):
    """A scope is invalid; the text is one line that names the culprit."""


def quoted(value: object) -> str:
    """*value* for an error message: in quotes, and truncated if it is long."""
    return _QUOTE.repr(value)


def is_expression(value: str) -> bool:
    """Whether *value* is an expression over instances, rather than one instance."""
    return not _OPERATORS.isdisjoint(value)


def service_type(name: str) -> str:
    """The official service type of *name*: a type, an alias (``volumev3``) or a project (``nova``).

    Source: the service types authority, as published in ``os-service-types``.

    :raises ScopeError: when the authority knows no such service.
    """
    lowered = name.strip().lower().replace("_", "-")
    official = _AUTHORITY.get_service_type(lowered)
    if official is None:
        project = _AUTHORITY.get_service_data_for_project(lowered)
        official = project and project["service_type"]
    if not official:
        raise ScopeError(
            f"unknown service type {quoted(name)} in scope: write a type such as compute, "
            "identity, image or network, or a project such as nova"
        )
    return str(official)


@dataclass(frozen=True)
class Scope(Mapping[str, str]):
    """A mapping from official service types to the names of instances; immutable.

    >>> Scope.parse("glance=InstanceTwo")["image"]
    'InstanceTwo'
    """

    services: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ordered = dict(sorted(self.services.items()))
        object.__setattr__(self, "services", MappingProxyType(ordered))

    def __getitem__(self, service: str) -> str:
        return self.services[service]

    def __iter__(self) -> Iterator[str]:
        return iter(self.services)

    def __len__(self) -> int:
        return len(self.services)

    def __hash__(self) -> int:
        return hash(tuple(self.services.items()))

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Read a scope written as JSON, ``{"image": "InstanceTwo"}``, or as ``image=InstanceTwo``.

        *text* may name services by aliases and projects; an empty text is the empty scope.

        :raises ScopeError: naming what is wrong with *text*.
        """
        return cls(
            {service: instance_name(service, value) for service, value in parse_pairs(text).items()}
        )

    def merged(self, other: Mapping[str, str]) -> Scope:
        """This scope, overridden by the services of *other*."""
        return Scope({**self.services, **other})

    def to_json(self) -> str:
        """The canonical form: compact JSON, service types in alphabetical order."""
        return json.dumps(dict(self.services), separators=(",", ":"))

    def tag(self, token: str) -> str:
        """*token* with this scope as its tag."""
        return f"{token}{TAG_MARK}{self.to_json()}"

    def url_segment(self) -> str:
        """The scope in an auth URL: ``scope/<base64url of the JSON, no padding>``."""
        encoded = base64.urlsafe_b64encode(self.to_json().encode()).rstrip(b"=").decode()
        return f"{URL_PREFIX}/{encoded}"


def parse_pairs(text: str) -> dict[str, object]:
    """The official service types in *text*, with their values as they stand.

    :raises ScopeError: when *text* is neither JSON nor shorthand, or names a service type twice.
    """
    text = text.strip()
    pairs = _json_pairs(text) if text.startswith("{") else _shorthand_pairs(text)
    services: dict[str, object] = {}
    for name, value in pairs:
        service = service_type(name)
        if service in services:
            raise ScopeError(f"service type {service!r} appears twice in the scope")
        services[service] = value
    return services


def read(text: str, named: Callable[[], object]) -> dict[str, str]:
    """The instance, or the expression over instances, of each service type in *text*.

    *text* is written as for :meth:`Scope.parse`, or is the name of a scope. *named* returns the
    section ``scopes`` of ``clouds.yaml``, which maps names to scopes. It is asked only for a name.

    :raises ScopeError: naming what is wrong.
    """
    name = text.strip()
    if INSTANCE_NAME.fullmatch(name):
        scopes = named()
        known = scopes if isinstance(scopes, Mapping) else {}
        if name not in known:
            names = (
                f"those in clouds.yaml are {', '.join(known)}" if known else "clouds.yaml has none"
            )
            raise ScopeError(
                f"malformed scope {quoted(name)}: write service=instance, for example "
                f"image=InstanceTwo, or the name of a scope; {names}"
            )
        try:
            return read(json.dumps(known[name]), dict)
        except (ScopeError, TypeError) as error:
            raise ScopeError(f"the scope {name} in clouds.yaml: {error}") from error
    return {service: _value(service, value) for service, value in parse_pairs(text).items()}


def _value(service: str, value: object) -> str:
    if isinstance(value, str) and not _OPERATORS.isdisjoint(value):
        from openstackoid import expression  # noqa: PLC0415 - only expressions need it

        expression.parse(value)
        return value
    return instance_name(service, value)


def decode_url_scope(encoded: str) -> str:
    """The JSON text inside the *encoded* part of a scoped auth URL.

    :raises ScopeError: when it is not base64url of UTF-8.
    """
    try:
        padded = encoded + "=" * (-len(encoded) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise ScopeError(f"the scope in the URL is not base64url: {quoted(encoded)}") from error


def scoped_auth_url(auth_url: str, scope: Scope) -> str:
    """*auth_url* with *scope* in its path; *scope* overrides the scope that is already there.

    >>> scoped_auth_url("http://127.0.1.1:8888/identity/v3", Scope.parse("image=InstanceTwo"))
    'http://127.0.1.1:8888/scope/eyJpbWFnZSI6Ikluc3RhbmNlVHdvIn0/identity/v3'

    :raises ScopeError: when *auth_url* is not a URL, or holds an invalid scope.
    """
    try:
        url = urlsplit(auth_url)
    except ValueError as error:
        raise ScopeError(
            f"{quoted(auth_url)} is not an auth URL: write http://HOST:PORT/identity, for example"
        ) from error
    path = url.path.lstrip("/")
    if path.startswith(f"{URL_PREFIX}/"):
        _, encoded, path = [*path.split("/", 2), ""][:3]
        scope = Scope.parse(decode_url_scope(encoded)).merged(scope)
    return url._replace(path=f"/{scope.url_segment()}/{path}").geturl()


def _json_pairs(text: str) -> list[tuple[str, object]]:
    try:
        pairs: list[tuple[str, object]] = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise ScopeError(
            f"malformed scope {quoted(text)}: {error.msg} at character {error.pos + 1}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number too long, or brackets too deep
        raise ScopeError(
            f"malformed scope {quoted(text)}: write instance names as strings"
        ) from error
    return pairs


def _shorthand_pairs(text: str) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, instance = item.partition("=")
        if not equals:
            raise ScopeError(
                f"malformed scope {quoted(item)}: write service=instance, "
                "for example image=InstanceTwo"
            )
        pairs.append((name, instance.strip()))
    return pairs


def instance_name(service: str, instance: object) -> str:
    """*instance*, if it has the form of an instance's name.

    :raises ScopeError: naming it and its *service* otherwise.
    """
    if not isinstance(instance, str) or not INSTANCE_NAME.fullmatch(instance):
        raise ScopeError(
            f"{quoted(instance)} is not an instance name (for service {service!r} in the scope)"
        )
    return instance
