"""Set up ``.venv`` for ``setup-env.py``, with nothing but the standard library."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lab import apt
from lab.errors import LabError
from lab.unbundled import Unbundled

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"

_OLDEST = (3, 11)
# Variables for the caller's Python that would change ours or slow it down.
_UNWANTED = ("PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")


def main() -> None:
    """Run the command line inside ``.venv``; make that first if necessary."""
    for name in _UNWANTED:
        os.environ.pop(name, None)
    if Path(sys.prefix).resolve() == VENV:
        from lab.cli import main as cli  # noqa: PLC0415 - its imports are only in .venv

        cli()
        return
    try:
        if sys.argv[1:2] == ["up"] and "--offline" in sys.argv:
            go_offline()
        ensure()
    except LabError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    python = str(VENV / "bin/python")
    os.execv(python, [python, str(ROOT / "setup-env.py"), *sys.argv[1:]])  # noqa: S606


def go_offline() -> None:
    """Have uv and pip use no network, in this process and in those that it starts.

    If the repository comes out of a bundle, they use that, and so does apt.

    :raises LabError: when the bundle does not fit this machine.
    """
    os.environ.update(UV_OFFLINE="1", PIP_NO_INDEX="1")
    if unbundled := Unbundled(ROOT):
        unbundled.use(base_python())


def base_python() -> str:
    """The Python to base virtual environments on: Debian's, if it is new enough.

    It imports faster than a Python that pyenv built without optimisation (measured: 30 %).
    """
    for candidate in (Path("/usr/bin/python3"), Path(sys.executable)):
        real = candidate.resolve()
        version = re.fullmatch(r"python(\d+)\.(\d+)", real.name)
        if version and real.exists() and tuple(map(int, version.groups())) >= _OLDEST:
            return str(real)
    return str(Path(sys.executable).resolve())


def ensure(extra: str = "orchestrator") -> str:
    """Install both distributions, with the lab's *extra*, into ``.venv`` unless they are there.

    Returns a text that changes with what is installed.

    :raises LabError: when it cannot be installed.
    """
    kind = f"{base_python()} {ROOT}"
    stamp = VENV / f".installed-{extra}"
    wanted = f"{kind}\n{_digest()}\n"
    if _text(stamp) == wanted:
        return wanted
    lock = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _text(stamp) == wanted:
            return wanted
        print(f"Installing the project into .venv ({extra}) …", file=sys.stderr, flush=True)
        # A kill leaves a half-made one without a stamp; another Python or path makes it useless.
        if not _text(VENV / ".installed-orchestrator").startswith(f"{kind}\n"):
            shutil.rmtree(VENV, ignore_errors=True)
        stamp.unlink(missing_ok=True)
        uv = _uv()
        extras = ",".join(dict.fromkeys(("orchestrator", extra)))
        _run(
            [
                *(uv, "pip", "install", "--quiet", "--python", str(VENV / "bin/python")),
                *("--constraints", "constraints.txt", "--build-constraints", "constraints.txt"),
                *("--editable", ".", "--editable", f"./lab[{extras}]"),
            ]
        )
        stamp.write_text(wanted)
    finally:
        os.close(lock)
    return wanted


def _digest() -> str:
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "lab/pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _uv() -> str:
    """A uv that works; makes the empty ``.venv``, too."""
    python = base_python()
    inside = VENV / "bin/uv"
    if inside.exists():
        return str(inside)
    found = shutil.which("uv")
    # pyenv may have a shim without a uv behind it.
    if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode:
        found = None
    if found:
        _run([found, "venv", "--quiet", "--clear", "--python", python, str(VENV)])
        return found
    if not _has(python, "pip") and not _has(python, "ensurepip"):
        if os.environ.get("UV_OFFLINE") and not Unbundled(ROOT):
            raise LabError("--offline, and the Debian package python3-venv is missing")
        apt.ensure(["python3-venv"], lambda line: print(line, file=sys.stderr, flush=True))
    if _has(python, "pip"):
        # Twice as fast as the environment's own pip, and Debian's venv may lack ensurepip.
        _run([python, "-m", "venv", "--clear", "--without-pip", str(VENV)])
        pip = [python, "-m", "pip", "--python", str(VENV / "bin/python")]
    else:
        _run([python, "-m", "venv", "--clear", str(VENV)])
        pip = [str(VENV / "bin/python"), "-m", "pip"]
    _run([*pip, "install", "--quiet", "--constraint", "constraints.txt", "uv"])
    return str(inside)


def _has(python: str, module: str) -> bool:
    if python == str(Path(sys.executable).resolve()):
        return importlib.util.find_spec(module) is not None
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    return done.returncode == 0


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0 and os.environ.get("UV_OFFLINE"):
        said = [line for line in done.stderr.splitlines() if line and not line.startswith("hint:")]
        last = (said or ["it does not say why"])[-1].strip()
        raise LabError(
            f"--offline, and .venv cannot be made of what is here: {last}; run ./setup-env.py up "
            "without --offline once"
        )
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise LabError(
            f"`{' '.join(argv[:4])} …` failed with status {done.returncode}: check that the "
            "package index is reachable, then try again"
        )
