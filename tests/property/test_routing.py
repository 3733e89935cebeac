"""HAProxy decides like the reference model, whatever the scopes look like.

``OPENSTACKOID_PROXY_CASES`` sets the number of generated requests; the default is 10,000.
"""

from __future__ import annotations

import base64
import json
import os
import urllib.parse
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import ADDRESSES, AWAY, PREFIXES, Federation
from .harness import HOST, Answer
from .model import FORGED, MARK, OURS, Refused, Request, Served

CASES = int(os.environ.get("OPENSTACKOID_PROXY_CASES", "10000"))

SERVICES = st.sampled_from([*PREFIXES] * 4 + ["volume", "Image", "glance", "", "image ", "scope"])
INSTANCES = st.sampled_from(["InstanceOne", "InstanceTwo"] * 6 + ["Three", AWAY] * 2) | (
    st.sampled_from(
        ["Nowhere", "instanceone", "InstanceOne ", "", "home", "none", "a,b", "{}", "é"]
    )
)
BODIES = [
    "",
    "{}",
    f'{{"id": "t{MARK}{{}}"}}',
    '{"server": {"networks": "none"}}',
    '{"server": {"networks": "auto"}}',
    '{"server": {"networks": [{"uuid": "none"}]}}',
    '{"server": {"name": "networks", "networks": "none"}}',
]


def rescoping(token: str) -> str:
    """The body of a login with *token*."""
    identity = {"methods": ["token"], "token": {"id": token}}
    return json.dumps({"auth": {"identity": identity, "scope": {"project": {"id": "p"}}}})


#: Text that a hostile client may put anywhere.
POISON = st.sampled_from(
    [
        "\r\nX-Auth-Token: stolen", "\n", "\r", "\0", "\t", "\x7f", "\\", '\\"', "\\u0022", '"',
        "}", "{", "'", "%0d%0a", "%[src]", "%", "#", "\x80\xff", "☃".encode().decode("latin-1"),
        "!", MARK, ",", ":", " ", "null", "[]", "1", "}{", '"}', '":"', "x" * 300,
    ]
)  # fmt: skip


def canonical(instances: dict[str, str]) -> str:
    return json.dumps(dict(sorted(instances.items())), separators=(",", ":"))


#: A scope in the canonical form: complete and in order.
complete = st.fixed_dictionaries(dict.fromkeys(PREFIXES, INSTANCES)).map(canonical)
all_good = st.fixed_dictionaries(
    dict.fromkeys(PREFIXES, st.sampled_from(["InstanceOne", "InstanceTwo"]))
).map(canonical)

known = st.fixed_dictionaries(
    dict.fromkeys(PREFIXES, st.sampled_from(["InstanceOne", "InstanceTwo", "Three", AWAY]))
).map(canonical)


@st.composite
def written(draw: st.DrawFn) -> str:
    """Some pairs, in any order, possibly repeated or unknown, with or without spaces."""
    pairs = draw(st.lists(st.tuples(SERVICES, INSTANCES), max_size=4))
    gaps = st.sampled_from(["", "", " ", "  "])
    items = [
        f"{draw(gaps)}{json.dumps(s, ensure_ascii=False)}{draw(gaps)}:{draw(gaps)}"
        f"{json.dumps(i, ensure_ascii=False)}{draw(gaps)}"
        for s, i in pairs
    ]
    return f"{{{draw(gaps)}{','.join(items)}}}"


@st.composite
def poisoned(draw: st.DrawFn) -> str:
    """A valid scope with something bad in it."""
    text = draw(all_good | written())
    place = draw(st.integers(0, len(text)))
    cut = draw(st.sampled_from([0, 0, 1, 5]))
    return text[:place] + draw(POISON) + text[place + cut :]


nested = st.sampled_from(
    ['{"image":{"image":"InstanceTwo"}}', '{"image":["InstanceTwo"]}', '{"image":null}', "[]",
     '{"image":1}', '"image"', "image=InstanceTwo", "null", "{}{}", "{", "", "{},", '{"image"}',
     '{"image":"InstanceTwo",}', "{'image':'InstanceTwo'}", "{" * 2000]
)  # fmt: skip
scopes = st.one_of(all_good, all_good, complete, written(), written(), poisoned(), nested)


def in_header(text: str) -> str:
    """*text* without CR, LF and NUL, which would end the header or the request."""
    return text.translate({ord("\r"): None, ord("\n"): None, 0: None})


def in_url(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("latin-1")).rstrip(b"=").decode()


bare = st.sampled_from(["gAAAAABtoken", "t", "a-b_c="])


def percent_encoded(parts: tuple[str, str]) -> str:
    """A tagged token as glanceclient sends it."""
    return urllib.parse.quote(MARK.join(parts), safe="=+/", encoding="latin-1")


tokens = st.one_of(
    bare,
    st.tuples(bare, scopes).map(percent_encoded),
    st.tuples(bare, scopes.map(in_header)).map(MARK.join),
    st.tuples(bare, all_good).map(MARK.join),
    st.tuples(bare, known).map(MARK.join),
    st.sampled_from(["", "!", MARK, "t!SCOPE", "t!scope!{}", f"a!b{MARK}{{}}", f"{MARK}{{}}"]),
    st.sampled_from(["t%21SCOPE%21{%zz}", "a!b%21SCOPE%21{}", "t%21SCOPE", "t%2521SCOPE%2521{}"]),
    st.sampled_from(
        [f"t%21SCOPE%21{{{MARK}}}", "a%0d%0ab%21SCOPE%21%7B%7D", "tSCOPE", "%21SCOPE%21"]
    ),
)
paths = st.tuples(
    st.sampled_from(
        [*PREFIXES.values()] * 3 + ["/identity/v3/auth/tokens"] * 6 + ["/compute/v2.1/servers"] * 3
    ),
    st.sampled_from(
        [
            "",
            "",
            "/",
            "/v2/things",
            "/v3/auth/tokens",
            "/v3/auth/OS-FEDERATION/saml2/ecp",
            "?a=b/c",
            "/%0d%0a",
            "//x",
        ]
    ),
).map("".join) | st.sampled_from(
    ["/", "//image", "/imagex", "/scopes", "/scope/", "/scope/e30", "/SCOPE/e30/image", "/*"]
)
segments = st.one_of(
    scopes.map(in_url),
    scopes.map(in_url),
    st.sampled_from(
        ["", "e30", "e30=", "e3", "e", "!!", "e30%3D", "%7B%7D", "+/", "e30/scope/e30"]
    ),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    path = draw(paths)
    if draw(st.integers(0, 2)) == 0:
        path = f"/scope/{draw(segments)}{path}"
    headers: list[tuple[str, str]] = []
    for name, values, odds in (
        ("X-Scope", scopes.map(in_header), 3),
        ("X-Auth-Token", tokens, 1),
        ("X-Subject-Token", tokens, 3),
        ("X-Service-Token", tokens, 4),
    ):
        if draw(st.integers(0, odds)) <= 1 and draw(st.integers(0, odds)) <= 1:
            headers.append((name, draw(values)))
        if draw(st.integers(0, 59)) == 0:
            headers.append((name.upper(), draw(values)))
    if draw(st.integers(0, 9)) == 0:
        headers.append(("X_Auth_Token", draw(tokens)))
    if draw(st.integers(0, 9)) == 0:
        headers.append(("X-Forwarded-Prefix", "/outer"))
    if draw(st.integers(0, 39)) == 0:
        headers.append((draw(st.sampled_from(FORGED)), "admin"))
    if draw(st.integers(0, 19)) == 0:
        headers.append(("Authorization", f"Bearer {draw(tokens)}"))
    method = draw(st.sampled_from(["GET", "GET", "POST", "HEAD", "DELETE"]))
    body = draw(st.sampled_from(BODIES) | tokens.map(rescoping)) if method == "POST" else ""
    return Request(method, path, tuple(headers), body)


def interesting(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers that matter for scopes; the others belong to HTTP."""
    names = {name.lower() for name in OURS} | {"x-forwarded-prefix", "host", "x_auth_token"}
    names |= {name.lower() for name in FORGED}
    return sorted(pair for pair in headers if pair[0] in names)


def assert_is(
    expected: Refused | Served, answer: Answer, request: Request, host: str = HOST
) -> None:
    if isinstance(expected, Refused):
        assert answer.status == expected.status, answer.body
        assert answer.headers["content-type"] == "application/json"
        if request.method != "HEAD":
            error = answer.json()["error"]
            assert error["code"] == expected.status
            assert error["message"].startswith(expected.message)
        return
    assert answer.status == (201 if request.method == "POST" else 200), answer.body
    if request.method != "HEAD":
        facts: dict[str, Any] = answer.json()
        assert facts["service"] == f"{expected.instance} {expected.service}"
        assert (facts["method"], facts["path"]) == (request.method, expected.request.path)
        wanted = [(name.lower(), value) for name, value in expected.request.headers]
        wanted.append(("host", host))
        got = [(name, value) for name, value in facts["headers"]]
        assert interesting(got) == interesting(wanted)
        assert facts["body"] == expected.request.body
    token = "FRESH" if request.method == "POST" else expected.request.value("X-Subject-Token")
    if request.method == "DELETE" or token is None:
        assert "x-subject-token" not in answer.headers
    else:
        tag = f"{MARK}{expected.minted}" if expected.minted else ""
        assert answer.headers["x-subject-token"] == f"{token}{tag}"


@settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(entry=st.sampled_from([*ADDRESSES]), request_=requests())
def test_every_request_ends_where_the_model_says(
    federation: Federation, entry: str, request_: Request
) -> None:
    expected = federation.world.decide(entry, request_)
    client = federation.clients[entry]
    answer = client.send(request_.method, request_.path, request_.headers, request_.body)
    assert_is(expected, answer, request_)
