"""Properties of every scope, and of every text that claims to be one."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from os_service_types import ServiceTypes

from openstackoid.scope import (
    INSTANCE_NAME,
    Scope,
    ScopeError,
    decode_url_scope,
    scoped_auth_url,
    service_type,
)

_AUTHORITY = ServiceTypes()
NAMES = sorted({*_AUTHORITY.all_types_by_service_type, *_AUTHORITY.reverse})
instances = st.from_regex(INSTANCE_NAME, fullmatch=True)
services = st.dictionaries(st.sampled_from(NAMES).map(service_type), instances)
scopes = services.map(Scope)
# Random text seldom gets past the first character: build some from pieces of scopes.
pieces = st.lists(st.sampled_from([*'{}[]":,=\\ \n', "image", "nova", "InstanceTwo"]) | st.text())
texts = st.text() | pieces.map("".join)


@given(scopes)
def test_a_scope_survives_json_shorthand_and_url(scope: Scope) -> None:
    assert Scope.parse(scope.to_json()) == scope
    assert Scope.parse(",".join(f"{name}={value}" for name, value in scope.items())) == scope
    assert Scope.parse(decode_url_scope(scope.url_segment().removeprefix("scope/"))) == scope


@given(texts)
def test_any_text_is_a_scope_or_one_short_printable_line(text: str) -> None:
    try:
        scope = Scope.parse(text)
    except ScopeError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 400
    else:
        assert Scope.parse(scope.to_json()) == scope
        assert all(service_type(name) == name for name in scope)
        assert all(INSTANCE_NAME.fullmatch(instance) for instance in scope.values())


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_no_json_value_but_a_name_is_an_instance(value: object) -> None:
    try:
        scope = Scope.parse(json.dumps({"image": value}))
    except ScopeError as error:
        assert "is not an instance name" in str(error)
    else:
        assert scope["image"] == value


@given(scopes, scopes, scopes)
def test_merging_is_associative_and_the_later_wins(one: Scope, two: Scope, three: Scope) -> None:
    assert one.merged(two).merged(three) == one.merged(two.merged(three))
    assert dict(one.merged(two)) == {**one, **two}


@given(scopes, scopes)
def test_scoping_an_auth_url_twice_merges(one: Scope, two: Scope) -> None:
    url = "http://127.0.1.1:8888/identity/v3"
    assert scoped_auth_url(scoped_auth_url(url, one), two) == scoped_auth_url(url, one.merged(two))


@given(st.text(max_size=40))
def test_any_scope_in_a_url_is_read_or_refused(encoded: str) -> None:
    try:
        text = decode_url_scope(encoded)
    except ScopeError as error:
        assert str(error).isprintable()
    else:
        assert isinstance(text, str)
