"""Properties of every lab.yaml."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.config import Choices, load
from lab.errors import LabError

TEXT = (Path(__file__).resolve().parents[2] / "lab.yaml").read_text()
WORDS = re.findall(r"[\w.]+|\s+|.", re.sub("#.*", "", TEXT))
TAGS = [
    f"!!{tag} " for tag in ("binary", "bool", "float", "int", "null", "omap", "set", "timestamp")
]
# Text with a special meaning in YAML.
SIGNS = [*"[]{},:-?|>\n\t'\"", "&a ", "*a", "<<: ", "---\n", ".nan", "1e999", *TAGS]
piece = st.sampled_from(SIGNS) | st.sampled_from(WORDS) | st.text(max_size=2)
pieces = st.lists(piece, max_size=3).map("".join)
# The numbers of words, and the pieces that replace them.
edits = st.dictionaries(st.integers(0, len(WORDS) - 1), pieces, min_size=1, max_size=4)
choices = st.sampled_from(
    [
        Choices(provider="local"),
        Choices(provider="hosts"),
        Choices(provider="vagrant"),
        Choices(number=2),
    ]
)


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A short path: pytest's own may be too long for sockets."""
    path = Path(tempfile.mkdtemp(prefix="oid-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@settings(max_examples=100, deadline=None)
@given(edits, choices)
def test_any_description_is_a_lab_or_one_printable_line(
    root: Path, edits: dict[int, str], choices: Choices
) -> None:
    text = "".join(edits.get(number, word) for number, word in enumerate(WORDS))
    (root / "lab.yaml").write_text(text, encoding="utf-8", errors="replace")
    try:
        lab = load(root, choices)
    except LabError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 700
    else:
        assert lab.instances
