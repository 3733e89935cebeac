"""The commands ``openstack scope …``."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from keystoneauth1.exceptions import ClientException
from keystoneauth1.session import Session
from osc_lib import exceptions
from osc_lib.command import command
from requests import Response

from openstackoid.merge import NOTHING
from openstackoid.osc import ScopeParser
from openstackoid.scope import Scope, is_expression, read, scoped_auth_url

Rows = tuple[Sequence[str], Iterable[Sequence[Any]]]

_OK = 200


@dataclass(frozen=True)
class _Kind:
    """A kind of resource: where its collection is, and whether that can be filtered by name."""

    service: str
    collection: str
    key: str
    #: The query for a name; None if all have to be read.
    by_name: Callable[[str], Mapping[str, str]] | None = None


def _name(name: str) -> Mapping[str, str]:
    return {"name": name}


def _pattern(name: str) -> Mapping[str, str]:
    # Nova takes a regular expression.
    return {"name": f"^{re.escape(name)}$"}


#: Source: the API references of nova, glance, neutron, keystone and cinder.
KINDS = {
    "flavor": _Kind("compute", "/v2.1/flavors/detail", "flavors"),
    "floating-ip": _Kind("network", "/v2.0/floatingips", "floatingips"),
    "image": _Kind("image", "/v2/images", "images", _name),
    "network": _Kind("network", "/v2.0/networks", "networks", _name),
    "port": _Kind("network", "/v2.0/ports", "ports", _name),
    "project": _Kind("identity", "/v3/projects", "projects", _name),
    "router": _Kind("network", "/v2.0/routers", "routers", _name),
    "security-group": _Kind("network", "/v2.0/security-groups", "security_groups", _name),
    "server": _Kind("compute", "/v2.1/servers/detail", "servers", _pattern),
    "subnet": _Kind("network", "/v2.0/subnets", "subnets", _name),
}
#: A question to each service that any user may ask.
QUESTIONS = {
    "compute": "/v2.1/servers?limit=1",
    "image": "/v2/images?limit=1",
    "network": "/v2.0/networks?limit=1",
}


class _Proxy:
    """The proxy of the user's home, and what it knows."""

    def __init__(self, app: Any) -> None:  # noqa: ANN401 - osc_lib's shell has no types
        self.session: Session = app.client_manager.session
        self.named: Mapping[str, object] = app.cloud_config.cloud_config.get("scopes") or {}
        self._region = app.cloud.region_name
        auth_url = app.cloud.config["auth"]["auth_url"]
        self.frontend = urlsplit(auth_url)._replace(path="", query="").geturl()
        try:
            facts = self.session.get(f"{self.frontend}/scope").json()
        except (ClientException, ValueError) as error:
            raise exceptions.CommandError(f"the proxy at {self.frontend}: {error}") from error
        self.home: str = facts["instance"]
        self.services: list[str] = facts["services"]
        self.instances: list[dict[str, Any]] = facts["instances"]

    @property
    def names(self) -> list[str]:
        """The instances."""
        return [instance["name"] for instance in self.instances]

    def ask(
        self,
        scope: Mapping[str, str],
        service: str,
        path: str,
        **options: Any,  # noqa: ANN401
    ) -> Response:
        """GET *path* of *service* with *scope*; any status is an answer."""
        endpoint = self.session.get_endpoint(
            service_type=service, interface="public", region_name=self._region
        )
        if endpoint is None:
            raise exceptions.CommandError(f"the catalog has no {service} service")
        root = re.sub(r"/v[0-9][^/]*(?:/.*)?$", "", endpoint.rstrip("/"))
        return self.session.get(
            f"{root}{path}",
            headers={"X-Scope": json.dumps(dict(scope))},
            raise_exc=False,
            **options,
        )


def _services(text: str, named: Mapping[str, object]) -> dict[str, str]:
    return read(text, lambda: named)


def _reason(response: Response) -> str:
    """The message of an error in one of OpenStack's forms."""
    try:
        answer = response.json()
        error = answer.get("error") or next(iter(answer.values()))
        return f"{response.status_code}: {error['message']}"
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return f"{response.status_code}: {response.reason}"


class ListScopes(command.Lister):
    """List the instances that the proxy knows, and the named scopes of clouds.yaml"""

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """One row for each instance, then one for each name."""
        proxy = _Proxy(self.app)

        def latency(name: str) -> int | None:
            url = scoped_auth_url(f"{proxy.frontend}/identity/v3", Scope({"identity": name}))
            began = time.monotonic()
            try:
                answer = proxy.session.get(url, authenticated=False, raise_exc=False)
            except ClientException:
                return None
            took = round(1000 * (time.monotonic() - began))
            return took if answer.status_code == _OK else None

        with ThreadPoolExecutor(len(proxy.instances)) as pool:
            took = list(pool.map(latency, proxy.names))
        rows: list[Sequence[Any]] = [
            (
                instance["name"],
                "home" if instance["name"] == proxy.home else "instance",
                "down" if milliseconds is None else instance["state"],
                NOTHING if milliseconds is None else milliseconds,
                instance["trusted"],
                NOTHING,
            )
            for instance, milliseconds in zip(proxy.instances, took, strict=True)
        ]
        rows += [
            (name, "scope", NOTHING, NOTHING, NOTHING, json.dumps(scope))
            for name, scope in proxy.named.items()
        ]
        return ("Name", "Kind", "State", "Latency (ms)", "Trusted", "Scope"), rows


class _WithScope(command.Command):
    """A command about a scope: that of its argument, or the one in force."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The parser, with the optional argument."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "wanted",
            metavar="<scope>",
            nargs="?",
            help="JSON, shorthand or a name (default: the scope of --scope and OS_SCOPE)",
        )
        return parser

    def sources(self, text: str | None, named: Mapping[str, object]) -> dict[str, tuple[str, str]]:
        """The instance or expression of each service in the scope, and who says so."""
        if text is None:
            return dict(ScopeParser.sources)
        by = f"the scope {text} in clouds.yaml" if text in named else "the argument"
        return {service: (value, by) for service, value in _services(text, named).items()}


class ShowScope(_WithScope, command.Lister):
    """Show which instance provides each service, and why"""

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """One row for each service."""
        proxy = _Proxy(self.app)
        sources = self.sources(parsed_args.wanted, proxy.named)
        default = (proxy.home, "the default: the home instance")
        services = dict.fromkeys([*proxy.services, *sources])
        rows = [(service, *sources.get(service, default)) for service in services]
        return ("Service", "Instance", "Because"), rows


class ShowScopeUrl(_WithScope, command.ShowOne):
    """Show the auth URL with which any client uses a scope"""

    auth_required = False

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """The auth URL."""
        cloud = self.app.cloud
        url = cloud.config["auth"].get("auth_url")
        if not url:
            raise exceptions.CommandError("there is no auth URL: set OS_CLOUD or OS_AUTH_URL")
        if parsed_args.wanted is not None:
            named = self.app.cloud_config.cloud_config.get("scopes") or {}
            services = _services(parsed_args.wanted, named)
            if any(map(is_expression, services.values())):
                raise exceptions.CommandError(
                    "a URL holds one instance for each service: write the scope without an "
                    "expression"
                )
            url = scoped_auth_url(url, Scope(services))
        return ("auth_url",), (url,)


class FindInScope(command.Lister):
    """Find the instance that has a resource, by ID or name"""

    _failed = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The parser, with the resource and its kind."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("wanted", metavar="<id-or-name>", help="ID or name of the resource")
        parser.add_argument(
            "--type",
            dest="kind",
            choices=sorted(KINDS),
            help="Kind of the resource (default: look for all kinds)",
        )
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """The status is 1 if nothing was found, or an instance did not answer."""
        return int(super().run(parsed_args) or self._failed)

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """One row for each resource that matches."""
        proxy = _Proxy(self.app)
        kinds = {parsed_args.kind: KINDS[parsed_args.kind]} if parsed_args.kind else KINDS

        def search(instance: str) -> list[Sequence[Any]]:
            # A token is good at its issuer only.
            scope = dict.fromkeys((s for s in proxy.services if s != "identity"), instance)
            found: list[Sequence[Any]] = []
            for name, kind in kinds.items():
                if kind.service == "identity" and instance != proxy.home:
                    continue
                if kind.service not in proxy.services:
                    continue
                query = kind.by_name(parsed_args.wanted) if kind.by_name else {}
                answers = [proxy.ask(scope, kind.service, kind.collection, params=query)]
                if kind.by_name:
                    one = kind.collection.removesuffix("/detail")
                    path = f"{one}/{quote(parsed_args.wanted, safe='')}"
                    answers.append(proxy.ask(scope, kind.service, path))
                for answer in answers:
                    if answer.status_code in (400, 403, 404):
                        continue
                    if answer.status_code != _OK:
                        self._failed = True
                        self.app.stderr.write(f"{instance}: {_reason(answer)}\n")
                        return found
                    document = answer.json()
                    single = document if "id" in document else next(iter(document.values()))
                    for item in document.get(kind.key, [single]):
                        row = (instance, name, item["id"], item.get("name"))
                        if (
                            parsed_args.wanted in (item["id"], item.get("name"))
                            and row not in found
                        ):
                            found.append(row)
            return found

        with ThreadPoolExecutor(len(proxy.names)) as pool:
            rows = [row for rows in pool.map(search, proxy.names) for row in rows]
        if not rows:
            self._failed = True
        return ("Instance", "Type", "ID", "Name"), rows


class CheckScope(_WithScope, command.Lister):
    """Check that a scope works: reachability, trust, and a request to each service"""

    _failed = False

    def run(self, parsed_args: argparse.Namespace) -> int:
        """The status is 1 if a check fails."""
        return int(super().run(parsed_args) or self._failed)

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """One row for each check."""
        proxy = _Proxy(self.app)
        sources = self.sources(parsed_args.wanted, proxy.named)
        scope = {service: value for service, (value, _) in sources.items()}
        if any(map(is_expression, scope.values())):
            raise exceptions.CommandError("write the scope without an expression")
        ours = ScopeParser.sources.get("identity", (proxy.home, ""))[0]
        issuer = scope.get("identity", ours)
        if issuer != ours:
            raise exceptions.CommandError(
                f"log in at {issuer} to check this scope: write it as --scope"
            )
        resolved = dict.fromkeys(proxy.services, proxy.home) | scope
        rows = [
            ("reachable", name, self._answer(name, proxy)) for name in sorted({*resolved.values()})
        ]
        token = proxy.session.get_token()
        headers = {"X-Subject-Token": token}
        validation = proxy.session.get(
            f"{proxy.frontend}/identity/v3/auth/tokens?nocatalog", headers=headers, raise_exc=False
        )
        rows.append(("token validates itself", issuer, self._verdict(validation)))
        for service, question in QUESTIONS.items():
            if service in resolved:
                answer = proxy.ask(resolved, service, question)
                rows.append(
                    (f"{service} accepts the token", resolved[service], self._verdict(answer))
                )
        return ("Check", "Instance", "Result"), rows

    def _answer(self, name: str, proxy: _Proxy) -> str:
        states = {instance["name"]: instance["state"] for instance in proxy.instances}
        state = states.get(name, "unknown to the proxy")
        if state != "up":
            self._failed = True
        return "ok" if state == "up" else state

    def _verdict(self, response: Response) -> str:
        if response.status_code == _OK:
            return "ok"
        self._failed = True
        return _reason(response)
