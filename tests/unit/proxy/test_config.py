"""A proxy's description, and the results of the command."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from openstackoid.proxy.cli import main, read_description
from openstackoid.proxy.config import (
    Peer,
    Policy,
    Proxy,
    ProxyError,
    Service,
    _any_of,
    peer_states,
    render,
)

IDENTITY = Service("identity", "/identity", "http://127.0.1.1:5000")
DESCRIPTION: dict[str, Any] = {
    "name": "InstanceOne",
    "bind": "127.0.1.1:8888",
    "services": [{"type": "identity", "prefix": "/identity", "url": "http://127.0.1.1:5000"}],
    "peers": [{"name": "InstanceTwo", "address": "127.0.2.1:8888"}],
    "issuers": ["InstanceTwo"],
}


def proxy(**changes: Any) -> Proxy:  # noqa: ANN401
    return Proxy(**{"name": "One", "bind": "127.0.1.1:8888", "services": (IDENTITY,), **changes})


@pytest.mark.parametrize(
    "name", ["", "a b", "a\nbind *:80", "a'b", 'a"b', "a#b", "a/b", "é", "-a", "x" * 65, "a%b"]
)
def test_a_name_that_could_inject_configuration_is_refused(name: str) -> None:
    with pytest.raises(ProxyError, match="is not an instance name"):
        Peer(name, "127.0.2.1:8888")
    with pytest.raises(ProxyError, match="is not an instance name"):
        proxy(name=name)


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "a b:1", "a:1\n", "::1:80", "é:1"],
)
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(ProxyError, match="is not an address"):
        Peer("Two", address)


@pytest.mark.parametrize("address", ["127.0.2.1:8888", "two.example:443", "[::1]:8888"])
def test_addresses_and_host_names_are_taken(address: str) -> None:
    assert Peer("Two", address).address == address


@pytest.mark.parametrize("prefix", ["", "identity", "/", "/a/b", "/scope", "/a b", "/ä", "/a\n"])
def test_a_path_of_more_or_less_than_one_element_is_refused(prefix: str) -> None:
    with pytest.raises(ProxyError, match="cannot be the path"):
        Service("identity", prefix, "http://127.0.1.1:5000")


def test_a_project_is_not_a_service_type() -> None:
    with pytest.raises(ProxyError, match="'glance' is not an official service type"):
        Service("glance", "/image", "http://127.0.1.1:9292")


@pytest.mark.parametrize(
    "url", ["127.0.1.1:1", "ftp://a:1", "http://a:1/b", "http://a", "http://u@a:1"]
)
def test_a_url_is_scheme_host_and_port(url: str) -> None:
    with pytest.raises(ProxyError, match="is not an address"):
        Service("image", "/image", url)


def test_an_issuer_has_to_be_a_peer() -> None:
    with pytest.raises(ProxyError, match="issuer 'Two' is not a peer of 'One'"):
        proxy(issuers=("Two",))


def test_a_name_is_for_one_instance_only() -> None:
    with pytest.raises(ProxyError, match='instance "One" appears twice'):
        proxy(peers=(Peer("One", "127.0.2.1:8888"),))


def test_every_proxy_needs_an_identity_service() -> None:
    with pytest.raises(ProxyError, match="has no identity service"):
        proxy(services=(Service("image", "/image", "http://127.0.1.1:1"),))


def test_a_directory_too_deep_for_a_socket_is_refused() -> None:
    with pytest.raises(ProxyError, match="cannot hold the proxy's sockets"):
        proxy(directory=Path("/" + "x" * 100))


def test_an_instance_trusts_itself() -> None:
    assert '["One"] = "home"' in render(proxy())["facts.lua"]


def test_a_long_list_of_instances_is_truncated_in_messages() -> None:
    peers = tuple(Peer(f"Peer{n}", f"127.0.2.1:{n + 1}") for n in range(30))
    files = render(proxy(peers=peers))
    assert "Peer18 and 11 more" in files["facts.lua"]
    assert '["Peer29"] = "untrusted"' in files["facts.lua"]


def test_a_socket_without_a_proxy_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(ProxyError, match=r"no proxy answers at .*is it running"):
        peer_states(tmp_path / "admin.sock")


def test_the_command_writes_the_files_and_prints_what_changed(tmp_path: Path) -> None:
    text = json.dumps({**DESCRIPTION, "directory": str(tmp_path)})
    first = CliRunner().invoke(main, ["render"], input=text)
    assert first.exit_code == 0
    assert str(tmp_path / "haproxy.cfg") in first.output.splitlines()
    assert CliRunner().invoke(main, ["render"], input=text).output == ""


def test_the_command_lets_haproxy_check(tmp_path: Path) -> None:
    text = json.dumps({**DESCRIPTION, "directory": str(tmp_path)})
    assert CliRunner().invoke(main, ["check", "-"], input=text).exit_code == 0


def test_haproxys_own_errors_are_shown(tmp_path: Path) -> None:
    peers = [{"name": "InstanceTwo", "address": "nobody.invalid:8888"}]
    text = json.dumps({**DESCRIPTION, "directory": str(tmp_path), "peers": peers})
    done = CliRunner().invoke(main, ["check", "-"], input=text)
    assert done.exit_code == 1
    assert "nobody.invalid" in done.output


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("1" * 5000, "is not JSON"),
        (b"\xff", "is not JSON"),
        ("[]", "description must be a JSON object, not []"),
        ("true", "description must be a JSON object, not True"),
        ("{}", "description has no 'name'"),
        (json.dumps({**DESCRIPTION, "colour": 1}), "description: unknown key 'colour'"),
        (json.dumps({**DESCRIPTION, "peers": [{"name": "x"}]}), "peers.0 has no 'address'"),
        (json.dumps({**DESCRIPTION, "name": "a b"}), "is not an instance name"),
        (json.dumps({**DESCRIPTION, "issuers": "InstanceTwo"}), "issuers must be a JSON array"),
        (json.dumps({**DESCRIPTION, "issuers": [2]}), "issuers.0 must be a string, not 2"),
        (json.dumps({**DESCRIPTION, "threads": True}), "threads must be a number, not True"),
        (json.dumps({**DESCRIPTION, "metrics": False}), "metrics must be a string, not False"),
        (json.dumps({**DESCRIPTION, "bind": None}), "bind must be a string, not None"),
        (json.dumps({**DESCRIPTION, "peers": None}), "peers must be a JSON array, not None"),
        (json.dumps({**DESCRIPTION, "peers": ["x"]}), "peers.0 must be a JSON object, not 'x'"),
    ],
)
def test_a_wrong_description_ends_in_one_line(text: str | bytes, error: str) -> None:
    done = CliRunner().invoke(main, ["render"], input=text)
    assert done.exit_code == 1
    assert error in done.output
    assert len(done.output.splitlines()) == 1
    assert "Traceback" not in done.output


@pytest.mark.parametrize("url", ["http://[::1", "http://]", "http://a℀b:80"])
def test_a_service_with_an_invalid_url_is_named(url: str) -> None:
    description = copy.deepcopy(DESCRIPTION)
    description["services"][0]["url"] = url
    with pytest.raises(ProxyError, match=r"services\.0\.url: '.*' is not a URL"):
        read_description(json.dumps(description))


@pytest.mark.parametrize("wrong", [1.5, {"x": 1}, [[None]]])
@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, one.name) for kind in (Proxy, Service, Peer) for one in dataclasses.fields(kind)],
)
def test_a_field_of_the_wrong_type_is_named(kind: type, field: str, wrong: object) -> None:
    description = copy.deepcopy(DESCRIPTION)
    parts = {Proxy: description, Service: description["services"][0]}
    parts.get(kind, description["peers"][0])[field] = wrong
    with pytest.raises(ProxyError, match=rf"description\.(\w+\.0\.)?{field}\b"):
        read_description(json.dumps(description))


PEER = {"name": "InstanceThree", "address": "127.0.3.1:8888"}


def described_with(tmp_path: Path, *files: object) -> Proxy:
    directory = tmp_path / "peers.d"
    directory.mkdir()
    for number, content in enumerate(files):
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / f"{number}.json").write_text(text)
    (directory / "notes.txt").write_text("{")
    return read_description(json.dumps({**DESCRIPTION, "peers_from": str(directory)}))


def test_peers_come_from_a_directory_too(tmp_path: Path) -> None:
    policy = {"services": ["identity"], "rate": 5}
    four = {**PEER, "name": "Four", "issuer": True, "policy": policy}
    proxy = described_with(tmp_path, {**PEER, "issuer": True, "sealed": True}, four)
    before = read_description(json.dumps(DESCRIPTION))
    three = Peer("InstanceThree", "127.0.3.1:8888", sealed=True)
    assert proxy.peers == (*before.peers, three, Peer("Four", "127.0.3.1:8888"))
    assert proxy.issuers == (*before.issuers, "InstanceThree", "Four")
    assert proxy.policies == (Policy("Four", services=("identity",), rate=5),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"0.json: Expecting property name"),
        ([], r"0.json must be a JSON object with the name of a peer"),
        ({"address": "a:1"}, r"0.json must be a JSON object with the name of a peer"),
        ({**PEER, "issuer": "yes"}, r"0.json: issuer must be true or false, not 'yes'"),
        ({**PEER, "policy": []}, r"0.json: policy must be a JSON object, not \[\]"),
        ({**PEER, "policy": {}}, r"a policy for 'InstanceThree', which is no issuer"),
        ({**PEER, "port": 1}, r"unknown key 'port'"),
    ],
)
def test_a_wrong_file_of_a_peer_is_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ProxyError, match=message):
        described_with(tmp_path, content)


def test_a_directory_of_peers_has_to_be_there(tmp_path: Path) -> None:
    for directory, message in ((str(tmp_path / "none"), "there is no directory"), (1, "a string")):
        with pytest.raises(ProxyError, match=message):
            read_description(json.dumps({**DESCRIPTION, "peers_from": directory}))


@given(
    st.lists(st.text("abA.-_0", max_size=5), min_size=1, max_size=20),
    st.text("abA.-_0", max_size=5),
)
def test_a_tree_of_names_matches_these_names_only(names: list[str], other: str) -> None:
    pattern = re.compile(f"(?:{_any_of(names)})!")
    assert all(pattern.fullmatch(f"{name}!") for name in names)
    assert bool(pattern.fullmatch(f"{other}!")) == (other in names)
