"""Expressions against a reference: Python's grammar, where ``&`` binds tighter than ``|``, too."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openstackoid.expression import ANY, All, First, Tree, expand, leaves, parse
from openstackoid.scope import Scope, ScopeError
from tests.property.test_routing import CASES

NAMES = ["A", "B", "InstanceOne", "x.y-z"]
KNOWN = ["A", "InstanceOne", "C"]


@dataclass(frozen=True)
class Runs:
    """What an expression does when the instances in *working* work: each place that it tries."""

    tried: tuple[str, ...]
    works: bool


class Operand:
    """Python evaluates an expression of these."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def __and__(self, other: Operand) -> Operand:
        both = (self.runs, other.runs)
        return Operand(Runs(both[0].tried + both[1].tried, both[0].works and both[1].works))

    def __or__(self, other: Operand) -> Operand:
        if self.runs.works:
            return self
        return Operand(Runs(self.runs.tried + other.runs.tried, other.runs.works))


def reference(text: str, working: frozenset[str]) -> Runs:
    """The runs of *text* by Python's evaluation; ``*`` is all of ``KNOWN``."""
    operands = {name: f"_{number}" for number, name in enumerate(NAMES + KNOWN)}
    python = text.replace(ANY, f"({'&'.join(KNOWN)})")
    for name in sorted(operands, key=len, reverse=True):
        python = python.replace(name, operands[name])
    variables = {
        operand: Operand(Runs((name,), name in working)) for name, operand in operands.items()
    }
    runs: Runs = eval(python.strip(), {}, variables).runs
    return runs


def ours(tree: Tree[Scope], working: frozenset[str]) -> Runs:
    """The runs of a plan, as the module's documentation describes them."""
    if isinstance(tree, All):
        each = [ours(member, working) for member in tree.members]
        return Runs(tuple(itertools.chain(*(r.tried for r in each))), all(r.works for r in each))
    if isinstance(tree, First):
        tried: tuple[str, ...] = ()
        for member in tree.members:
            runs = ours(member, working)
            tried += runs.tried
            if runs.works:
                break
        return Runs(tried, runs.works)
    return Runs((tree["image"],), tree["image"] in working)


gaps = st.sampled_from(["", "", " ", "  "])


def spaced(signs: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(gaps, signs, gaps).map("".join)


expressions = st.recursive(
    spaced(st.sampled_from([*NAMES, ANY])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("&|"), inner).map("".join),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=12,
)
instances = st.frozensets(st.sampled_from(NAMES + KNOWN))


def unique(tried: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(tried))


@settings(max_examples=CASES, deadline=None, database=None)
@given(expressions, instances)
def test_an_expression_tries_what_python_would_evaluate(text: str, working: frozenset[str]) -> None:
    expected = reference(text, working)
    found = ours(expand({"image": text}, KNOWN), working)
    assert found.works == expected.works
    assert unique(found.tried) == unique(expected.tried)


@settings(max_examples=CASES, deadline=None, database=None)
@given(expressions)
def test_what_a_tree_says_reads_as_the_same_tree(text: str) -> None:
    tree = parse(text)
    assert parse(written(tree)) == tree


def written(tree: Tree[str]) -> str:
    if isinstance(tree, (All, First)):
        sign = " & " if isinstance(tree, All) else " | "
        return sign.join(
            f"({written(member)})" if isinstance(member, (All, First)) else member
            for member in tree.members
        )
    return tree


@settings(max_examples=CASES, deadline=None, database=None)
@given(st.text("AB&|*()_-. \t\n☃\0", max_size=12))
def test_any_other_text_has_a_caret_where_reading_stopped(text: str) -> None:
    try:
        tree = parse(text)
    except ScopeError as error:
        expected, shown, caret = str(error).split("\n")
        assert expected.startswith("expected ")
        assert len(shown) == len(text) + 2
        assert caret.strip() == "^"
        assert len(caret) - 3 <= len(text)
        place = len(caret) - 3
        # What stands before the caret is not what is wrong: something can follow it.
        before = text[:place].strip()
        assert not before or any(_reads(before + more) for more in ("", " A", ")", " A)", "A))"))
    else:
        assert set(leaves(tree)) <= {"A", "B", ANY} or any(len(name) > 1 for name in leaves(tree))


def _reads(text: str) -> bool:
    opened = text.count("(") - text.count(")")
    try:
        parse(text + ")" * max(opened, 0))
    except ScopeError:
        return False
    return True


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
       st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))  # fmt: skip
def test_several_services_make_every_combination_in_the_order_of_a_tag(
    first: list[str], second: list[str]
) -> None:
    scope = {"network": "&".join(second), "compute": "&".join(first)}
    found = [(plain["compute"], plain["network"]) for plain in leaves(expand(scope, []))]
    assert found == list(itertools.product(first, second))


@given(expressions, st.booleans())
def test_an_unnamed_network_is_where_compute_is_if_that_varies(text: str, is_named: bool) -> None:
    scope = {"compute": f"A & {text}", **({"network": "A"} if is_named else {})}
    for plain in leaves(expand(scope, KNOWN)):
        assert plain["network"] == ("A" if is_named else plain["compute"])


def test_a_plain_scope_is_a_plan_of_one() -> None:
    assert expand({"image": "A", "compute": "B"}, []) == Scope({"image": "A", "compute": "B"})


@pytest.mark.parametrize("text", ["(" * 50_000, "(" * 50_000 + "A" + ")" * 50_000])
def test_too_many_parentheses_are_an_error(text: str) -> None:
    with pytest.raises(ScopeError):
        parse(text)


def test_too_many_combinations_are_an_error_before_anything_runs() -> None:
    many = " & ".join(f"I{number}" for number in range(40))
    with pytest.raises(ScopeError, match="1000 combinations"):
        expand({"image": many, "compute": many}, [])


def test_any_instance_of_none_is_an_error() -> None:
    with pytest.raises(ScopeError, match="the proxy knows none"):
        expand({"image": "*"}, [])
