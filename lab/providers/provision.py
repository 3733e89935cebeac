"""Prepare a machine for a stack, in small steps that can be repeated.

Everything is in the home of a new user, except for the packages and the files in ``sudoers.d`` and
``apt.conf.d``. ``/var/lib/openstackoid`` records what has to be undone.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from lab.config import Mirrors
from lab.errors import LabError
from lab.providers import login_shell
from lab.providers.base import Host, Needs
from lab.ssh import Remote, Result

#: The instance's user and home, the same as DevStack's tools/create-stack-user.sh makes.
USER = "stack"
HOME = Path("/opt/stack")
#: This repository on the machine.
SOURCE = HOME / "source"
#: Repository paths uploaded to each machine.
PARTS = (
    *("openstackoid", "lab", "devstack"),
    *("pyproject.toml", "constraints.txt", "README.org", "LICENSE"),
)
#: Packages for every stack: venv and pip install uv, from an index whose certificate Debian knows.
PACKAGES = ("ca-certificates", "python3-venv")

_NOTES = Path("/var/lib/openstackoid")
_OWNER = _NOTES / "owner"
_SUDOERS = Path("/etc/sudoers.d/50_openstackoid")
_APT_CONF = Path("/etc/apt/apt.conf.d/95openstackoid")
_APT_LIST = _NOTES / "sources.list"
_PIP_CONF = Path("/etc/pip.conf")
_PIP_MARK = "# Made by OpenStackoid's setup-env.py."
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_OLDEST_PYTHON = (3, 11)


class Administrator:
    """An account on a machine that is root, or that may use sudo without a password."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self._prefix: list[str] | None = None

    def run(
        self,
        argv: Sequence[str | Path],
        stdin: str | None = None,
        check: bool = True,
        on_line: Callable[[str], None] | None = None,
    ) -> Result:
        """Run *argv* as root.

        :raises LabError: when that is not allowed or, with *check*, when it fails.
        """
        if self._prefix is None:
            self._prefix = self._become_root()
        words = [*self._prefix, *map(str, argv)]
        return self.remote.run(words, stdin=stdin, check=check, on_line=on_line)

    def exists(self, path: Path) -> bool:
        """Whether there is anything at *path*."""
        return self.run(["test", "-e", path], check=False).ok

    def read(self, path: Path) -> str | None:
        """The content of the file *path*; None if there is no such file."""
        found = self.run(["cat", path], check=False)
        return found.stdout if found.ok else None

    def write(self, path: Path, text: str, mode: str = "0644", owner: str = "root") -> None:
        """Write *text* to the file *path*, atomically."""
        if self.read(path) == text:
            return
        draft = f"{path}.new"
        self.run(["rm", "-f", draft])
        self.run(["install", "-m", mode, "-o", owner, "/dev/null", draft])
        self.run(["tee", draft], stdin=text)
        self.run(["mv", draft, path])

    def _become_root(self) -> list[str]:
        if self.remote.run(["id", "-u"]).stdout.strip() == "0":
            return []
        if self.remote.run(["sudo", "-n", "true"], check=False).ok:
            return ["sudo", "-n", "--"]
        raise LabError(
            f"{self.remote.name}: the ssh user may not become root: set ssh in lab.yaml to root, "
            "or to a user who may use sudo without a password"
        )


@dataclass(frozen=True)
class Source:
    """The parts of this repository for a machine: a tar archive, and a digest of its content."""

    archive: bytes
    digest: str

    @classmethod
    def of(cls, root: Path) -> Source:
        """The present files of the repository *root*, committed or not."""
        digest, stream = hashlib.sha256(), io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
            for path in sorted(_files(root)):
                name = str(path.relative_to(root))
                digest.update(f"{name}\0".encode() + path.read_bytes())
                archive.add(path, name)
        return cls(stream.getvalue(), digest.hexdigest())


def _files(root: Path) -> Iterator[Path]:
    for part in PARTS:
        path = root / part
        inside = [path] if path.is_file() else path.rglob("*")
        yield from (one for one in inside if one.is_file() and one.parent.name != "__pycache__")


@dataclass(frozen=True)
class Preparation:
    """What every machine gets: the public *key*, the *source* and what a stack *needs*."""

    key: str
    source: Source
    needs: Needs
    mirrors: Mirrors

    def apply(
        self,
        administrator: Administrator,
        name: str,
        log: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        """Prepare a machine for the instance *name*, and *say* which packages are installed.

        :raises LabError: when the machine belongs to another lab or is too old, or apt fails.
        """
        _check_python(administrator)
        _claim(administrator, self.key)
        _make_user(administrator, name, self.key, may_become_root=self.needs.root)
        _put_source(administrator, self.source)
        _use_mirrors(administrator, self.mirrors)
        _install_packages(administrator, (*PACKAGES, *self.needs.packages), log, say)


def remove(administrator: Administrator, key: str) -> None:
    """Remove everything that the lab with this *key* put on a machine, from any state."""
    if administrator.read(_OWNER) != f"{key}\n":
        return
    end_processes(administrator)
    if administrator.exists(SOURCE / "lab"):
        administrator.run(["env", "-C", SOURCE, "python3", "-B", "-m", "lab.apt", "remove", _NOTES])
    if administrator.run(["id", "-u", USER], check=False).ok:
        administrator.run(["userdel", "--remove", USER])
    administrator.run(["rm", "-rf", HOME])
    _write_pip_conf(administrator, "")
    administrator.run(["rm", "-rf", _SUDOERS, _APT_CONF, _NOTES])


def end_processes(administrator: Administrator) -> None:
    """End every process of the instance's user; all of them are ours."""
    if not administrator.exists(_OWNER):
        return
    identity = administrator.run(["id", "-u", USER], check=False).stdout.strip()
    if identity:
        administrator.run(["pkill", "-KILL", "-u", identity], check=False)


def host_keys(administrator: Administrator) -> list[str]:
    """The machine's public host keys, each as ``TYPE KEY``."""
    listing = administrator.run(
        ["find", "/etc/ssh", "-name", "ssh_host_*_key.pub", "-exec", "cat", "{}", "+"]
    ).stdout
    return [" ".join(line.split()[:2]) for line in listing.splitlines() if line.strip()]


def environment(mirrors: Mirrors) -> dict[str, str]:
    """The variables that tell pip and uv on a machine the package index and its certificates."""
    found = {"PIP_CERT": _CERTIFICATES, "SSL_CERT_FILE": _CERTIFICATES}
    if mirrors.pip:
        found |= {"PIP_INDEX_URL": str(mirrors.pip), "UV_DEFAULT_INDEX": str(mirrors.pip)}
    if mirrors.proxy:
        proxy = str(mirrors.proxy).rstrip("/")
        found |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy)
    return found


def install_uv(remote: Remote, host: Host) -> None:
    """Install uv at the path that *host* names; *remote* logs in as the instance's user."""
    uv = Path(host.uv)
    if remote.run(["test", "-x", str(uv)], check=False).ok:
        return
    environment = uv.parent.parent
    python = str(uv.with_name("python"))
    remote.run([host.python, "-m", "venv", "--clear", str(environment)])
    constraints = str(host.source / "constraints.txt")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints, "uv"]
    remote.run(install, env=host.environment)


def _check_python(administrator: Administrator) -> None:
    code = "import sys; print(*sys.version_info[:2])"
    found = administrator.run(["python3", "-c", code], check=False).stdout.split()
    if len(found) != 2 or tuple(map(int, found)) < _OLDEST_PYTHON:  # noqa: PLR2004
        raise LabError(
            f"{administrator.remote.name}: its Python is {'.'.join(found) or 'missing'}, but 3.11 "
            "is needed: use a machine with Debian 12 or later"
        )


def _claim(administrator: Administrator, key: str) -> None:
    """Claim the machine, unless it has another owner: we will remove everything that we add."""
    owner = administrator.read(_OWNER)
    if owner == f"{key}\n":
        return
    name = administrator.remote.name
    if owner is not None:
        raise LabError(
            f"{name}: the machine has an instance of another lab: destroy that lab first"
        )
    signs: dict[str, list[str | Path]] = {
        f"a user {USER}": ["id", "-u", USER],
        str(HOME): ["test", "-e", HOME],
    }
    taken = [what for what, test in signs.items() if administrator.run(test, check=False).ok]
    if taken:
        raise LabError(
            f"{name}: the machine already has {' and '.join(taken)}, not made by this lab: "
            "use another machine, or remove that"
        )
    administrator.run(["mkdir", "-p", _NOTES])
    administrator.write(_OWNER, f"{key}\n")


def _make_user(administrator: Administrator, name: str, key: str, *, may_become_root: bool) -> None:
    if not administrator.run(["id", "-u", USER], check=False).ok:
        administrator.run(
            ["useradd", "--create-home", "--home-dir", HOME, "--shell", "/bin/bash", USER]
        )
    # DevStack runs services as other users, who need access through this directory.
    administrator.run(["chmod", "0755", HOME])
    for directory in (".ssh", "instance", "shared"):
        administrator.run(["install", "-d", "-m", "0700", "-o", USER, HOME / directory])
    login = HOME / "instance" / "login"
    administrator.write(login, login_shell.login(name, login.parent), "0755", USER)
    administrator.write(
        login.with_name("bashrc"), login_shell.bashrc(login_shell.prompt(name)), "0644", USER
    )
    keys = f'restrict,pty,port-forwarding,command="{login}" {key}\n'
    administrator.write(HOME / ".ssh" / "authorized_keys", keys, "0600", USER)
    if may_become_root:
        administrator.write(_SUDOERS, f"{USER} ALL=(ALL) NOPASSWD: ALL\n", "0440")


def _put_source(administrator: Administrator, source: Source) -> None:
    stamp = SOURCE / ".digest"
    if administrator.read(stamp) == source.digest:
        return
    fresh = HOME / "source.new"
    upload = administrator.remote.run(["mktemp"]).stdout.strip()
    administrator.remote.upload(source.archive, upload)
    administrator.run(["rm", "-rf", fresh])
    administrator.run(["install", "-d", "-o", USER, fresh])
    administrator.run(["tar", "-xzf", upload, "-C", fresh, "--no-same-owner"])
    administrator.run(["rm", "-f", upload])
    # Keep the git history: DevStack clones the source as a plugin (lab.stacks.devstack).
    if administrator.exists(SOURCE / ".git"):
        administrator.run(["mv", SOURCE / ".git", fresh])
    administrator.run(["chown", "-R", f"{USER}:", fresh])
    administrator.run(["rm", "-rf", SOURCE])
    administrator.run(["mv", fresh, SOURCE])
    administrator.write(stamp, source.digest, owner=USER)


_APT_MIRROR = Template("""\
Dir::Etc::SourceList "$list";
Dir::Etc::SourceParts "-";
""")
_APT_PROXY = Template("""\
Acquire::http::Proxy "$proxy";
Acquire::https::Proxy "$proxy";
""")


def _use_mirrors(administrator: Administrator, mirrors: Mirrors) -> None:
    """Point apt and pip at the mirrors, without changing any existing file."""
    apt = ""
    if mirrors.apt:
        release = administrator.run(["sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME"])
        line = f"deb {mirrors.apt} {release.stdout.strip()} main\n"
        administrator.write(_APT_LIST, line)
        apt += _APT_MIRROR.substitute(list=_APT_LIST)
    if mirrors.proxy:
        apt += _APT_PROXY.substitute(proxy=mirrors.proxy)
    if apt:
        administrator.write(_APT_CONF, apt)
    else:
        administrator.run(["rm", "-f", _APT_CONF])
    _write_pip_conf(administrator, f"index-url = {mirrors.pip}" if mirrors.pip else "")


def _write_pip_conf(administrator: Administrator, setting: str) -> None:
    """Write *setting* to pip's configuration, or remove ours; a foreign configuration stays."""
    before = administrator.read(_PIP_CONF)
    if before is not None and not before.startswith(_PIP_MARK):
        return
    if setting:
        administrator.write(_PIP_CONF, f"{_PIP_MARK}\n[global]\n{setting}\n")
    elif before is not None:
        administrator.run(["rm", "-f", _PIP_CONF])


def _install_packages(
    administrator: Administrator,
    packages: Sequence[str],
    log: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    name = administrator.remote.name

    def line(text: str) -> None:
        log(text)
        if text.startswith("Installing "):
            say(f"{name}: {text}")

    command: list[str | Path] = ["env", "-C", SOURCE, "python3", "-B", "-m", "lab.apt"]
    done = administrator.run([*command, "ensure", _NOTES, *packages], on_line=line, check=False)
    if not done.ok:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise LabError(f"{name}: {last.removeprefix('error: ')}")
