"""What the DevStack plugin offers against peers: sealed tokens, policies, and TLS."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from openstackoid.proxy.cli import read_description
from openstackoid.proxy.config import KEYS
from tests.property.harness import Client, EchoServices, RunningProxy, free_port

from .conftest import HOST, DevStack

ONE, TWO = "InstanceOne", "InstanceTwo"
HOSTS = {ONE: "127.0.141.1", TWO: "127.0.142.1"}
POLICY = {"issuer": TWO, "services": ["image"], "methods": ["GET", "HEAD"]}
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


def with_tls(
    root: Path, leaf: trustme.LeafCert, authority: trustme.CA, bind: str
) -> Mapping[str, str]:
    """The settings for TLS, whose files are written below *root*."""
    certificate, ca = root / "own.pem", root / "ca.pem"
    certificate.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
    certificate.chmod(0o600)
    ca.write_bytes(authority.cert_pem.bytes())
    return {
        "OPENSTACKOID_TLS_BIND": bind,
        "OPENSTACKOID_TLS_CERTIFICATE": str(certificate),
        "OPENSTACKOID_TLS_CA": str(ca),
    }


def refusal(devstack: DevStack) -> str:
    """The one line that ends stack.sh before anything is installed."""
    run = devstack.run("stack pre-install", "stack install")
    assert run.status != 0
    assert run.calls == ("echo_summary Checking the settings of OpenStackoïd",)
    [line] = run.error.splitlines()
    return line


def test_without_the_settings_there_is_no_protection_and_no_further_package(
    devstack: DevStack,
) -> None:
    run = devstack.stack("pre-install", "install")
    described = devstack.description()
    assert described["peers"] == [{"name": TWO, "address": "192.168.56.12:8888"}]
    assert (described["policies"], described["tls"]) == ([], None)
    assert run.called("install_package") == ["install_package haproxy"]
    assert not (devstack.root / "openstackoid" / KEYS).exists()


def test_all_peers_are_sealed_and_the_library_for_it_is_installed(devstack: DevStack) -> None:
    devstack.local_conf["OPENSTACKOID_SEALED"] = "True"
    run = devstack.stack("pre-install", "install")
    assert [peer["sealed"] for peer in devstack.description()["peers"]] == [True]
    assert run.called("install_package lua-luaossl")
    keys = devstack.root / "openstackoid" / KEYS
    assert keys.stat().st_mode & 0o777 == 0o600
    sealing = keys.read_text()
    devstack.local_conf["PACKAGES"] = "haproxy lua-luaossl"
    assert devstack.stack("pre-install", "install").called("install_package") == []
    assert keys.read_text() == sealing


@pytest.mark.parametrize("is_file", [False, True])
def test_policies_are_json_or_in_a_file(devstack: DevStack, is_file: bool) -> None:
    text = json.dumps([POLICY], indent=1)
    file = devstack.root / "policies.json"
    file.write_text(text)
    devstack.local_conf["OPENSTACKOID_POLICIES"] = str(file) if is_file else text
    devstack.stack("pre-install", "install")
    assert devstack.description()["policies"] == [POLICY]


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"issuer": TWO, "service": []}, "description.policies.0: unknown key 'service'"),
        ({"issuer": "Three"}, "there is a policy for 'Three', which is no issuer"),
        ({"issuer": TWO, "services": ["dns"]}, "no service of the type 'dns': use compute"),
        ({"issuer": TWO, "rate": 0}, "a rate of 0 is too low"),
    ],
)
def test_a_policy_that_the_proxy_cannot_have_ends_the_run_before_it_starts(
    devstack: DevStack, policy: Mapping[str, object], says: str
) -> None:
    devstack.local_conf["OPENSTACKOID_POLICIES"] = json.dumps([policy])
    run = devstack.run("stack pre-install", "stack install")
    assert run.status != 0
    assert says in run.error
    assert "OPENSTACKOID_*" in run.error
    assert run.called("run_process") == []


def test_with_tls_all_peers_speak_it_and_one_list_may_serve_all(devstack: DevStack) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert(ONE, common_name=ONE)
    bind = f"{HOST}:8889"
    settings = with_tls(devstack.root, leaf, authority, bind)
    devstack.local_conf |= settings
    devstack.local_conf["OPENSTACKOID_PEERS"] = f"{ONE}={bind} {TWO}=192.168.56.12:8889"
    devstack.stack("pre-install", "install")
    described = devstack.description()
    assert described["peers"] == [{"name": TWO, "address": "192.168.56.12:8889", "tls": True}]
    assert described["tls"] == {
        "bind": bind,
        "certificate": settings["OPENSTACKOID_TLS_CERTIFICATE"],
        "ca": settings["OPENSTACKOID_TLS_CA"],
    }
    assert f"bind {bind} ssl" in devstack.haproxy_cfg()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("name", "peers of InstanceOne would refuse {certificate}: .*hostname mismatch"),
        ("expired", "peers of InstanceOne would refuse {certificate}: .*certificate has expired"),
        ("authority", "peers of InstanceOne would refuse {certificate}: .*issuer certificate"),
        ("no common name", "{certificate} needs the common name InstanceOne"),
        ("longer common name", "{certificate} needs the common name InstanceOne"),
        ("no certificate", "peers of InstanceOne would refuse {certificate}: Could not"),
        ("missing", "there is no file {certificate} that"),
    ],
)
def test_a_certificate_that_peers_would_refuse_ends_the_run(
    devstack: DevStack, fault: str, says: str
) -> None:
    authority = trustme.CA()
    leaf = {
        "name": authority.issue_cert(TWO, common_name=TWO),
        "expired": authority.issue_cert(ONE, common_name=ONE, not_after=YESTERDAY),
        "authority": trustme.CA().issue_cert(ONE, common_name=ONE),
        "no common name": authority.issue_cert(ONE),
        "longer common name": authority.issue_cert(ONE, common_name=f"{ONE}1"),
    }.get(fault, authority.issue_cert(ONE, common_name=ONE))
    devstack.local_conf |= with_tls(devstack.root, leaf, authority, f"{HOST}:8889")
    certificate = devstack.root / "own.pem"
    if fault == "no certificate":
        certificate.write_text("nothing")
    elif fault == "missing":
        certificate.unlink()
    line = refusal(devstack)
    assert line.startswith("ERROR: OPENSTACKOID_TLS_CERTIFICATE: ")
    assert re.search(says.format(certificate=re.escape(str(certificate))), line)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OPENSTACKOID_TLS_BIND", "", "'' is not HOST:PORT"),
        ("OPENSTACKOID_TLS_CA", "", "'' is not an absolute path"),
        ("OPENSTACKOID_TLS_CA", "/nowhere", "there is no file /nowhere that"),
        ("OPENSTACKOID_TLS_CERTIFICATE", "own.pem", "'own.pem' is not an absolute path"),
    ],
)
def test_the_settings_for_tls_go_together(
    devstack: DevStack, name: str, value: str, says: str
) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert(ONE, common_name=ONE)
    devstack.local_conf |= {**with_tls(devstack.root, leaf, authority, f"{HOST}:8889"), name: value}
    assert f"{name}: {says}" in refusal(devstack)


@pytest.fixture
def proxies() -> Iterator[Mapping[str, RunningProxy]]:
    """The proxies of two DevStacks with all protections; InstanceOne has a policy."""
    with ExitStack() as stack:
        echo = stack.enter_context(EchoServices())
        authority = trustme.CA()
        binds = {name: f"{host}:{free_port(host)}" for name, host in HOSTS.items()}
        running = {}
        for name, host in HOSTS.items():
            root = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="devstack-", dir="/tmp"))
            )
            leaf = authority.issue_cert(name, common_name=name)
            one = DevStack(
                root,
                local_conf={
                    "SERVICE_HOST": host,
                    "REGION_NAME": name,
                    "OPENSTACKOID_PORT": str(free_port(host)),
                    "OPENSTACKOID_PEERS": " ".join(f"{k}={at}" for k, at in binds.items()),
                    "OPENSTACKOID_SEALED": "True",
                    "OPENSTACKOID_POLICIES": json.dumps([POLICY]) if name == ONE else "",
                    **with_tls(root, leaf, authority, binds[name]),
                },
            )
            one.write()
            one.stack("pre-install", "install")
            proxy = read_description((root / "openstackoid/proxy.json").read_text())
            # Apache's port may be taken here, and is root's.
            services = tuple(
                replace(service, url=echo.add(f"{name} {service.type}", host))
                for service in proxy.services
            )
            running[name] = stack.enter_context(RunningProxy(replace(proxy, services=services)))
        running[ONE].wait_for_peer(TWO, "UP")
        running[TWO].wait_for_peer(ONE, "UP")
        yield running


def ask(proxy: RunningProxy, method: str, path: str, scope: Mapping[str, str]) -> tuple[int, str]:
    """Status and body of the answer to a request with *scope* and the token ``secret``."""
    client = Client(proxy.proxy.bind)
    headers = (("X-Scope", json.dumps(scope)), ("X-Auth-Token", "secret"))
    answer = client.send(method, path, headers)
    client.close()
    return answer.status, answer.body.decode()


def test_proxies_with_all_protections_work_together(proxies: Mapping[str, RunningProxy]) -> None:
    for name, other in ((ONE, TWO), (TWO, ONE)):
        status, body = ask(proxies[name], "GET", "/image/v2/images", {"image": other})
        assert (status, json.loads(body)["service"]) == (200, f"{other} image")
        # Sealed: the peer does not see the user's token.
        assert dict(json.loads(body)["headers"])["x-auth-token"].startswith("oid1.")
        assert "secret" not in body


def test_the_policy_of_one_holds_for_tokens_of_the_other(
    proxies: Mapping[str, RunningProxy],
) -> None:
    said = f"the policy of {ONE} for tokens of {TWO} allows"
    status, body = ask(proxies[TWO], "POST", "/image/v2/images", {"image": ONE})
    assert (status, f"{said} methods: GET, HEAD" in body) == (403, True)
    status, body = ask(proxies[TWO], "GET", "/compute/v2.1/servers", {"compute": ONE})
    assert (status, f"{said} services: image" in body) == (403, True)
    assert ask(proxies[ONE], "GET", "/compute/v2.1/servers", {"compute": TWO})[0] == 200
