"""What Horizon is told, and where it is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from lab import dashboard
from lab.config import Lab, load
from lab.dashboard import Dashboard
from lab.errors import LabError

CLOUDS = {
    name: {"auth": {"auth_url": f"http://{name.lower()}.example/identity/v3"}}
    for name in ("One", "Two", "Three")
}
ENTRIES = [(cloud["auth"]["auth_url"], name) for name, cloud in CLOUDS.items()]


def lab_with(addresses: list[str], *names: str) -> Lab:
    with tempfile.TemporaryDirectory(prefix="oid-") as root:
        named = zip(names or ("One", "Two"), addresses, strict=False)
        listed = [f"{{name: {name}, address: {address}}}" for name, address in named]
        provider = "local" if addresses[0].startswith("127.") else "hosts"
        text = f"provider: {provider}\ninstances: [{', '.join(listed)}]\n"
        (Path(root) / "lab.yaml").write_text(text)
        return load(Path(root))


def _evaluated(*, consoles: bool) -> dict[str, Any]:
    """What Horizon gets from the rendered settings."""
    place, secret = Path("/lab/dashboard"), "it's \\secret"
    text = dashboard.settings(ENTRIES, "127.0.1.1", place, secret, consoles=consoles)
    names: dict[str, Any] = {}
    exec(text, names)
    return names


@pytest.fixture
def namespace() -> dict[str, Any]:
    return _evaluated(consoles=True)


def test_horizon_offers_a_console_where_servers_have_one(namespace: dict[str, Any]) -> None:
    assert namespace["CONSOLE_TYPE"] == "SERIAL"
    assert _evaluated(consoles=False)["CONSOLE_TYPE"] is None


def test_the_login_menu_has_every_instance_and_every_named_scope() -> None:
    named = {"mixed": {"auth": {"auth_url": "http://one.example/scope/x/identity/v3"}}}
    entries = dashboard.logins({**CLOUDS, **named})
    assert entries == [*ENTRIES, ("http://one.example/scope/x/identity/v3", "mixed")]


def test_horizon_gets_the_menu_and_keeps_everything_in_the_lab(namespace: dict[str, Any]) -> None:
    assert namespace["AVAILABLE_REGIONS"] == ENTRIES
    assert namespace["OPENSTACK_KEYSTONE_URL"] == ENTRIES[0][0]
    assert namespace["ALLOWED_HOSTS"] == ["127.0.1.1"]
    assert namespace["SECRET_KEY"] == "it's \\secret"
    for name in ("STATIC_ROOT", "SESSION_FILE_PATH"):
        assert namespace[name].startswith("/lab/dashboard/")
    assert "DEBUG" not in namespace


def test_the_dashboard_is_on_the_labs_own_address_if_that_is_a_loopback_address() -> None:
    assert Dashboard(lab_with(["127.9.1.1", "127.9.2.1"])).url == "http://127.9.1.1:8880/"
    assert Dashboard(lab_with(["192.168.56.11"])).url == "http://127.0.0.1:8880/"


def test_a_lab_without_a_dashboard_says_so() -> None:
    one = Dashboard(lab_with(["127.9.1.1"]))
    assert one.state() is None
    one.halt()


def test_no_instance_can_be_called_like_the_directory_of_the_dashboard() -> None:
    with pytest.raises(LabError, match="is a name that the lab reserves for itself"):
        lab_with(["127.9.1.1"], "Dashboard")
