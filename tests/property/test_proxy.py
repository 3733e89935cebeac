"""The proxies' behaviour towards users and services, on the wire."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import os
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner

from openstackoid.proxy.cli import main
from openstackoid.proxy.config import (
    Peer,
    Proxy,
    ProxyError,
    Service,
    peer_states,
    reload,
    write,
)
from openstackoid.scope import Scope

from .conftest import AWAY, PREFIXES, Federation
from .harness import (
    HAPROXY,
    Answer,
    Client,
    EchoServices,
    RunningProxy,
    free_port,
    listening_but_deaf,
    wait_until,
)

ONE, TWO = "InstanceOne", "InstanceTwo"
TOKENS = "/identity/v3/auth/tokens"


def resolved(**services: str) -> Scope:
    """A scope with all services from InstanceOne, except for these."""
    return Scope({**dict.fromkeys(PREFIXES, ONE), **services})


def seen(answer: Answer) -> tuple[str, dict[str, str]]:
    """The service that answered, and the headers that it got."""
    facts = answer.json()
    return facts["service"], dict(facts["headers"])


@pytest.fixture
def one(federation: Federation) -> Client:
    return federation.clients[ONE]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with TemporaryDirectory(prefix="proxy") as path:
        yield Path(path)


@pytest.fixture
def lonely(directory: Path) -> Iterator[tuple[Proxy, EchoServices]]:
    """The description of a proxy that does not run yet, and its running services."""
    with EchoServices() as echo:
        host = "127.0.105.1"
        identity = Service("identity", "/identity", echo.add("identity", host))
        yield Proxy("Lonely", f"{host}:{free_port(host)}", (identity,), directory=directory), echo


SERVERS = "/compute/v2.1/servers"
ELSEWHERE = ("X-Scope", '{"compute": "InstanceTwo"}')


@pytest.mark.parametrize(
    "body", ["", '{"server": {"networks": [{"uuid": "1"}]}}', f'{{"server": "{"x" * 100_000}"}}']
)
def test_a_server_does_not_get_a_network_of_another_instance_than_its_compute(
    one: Client, body: str
) -> None:
    answer = one.send("POST", SERVERS, (ELSEWHERE, ("X-Auth-Token", "t")), body)
    assert answer.status == 400
    assert answer.json()["error"]["message"] == (
        "a server's network has to be of the same instance as its compute, and this scope says "
        'InstanceOne and InstanceTwo: add "network": "InstanceTwo" to the scope, or ask for no '
        "network (--nic none)"
    )


def test_a_server_without_network_is_made_anywhere(one: Client) -> None:
    body = '{"server": {"networks": "none"}}'
    answer = one.send("POST", SERVERS, (ELSEWHERE, ("X-Auth-Token", "t")), body)
    assert seen(answer)[0] == "InstanceTwo compute"


def test_haproxy_takes_the_configuration_without_a_warning(federation: Federation) -> None:
    for running in federation.proxies.values():
        path = running.proxy.directory / "haproxy.cfg"
        judged = subprocess.run(
            [HAPROXY, "-c", "-dW", "-f", str(path)], capture_output=True, text=True, check=False
        )
        assert judged.returncode == 0, judged.stderr
        assert "WARNING" not in judged.stderr


def test_a_login_through_a_scoped_url_gives_a_tagged_token(one: Client) -> None:
    scope = Scope({"image": TWO})
    answer = one.send("POST", f"/{scope.url_segment()}{TOKENS}", body="{}")
    assert answer.status == 201
    assert answer.headers["x-subject-token"] == resolved(image=TWO).tag("FRESH")
    service, headers = seen(answer)
    assert service == f"{ONE} identity"
    assert headers["x-forwarded-prefix"] == f"/{scope.url_segment()}"
    assert headers["host"] == "cloud.example"
    assert answer.json()["path"] == TOKENS


def test_a_login_at_another_instance_is_tagged_once_and_by_the_first_proxy(one: Client) -> None:
    answer = one.send("POST", TOKENS, (("X-Scope", '{"identity": "InstanceTwo"}'),), "{}")
    assert seen(answer)[0] == f"{TWO} identity"
    assert answer.headers["x-subject-token"] == resolved(identity=TWO).tag("FRESH")


def test_a_login_without_a_scope_gives_a_plain_token(one: Client) -> None:
    assert one.send("POST", TOKENS, body="{}").headers["x-subject-token"] == "FRESH"


def rescoping(token: str, *more: str) -> str:
    """The body of a login with *token*, and *more* members."""
    members = [f'"token" : {{"x": [{{}}, "]"], "id":{json.dumps(token)}}}', *more]
    return f' {{"auth": {{"identity": {{"methods": ["token"], {", ".join(members)}}} }} }}'


def test_the_tag_of_a_token_in_a_login_moves_to_the_new_token(one: Client) -> None:
    token = resolved(image=TWO).tag("T")
    answer = one.send("POST", f"{TOKENS}?nocatalog", body=rescoping(token))
    assert answer.status == 201
    assert answer.headers["x-subject-token"] == resolved(image=TWO).tag("FRESH")
    facts = answer.json()
    assert (facts["service"], facts["path"]) == (f"{ONE} identity", f"{TOKENS}?nocatalog")
    assert facts["body"] == rescoping("T")


def test_the_scope_of_a_login_overrides_the_tag_of_the_token_in_it(one: Client) -> None:
    body = rescoping(resolved(image=TWO, network=TWO).tag("T"))
    url = f"/{Scope({'image': ONE}).url_segment()}{TOKENS}"
    answer = one.send("POST", url, (("X-Scope", '{"compute": "InstanceTwo"}'),), body)
    expected = resolved(compute=TWO, network=TWO)
    assert answer.headers["x-subject-token"] == expected.tag("FRESH")


def test_the_issuer_of_a_token_exchanges_it_whatever_the_scope_says(one: Client) -> None:
    body = rescoping(resolved(identity=TWO, image=TWO).tag("T"))
    url = f"/{Scope({'identity': ONE}).url_segment()}{TOKENS}"
    answer = one.send("POST", url, body=body)
    assert answer.json()["service"] == f"{TWO} identity"
    assert answer.json()["body"] == rescoping("T")
    assert answer.headers["x-subject-token"] == resolved(identity=TWO, image=TWO).tag("FRESH")


def test_a_login_with_the_token_of_an_untrusted_issuer_is_refused(one: Client) -> None:
    answer = one.send("POST", TOKENS, body=rescoping(resolved(identity="Three").tag("T")))
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Keystone uri=")
    assert answer.json()["error"]["message"] == (
        "InstanceOne does not accept tokens that Three issued"
    )


def test_a_malformed_tag_in_a_login_is_named(one: Client) -> None:
    answer = one.send("POST", TOKENS, body=rescoping("T!SCOPE!{image}"))
    assert answer.status == 400
    message = answer.json()["error"]["message"]
    assert message.startswith("malformed scope '{image}' in the token in the body")


@pytest.mark.parametrize(
    "written",
    [
        '"T\\u0021SCOPE\\u0021{\\"image\\":\\"InstanceTwo\\"}"',
        '"T!SCOPE!{\\u0022image\\u0022:\\u0022InstanceTwo\\u0022}"',
        '"\\u0054!SCOPE!{\\"image\\":\\"InstanceTwo\\"}"',
    ],
)
def test_a_token_in_a_login_may_have_escapes(one: Client, written: str) -> None:
    body = f'{{"\\u0061uth":{{"identity":{{"token":{{"id":{written}}}}}}}}}'
    answer = one.send("POST", TOKENS, body=body)
    assert answer.headers["x-subject-token"] == resolved(image=TWO).tag("FRESH")
    assert json.loads(answer.json()["body"]) == {"auth": {"identity": {"token": {"id": "T"}}}}


@pytest.mark.parametrize(
    "body",
    [
        '{"auth": {"identity": {"token": {"id": "T!SCOPE!{}"}',
        '{"auth": "T!SCOPE!{}"',
        '{"auth": {"identity": {"password": {"user": {"password": "T!SCOPE!{}"}}}}}',
        '{"auth": {"identity": {"token": ["T!SCOPE!{}"]}}}',
        '"T!SCOPE!{}',
        "T!SCOPE!{}",
        "[" * 5000 + "T!SCOPE!{}",
        '{"auth": {"identity": {"token": {"id": "T!SCOPE!{\\',
    ],
)
def test_a_login_without_a_tagged_token_at_its_place_reaches_keystone_as_it_is(
    one: Client, body: str
) -> None:
    answer = one.send("POST", TOKENS, body=body)
    assert answer.status == 201
    assert answer.json()["body"] == body
    assert answer.headers["x-subject-token"] == "FRESH"


def test_a_login_of_almost_a_mebibyte_is_read_and_a_larger_one_refused(one: Client) -> None:
    token = resolved(image=TWO).tag("T")
    answer = one.send("POST", TOKENS, body=rescoping(token, f'"filling": "{"x" * 1_000_000}"'))
    assert answer.headers["x-subject-token"] == resolved(image=TWO).tag("FRESH")
    assert len(answer.json()["body"]) > 1_000_000
    one.close()
    refused = one.send("POST", TOKENS, body=rescoping(token, f'"filling": "{"x" * 2**20}"'))
    one.close()
    assert refused.status == 413
    assert refused.json()["error"]["message"] == "the body of a login may have 1048576 bytes"


def test_a_tag_behind_the_first_buffer_of_a_login_is_found(one: Client) -> None:
    filling = " " * 100_000
    answer = one.send("POST", TOKENS, body=filling + rescoping(resolved(image=TWO).tag("T")))
    assert answer.headers["x-subject-token"] == resolved(image=TWO).tag("FRESH")


def test_a_login_in_chunks_is_read(one: Client) -> None:
    body = rescoping(resolved(image=TWO).tag("T")).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:70], body[70:]))
    head = f"POST {TOKENS} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    answer = one.send_raw(head + chunks + b"0\r\n\r\n", "POST")
    assert answer.headers["x-subject-token"] == resolved(image=TWO).tag("FRESH")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_answer_about_a_token_has_its_tag(one: Client, method: str) -> None:
    token = resolved(image=TWO).tag("T")
    answer = one.send(method, TOKENS, (("X-Auth-Token", token), ("X-Subject-Token", token)))
    assert answer.headers["x-subject-token"] == token


def test_an_answer_about_a_plain_token_at_a_scoped_url_has_the_scope_of_the_url(
    one: Client,
) -> None:
    headers = (("X-Auth-Token", "T"), ("X-Subject-Token", "T"))
    url = f"/{Scope({'image': TWO}).url_segment()}{TOKENS}"
    answer = one.send("GET", url, headers)
    assert answer.headers["x-subject-token"] == resolved(image=TWO).tag("T")


def test_an_answer_about_a_token_does_not_have_the_tag_of_who_asks(one: Client) -> None:
    about = resolved(image=TWO).tag("T")
    headers = (("X-Auth-Token", resolved(compute=TWO).tag("A")), ("X-Subject-Token", about))
    assert one.send("GET", TOKENS, headers).headers["x-subject-token"] == about


def test_a_token_of_another_instance_stays_that_of_its_issuer(federation: Federation) -> None:
    about = resolved(image=TWO).tag("T")
    headers = (("X-Auth-Token", "glance-of-two"), ("X-Subject-Token", about))
    assert federation.clients[TWO].send("GET", TOKENS, headers).headers["x-subject-token"] == about


def test_a_tagged_token_reaches_the_service_of_the_scope_as_it_is(one: Client) -> None:
    token = resolved(image=TWO).tag("T")
    service, headers = seen(one.send("GET", "/image/v2/images", (("X-Auth-Token", token),)))
    assert service == f"{TWO} image"
    assert headers["x-auth-token"] == token
    assert headers["host"] == "cloud.example"


def test_a_tag_may_be_percent_encoded(one: Client) -> None:
    token = resolved(image=TWO).tag("gAA-_=")
    quoted = urllib.parse.quote(token, safe="=+/")
    service, headers = seen(one.send("GET", "/image/v2/images", (("X-Auth-Token", quoted),)))
    assert service == f"{TWO} image"
    assert headers["x-auth-token"] == token
    smuggled = quoted.replace("gAA", "%0d%0aX-Evil:%20")
    _, headers = seen(one.send("GET", "/image/v2/images", (("X-Auth-Token", smuggled),)))
    assert "x-evil" not in headers


def test_a_header_overrides_the_url_and_the_url_overrides_the_tag(one: Client) -> None:
    url = Scope({"image": TWO, "compute": TWO}).url_segment()
    token = resolved(network=TWO, compute=ONE, image=ONE).tag("T")
    headers = (("X-Auth-Token", token), ("X-Scope", '{"compute": "InstanceOne"}'))
    service, arrived = seen(one.send("GET", f"/{url}/image/v2", headers))
    assert service == f"{TWO} image"
    assert arrived["x-auth-token"] == resolved(network=TWO, image=TWO).tag("T")
    assert "x-scope" not in arrived


def test_a_foreign_token_is_validated_at_its_issuer_by_itself(federation: Federation) -> None:
    # InstanceTwo's glance asks its own proxy, with the token of its own account.
    headers = (
        ("X-Auth-Token", "glance-of-two"),
        ("X-Subject-Token", resolved(image=TWO).tag("T")),
    )
    service, arrived = seen(federation.clients[TWO].send("GET", TOKENS, headers))
    assert service == f"{ONE} identity"
    assert arrived["x-subject-token"] == "T"
    assert arrived["x-auth-token"] == "T"


def test_a_token_of_our_own_is_validated_here_by_the_services_account(one: Client) -> None:
    headers = (("X-Auth-Token", "nova-of-one"), ("X-Subject-Token", resolved(image=TWO).tag("T")))
    service, arrived = seen(one.send("GET", TOKENS, headers))
    assert service == f"{ONE} identity"
    assert (arrived["x-auth-token"], arrived["x-subject-token"]) == ("nova-of-one", "T")


def test_a_foreign_token_is_revoked_at_its_issuer(federation: Federation) -> None:
    token = resolved().tag("T")
    headers = (("X-Auth-Token", token), ("X-Subject-Token", token))
    answer = federation.clients[TWO].send("DELETE", TOKENS, headers)
    service, arrived = seen(answer)
    assert (service, answer.json()["method"]) == (f"{ONE} identity", "DELETE")
    assert (arrived["x-auth-token"], arrived["x-subject-token"]) == ("T", "T")


def test_a_services_own_token_never_goes_to_another_instance(one: Client) -> None:
    headers = (("X-Auth-Token", resolved(image=TWO).tag("T")), ("X-Service-Token", "nova"))
    service, at_two = seen(one.send("GET", "/image/v2", headers))
    assert service == f"{TWO} image"
    assert "x-service-token" not in at_two
    _, at_home = seen(one.send("GET", "/compute/v2", headers))
    assert at_home["x-service-token"] == "nova"


def test_a_service_token_of_another_instance_counts_for_nothing_here(one: Client) -> None:
    token = resolved(identity=TWO).tag("nova-of-two")
    _, arrived = seen(one.send("GET", "/compute/v2", (PLAIN, ("X-Service-Token", token))))
    assert "x-service-token" not in arrived


@pytest.mark.parametrize(
    "header", ["X-Storage-Token", "X-Roles", "X-Identity-Status", "OpenStack-System-Scope"]
)
def test_headers_that_only_the_middleware_may_write_are_refused(one: Client, header: str) -> None:
    answer = one.send("GET", "/image/v2", ((header, "T"),))
    assert answer.status == 400
    assert header.lower() in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["Host", "Proto", "Prefix", "For"])
def test_a_client_cannot_poison_links(one: Client, name: str) -> None:
    header = (f"X-Forwarded-{name}", "evil.example")
    _, arrived = seen(one.send("GET", "/image/v2", (PLAIN, header, ("Forwarded", "host=evil"))))
    assert header[0].lower() not in arrived
    assert "forwarded" not in arrived


def test_links_of_a_peer_lead_back_through_the_proxy_that_the_client_knows(one: Client) -> None:
    url = Scope({"identity": TWO}).url_segment()
    service, arrived = seen(one.send("GET", f"/{url}/identity/v3"))
    assert service == f"{TWO} identity"
    assert arrived["x-forwarded-prefix"] == f"/{url}"
    assert arrived["host"] == "cloud.example"


@pytest.mark.parametrize("header", ["X-Auth-Token", "X-Subject-Token", "X-Service-Token"])
def test_a_token_of_an_untrusted_issuer_is_refused_at_the_proxy(one: Client, header: str) -> None:
    answer = one.send("GET", "/image/v2", ((header, resolved(identity="Three").tag("T")),))
    assert answer.status == 401
    assert answer.json()["error"]["message"] == (
        "InstanceOne does not accept tokens that Three issued"
    )
    assert answer.headers["www-authenticate"].startswith("Keystone uri=")


def test_an_unknown_instance_is_refused_by_name(one: Client) -> None:
    answer = one.send("GET", "/image/v2", (("X-Scope", '{"image": "Nowhere"}'),))
    assert answer.status == 400
    assert answer.json() == {
        "error": {
            "code": 400,
            "title": "Bad Request",
            "message": "unknown instance 'Nowhere' in scope; "
            "known: InstanceOne, InstanceTwo, Three, Away",
        }
    }


def test_an_unknown_service_type_is_refused_by_name(one: Client) -> None:
    answer = one.send("GET", "/image/v2", (("X-Scope", '{"glance": "InstanceTwo"}'),))
    assert answer.status == 400
    assert answer.json()["error"]["message"] == (
        "unknown service type 'glance' in scope; "
        "known: compute, identity, image, network, placement"
    )


def test_hostile_text_is_shown_escaped(one: Client) -> None:
    hostile = '{"image": "<b>\\"}{é}'.encode().decode("latin-1")
    message = one.send("GET", "/image/v2", (("X-Scope", hostile),)).json()["error"]["message"]
    assert message.startswith('malformed scope \'{"image": "<b>\\"}{é}\' in X-Scope: ')


def test_line_ends_inside_a_url_scope_smuggle_nothing(one: Client) -> None:
    hostile = '{"image": "InstanceTwo\r\nX-Roles: admin"}'
    encoded = base64.urlsafe_b64encode(hostile.encode()).rstrip(b"=").decode()
    answer = one.send("GET", f"/scope/{encoded}/image/v2", (("X-Auth-Token", "T"),))
    assert answer.status == 400
    assert "x-roles" not in answer.headers
    assert "malformed scope" in answer.json()["error"]["message"]


def test_headers_that_are_too_long_are_refused(one: Client) -> None:
    # The parser itself refuses them, before any rule, with HAProxy's own HTML page.
    answer = one.send("GET", "/image/v2", (("X-Auth-Token", "x" * 70000),))
    one.close()
    assert answer.status == 400


def test_a_token_of_fifty_kilobytes_passes(one: Client) -> None:
    token = resolved(image=TWO).tag("x" * 50000)
    service, headers = seen(one.send("GET", "/image/v2", (("X-Auth-Token", token),)))
    assert service == f"{TWO} image"
    assert headers["x-auth-token"] == token


def test_a_peer_that_is_away_is_named_within_three_seconds(one: Client) -> None:
    began = time.monotonic()
    answer = one.send("GET", "/image/v2", (("X-Scope", f'{{"image": "{AWAY}"}}'),))
    assert answer.status == 503
    assert answer.json()["error"]["message"].startswith("instance Away cannot be reached from")
    assert time.monotonic() - began < 3


def test_a_peer_that_went_silent_is_named_within_three_seconds(
    lonely: tuple[Proxy, EchoServices],
) -> None:
    described, _ = lonely
    with listening_but_deaf("127.0.106.1") as address:
        proxy = replace(described, peers=(Peer("Silent", address),), issuers=("Silent",))
        with RunningProxy(proxy):
            # At once, before the proxy's own checks can fail.
            client = Client(proxy.bind)
            began = time.monotonic()
            answer = client.send("GET", "/identity/v3", (("X-Scope", '{"identity": "Silent"}'),))
            client.close()
    assert answer.status == 503
    assert "instance Silent cannot be reached" in answer.json()["error"]["message"]
    assert time.monotonic() - began < 3.5


def test_the_states_of_the_peers_can_be_queried(federation: Federation) -> None:
    assert peer_states(federation.proxies[ONE].proxy.socket) == {
        TWO: "UP",
        "Three": "UP",
        AWAY: "DOWN",
    }


def test_a_service_type_that_only_others_have_leads_to_them(
    lonely: tuple[Proxy, EchoServices],
) -> None:
    described, echo = lonely
    volumes = echo.add("volumes of another", "127.0.106.1", "Other").removeprefix("http://")
    proxy = replace(
        described,
        services=(*described.services, Service("block-storage", "/volume")),
        peers=(Peer("Other", volumes),),
    )
    with RunningProxy(proxy) as running:
        running.wait_for_peer("Other", "UP")
        client = Client(proxy.bind)
        there = client.send("GET", "/volume/v3", (("X-Scope", '{"block-storage": "Other"}'),))
        here = client.send("GET", "/volume/v3")
        client.close()
    assert there.json()["service"] == "volumes of another"
    assert here.status == 404
    assert "Lonely has no block-storage service" in here.json()["error"]["message"]


def test_a_reload_takes_effect_and_breaks_no_request_under_way(
    lonely: tuple[Proxy, EchoServices],
) -> None:
    described, echo = lonely
    arrived, release = threading.Event(), threading.Event()
    with socket.create_server(("127.0.105.1", 0)) as slow:

        def serve_slowly() -> None:
            connection, _ = slow.accept()
            connection.recv(65536)
            arrived.set()
            release.wait(20)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
            connection.close()

        threading.Thread(target=serve_slowly, daemon=True).start()
        identity = Service("identity", "/identity", "http://{}:{}".format(*slow.getsockname()))
        image = Service("image", "/image", echo.add("new", "127.0.105.1"))
        with RunningProxy(replace(described, services=(identity,))) as running:
            host, _, port = described.bind.rpartition(":")
            under_way = http.client.HTTPConnection(host, int(port), timeout=20)
            under_way.request("GET", "/identity/v3")
            assert arrived.wait(20)
            running.proxy = replace(described, services=(identity, image))
            running.reload()
            assert _status(described, "/image/v2") == 200
            release.set()
            assert under_way.getresponse().read() == b"late"
            under_way.close()


def test_the_command_adds_and_removes_peers_of_a_running_proxy(
    lonely: tuple[Proxy, EchoServices], directory: Path
) -> None:
    described, echo = lonely
    peers = directory / "peers.d"
    peers.mkdir()
    description = directory / "proxy.json"
    fields = dataclasses.asdict(described)
    description.write_text(json.dumps({**fields, "peers_from": str(peers)}, default=str))
    address = echo.add("identity of another", "127.0.106.1", "Other").removeprefix("http://")

    def reload_by_command() -> None:
        result = CliRunner().invoke(main, ["reload", str(description)])
        assert result.exit_code == 0, result.output

    with RunningProxy(described) as running:
        assert peer_states(described.socket) == {}
        (peers / "other.json").write_text(json.dumps({"name": "Other", "address": address}))
        reload_by_command()
        running.wait_for_peer("Other", "UP")
        (peers / "other.json").unlink()
        reload_by_command()
        assert peer_states(described.socket) == {}


def test_no_new_connection_is_refused_while_the_proxy_reloads(
    lonely: tuple[Proxy, EchoServices],
) -> None:
    proxy, _ = lonely
    done = threading.Event()
    statuses = []

    def knock() -> None:
        while not done.is_set():
            statuses.append(_status(proxy, "/identity/v3"))

    with RunningProxy(proxy) as running:
        knocking = threading.Thread(target=knock, daemon=True)
        knocking.start()
        for _ in range(3):
            running.reload()
        done.set()
        knocking.join()
    assert len(statuses) > 100
    assert set(statuses) == {200}


def test_a_failed_reload_is_an_error_and_changes_nothing(
    lonely: tuple[Proxy, EchoServices],
) -> None:
    proxy, _ = lonely
    with RunningProxy(proxy) as running:
        (proxy.directory / "haproxy.cfg").write_text("nonsense\n")
        with pytest.raises(ProxyError, match="still runs with the old one"):
            reload(running.process.pid, proxy.socket, patience=2)
        assert _status(proxy, "/identity/v3") == 200


def _status(proxy: Proxy, path: str) -> int:
    client = Client(proxy.bind)
    try:
        return client.send("GET", path).status
    finally:
        client.close()


def test_metrics_are_there_for_prometheus(lonely: tuple[Proxy, EchoServices]) -> None:
    proxy = replace(lonely[0], metrics=f"127.0.105.1:{free_port('127.0.105.1')}")
    with RunningProxy(proxy):
        assert proxy.metrics
        connection = http.client.HTTPConnection(proxy.metrics)
        connection.request("GET", "/metrics")
        assert b"haproxy_backend_http_responses_total" in connection.getresponse().read()
        connection.close()


def test_the_log_says_who_served_what(federation: Federation, one: Client) -> None:
    running = federation.proxies[ONE]
    path = f"/image/v2/{os.urandom(8).hex()}"
    one.send("GET", path, (("X-Auth-Token", resolved(image=TWO).tag("T")),))
    wait_until("the log line", lambda: path in running.log.read_text())
    (line,) = [line for line in running.log_lines() if line.uri == path]
    assert (line.method, line.status, line.service) == ("GET", 200, "image")
    assert (line.target, line.issuer, line.backend) == (TWO, ONE, f"peer_{TWO}")
    assert line.scope == resolved(image=TWO)
    assert line.is_forwarded
    assert not line.is_refused


PLAIN = ("X-Auth-Token", "T")
TAGGED = ("X-Auth-Token", resolved().tag("T"))
SCOPED = ("X-Scope", '{"image": "InstanceTwo"}')


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/image", (), (200, "local_image", "image", Scope())),
        ("/networking", (PLAIN,), (200, "local_network", "network", Scope())),
        ("/image", (PLAIN, ("X_Odd", "1")), (200, "local_image", "image", Scope())),
        ("/image", (TAGGED,), (200, "local_image", "image", resolved())),
        ("/compute", (SCOPED,), (200, "local_compute", "compute", resolved(image=TWO))),
        ("/image", (SCOPED,), (200, f"peer_{TWO}", "image", resolved(image=TWO))),
        ("/image", (("X-Scope", "nonsense"),), (400, ONE, "image", Scope())),
        ("/nowhere", (SCOPED,), (404, ONE, "", Scope())),
    ],
)
def test_the_log_tells_each_kind_of_request_apart(
    federation: Federation,
    path: str,
    headers: tuple[tuple[str, str], ...],
    expected: tuple[int, str, str, Scope],
) -> None:
    running, one = federation.proxies[ONE], federation.clients[ONE]
    path = f"{path}/{os.urandom(8).hex()}"
    one.send("GET", path, headers)
    wait_until("the log line", lambda: path in running.log.read_text())
    (line,) = [line for line in running.log_lines() if line.uri == path]
    assert (line.status, line.backend, line.service, line.scope) == expected
    assert line.client.startswith("127.0.0.1:")


def test_no_log_line_shows_a_token_or_is_forged(federation: Federation, one: Client) -> None:
    running = federation.proxies[ONE]
    path = f'/image/v2/"{os.urandom(8).hex()}"'
    one.send("GET", path, (("X-Auth-Token", "SECRET!SCOPE!{}"), ("X-Scope", '{"image": "\x01"}')))
    mark = path.split('"')[1]
    wait_until("the log line", lambda: mark in running.log.read_text())
    (line,) = [line for line in running.log_lines() if mark in line.uri]
    assert line.is_refused
    assert line.status == 400
    assert "SECRET" not in running.log.read_text()


def test_unchanged_files_are_not_written_again(lonely: tuple[Proxy, EchoServices]) -> None:
    proxy, _ = lonely
    assert {path.name for path in write(proxy)} > {"haproxy.cfg", "services.map"}
    assert write(proxy) == []
    changed = write(replace(proxy, peers=(Peer("Other", "127.0.0.1:1"),)))
    assert {path.name for path in changed} == {
        "haproxy.cfg",
        "facts.lua",
        "canonical-tags.map",
        "forwarders.list",
    }


def test_a_proxy_tells_what_it_knows_to_whoever_has_a_valid_token(one: Client) -> None:
    answer = one.send("GET", "/scope", (("X-Auth-Token", "T"),))
    assert answer.status == 200
    assert answer.json() == {
        "instance": ONE,
        "services": ["compute", "identity", "image", "network", "placement"],
        "instances": [
            {"name": ONE, "state": "up", "trusted": True},
            {"name": TWO, "state": "up", "trusted": True},
            {"name": "Three", "state": "up", "trusted": False},
            {"name": "Away", "state": "down", "trusted": True},
        ],
    }


def test_a_proxy_tells_nothing_without_a_token(one: Client) -> None:
    answer = one.send("GET", "/scope")
    assert answer.status == 401
    assert TWO not in answer.body.decode()


def test_a_proxy_tells_nothing_to_the_token_of_an_untrusted_issuer(one: Client) -> None:
    answer = one.send("GET", "/scope", (("X-Auth-Token", resolved(identity="Three").tag("T")),))
    assert answer.status == 401


def test_the_issuer_decides_whether_a_token_is_valid(one: Client) -> None:
    answer = one.send("GET", "/scope", (("X-Auth-Token", resolved(identity="Away").tag("T")),))
    assert answer.status == 503
