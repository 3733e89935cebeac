"""Tempest's ways into a lab, and what differs between them."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import conformance
from lab.config import Lab, load
from lab.conformance import Outcome, differences, table, ways
from lab.errors import LabError


@pytest.fixture
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "lab.yaml").write_text(
            "provider: local\n"
            "instances: [{name: One, address: 127.9.1.1}, {name: Two, address: 127.9.2.1}]\n"
            "scopes: {mixed: {image: Two}, strange: {identity: Two, image: Two}, "
            "all: {image: '*'}}\n"
        )
        yield load(Path(root))


@pytest.fixture
def clouds() -> dict[str, Any]:
    return {
        name: {"auth": {"auth_url": f"http://{name}/identity/v3", "username": f"admin-of-{name}"}}
        for name in ("One", "Two")
    }


def scope_in(url: str) -> dict[str, str]:
    encoded = url.split("/")[4]
    scope: dict[str, str] = json.loads(base64.urlsafe_b64decode(encoded + "=="))
    return scope


def test_the_first_way_has_no_scope(lab: Lab, clouds: dict[str, Any]) -> None:
    way = ways(lab, clouds, ["image=Two"])[0]
    assert (way.auth_url, way.region) == ("http://One/identity/v3", "One")
    assert not way.scope


def test_a_scope_is_in_the_auth_url_of_the_home(lab: Lab, clouds: dict[str, Any]) -> None:
    _, way = ways(lab, clouds, ["glance=Two"])
    assert scope_in(way.auth_url) == {"image": "Two"}
    assert way.auth_url.startswith("http://One/scope/")
    assert (way.region, way.user["username"]) == ("One", "admin-of-One")


def test_with_identity_elsewhere_the_administrator_is_the_other_one(
    lab: Lab, clouds: dict[str, Any]
) -> None:
    _, way = ways(lab, clouds, ["identity=Two"])
    assert (way.region, way.user["username"]) == ("Two", "admin-of-Two")


def test_a_named_scope_is_as_good(lab: Lab, clouds: dict[str, Any]) -> None:
    _, way = ways(lab, clouds, ["mixed"])
    assert scope_in(way.auth_url) == {"image": "Two"}


def test_a_region_is_chosen_after_a_login_without_a_scope(lab: Lab, clouds: dict[str, Any]) -> None:
    _, two, strange = ways(lab, clouds, ["region:Two", "region:strange"])
    assert (two.auth_url, two.region) == ("http://One/identity/v3", "Two")
    assert set(two.scope) == {"compute", "image", "network", "placement"}
    assert dict(strange.scope) == {"image": "Two"}


def test_by_default_each_kind_of_scope_and_each_region_has_its_turn(
    lab: Lab, clouds: dict[str, Any]
) -> None:
    names = [way.name for way in ways(lab, clouds, [])]
    assert names == [
        "One",
        "image=Two",
        "identity=Two",
        "compute=Two, network=Two, placement=Two",
        "compute=Two, identity=Two, image=Two, network=Two, placement=Two",
        "region:Two",
        "region:mixed",
        "region:strange",
    ]


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ("nonsense", "malformed scope 'nonsense'"),
        ("image=Two & One", "'Two & One' is not an instance"),
        ("all", "'*' is not an instance"),
        ("identity=Three", "'Three' is not an instance"),
        ("image=Three", "'Three' is not an instance"),
        ("region:Three", "no region 'Three'"),
    ],
)
def test_a_scope_that_leads_nowhere_is_an_error(
    lab: Lab, clouds: dict[str, Any], scope: str, message: str
) -> None:
    with pytest.raises(LabError, match="--scope: ") as caught:
        ways(lab, clouds, [scope])
    assert message in str(caught.value)


def test_a_test_that_ends_otherwise_is_a_difference(
    lab: Lab, clouds: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    way = ways(lab, clouds, ["image=Two"])[1]
    without = {name: Outcome("success") for name in ("same", "broken", "gone", "limited")}
    within = {
        "same": Outcome("success"),
        "broken": Outcome("fail", "Unauthorized"),
        "limited": Outcome("skip", "no such service"),
    }
    monkeypatch.setattr(conformance, "LIMITS", {"^lim": "nobody can"})
    found = differences(without, within, way)
    assert [(one.test, one.within.status, one.limit) for one in found] == [
        ("broken", "fail", ""),
        ("gone", "missing", ""),
        ("limited", "skip", "nobody can"),
    ]
    assert "image=Two: fail Unauthorized" in table(found)
    assert "a known limit: nobody can" in table(found)
