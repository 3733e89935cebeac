"""Scopes for programs that use openstacksdk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from openstack.config import OpenStackConfig
from openstack.config.cloud_region import CloudRegion
from openstack.connection import Connection
from openstack.exceptions import BadRequestException

from openstackoid.expression import ANY, NO_RETRIES, All, First, Tree, expand
from openstackoid.scope import URL_PREFIX, Scope, ScopeError, is_expression, read, scoped_auth_url

T = TypeVar("T")

#: A scope: JSON, shorthand or the name of one in ``clouds.yaml``, or a mapping of service types.
AnyScope = str | Mapping[str, str]


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a call gave for one plain scope: its value, or the error that it raised."""

    #: The plain scope.
    scope: Scope
    value: T | None = None
    error: Exception | None = None


def connect(
    cloud: str | None = None,
    scope: AnyScope = "",
    **options: Any,  # noqa: ANN401
) -> Connection:
    """A connection to *cloud* of ``clouds.yaml`` whose requests have *scope*.

    *options* are those of :meth:`openstack.config.OpenStackConfig.get_one`. If the scope names
    another instance for identity, the user is that of the cloud with this name.

    >>> connection = connect("InstanceOne", "image=InstanceTwo")
    >>> [image.name for image in connection.image.images()]
    ['cirros']

    :raises ScopeError: when the scope is invalid, or an expression: see :func:`everywhere`.
    """
    config = OpenStackConfig()
    services = _services(scope, config)
    if any(map(is_expression, services.values())):
        raise ScopeError(f"{scope!r} has an expression: use openstackoid.everywhere")
    return _connect(config, cloud, Scope(services), options)


def everywhere(
    cloud: str | None,
    scope: AnyScope,
    call: Callable[[Connection], T],
    *,
    timeout: float = 30,
    **options: Any,  # noqa: ANN401
) -> list[Outcome[T]]:
    """Call *call* with a connection for each plain scope of an expression.

    The rules are those of the ``openstack`` command: ``&`` calls side by side, ``|`` tries the next
    one after a failure, unless it is a 400. Requests time out after *timeout* seconds. An error is
    in its outcome and hides no other one.

    >>> outcomes = everywhere("InstanceOne", "image=*", lambda c: len(list(c.image.images())))
    >>> [(outcome.scope["image"], outcome.value) for outcome in outcomes]
    [('InstanceOne', 1), ('InstanceTwo', 1)]

    :raises ScopeError: when the scope is invalid.
    """
    config = OpenStackConfig()
    options = {"api_timeout": timeout, **NO_RETRIES, **options}
    services = _services(scope, config)
    known: Sequence[str] = ()
    if any(ANY in value for value in services.values()):
        known = known_instances(config.get_one(cloud=cloud, **options))

    def execute(tree: Tree[Scope]) -> list[Outcome[T]]:
        if isinstance(tree, All):
            with ThreadPoolExecutor(len(tree.members)) as pool:
                return [outcome for found in pool.map(execute, tree.members) for outcome in found]
        if isinstance(tree, First):
            *others, last = tree.members
            for member in others:
                outcomes = execute(member)
                errors = [outcome.error for outcome in outcomes if outcome.error]
                if not errors or any(isinstance(e, BadRequestException) for e in errors):
                    return outcomes
            return execute(last)
        try:
            with _connect(config, cloud, tree, options) as connection:
                return [Outcome(tree, value=call(connection))]
        except Exception as error:
            return [Outcome(tree, error=error)]

    return execute(expand(services, known))


def known_instances(home: CloudRegion) -> list[str]:
    """The instances that the proxy of *home* knows, its own one first.

    Raises what keystoneauth does when the proxy does not answer, or takes no login.
    """
    return [instance["name"] for instance in facts(home)["instances"]]


def facts(home: CloudRegion) -> dict[str, Any]:
    """What the proxy of *home* knows: its ``instance``, its ``services`` and all ``instances``."""
    url = urlsplit(home.config["auth"]["auth_url"])._replace(path=f"/{URL_PREFIX}", query="")
    answer: dict[str, Any] = home.get_session().get(url.geturl()).json()
    return answer


def _services(scope: AnyScope, config: OpenStackConfig) -> dict[str, str]:
    text = scope if isinstance(scope, str) else json.dumps(dict(scope))
    return read(text, lambda: config.cloud_config.get("scopes"))


def _connect(
    config: OpenStackConfig, cloud: str | None, scope: Scope, options: Mapping[str, Any]
) -> Connection:
    home = config.get_one(cloud=cloud, **options)
    auth_url = scoped_auth_url(home.config["auth"]["auth_url"], scope)
    issuer = scope.get("identity")
    if issuer and issuer not in (home.name, home.region_name):
        if issuer not in config.get_cloud_names():
            raise ScopeError(
                f"the scope names {issuer} for identity, but clouds.yaml has no cloud {issuer!r} "
                "with its user and password: add it there"
            )
        cloud = issuer
    region = config.get_one(cloud=cloud, **{**options, "auth": {"auth_url": auth_url}})
    return Connection(config=region)
