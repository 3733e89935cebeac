"""Writing and reading a scope: JSON, shorthand, a token's tag, an auth URL."""

from __future__ import annotations

import dataclasses

import pytest

from openstackoid.scope import Scope, ScopeError, decode_url_scope, scoped_auth_url, service_type


@pytest.mark.parametrize(
    "text",
    [
        '{"image": "InstanceTwo", "network": "InstanceTwo"}',
        ' {"network":"InstanceTwo","image":"InstanceTwo"} ',
        '{"glance": "InstanceTwo", "neutron": "InstanceTwo"}',
        "image=InstanceTwo,network=InstanceTwo",
        " network = InstanceTwo , image = InstanceTwo, ",
        "Glance=InstanceTwo,NEUTRON=InstanceTwo",
    ],
)
def test_every_way_to_write_a_scope_means_the_same(text: str) -> None:
    assert dict(Scope.parse(text)) == {"image": "InstanceTwo", "network": "InstanceTwo"}


@pytest.mark.parametrize("text", ["", "  ", "{}", ","])
def test_nothing_is_the_empty_scope(text: str) -> None:
    assert Scope.parse(text) == Scope()
    assert not Scope.parse(text)


@pytest.mark.parametrize(
    ("name", "official"),
    [
        ("compute", "compute"),
        ("nova", "compute"),
        ("Nova", "compute"),
        ("volumev3", "block-storage"),
        ("cinder", "block-storage"),
        ("BLOCK_STORAGE", "block-storage"),
        ("bare-metal", "baremetal"),
        ("load_balancer", "load-balancer"),
        ("keystone", "identity"),
    ],
)
def test_a_service_goes_by_type_alias_and_project(name: str, official: str) -> None:
    assert service_type(name) == official


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nova", "malformed scope 'nova': write service=instance, for example image=InstanceTwo"),
        ('{"image": ', "malformed scope '{\"image\":': Expecting value at character 10"),
        ('{"image": "A"} x', "Extra data"),
        ('"image=A"', "unknown service type '\"image'"),
        ('["image"]', "malformed scope"),
        ("imag=A", "unknown service type 'imag'"),
        ("=A", "unknown service type ''"),
        ('{"": "A"}', "unknown service type ''"),
        ("image=", "'' is not an instance name (for service 'image'"),
        ("image=A=B", "'A=B' is not an instance name"),
        ("image=-A", "'-A' is not an instance name"),
        ("image=A/../B", "'A/../B' is not an instance name"),
        ("image=" + "A" * 65, "is not an instance name"),
        ('{"image": null}', "None is not an instance name"),
        ('{"image": 1}', "1 is not an instance name"),
        ('{"image": {"a": "b"}}', "is not an instance name"),
        ('{"image": ["A"]}', "['A'] is not an instance name"),
        ('{"image": "A", "image": "B"}', "'image' appears twice"),
        ('{"image": "A", "glance": "A"}', "'image' appears twice"),
        ("nova=A,compute=B", "'compute' appears twice"),
        ("image=\N{LATIN SMALL LETTER E WITH ACUTE}", "is not an instance name"),
    ],
)
def test_an_error_names_its_culprit(text: str, message: str) -> None:
    with pytest.raises(ScopeError) as error:
        Scope.parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "image=a\nb\x1b[2J\r",
        "a\nb\x1b[2J=A",
        "a\u202e\u2028b",
        '{"image": "\\u001b\\n\\ud800"}',
        '{"\\u0000": "A"}',
        '{"image": "\x00',
    ],
)
def test_an_error_is_one_line_that_is_safe_for_a_terminal(text: str) -> None:
    with pytest.raises(ScopeError) as error:
        Scope.parse(text)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "x" * 1_000_000 + "=A",
        "image=" + "x" * 1_000_000,
        '{"image": ' * 100_000,
        '{"image": ' + "[" * 100_000,
        '{"image": ' + "1" * 10_000 + "}",
        '{"image": [' + "1," * 10_000 + "1]}",
    ],
    ids=lambda text: text[:20],
)
def test_huge_and_deep_input_gets_a_short_answer(text: str) -> None:
    with pytest.raises(ScopeError) as error:
        Scope.parse(text)
    assert len(str(error.value)) < 300


def test_merging_overrides_service_by_service() -> None:
    merged = Scope.parse("image=A,network=A").merged(Scope.parse("glance=B,compute=B"))
    assert dict(merged) == {"compute": "B", "image": "B", "network": "A"}


def test_a_scope_is_a_value() -> None:
    one, same = Scope.parse("image=A,compute=B"), Scope({"compute": "B", "image": "A"})
    assert one == same
    assert len({one, same}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.services = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        one.services["image"] = "B"  # type: ignore[index]


def test_a_scope_does_not_follow_the_mapping_that_it_was_made_of() -> None:
    services = {"image": "A"}
    scope = Scope(services)
    services["image"] = "B"
    assert scope["image"] == "A"


def test_the_canonical_form_is_compact_and_sorted() -> None:
    scope = Scope.parse("network=InstanceOne,image=InstanceTwo")
    assert scope.to_json() == '{"image":"InstanceTwo","network":"InstanceOne"}'
    assert scope.tag("gAAA") == 'gAAA!SCOPE!{"image":"InstanceTwo","network":"InstanceOne"}'


def test_the_segment_of_an_auth_url_is_base64url_without_padding() -> None:
    segment = Scope.parse("image=InstanceTwo").url_segment()
    assert segment == "scope/eyJpbWFnZSI6Ikluc3RhbmNlVHdvIn0"


@pytest.mark.parametrize("path", ["/identity", "/identity/", "/identity/v3", "/v3", ""])
def test_a_scope_goes_in_front_of_the_path_of_an_auth_url(path: str) -> None:
    url = scoped_auth_url(f"https://[::1]:8888{path}", Scope.parse("image=InstanceTwo"))
    rest = path or "/"
    assert url == f"https://[::1]:8888/scope/eyJpbWFnZSI6Ikluc3RhbmNlVHdvIn0{rest}"


def test_a_scope_overrides_the_one_in_an_auth_url() -> None:
    first = scoped_auth_url("http://frontend/identity/v3", Scope.parse("image=A,network=A"))
    second = scoped_auth_url(first, Scope.parse("image=B"))
    assert second == scoped_auth_url(
        "http://frontend/identity/v3", Scope.parse("image=B,network=A")
    )


@pytest.mark.parametrize(
    "encoded",
    ["%%%", "a", "e30+", "_w", "\N{LATIN SMALL LETTER E WITH ACUTE}", "eyJpbWFnZSI6IH0"],
)
def test_an_auth_url_with_a_broken_scope_is_refused(encoded: str) -> None:
    with pytest.raises(ScopeError):
        scoped_auth_url(f"http://frontend/scope/{encoded}/identity", Scope.parse("image=A"))


@pytest.mark.parametrize("url", ["//[::1/", "http://[::1", "http://]/v3", "//a℀\x1f"])
def test_an_invalid_auth_url_is_named_in_one_line(url: str) -> None:
    with pytest.raises(ScopeError, match="is not an auth URL") as caught:
        scoped_auth_url(url, Scope.parse("image=A"))
    assert repr(url) in str(caught.value)
    assert str(caught.value).isprintable()


def test_invalid_base64url_is_named() -> None:
    with pytest.raises(ScopeError, match=r"not base64url: '!!!!'"):
        decode_url_scope("!!!!")
