"""setup-env.py starts on any Python, from nothing, and after an interrupted set-up."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.style.test_style import tracked

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "setup-env.py"


def test_an_old_python_can_read_the_script() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 4))
    assert 'f"' not in SCRIPT.read_text()


def test_an_old_python_gets_one_line() -> None:
    pretend = (
        "import sys; sys.version_info = (3, 9, 2); sys.version = '3.9.2 (default)'; "
        f"exec(compile(open({str(SCRIPT)!r}).read(), 'setup-env.py', 'exec'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", pretend], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "error: setup-env.py needs Python 3.11 or newer, this is 3.9.2\n"


def test_a_clone_sets_itself_up_and_repairs_an_interrupted_set_up(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for path in tracked():
        copy = clone / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "/nowhere"}

    def says() -> tuple[str, str]:
        done = subprocess.run(
            [str(clone / "setup-env.py"), "--help"],
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout, done.stderr

    first, note = says()
    assert "destroy" in first
    assert note.startswith("Installing the project into .venv")
    assert says() == (first, "")

    # A kill in the middle leaves no stamp, and half of the packages.
    (clone / ".venv/.installed-orchestrator").unlink()
    shutil.rmtree(next(clone.glob(".venv/lib/*/site-packages/click")))
    assert says()[0] == first
    assert says() == (first, "")
