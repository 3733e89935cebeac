"""Reading the proxy's log, and ignoring lines that are not requests."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from openstackoid.proxy.log import parse_log_line

DATE = "2026-11-24T03:01:07.042315+00:00"
START = f"{DATE} 127.0.0.1:41234 InstanceOne peer_InstanceTwo/InstanceTwo"
MIDDLE = '0/0/1/35/36 200 1071 ---- "GET /image/v2/images HTTP/1.1" peer_InstanceTwo image'
SCOPE = '{"compute":"InstanceOne","image":"InstanceTwo"}'
LINE = f"{START} {MIDDLE} {SCOPE}"


def test_a_line_is_a_request_with_its_scope() -> None:
    line = parse_log_line(LINE)
    assert line
    assert line.time == datetime(2026, 11, 24, 3, 1, 7, 6315, UTC)
    assert (line.end, line.milliseconds) == (datetime(2026, 11, 24, 3, 1, 7, 42315, UTC), 36)
    assert (line.status, line.target, line.is_forwarded) == (200, "InstanceTwo", True)
    assert dict(line.scope) == {"compute": "InstanceOne", "image": "InstanceTwo"}


def test_proxies_in_different_time_zones_agree_on_the_time() -> None:
    here = parse_log_line(LINE)
    east = parse_log_line(LINE.replace(DATE, "2026-11-24T04:31:07.042315+01:30"))
    assert here and east
    assert here.time == east.time


@pytest.mark.parametrize(
    "line",
    [
        f"<134>1 {LINE.replace(DATE, f'{DATE} cloud haproxy 123 - -')}",
        LINE.replace(DATE, f"{DATE} cloud haproxy[123]:"),
        f"Nov 24 03:01:07 cloud haproxy[123]: {LINE}",
    ],
    ids=["RFC 5424", "rsyslog", "journal"],
)
def test_the_line_may_come_from_a_log_server(line: str) -> None:
    assert parse_log_line(line) == parse_log_line(LINE)


def test_a_login_whose_body_the_proxy_reads_is_not_refused() -> None:
    ours = "InstanceOne InstanceOne/<NOSRV>"
    refused = parse_log_line(LINE.replace("InstanceOne peer_InstanceTwo/InstanceTwo", ours))
    read = parse_log_line(
        LINE.replace("InstanceOne peer_InstanceTwo/InstanceTwo", ours.replace("NOSRV", "lua.login"))
    )
    assert refused and refused.is_refused
    assert read and not read.is_refused


def test_the_line_of_a_refused_request_may_have_an_invalid_instance_name() -> None:
    line = parse_log_line(LINE.replace('"InstanceTwo"}', '"no such/instance"}'))
    assert line
    assert line.scope["image"] == "no such/instance"


def test_a_truncated_line_is_not_a_request() -> None:
    assert [length for length in range(len(LINE)) if parse_log_line(LINE[:length])] == []


@pytest.mark.parametrize(
    ("whole", "damaged"),
    [
        ("2026-11-24", "2026-11-99"),
        ("2026-11-24", "2026-??-24"),
        (DATE, ""),
        ("/36 ", f"/{'9' * 1000} "),
        ("0/0/1/35/36", "0/0/1"),
        (" 200 ", f" {'2' * 5000} "),
        (" 1071 ", f" {'1' * 5000} "),
        (SCOPE, "{]}"),
        (SCOPE, '{"image":"a"b"}'),
        (SCOPE, '{"image":2}'),
        (SCOPE, '{"image":null}'),
        (SCOPE, '{"image":["InstanceTwo"]}'),
        (SCOPE, '{"image":' + "[" * 100_000 + "}"),
        (SCOPE, '{"image":' + "1" * 5000 + "}"),
        (SCOPE, "InstanceTwo"),
    ],
)
def test_a_damaged_line_is_not_a_request(whole: str, damaged: str) -> None:
    assert whole in LINE
    assert parse_log_line(LINE.replace(whole, damaged)) is None
