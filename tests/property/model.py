"""A reference model of the proxy's routing, in plain Python.

It is written from the design, not from HAProxy's rules, and shares no code with them. Texts are
``str`` with one character per byte (Latin-1), because HTTP has bytes, not characters.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import string
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

MARK = "!SCOPE!"
#: The mark of a client that percent-encodes its headers, and the headers in which it counts.
ENCODED_MARK = "%21SCOPE%21"
ENCODED = ("X-Auth-Token", "X-Service-Token")
TOKENS = ("X-Auth-Token", "X-Subject-Token", "X-Service-Token")
OURS = ("X-Scope", *TOKENS)
#: Where a login may have a token in its body.
LOGINS = ("/auth/tokens", "/auth/OS-FEDERATION/saml2", "/auth/OS-FEDERATION/saml2/ecp")
BASE64URL = set(string.ascii_letters + string.digits + "-_")
CULPRIT_SHOWN = 200
#: Headers that only keystonemiddleware may write, or from which it would read a hidden token.
FORGED = ("X-Storage-Token", "X-Roles", "X-Service-User-Id", "OpenStack-System-Scope")


@dataclass(frozen=True)
class Instance:
    """One instance, as its proxy knows it."""

    name: str
    services: Mapping[str, str]
    peers: tuple[str, ...]
    issuers: tuple[str, ...]

    def knows(self, instance: str) -> bool:
        return instance == self.name or instance in self.peers

    def trusts(self, instance: str) -> bool:
        return instance == self.name or instance in self.issuers


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def value(self, name: str) -> str | None:
        values = self.values(name)
        return values[-1] if values else None

    def with_header(self, name: str, value: str | None) -> Request:
        kept = tuple(pair for pair in self.headers if pair[0].lower() != name.lower())
        added = () if value is None else ((name, value),)
        return Request(self.method, self.path, kept + added, self.body)

    def with_path(self, path: str) -> Request:
        return Request(self.method, path, self.headers, self.body)


@dataclass(frozen=True)
class Refused:
    """A proxy's own answer: its status, and the beginning of its message."""

    status: int
    message: str


@dataclass(frozen=True)
class Served:
    """The service that answers, the request that it gets, and the tag of a token that it issues."""

    instance: str
    service: str
    request: Request
    minted: str | None = None


class _Fault(Exception):
    def __init__(self, status: int, message: str) -> None:
        self.refused = Refused(status, message)


@dataclass(frozen=True)
class World:
    """Several instances; others know those in *away*, but they do not answer."""

    instances: Mapping[str, Instance]
    away: tuple[str, ...] = ()

    def decide(self, name: str, request: Request, *, from_peer: bool = False) -> Refused | Served:
        """The result of *request* at the proxy of the instance *name*."""
        try:
            step = _Step(self.instances[name], request, from_peer).route()
        except _Fault as fault:
            return fault.refused
        if step.target == name:
            return Served(name, step.service, step.request, step.minted)
        if step.target in self.away:
            return Refused(503, f"instance {step.target} cannot be reached from {name}")
        onward = self.decide(step.target, step.request, from_peer=True)
        if isinstance(onward, Refused):
            return onward
        assert not (step.minted and onward.minted), "a token would be tagged twice"
        return Served(onward.instance, onward.service, onward.request, step.minted or onward.minted)


@dataclass
class _Onward:
    target: str
    service: str
    request: Request
    minted: str | None


@dataclass
class _Step:
    """One request at one proxy."""

    here: Instance
    request: Request
    from_peer: bool
    scoped_path: str | None = field(default=None)

    def route(self) -> _Onward:
        self._clean()
        self._take_tag_of_login()
        self._refuse_forged()
        if self._is_unscoped():
            return _Onward(self.here.name, self._service(), self.request, None)
        self._strip_url()
        service = self._service()
        self._refuse_several()
        self._decode_tags()
        texts = self._texts()
        scopes = {place: self._read(text, place) for place, text in texts.items()}
        for place in TOKENS[::-1]:
            self._trust(scopes.get(place, {}).get("identity"))

        carried = [scopes[p] for p in ("X-Auth-Token", "the URL", "X-Scope") if p in scopes]
        resolved = dict.fromkeys(self.here.services, self.here.name)
        for scope in carried:
            resolved |= scope
        self._trust(resolved["identity"])

        if service == "identity":
            self._to_keystone(scopes, resolved)
        elif carried and self.request.values("X-Auth-Token"):
            token = _bare(self.request.value("X-Auth-Token"))
            self._set("X-Auth-Token", token + MARK + _canonical(resolved))
        self._set("X-Scope", None)
        target = resolved[service]
        if carried and service == "compute":
            self._refuse_network_elsewhere(resolved)
        self._keep_service_token(scopes, target)
        if service == "identity":
            self._strip_tags()
        minted = self._minted(scopes, resolved) if service == "identity" else None
        return _Onward(target, service, self.request, minted)

    def _clean(self) -> None:
        headers = tuple(
            (name, value.strip(" \t"))
            for name, value in self.request.headers
            if "_" not in name and (self.from_peer or not name.startswith("X-Forwarded-"))
        )
        self.request = Request(self.request.method, self.request.path, headers, self.request.body)

    def _refuse_forged(self) -> None:
        if any(self.request.values(name) for name in FORGED):
            raise _Fault(400, "the header ")
        if any(_is_tagged(value) for value in self.request.values("Authorization")):
            raise _Fault(400, "send a tagged token in X-Auth-Token")

    def _set(self, name: str, value: str | None) -> None:
        self.request = self.request.with_header(name, value)

    def _take_tag_of_login(self) -> None:
        """The tag of the token in a login's body becomes the scope, unless the request has one."""
        path = self.request.path.partition("?")[0].removesuffix("/")
        if self.request.method != "POST" or not path.endswith(LOGINS):
            return
        element = path.split("/")[3 if path.startswith("/scope/") else 1]
        if self._prefixes().get(element) != "identity":
            return
        try:
            body = json.loads(self.request.body)
            token = body["auth"]["identity"]["token"]
            identifier = token["id"]
        except (ValueError, KeyError, TypeError):
            return
        if not isinstance(identifier, str) or not _is_tagged(identifier):
            return
        identifier = identifier.encode("utf-8", "surrogatepass").decode("latin-1")
        self._refuse_several()
        scopes = {}
        carriers = {"X-Scope": self.request.value("X-Scope"), "the URL": self._text_in_url()}
        for place, text in (carriers | {"the token in the body": _tag(identifier)}).items():
            if text is not None:
                scopes[place] = self._read(text, place)
        issuer = scopes["the token in the body"].get("identity", self.here.name)
        self._trust(issuer)
        resolved = dict.fromkeys(self.here.services, self.here.name)
        for place in ("the token in the body", "the URL", "X-Scope"):
            resolved |= scopes.get(place, {})
        token["id"] = _bare(identifier)
        self._set("X-Scope", _canonical(resolved | {"identity": issuer}))
        self.request = replace(self.request, body=json.dumps(body))

    def _text_in_url(self) -> str | None:
        path = self.request.path.partition("?")[0]
        return _decode(path.split("/")[2]) if path.startswith("/scope/") else None

    def _minted(
        self, scopes: Mapping[str, Mapping[str, str]], resolved: Mapping[str, str]
    ) -> str | None:
        """The tag of the token in the answer."""
        if "X-Subject-Token" in scopes:
            told = dict.fromkeys(self.here.services, self.here.name)
            for place in ("X-Subject-Token", "the URL", "X-Scope"):
                told |= scopes.get(place, {})
            return _canonical(told | {"identity": resolved["identity"]})
        is_scoped = {"X-Scope", "the URL", "X-Auth-Token"} & scopes.keys()
        return _canonical(resolved) if is_scoped else None

    def _is_unscoped(self) -> bool:
        return (
            self._first_element() in self._prefixes()
            and not self.request.values("X-Scope")
            and not any(_is_tagged(value) for name in TOKENS for value in self.request.values(name))
            and not any(
                ENCODED_MARK in value for name in ENCODED for value in self.request.values(name)
            )
            and all(len(self.request.values(name)) <= 1 for name in TOKENS)
        )

    def _prefixes(self) -> dict[str, str]:
        return {prefix[1:]: service for service, prefix in self.here.services.items()}

    def _first_element(self) -> str:
        return self.request.path.partition("?")[0].split("/")[1]

    def _service(self) -> str:
        service = self._prefixes().get(self._first_element())
        if service is None:
            raise _Fault(404, f"the proxy of {self.here.name} knows no service at this path")
        return service

    def _strip_url(self) -> None:
        path, query, arguments = self.request.path.partition("?")
        if not path.startswith("/scope/"):
            return
        _, _, self.scoped_path, *rest = path.split("/")
        self.request = self.request.with_path(f"/{'/'.join(rest)}{query}{arguments}")
        self._set("X-Forwarded-Prefix", f"/scope/{self.scoped_path}")

    def _refuse_several(self) -> None:
        for name in OURS:
            if len(self.request.values(name)) > 1:
                raise _Fault(400, f"several {name} headers")

    def _decode_tags(self) -> None:
        for name in ENCODED:
            value = self.request.value(name)
            if value is not None and _plain(value) != value:
                self._set(name, _plain(value))

    def _texts(self) -> dict[str, str]:
        texts = {}
        header = self.request.value("X-Scope")
        if header is not None:
            texts["X-Scope"] = header
        if self.scoped_path is not None:
            texts["the URL"] = _decode(self.scoped_path)
        for name in TOKENS:
            value = self.request.value(name)
            if value is not None and _is_tagged(value):
                texts[name] = _tag(value)
        return texts

    def _read(self, text: str, place: str) -> dict[str, str]:
        pairs = _pairs(text)
        if pairs is None:
            raise _Fault(400, f"malformed scope '{_shown(text)}' in {place}")
        for service, _ in pairs:
            if service not in self.here.services:
                raise _Fault(400, f"unknown service type '{_shown(service)}' in scope")
        if len(dict(pairs)) < len(pairs):
            raise _Fault(400, f"a service type appears twice in the scope in {place}")
        for _, instance in pairs:
            if not self.here.knows(instance):
                raise _Fault(400, f"unknown instance '{_shown(instance)}' in scope")
        return dict(pairs)

    def _trust(self, issuer: str | None) -> None:
        if issuer is not None and not self.here.trusts(issuer):
            raise _Fault(401, f"{self.here.name} does not accept tokens that {issuer} issued")

    def _to_keystone(
        self, scopes: Mapping[str, Mapping[str, str]], resolved: dict[str, str]
    ) -> None:
        if "X-Subject-Token" not in scopes:
            return
        issuer = scopes["X-Subject-Token"].get("identity", self.here.name)
        if self.request.values("X-Auth-Token") and issuer != resolved["identity"]:
            self._set("X-Auth-Token", _bare(self.request.value("X-Subject-Token")))
        resolved["identity"] = issuer

    def _refuse_network_elsewhere(self, resolved: Mapping[str, str]) -> None:
        path = self.request.path.partition("?")[0].removesuffix("/")
        is_new_server = self.request.method == "POST" and path.endswith("/servers")
        if (
            is_new_server
            and resolved["network"] != resolved["compute"]
            and not _wants_no_network(self.request.body)
        ):
            raise _Fault(400, "a server's network has to be of the same instance as its compute")

    def _keep_service_token(self, scopes: Mapping[str, Mapping[str, str]], target: str) -> None:
        token = self.request.value("X-Service-Token")
        issuer = scopes.get("X-Service-Token", {}).get("identity", self.here.name)
        if token is None:
            return
        if target != self.here.name or issuer != self.here.name:
            self._set("X-Service-Token", None)
        elif _is_tagged(token):
            self._set("X-Service-Token", _bare(token))

    def _strip_tags(self) -> None:
        for name in ("X-Auth-Token", "X-Subject-Token"):
            value = self.request.value(name)
            if value is not None and _is_tagged(value):
                self._set(name, _bare(value))


def _wants_no_network(body: str) -> bool:
    try:
        return bool(json.loads(body)["server"]["networks"] == "none")
    except (ValueError, KeyError, TypeError):
        return False


def _is_tagged(value: str) -> bool:
    return MARK in value


def _plain(value: str) -> str:
    """A token whose tag is not percent-encoded; a tag with an invalid encoding stays as it is."""
    token, mark, tag = value.partition(ENCODED_MARK)
    if not mark or MARK in value:
        return value
    valid = re.fullmatch("(?:[^%]|%[0-9A-Fa-f]{2})*", tag, re.DOTALL)
    return token + MARK + (urllib.parse.unquote(tag, "latin-1") if valid else tag)


def _tag(value: str) -> str:
    token, _, text = value.partition(MARK)
    return "" if "!" in token else text


def _bare(value: str | None) -> str:
    return (value or "").split("!")[0]


def _canonical(scope: Mapping[str, str]) -> str:
    return json.dumps(dict(sorted(scope.items())), separators=(",", ":"))


def _shown(text: str) -> str:
    return text.encode("latin-1")[:CULPRIT_SHOWN].decode("utf-8", "ignore")


def _decode(encoded: str) -> str:
    """The text in a scoped URL; invalid or padded base64url, or a NUL inside, stays encoded."""
    if not set(encoded) <= BASE64URL or len(encoded) % 4 == 1:
        return encoded
    try:
        decoded = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except binascii.Error:
        return encoded
    return encoded if b"\0" in decoded else decoded.decode("latin-1")


def _pairs(text: str) -> list[tuple[str, str]] | None:
    """The pairs of a scope's JSON; a scope is an object of plain strings, without escapes."""
    if "\\" in text or any(character < " " for character in text):
        return None
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not text.strip(" ").startswith("{"):
        return None
    if not all(isinstance(v, str) and k and v for k, v in pairs):
        return None
    return list(pairs)
