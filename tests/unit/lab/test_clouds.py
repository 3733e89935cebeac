"""Whose passwords are in ``clouds.yaml``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab import stacks
from lab.config import Lab, load
from lab.passwords import passwords
from lab.providers.base import Host
from lab.ssh import Remote
from openstackoid.scope import decode_url_scope


def reach_nobody(host: Host) -> Remote:
    raise AssertionError(f"{host.name} was called")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="oid-") as name:
        (Path(name) / "lab.yaml").write_text(
            "provider: local\n"
            "instances: [{name: A, address: 127.0.1.1}, {name: B, address: 127.0.2.1}]\n"
            "scopes: {mixed: {glance: B}, login: {identity: B}}\n"
        )
        yield load(Path(name))


@pytest.mark.parametrize("name", ["wheels", "devstack"])
def test_an_instance_knows_no_administrator_but_its_own(lab: Lab, name: str) -> None:
    stack = stacks.stack_class(name)(lab, reach_nobody)
    secrets = {one: passwords(lab, one, stack.accounts) for one in lab.names}
    home = Path("/home")
    hosts = [Host(one, "", home, home, home, home, "", "") for one in lab.names]
    for one, text in stack.homes(hosts).items():
        clouds = yaml.safe_load(text)["clouds"]
        clouds = {one: cloud for one, cloud in clouds.items() if one in lab.names}
        [other] = set(clouds) - {one}
        assert clouds[one]["auth"]["password"] == secrets[one]["admin"]
        assert clouds[other]["auth"]["password"] == secrets[other][stack.member]
        known = {account for account, secret in secrets[other].items() if secret in text}
        assert known == {stack.member}


def test_the_owner_of_the_lab_is_administrator_everywhere(lab: Lab) -> None:
    stack = stacks.stack(lab, reach_nobody)
    clouds = stack.clouds()["clouds"]
    for name, cloud in {one: clouds[one] for one in lab.names}.items():
        assert cloud["auth"]["username"] == cloud["auth"]["project_name"] == "admin"
        assert cloud["auth"]["password"] == passwords(lab, name, stack.accounts)["admin"]


def scope_in(auth_url: str) -> dict[str, str]:
    """The scope in the path of a scoped URL."""
    scope: dict[str, str] = json.loads(decode_url_scope(auth_url.split("/")[4]))
    return scope


@pytest.mark.parametrize("home", [None, "A", "B"])
def test_a_named_scope_is_a_cloud_of_ones_own_instance(lab: Lab, home: str | None) -> None:
    content = stacks.stack(lab, reach_nobody).clouds(home)
    assert content["scopes"] == {"mixed": {"image": "B"}, "login": {"identity": "B"}}
    mine = content["clouds"][home or "A"]
    mixed = content["clouds"]["mixed"]
    assert scope_in(mixed["auth"]["auth_url"]) == {"image": "B"}
    plain = mine["auth"]["auth_url"].removesuffix("/identity/v3")
    assert mixed["auth"]["auth_url"].startswith(f"{plain}/scope/")
    assert {**mixed, "auth": {**mixed["auth"], "auth_url": mine["auth"]["auth_url"]}} == mine


def test_a_scope_with_an_issuer_logs_in_as_that_instances_user(lab: Lab) -> None:
    stack = stacks.stack(lab, reach_nobody)
    clouds = stack.clouds("A")["clouds"]
    login = clouds["login"]
    assert login["auth"]["password"] == passwords(lab, "B", stack.accounts)[stack.member]
    assert login["auth"]["auth_url"].startswith("http://127.0.1.1:8888/scope/")
    assert scope_in(login["auth"]["auth_url"]) == {"identity": "B"}
    assert login["region_name"] == "B"


def test_the_clouds_list_the_regions_of_their_catalogs(lab: Lab) -> None:
    def regions(lab: Lab) -> list[list[str] | None]:
        clouds = stacks.stack(lab, reach_nobody).clouds()["clouds"]
        return [clouds[name].get("regions") for name in lab.names]

    assert regions(lab) == [["A", "B", "mixed", "login"], ["B", "A", "mixed", "login"]]
    assert regions(lab.model_copy(update={"regions": False})) == [None, None]
    assert regions(lab.model_copy(update={"stack": "devstack"})) == [None, None]


def test_a_region_names_no_issuer(lab: Lab) -> None:
    regions = stacks.stack(lab, reach_nobody).regions("A")
    others = dict.fromkeys(("image", "compute", "placement", "network"), "B")
    assert regions == {"B": others, "mixed": {"image": "B"}, "login": {}}
