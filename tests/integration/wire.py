"""Raw HTTP requests to the proxies of the running lab."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import Any

from lab.wheels.spec import PROXY_PORT
from openstackoid.scope import Scope
from tests.conftest import RunningLab

IMAGES = "/image/v2/images"
TOKENS = "/identity/v3/auth/tokens"
#: An invalid token that claims InstanceTwo as its issuer.
GARBAGE = Scope(
    {
        **dict.fromkeys(("compute", "image", "network", "placement"), "InstanceOne"),
        "identity": "InstanceTwo",
    }
).tag("garbage")


def ask(
    lab: RunningLab, name: str, path: str, headers: Mapping[str, str], body: object = None
) -> tuple[int, Mapping[str, str], Any]:
    """A proxy's answer: its status, its headers by lower-case name, and its content."""
    address = lab.config.instance(name).address
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://{address}:{PROXY_PORT}{path}",
        data=data,
        headers={**headers, "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, _lower(response.headers), json.load(response)
    except urllib.error.HTTPError as error:
        text = error.read()
        is_json = error.headers.get_content_type() == "application/json"
        return error.code, _lower(error.headers), json.loads(text) if is_json else text.decode()


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def login(lab: RunningLab, name: str, user: str, scope: str = "") -> str:
    """A token of *user*, in the project of the same name, for *scope*."""
    secrets = json.loads((lab.config.state / "secrets" / f"{name}.json").read_text())
    domain = {"id": "default"}
    who = {"name": user, "domain": domain, "password": secrets[user]}
    auth = {
        "identity": {"methods": ["password"], "password": {"user": who}},
        "scope": {"project": {"name": user, "domain": domain}},
    }
    headers = {"X-Scope": scope} if scope else {}
    status, answer, _ = ask(lab, name, TOKENS, headers, {"auth": auth})
    assert status == 201
    token: str = answer["x-subject-token"]
    return token
