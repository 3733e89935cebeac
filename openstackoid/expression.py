"""Scopes whose values are expressions over instances: ``A & B``, ``A | B``, ``*``.

A client expands an expression into plain scopes; the proxy never sees an operator. The grammar, in
which ``&`` binds tighter than ``|``::

    alternatives = together ("|" together)*        the first one that works
    together     = instance ("&" instance)*        all of them
    instance     = NAME | "*" | "(" alternatives ")"

``*`` stands for all instances that the proxy knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from openstackoid.scope import INSTANCE_NAME, Scope, ScopeError, is_expression

ANY = "*"
#: Settings of a cloud that end a request to an unavailable service at once. Otherwise openstacksdk
#: asks again for ten seconds (openstack/config/defaults.json), while the other results wait.
NO_RETRIES = {"image_status_code_retries": 0, "baremetal_status_code_retries": 0}
#: A command runs at most so many times.
MOST_COMBINATIONS = 1000

_SIGN = re.compile(rf"{INSTANCE_NAME.pattern}(?![A-Za-z0-9_.-])|[&|*()]")

Leaf = TypeVar("Leaf")
Other = TypeVar("Other")


@dataclass(frozen=True)
class All(Generic[Leaf]):
    """All members, side by side."""

    members: tuple[Tree[Leaf], ...]


@dataclass(frozen=True)
class First(Generic[Leaf]):
    """The first member that works; later ones are for the failures of earlier ones."""

    members: tuple[Tree[Leaf], ...]


Tree: TypeAlias = Leaf | All[Leaf] | First[Leaf]


def parse(text: str) -> Tree[str]:
    """The tree of an expression. Its leaves are the names of instances, and ``*``.

    >>> parse("InstanceOne & (InstanceTwo | *)")
    All(members=('InstanceOne', First(members=('InstanceTwo', '*'))))

    :raises ScopeError: with a caret under the offending place, and what is expected there.
    """
    parser = _Parser(text)
    try:
        tree = parser.alternatives()
    except RecursionError as error:
        raise ScopeError("an expression of the scope has too many parentheses") from error
    parser.expect_end()
    return tree


def leaves(tree: Tree[Leaf]) -> Iterator[Leaf]:
    """The leaves of *tree*, from left to right."""
    if isinstance(tree, (All, First)):
        for member in tree.members:
            yield from leaves(member)
    else:
        yield tree


def replace(tree: Tree[Leaf], by: Callable[[Leaf], Tree[Other]]) -> Tree[Other]:
    """*tree* with another tree in place of each leaf.

    A tree of one member becomes that member, members of equal kind join their parent, and a member
    that repeats an earlier one goes away.
    """
    if isinstance(tree, (All, First)):
        return _joined(type(tree), [replace(member, by) for member in tree.members])
    return by(tree)


def expand(scope: Mapping[str, str], known: Sequence[str]) -> Tree[Scope]:
    """The plain scopes for which to run a command, if *known* instances are all that there are.

    *scope* maps official service types to expressions. If several services vary, the result has
    every combination. The first service type in alphabetical order varies slowest, as in a tag.
    Where compute varies, an unnamed network varies with it: a server needs one of its instance.

    :raises ScopeError: when an expression is invalid, or ``*`` stands for no instance.
    """
    plan: Tree[Scope] = Scope()
    combinations = 1
    for service, text in sorted(scope.items()):
        instances = replace(parse(text), lambda name: _every(known) if name == ANY else name)
        combinations *= len(list(leaves(instances)))
        if combinations > MOST_COMBINATIONS:
            raise ScopeError(f"the scope has more than {MOST_COMBINATIONS} combinations")
        plan = replace(plan, lambda plain: _varied(plain, service, instances))  # noqa: B023
    if "network" not in scope and is_expression(scope.get("compute", "")):
        return replace(plan, lambda plain: plain.merged({"network": plain["compute"]}))
    return plan


def _varied(plain: Scope, service: str, instances: Tree[str]) -> Tree[Scope]:
    return replace(instances, lambda instance: plain.merged({service: instance}))


def _every(known: Sequence[str]) -> Tree[str]:
    if not known:
        raise ScopeError("'*' stands for no instance: the proxy knows none")
    return _joined(All, list(known))


def _joined(kind: type[All[Leaf] | First[Leaf]], members: Sequence[Tree[Leaf]]) -> Tree[Leaf]:
    flat: dict[Tree[Leaf], None] = {}
    for member in members:
        inner = member.members if isinstance(member, kind) else (member,)
        flat.update(dict.fromkeys(inner))
    return kind(tuple(flat)) if len(flat) > 1 else next(iter(flat))


class _Parser:
    """A cursor. ``_sign`` is the name or sign at it, or empty if there is neither."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._sign = ""
        self._advance()

    def alternatives(self) -> Tree[str]:
        return self._separated("|", First, self._together)

    def expect_end(self) -> None:
        if self._position < len(self._text):
            raise self._error("expected '&', '|' or the end")

    def _together(self) -> Tree[str]:
        return self._separated("&", All, self._instance)

    def _separated(
        self, sign: str, kind: type[All[str] | First[str]], member: Callable[[], Tree[str]]
    ) -> Tree[str]:
        members = [member()]
        while self._sign == sign:
            self._advance()
            members.append(member())
        return _joined(kind, members)

    def _instance(self) -> Tree[str]:
        if self._sign == "(":
            self._advance()
            tree = self.alternatives()
            if self._sign != ")":
                raise self._error("expected '&', '|' or ')'")
        elif self._sign in ("", "&", "|", ")"):
            raise self._error("expected an instance, '*' or '('")
        else:
            tree = self._sign
        self._advance()
        return tree

    def _advance(self) -> None:
        self._position += len(self._sign)
        rest = self._text[self._position :]
        self._position += len(rest) - len(rest.lstrip())
        match = _SIGN.match(self._text, self._position)
        self._sign = match[0] if match else ""

    def _error(self, expected: str) -> ScopeError:
        # One character for each, so that the caret is in its column.
        shown = "".join(c if c.isprintable() else "?" for c in self._text)
        return ScopeError(f"{expected}\n  {shown}\n  {' ' * self._position}^")
