"""TLS between proxies: each shows a certificate with its instance's name."""

from __future__ import annotations

import datetime
import http.client
import json
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trustme

from openstackoid.proxy.config import (
    Https,
    Peer,
    Policy,
    Proxy,
    ProxyError,
    Service,
    Tls,
    peer_states,
)
from openstackoid.scope import Scope

from .conftest import PREFIXES
from .harness import Answer, Client, EchoServices, RunningProxy, free_port, wait_until

ONE, TWO = "InstanceOne", "InstanceTwo"
HOSTS = {ONE: "127.0.131.1", TWO: "127.0.132.1"}
YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
THERE = (("X-Scope", f'{{"image": "{TWO}"}}'), ("X-Auth-Token", "secret"))


@dataclass(frozen=True, repr=False)
class World:
    """The running proxies of One and Two, their authority, and where their files are."""

    proxies: dict[str, RunningProxy]
    authority: trustme.CA
    base: Path

    def ask(self, name: str = ONE) -> Answer:
        """Ask for the images of Two at the proxy of *name*."""
        client = Client(self.proxies[name].proxy.bind)
        try:
            return client.send("GET", "/image/v2", THERE)
        finally:
            client.close()

    def certify(self, name: str, certificate: trustme.LeafCert) -> None:
        """Give the instance *name* another certificate, and have its proxy load it."""
        write_pem(certificate, self.base / f"{name}.pem")
        running = self.proxies[name]
        running.proxy = replace(running.proxy, threads=(running.proxy.threads or 1) + 1)
        running.reload()


def issue(
    authority: trustme.CA, name: str, not_after: datetime.datetime | None = None
) -> trustme.LeafCert:
    return authority.issue_cert(name, common_name=name, not_after=not_after)


def write_pem(certificate: trustme.LeafCert, path: Path) -> None:
    path.write_bytes(certificate.private_key_and_cert_chain_pem.bytes())


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tls")))
        authority = trustme.CA()
        (base / "ca.pem").write_bytes(authority.cert_pem.bytes())
        echo = stack.enter_context(EchoServices())
        binds = {name: f"{host}:{free_port(host)}" for name, host in HOSTS.items()}
        proxies = {}
        for name, host in HOSTS.items():
            write_pem(issue(authority, name), base / f"{name}.pem")
            (other,) = HOSTS.keys() - {name}
            proxies[name] = Proxy(
                name,
                f"{host}:{free_port(host)}",
                tuple(Service(k, p, echo.add(f"{name} {k}", host)) for k, p in PREFIXES.items()),
                (Peer(other, binds[other], sealed=name == ONE, tls=True),),
                (other,),
                directory=base / name,
                tls=Tls(base / f"{name}.pem", base / "ca.pem", binds[name]),
                threads=1,
            )
        running = {n: stack.enter_context(RunningProxy(proxy)) for n, proxy in proxies.items()}
        for name, one in running.items():
            (other,) = HOSTS.keys() - {name}
            one.wait_for_peer(other, "UP")
        yield World(running, authority, base)


def test_proxies_with_certificates_of_their_names_work_together(world: World) -> None:
    answer = world.ask()
    assert answer.json()["service"] == f"{TWO} image"
    token = dict(answer.json()["headers"])["x-auth-token"].partition("!")[0]
    assert token.startswith("oid1.")


def test_a_sealed_token_opens_for_the_certificate_it_was_sealed_for(world: World) -> None:
    token = dict(world.ask().json()["headers"])["x-auth-token"]
    # Two's glance asks its own proxy, which asks One, with its certificate.
    client = Client(world.proxies[TWO].proxy.bind)
    headers = (("X-Subject-Token", token), ("X-Auth-Token", "of-the-service"))
    answer = client.send("GET", "/identity/v3/auth/tokens", headers)
    client.close()
    assert dict(answer.json()["headers"])["x-subject-token"] == "secret"
    # The same question from Two's address, without the certificate.
    plain = Client(world.proxies[ONE].proxy.bind, HOSTS[TWO])
    bare = token.partition("!")[0]
    headers = (("X-Subject-Token", bare), ("X-Auth-Token", bare))
    assert plain.send("GET", "/identity/v3/auth/tokens", headers).status == 404
    plain.close()


@pytest.mark.parametrize("fault", ["name", "expired", "authority"])
def test_a_peer_with_a_wrong_certificate_gets_no_request(world: World, fault: str) -> None:
    wrong = {
        "name": lambda: issue(world.authority, "Three"),
        "expired": lambda: issue(world.authority, TWO, not_after=YESTERDAY),
        "authority": lambda: issue(trustme.CA(), TWO),
    }[fault]()
    world.certify(TWO, wrong)
    running = world.proxies[ONE]
    # A connection that was there before the new certificate goes on.
    running.reload()
    running.wait_for_peer(TWO, "DOWN")
    answer = world.ask()
    assert answer.status == 503
    assert "instance InstanceTwo cannot be reached" in answer.json()["error"]["message"]
    assert "certificate" in answer.json()["error"]["message"]
    world.certify(TWO, issue(world.authority, TWO))
    running.wait_for_peer(TWO, "UP")
    assert world.ask().status == 200


def _speak(
    world: World, certificate: trustme.LeafCert | None, token: str = "t"
) -> tuple[int, bytes]:
    """Ask One's proxy as a peer with this certificate, and with *token*."""
    context = ssl.create_default_context(cafile=str(world.base / "ca.pem"))
    if certificate:
        certificate.configure_cert(context)
    tls = world.proxies[ONE].proxy.tls
    assert tls
    host, _, port = tls.bind.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain, server_hostname=ONE) as wrapped,
    ):
        head = f"GET /image/v2 HTTP/1.1\r\nHost: a\r\nX-Auth-Token: {token}\r\n"
        wrapped.sendall(f"{head}Connection: close\r\n\r\n".encode())
        response = http.client.HTTPResponse(wrapped)
        response.begin()
        return response.status, response.read()


def test_who_has_no_valid_certificate_is_refused(world: World) -> None:
    assert _speak(world, issue(world.authority, TWO))[0] == 200
    for certificate in (
        None,
        issue(world.authority, TWO, not_after=YESTERDAY),
        issue(trustme.CA(), TWO),
    ):
        with pytest.raises(OSError):
            _speak(world, certificate)


def test_a_valid_certificate_of_nobody_known_is_refused_by_name(world: World) -> None:
    status, body = _speak(world, issue(world.authority, "Stranger"))
    assert status == 403
    message = json.loads(body)["error"]["message"]
    assert message == "the certificate is of Stranger, which is no peer of InstanceOne"


@pytest.fixture
def https(world: World) -> Callable[..., Answer]:
    """Sends a request by HTTPS to One's proxy, where compute has a port of its own, too."""
    running = world.proxies[ONE]
    write_pem(world.authority.issue_cert(HOSTS[ONE]), world.base / "https.pem")
    ports = {True: free_port(HOSTS[ONE]), False: free_port(HOSTS[ONE])}
    services = [
        replace(one, bare=True, frontends=(f"https://{HOSTS[ONE]}:{ports[True]}",))
        if one.type == "compute"
        else one
        for one in running.proxy.services
    ]
    by_https = Https(world.base / "https.pem", f"{HOSTS[ONE]}:{ports[False]}")
    running.proxy = replace(running.proxy, https=by_https, services=tuple(services))
    running.reload()
    context = ssl.create_default_context(cafile=str(world.base / "ca.pem"))

    def send(
        path: str, *, method: str = "GET", body: str = "", of_compute: bool = False, **headers: str
    ) -> Answer:
        connection = http.client.HTTPSConnection(HOSTS[ONE], ports[of_compute], context=context)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = Answer(response.status, dict(response.getheaders()), response.read())
        connection.close()
        return answer

    return send


def test_a_client_by_https_gets_links_by_https(https: Callable[..., Answer]) -> None:
    scope = Scope({**dict.fromkeys(PREFIXES, ONE), "image": TWO})
    tagged = {"X-Auth-Token": scope.tag("t")}
    rescoped = json.dumps({"auth": {"identity": {"token": {"id": scope.tag("t")}}}})
    answers = {
        "unscoped": https("/image/v2"),
        "a header of the client's own": https("/image/v2", **{"X-Forwarded-Proto": "http"}),
        "canonical": https("/compute/v2.1", **tagged),
        "elsewhere": https("/image/v2", **tagged),
        "X-Scope": https("/image/v2", **{"X-Scope": f'{{"image": "{TWO}"}}'}),
        "URL": https(f"/{scope.url_segment()}/identity/v3"),
        "a login": https("/identity/v3/auth/tokens", method="POST", body=rescoped),
        "a port": https("/v2.1", of_compute=True),
    }
    for what, answer in answers.items():
        sent = [v for name, v in answer.json()["headers"] if name == "x-forwarded-proto"]
        assert sent == ["https"], what
    assert answers["elsewhere"].json()["service"] == f"{TWO} image"
    assert answers["a port"].json()["service"] == f"{ONE} compute"


def test_clients_by_http_stay_so(world: World, https: Callable[..., Answer]) -> None:
    headers = dict(world.ask().json()["headers"])
    assert "x-forwarded-proto" not in headers
    assert https("/image/v2").status == 200


def test_a_frontend_by_https_needs_a_certificate(world: World) -> None:
    service = Service("compute", "/c", "http://a:1", bare=True, frontends=("https://b:2",))
    proxy = world.proxies[ONE].proxy
    kept = [one for one in proxy.services if one.type != "compute"]
    with pytest.raises(ProxyError, match="a frontend by HTTPS needs https"):
        replace(proxy, services=(*kept, service))


@pytest.mark.parametrize(("peers", "status"), [((TWO,), 200), ((), 403)])
def test_a_policy_says_which_peers_may_bring_a_token(
    world: World, peers: tuple[str, ...], status: int
) -> None:
    running = world.proxies[ONE]
    running.proxy = replace(running.proxy, policies=(Policy(TWO, peers=peers),))
    running.reload()
    token = Scope({**dict.fromkeys(PREFIXES, ONE), "identity": TWO}).tag("t")
    certificate = issue(world.authority, TWO)
    assert _speak(world, certificate, token)[0] == status
    # Services and clients of One itself.
    client = Client(running.proxy.bind)
    assert client.send("GET", "/image/v2", (("X-Auth-Token", token),)).status == 200
    client.close()


def test_only_peers_with_certificates_can_be_in_a_policy(world: World) -> None:
    with pytest.raises(ProxyError, match="'Three', which is not known by a certificate: use Inst"):
        replace(world.proxies[ONE].proxy, policies=(Policy(TWO, peers=("Three",)),))


def test_openssl_sees_a_refusal_without_a_certificate(world: World) -> None:
    tls = world.proxies[ONE].proxy.tls
    assert tls
    command = ["openssl", "s_client", "-connect", tls.bind, "-CAfile", str(tls.ca), "-quiet"]
    request = b"GET /image/v2 HTTP/1.1\r\nHost: a\r\n\r\n"
    done = subprocess.run(command, input=request, capture_output=True, check=False, timeout=20)
    assert b"HTTP/1.1" not in done.stdout
    assert b"certificate required" in done.stderr


def test_a_certificate_is_renewed_without_a_dropped_connection(world: World) -> None:
    done, statuses = threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            statuses.append(world.ask().status)

    thread = threading.Thread(target=ask)
    thread.start()
    before = _serial(world)
    world.certify(TWO, issue(world.authority, TWO))
    wait_until("the new certificate", lambda: _serial(world) != before)
    done.set()
    thread.join()
    assert set(statuses) == {200}
    assert peer_states(world.proxies[ONE].proxy.socket) == {TWO: "UP"}


def _serial(world: World) -> str:
    """The serial number of Two's certificate, as a client sees it."""
    tls = world.proxies[TWO].proxy.tls
    assert tls
    command = f"openssl s_client -connect {tls.bind} </dev/null 2>/dev/null | openssl x509 -serial"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def test_a_peer_with_tls_needs_a_proxy_with_tls(tmp_path: Path) -> None:
    identity = Service("identity", "/identity", "http://127.0.131.1:5000")
    with pytest.raises(ProxyError, match="peer 'InstanceTwo' speaks TLS, and this proxy does not"):
        Proxy(ONE, "127.0.131.1:80", (identity,), (Peer(TWO, "a:1", tls=True),))
    with pytest.raises(ProxyError, match=r"tls: '/a b' is not a path"):
        Tls(Path("/a b"), tmp_path, "a:1")
