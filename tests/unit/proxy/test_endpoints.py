"""Proxies that are described by the endpoint lists of clouds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from openstackoid.proxy.cli import main, read_description
from openstackoid.proxy.config import (
    Https,
    Peer,
    Policy,
    Proxy,
    ProxyError,
    Service,
    Tls,
    render,
)
from openstackoid.proxy.endpoints import Catalogs, Wanted, describe, read

ONE, TWO = "InstanceOne", "InstanceTwo"
PEERS = {TWO: "127.0.2.1:8888"}

Row = tuple[str, str, str]


def listed(*rows: Row, region: str = ONE) -> str:
    """What ``openstack endpoint list -f json`` prints."""
    return json.dumps(
        [
            {"Region": region, "Service Type": kind, "Interface": interface, "URL": url}
            for kind, interface, url in rows
        ]
    )


def public(kind: str, url: str) -> Row:
    return (kind, "public", url)


IDENTITY = public("identity", "http://127.0.1.1/identity")
KEYSTONE = Service("identity", "/identity", "http://127.0.1.1:80")
KEYSTONE_PORT = public("identity", "http://127.0.1.1:5000/v3")


def described(*texts: str, **wanted: object) -> tuple[Proxy, list[str]]:
    catalogs = sum((read(text, "a.json") for text in texts), Catalogs())
    return describe(catalogs, Wanted(**{"instance": ONE, "peers": PEERS, **wanted}))  # type: ignore[arg-type]


def services(*rows: Row, **wanted: object) -> dict[str, Service]:
    """The services of One, whose list has *rows* besides identity."""
    has_identity = any(row[0] == "identity" for row in rows)
    proxy, unused = described(listed(*rows, *(() if has_identity else (IDENTITY,))), **wanted)
    assert unused == []
    return {service.type: service for service in proxy.services}


@pytest.mark.parametrize(
    ("url", "prefix", "address"),
    [
        ("http://127.0.1.1/image", "/image", "http://127.0.1.1:80"),
        ("http://127.0.1.1/image/", "/image", "http://127.0.1.1:80"),
        ("http://127.0.1.1:8080/image/v2/", "/image", "http://127.0.1.1:8080"),
        ("https://cloud.example/image/v2.1/$(project_id)s", "/image", "https://cloud.example:443"),
        ("http://127.0.1.1/swift/v1/AUTH_%(tenant_id)s", "/swift", "http://127.0.1.1:80"),
        ("http://[2001:db8::1]:80/image", "/image", "http://[2001:db8::1]:80"),
    ],
)
def test_the_first_element_of_a_path_is_the_prefix_of_the_service(
    url: str, prefix: str, address: str
) -> None:
    assert services(public("image", url))["image"] == Service("image", prefix, address)


@pytest.mark.parametrize(
    ("kind", "url", "frontend", "backend", "prefix"),
    [
        ("image", "http://127.0.1.1:9292", "127.0.1.1:9292", "10.0.0.1:9292", "/image"),
        ("network", "http://127.0.1.1:9696/", "127.0.1.1:9696", "10.0.0.1:9696", "/networking"),
        ("volumev3", "http://[::1]:8776/v3/%(tenant_id)s", "[::1]:8776", "10.0.0.1:8776",
         "/volume"),
        ("object-store", "http://127.0.1.1/v1/AUTH_$(project_id)s", "127.0.1.1:80", "10.0.0.1:80",
         "/object-store"),
    ],
)  # fmt: skip
def test_an_endpoint_without_a_name_in_its_path_is_a_frontend(
    kind: str, url: str, frontend: str, backend: str, prefix: str
) -> None:
    found = services(KEYSTONE_PORT, public(kind, url), behind="10.0.0.1")
    expected = Service("block-storage" if kind == "volumev3" else kind, prefix,
                       f"http://{backend}", bare=True, frontends=(frontend,))  # fmt: skip
    assert found[expected.type] == expected


def test_each_interface_has_its_frontend_and_one_of_them_says_where_the_service_answers() -> None:
    rows = [("image", name, f"http://127.0.1.{n}:{9290 + n}")
            for n, name in enumerate(("public", "internal", "admin"), 1)]  # fmt: skip
    for interface, port in (("public", 9291), ("internal", 9292), ("admin", 9293)):
        image = services(KEYSTONE_PORT, *rows, behind="10.0.0.1", interface=interface)["image"]
        assert image.frontends == ("127.0.1.1:9291", "127.0.1.2:9292", "127.0.1.3:9293")
        assert image.url == f"http://10.0.0.1:{port}"


def test_a_service_without_the_interface_is_used_by_another_one() -> None:
    rows = (("placement", "internal", "http://127.0.1.9/placement"),)
    assert services(*rows)["placement"].url == "http://127.0.1.9:80"


def test_a_service_can_answer_elsewhere() -> None:
    backends = {"image": "http://10.0.0.2:9292"}
    image = services(public("image", "http://127.0.1.1/image"), backends=backends)["image"]
    assert image.url == "http://10.0.0.2:9292"


def test_two_versions_of_a_service_at_one_address_are_one_service() -> None:
    urls = [f"http://127.0.1.1/volume/v{n}/$(project_id)s" for n in (2, 3)]
    found = services(public("volumev2", urls[0]), public("volumev3", urls[1]))
    assert found["block-storage"].prefix == "/volume"


def test_types_that_only_others_have_can_be_in_a_scope() -> None:
    theirs = listed(
        public("key-manager", "http://127.0.2.1/key-manager"),
        public("network", "http://127.0.2.1:9696"),
        region=TWO,
    )
    proxy, unused = described(listed(IDENTITY), theirs)
    elsewhere = (Service("key-manager", "/key-manager"), Service("network", "/networking"))
    assert proxy.services == (KEYSTONE, *elsewhere)
    assert proxy.peers == (Peer(TWO, PEERS[TWO], sealed=True),)
    assert unused == []


def test_lists_may_follow_each_other_in_one_file() -> None:
    both = f"{listed(IDENTITY)}\n{listed(public('image', 'http://127.0.2.1/image'), region=TWO)}\n"
    proxy, _ = described(both)
    assert proxy.service_types == ("identity", "image")


def test_a_peer_by_https_speaks_tls(tmp_path: Path) -> None:
    tls = Tls(tmp_path / "own.pem", tmp_path / "ca.pem", "127.0.1.1:8889")
    proxy, _ = described(listed(IDENTITY), peers={TWO: "https://two.example:8889"}, tls=tls)
    assert proxy.peers == (Peer(TWO, "two.example:8889", sealed=True, tls=True),)
    assert proxy.tls == tls


def test_the_proxy_listens_at_the_host_of_identity_by_default() -> None:
    assert described(listed(IDENTITY))[0].bind == "127.0.1.1:8888"
    assert described(listed(IDENTITY), bind="127.0.1.9:80")[0].bind == "127.0.1.9:80"


AT_PROXY = public("key-manager", "http://127.0.1.1:8888/key-manager/v1")
THEIR_KEY_MANAGER = listed(public("key-manager", "http://127.0.2.1:9311"), region=TWO)


@pytest.mark.parametrize(
    ("identity", "wanted"),
    [
        (IDENTITY, {}),
        (KEYSTONE_PORT, {"behind": "10.0.0.1"}),
        (public("identity", "http://127.0.1.1:8888/identity"),
         {"backends": {"identity": "http://127.0.1.1:5000"}}),
    ],
)  # fmt: skip
def test_an_endpoint_at_the_proxy_leads_to_a_service_that_only_others_have(
    identity: Row, wanted: dict[str, object]
) -> None:
    proxy, (line,) = described(listed(identity, AT_PROXY), THEIR_KEY_MANAGER, **wanted)
    assert Service("key-manager", "/key-manager") in proxy.services
    assert line.startswith(f"InstanceOne: {' '.join(AT_PROXY)} leads to this proxy, and so to the ")
    assert line.endswith("has the service itself, add --backend key-manager=http://HOST:PORT")


@pytest.mark.parametrize(
    ("identity", "wanted", "address"),
    [
        (IDENTITY, {"backends": {"key-manager": "http://10.0.0.1:9311"}}, "http://10.0.0.1:9311"),
        (public("identity", "http://127.0.1.1:8888/identity"), {"behind": "10.0.0.1"},
         "http://10.0.0.1:8888"),
    ],
)  # fmt: skip
def test_an_endpoint_at_the_proxy_is_a_service_if_one_answers_behind_it(
    identity: Row, wanted: dict[str, object], address: str
) -> None:
    proxy, unused = described(listed(identity, AT_PROXY), THEIR_KEY_MANAGER, **wanted)
    assert Service("key-manager", "/key-manager", address) in proxy.services
    assert unused == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (public("image", "http://127.0.1.1/a/b"), "has several path elements before its version"),
        (public("image", "http://127.0.1.1/scope/e30/image"), "leads through a scope"),
        (public("image", "ftp://127.0.1.1/image"), "is not a URL with http or https"),
        (public("image", "http://127.0.1.1:x/image"), "is not a URL with http or https"),
        (public("image", "image"), "is not a URL with http or https"),
        (public("metrics", "http://127.0.1.1/metrics"), "has a type that the service types"),
        (("image", "other", "http://127.0.1.1/image"), "has an interface that is none of"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_named_with_the_reason(row: Row, reason: str) -> None:
    proxy, unused = described(listed(IDENTITY, row))
    assert proxy.services == (KEYSTONE,)
    (line,) = unused
    assert line.startswith(f"InstanceOne: {row[0]} {row[1]} {row[2]} {reason}")


def test_what_scopes_cannot_reach_is_named() -> None:
    image = public("image", "http://127.0.1.1/image")
    theirs = listed(public("image", "http://127.0.2.1/glance"), region=TWO)
    third = listed(public("image", "http://127.0.3.1/image"), region="Three")
    assert described(listed(IDENTITY, image), theirs, third)[1] == [
        "Three: its proxy is unknown, so scopes cannot name it: add --peer Three=HOST:PORT",
        "InstanceTwo: its image is at /glance, and here at /image: scopes cannot name it",
    ]


def test_a_port_by_https_is_left_alone_and_named_without_a_certificate(tmp_path: Path) -> None:
    rows = (KEYSTONE_PORT, public("image", "https://127.0.1.1:9292"))
    proxy, (line,) = described(listed(*rows), behind="10.0.0.1")
    assert [service.frontends for service in proxy.services] == [("127.0.1.1:5000",), ()]
    assert "needs a certificate" in line
    https = Https(tmp_path / "own.pem", "127.0.1.1:8443")
    proxy, unused = described(listed(*rows), behind="10.0.0.1", https=https)
    assert proxy.services[1].frontends == ("https://127.0.1.1:9292",)
    assert proxy.services[1].url == "https://10.0.0.1:9292"
    assert unused == []


@pytest.mark.parametrize(
    ("rows", "wanted", "message"),
    [
        ([KEYSTONE_PORT], {}, "the proxy will listen: say where the service answers then"),
        ([IDENTITY], {"bind": "127.0.1.1:80"}, "identity: .* the proxy will listen"),
        ([IDENTITY, AT_PROXY], {}, "key-manager: .* the proxy will listen"),
        ([IDENTITY], {"instance": "Nowhere"}, "no endpoint of Nowhere is usable"),
        ([public("image", "http://127.0.1.1/image")], {}, "has no identity service"),
        ([IDENTITY], {"backends": {"image": "http://a:1"}}, "has no such service: use identity"),
        ([IDENTITY], {"peers": {ONE: "a:1"}}, "that is the instance itself"),
        ([IDENTITY], {"peers": {TWO: "https://a:1"}}, "speaks TLS, and this proxy does not"),
        ([IDENTITY, ("identity", "admin", "http://127.0.1.1/v3")], {}, "several prefixes"),
        ([IDENTITY, public("volumev2", "http://127.0.1.1:1/volume"),
          public("volumev3", "http://127.0.1.1:2/volume")], {}, "several public endpoints"),
        ([KEYSTONE_PORT, public("image", "http://127.0.1.1:5000")], {"behind": "a"},
         'frontend "127.0.1.1:5000" appears twice'),
    ],
)  # fmt: skip
def test_a_proxy_that_cannot_be_is_refused(
    rows: list[Row], wanted: dict[str, object], message: str
) -> None:
    with pytest.raises(ProxyError, match=message):
        described(listed(*rows), **wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no endpoint of InstanceOne is usable; the lists have -"),
        ("nothing", "a.json is not JSON"),
        ("{}", "is not a list of endpoints with the columns"),
        ('[{"Region": null}]', "is not a list of endpoints with the columns"),
        ("[[]]", "is not a list of endpoints with the columns"),
    ],
)
def test_another_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProxyError, match=message):
        described(text)


def test_a_name_before_a_file_is_the_instance_of_its_region() -> None:
    found = read(listed(IDENTITY, region="Region One"), "a.json", ONE)
    assert [one.instance for one in found.endpoints] == [ONE]
    (line,) = read(listed(IDENTITY, region="Region One"), "a.json").unused
    assert "has a region that cannot name an instance: write NAME=FILE" in line
    two_regions = listed(IDENTITY) + listed(IDENTITY, region=TWO)
    with pytest.raises(ProxyError, match="has the regions InstanceOne, InstanceTwo, and X is one"):
        read(two_regions, "a.json", "X")


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    return result.exit_code, result.output


def test_the_command_renders_from_lists(tmp_path: Path) -> None:
    for name, row in (("one", IDENTITY), ("two", public("image", "http://127.0.2.1/image"))):
        (tmp_path / f"{name}.json").write_text(listed(row, region="RegionOne"))
    status, output = run(
        *("render", "--instance", ONE, "--directory", tmp_path / "proxy", "--issuer", TWO),
        *("--endpoints", f"{ONE}={tmp_path / 'one.json'}"),
        *(
            "--endpoints",
            f"{TWO}={tmp_path / 'two.json'}",
            "--peer",
            f"{TWO}=127.0.2.1:8888",
            "--unsealed",
        ),
    )
    assert (status, output.splitlines()[-1]) == (0, f"{tmp_path}/proxy/haproxy.cfg")
    expected = Proxy(
        ONE,
        "127.0.1.1:8888",
        (KEYSTONE, Service("image", "/image")),
        (Peer(TWO, "127.0.2.1:8888"),),
        (TWO,),
        policies=(Policy(TWO),),
        directory=tmp_path / "proxy",
    )
    assert {path.name: path.read_text() for path in (tmp_path / "proxy").iterdir()} == render(
        expected
    )


def test_a_description_can_be_printed_edited_and_rendered(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(
        listed(KEYSTONE_PORT, public("image", "http://127.0.1.1:9292"))
    )
    options: list[object] = ["--instance", ONE, "--endpoints", tmp_path / "one.json"]
    options += ["--behind", "10.0.0.1", "--directory", tmp_path / "a"]
    options += ["--peer", f"{TWO}=127.0.2.1:8888", "--issuer", TWO]
    status, text = run("describe", *options)
    assert status == 0
    proxy = read_description(text)
    assert proxy.policies == (Policy(TWO),)
    assert run("render", *options)[0] == 0
    rendered = {path.name: path.read_text() for path in (tmp_path / "a").iterdir()}
    assert rendered.pop("sealing.keys")
    assert rendered == render(proxy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--instance", ONE], "--endpoints and --instance go together"),
        (["--endpoints", "a.json"], "--endpoints and --instance go together"),
        (["--instance", ONE, "--endpoints", "a", "--ca", "b"], "--ca go together"),
        (["--instance", ONE, "--endpoints", "/nowhere"], "--endpoints /nowhere: "),
        (["--instance", ONE, "--endpoints", "a", "--peer", "x"], "--peer x: write NAME=VALUE"),
        (["--instance", ONE, "--endpoints", "a", "--backend", "image="], "--backend image=: write"),
    ],
)
def test_wrong_options_are_refused_in_one_line(arguments: list[str], message: str) -> None:
    status, output = run("render", *arguments)
    assert status in (1, 2)
    assert message in output
    assert "Traceback" not in output
