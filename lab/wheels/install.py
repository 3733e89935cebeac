"""Install the stack on a host: ``python3 install.py UV SOURCE SHARED``.

Makes the virtual environment ``SHARED/venv`` of both distributions in ``SOURCE``, with the lab's
extra ``wheels``, at the versions of ``SOURCE/constraints.txt``; at once when it is there already.
Any Python runs this: it needs the standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path


def install(uv: str, source: Path, shared: Path) -> None:
    """Make the virtual environment, unless it is up to date.

    :raises subprocess.CalledProcessError: when uv fails; its words are on standard error.
    """
    shared.mkdir(parents=True, exist_ok=True)
    venv = shared / "venv"
    with (shared / "venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_installed(source, shared):
            return
        shutil.rmtree(venv, ignore_errors=True)
        for command in commands(uv, source, venv):
            _run(*command)
        compile_all = "from lab.wheels import forkserver; forkserver.compile_all()"
        _run(str(venv / "bin" / "python"), "-W", "ignore", "-c", compile_all)
        (venv / "installed").write_text(_digest(source))


def is_installed(source: Path, shared: Path) -> bool:
    """Whether the virtual environment in *shared* is up to date."""
    stamp = shared / "venv" / "installed"
    return stamp.exists() and stamp.read_text() == _digest(source)


def commands(uv: str, source: Path, venv: Path) -> tuple[tuple[str, ...], ...]:
    """The commands that make the virtual environment *venv*."""
    constraints = str(source / "constraints.txt")
    return (
        (uv, "venv", "--quiet", "--python", sys.executable, str(venv)),
        (
            *(uv, "pip", "install", "--quiet", "--python", str(venv / "bin" / "python")),
            *("--constraints", constraints, "--build-constraints", constraints),
            *("--editable", str(source), "--editable", f"{source / 'lab'}[wheels]"),
        ),
    )


def _digest(source: Path) -> str:
    digest = hashlib.sha256(f"{sys.version} {source}".encode())
    for name in ("pyproject.toml", "lab/pyproject.toml", "constraints.txt"):
        digest.update((source / name).read_bytes())
    return digest.hexdigest()


def _run(*command: str) -> None:
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    os.environ.pop("VIRTUAL_ENV", None)
    try:
        install(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    except subprocess.CalledProcessError as error:
        sys.exit(f"uv failed with status {error.returncode}: is the package index within reach?")
