"""What foreign tokens can do, per service: the table in ``docs/security.org``."""

from __future__ import annotations

import json

import pytest

from tests.conftest import RunningLab
from tests.integration.wire import ask, login

ONE, TWO, THREE = "InstanceOne", "InstanceTwo", "InstanceThree"
#: What is asked for: path and body.
OPERATIONS: dict[str, tuple[str, object]] = {
    "list images": ("/image/v2/images", None),
    "create an image": ("/image/v2/images", {"name": "test-trust"}),
    "list the project's servers": ("/compute/v2.1/servers", None),
    "list all servers": ("/compute/v2.1/servers?all_tenants=1", None),
    "list nova's services": ("/compute/v2.1/os-services", None),
    "list networks": ("/networking/v2.0/networks", None),
    "create a shared network": (
        "/networking/v2.0/networks",
        {"network": {"name": "test-trust", "shared": True}},
    ),
}
EVERYTHING = dict.fromkeys(OPERATIONS, "yes")
NOTHING = dict.fromkeys(OPERATIONS, "401")
#: What needs the role ``admin``.
OF_ADMINISTRATORS = dict.fromkeys(
    ("list all servers", "list nova's services", "create a shared network"), "403"
)


@pytest.mark.parametrize(
    ("issuer", "user", "where", "expected"),
    [
        (TWO, "admin", ONE, EVERYTHING),
        (TWO, "demo", ONE, EVERYTHING | OF_ADMINISTRATORS),
        (THREE, "admin", ONE, EVERYTHING | OF_ADMINISTRATORS),
        (THREE, "demo", ONE, EVERYTHING | OF_ADMINISTRATORS),
        (THREE, "admin", TWO, dict.fromkeys(OPERATIONS, "403") | {"list images": "yes"}),
        (TWO, "admin", THREE, NOTHING),
    ],
)
def test_a_foreign_token_can_do_what_trust_says(
    three: RunningLab, issuer: str, user: str, where: str, expected: dict[str, str]
) -> None:
    headers = {
        "X-Auth-Token": login(three, issuer, user),
        "X-Scope": json.dumps(dict.fromkeys(("compute", "image", "network"), where)),
    }
    found = {}
    for operation, (path, body) in OPERATIONS.items():
        status, _, _ = ask(three, issuer, path, headers, body)
        found[operation] = "yes" if status in (200, 201) else str(status)
    assert found == expected
