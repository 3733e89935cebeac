"""The linters, as tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def lint(*argv: str) -> None:
    done = subprocess.run(
        [str(BIN / argv[0]), *argv[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(argv)}\n{done.stdout}{done.stderr}", pytrace=False)


def tracked() -> list[Path]:
    """The files of the repository, including new ones, but not ignored ones."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    files = (ROOT / name for name in listing.split("\0") if name)
    return [path for path in files if path.is_file()]


def is_shell(path: Path) -> bool:
    if path.suffix in (".sh", ".bash"):
        return True
    with path.open("rb") as file:
        first = file.readline(100)
    return first.startswith(b"#!") and first.split(b"/")[-1].split()[-1] in (b"sh", b"bash")


def test_python_is_clean_for_ruff() -> None:
    lint("ruff", "check", ".")


def test_python_is_formatted() -> None:
    lint("ruff", "format", "--check", ".")


def test_types_hold() -> None:
    lint("mypy")


def test_shell_is_clean_for_shellcheck_and_bashate() -> None:
    scripts = [str(path) for path in tracked() if is_shell(path)]
    for name in (".ci/run", "devstack/settings", "devstack/plugin.sh", "devstack/lib/openstackoid"):
        assert str(ROOT / name) in scripts
    lint("shellcheck", *scripts)
    # Leave E006, long lines, to the formatter.
    lint("bashate", "--ignore", "E006", *scripts)


def test_no_file_names_a_package_index() -> None:
    # The constraints are only names and versions: the user chooses the package index.
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if "/" in line or "@" in line] == []
