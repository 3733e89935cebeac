"""The local provider: a host is a loopback address and a directory, with its own sshd."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import psutil

from lab import files, logs, ports, processes
from lab.bootstrap import base_python
from lab.config import Instance, Lab
from lab.errors import LabError
from lab.providers import login_shell
from lab.providers.base import Finding, Host, Needs, Provider
from lab.steps import Steps

SSH_PORT = 2222

if TYPE_CHECKING:
    from lab.supervision import Supervisor

#: Variables by which a user configures uv's package index and its certificates.
_PACKAGE_VARIABLES = ("UV_", "PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# sshd's privilege separation directory, compiled in; only root's sshd needs it.
_PRIVSEP = Path("/run/sshd")
#: Seconds that an sshd or the supervisor may take to answer.
_PATIENCE = 20.0

_SSHD_CONFIG = Template("""\
# The sshd of $name. It accepts only the lab's key, and only the user who runs the lab.
ListenAddress $address:$port
HostKey $directory/ssh/host_key
PidFile none

AllowUsers $user
AuthenticationMethods publickey
AuthorizedKeysFile $directory/ssh/authorized_keys
# The repository may be below a directory that others can write to, such as /tmp.
StrictModes no
PermitRootLogin prohibit-password
UsePAM $pam
PasswordAuthentication no
KbdInteractiveAuthentication no

# The caller's environment stays outside; all processes here have the lab's marks.
PermitUserEnvironment no
SetEnv HOME=$directory/home PATH=$path LANG=C.UTF-8 $marks
ForceCommand $directory/login

UseDNS no
PrintMotd no
PrintLastLog no
X11Forwarding no
MaxStartups 100
MaxSessions 100
Subsystem sftp /usr/lib/openssh/sftp-server
""")

_SSH_CONFIG = Template("""\
Host $name
    HostName $address
    Port $port
    User $user
    IdentityFile $provider/key
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile $provider/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    PasswordAuthentication no
    LogLevel ERROR
""")

_SUPERVISOR = Template("""\
; Keeps the sshd of every instance running.
[supervisord]
logfile = $state/log/provider.log
$limits
pidfile = $provider/supervisord.pid
childlogdir = $state/log
[unix_http_server]
file = $provider/supervisor.sock
chmod = 0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
""")

_SUPERVISOR_PROGRAM = Template("""\
[program:$name]
command = $sshd -D -e -f $directory/ssh/sshd_config
environment = $marks
autostart = false
autorestart = true
startsecs = 0
redirect_stderr = true
stdout_logfile = $state/log/$name-sshd.log
$program_limits
""")


def lacking_memory(instances: int, needs: Needs) -> str:
    """Why this machine cannot hold so many more *instances*, as a sentence; nothing if it can."""
    wanted, free = instances * needs.memory, psutil.virtual_memory().available // 2**20
    if wanted <= free:
        return ""
    return (
        f"this machine has {free} MiB of memory left, and the instances that are not up take "
        f"{wanted}: the kernel may kill some programs. Choose fewer instances with -n"
    )


class Local(Provider):
    """Instance *n* is a loopback address and a directory on this machine."""

    name = "local"
    debian_packages = ("openssh-client", "openssh-server")
    is_here = True

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._directory = lab.state / "provider"

    @cached_property
    def _supervisor(self) -> Supervisor:
        from lab.supervision import Supervisor  # noqa: PLC0415 - slow to import

        return Supervisor(
            self._directory / "supervisor.sock",
            self._directory / "supervisord.conf",
            self.lab.state / "log" / "supervisord.out",
        )

    def up(self, names: Sequence[str], needs: Needs, steps: Steps) -> list[Host]:
        """Give each instance in *names* its directory and its sshd."""
        instances = [one for one in self.lab.instances if one.name in names]
        new = [one.name for one in instances if not self.is_up(one.name)]
        if fault := lacking_memory(len(new), needs):
            steps.say(f"warning: {fault}")
        sshd = _program("sshd")
        changed = self._write_files(sshd)
        _make_privilege_separation_directory(self._directory)
        if not self._supervisor.running():
            self._tidy()
        with _as_lab_error():
            environment = {"PATH": _PATH, "LANG": "C.UTF-8", **processes.marks(self.lab.state)}
            self._supervisor.start(environment)
            for name in changed:
                self._supervisor.stop_program(name)
        for one in instances:
            with steps.step(one.name, "host") as step:
                self._start(one)
                step.log(f"sshd answers on {one.address}:{SSH_PORT}")
        return [self._host(one) for one in instances]

    def hosts(self) -> list[Host]:
        """The hosts whose directories exist."""
        return [
            self._host(one)
            for one in self.lab.instances
            if (self.lab.state / one.name / "login").exists()
        ]

    def halt(self, names: Sequence[str]) -> None:
        """Stop the sshd of each instance in *names*, and everything else that runs there."""
        if self._supervisor.running():
            with _as_lab_error():
                for name in names:
                    self._supervisor.stop_program(name)
            if not any(map(self._supervisor.pid, self._supervisor.states())):
                self._kill_supervisor()
        for name in names:
            processes.stop(processes.marked(self.lab.state, name))
        self._tidy()

    def destroy(self) -> None:
        """Stop every process of the lab; all its files are in the lab's state."""
        self._kill_supervisor()
        processes.kill_all(self.lab.state)
        _remove_privilege_separation_directory(self._directory)

    def is_up(self, name: str) -> bool:
        """Whether the sshd of *name* sends its greeting."""
        return _greets(str(self.lab.instance(name).address))

    def doctor(self) -> list[Finding]:
        """Whether the ports of sshd are free, or ours."""
        return [
            Finding(
                f"{one.address}:{SSH_PORT} for {one.name}",
                self.is_up(one.name) or ports.taker(str(one.address), SSH_PORT) is None,
                "stop what listens there, or change the address in lab.yaml",
            )
            for one in self.lab.instances
        ]

    def _host(self, instance: Instance) -> Host:
        state = self.lab.state
        return Host(
            name=instance.name,
            address=str(instance.address),
            directory=state / instance.name,
            shared=state / "shared",
            home=state / instance.name / "home",
            source=self.lab.root,
            python=base_python(),
            uv=uv(),
            environment={
                "UV_CACHE_DIR": _cache(),
                **{
                    name: value
                    for name, value in os.environ.items()
                    if name.upper().startswith(_PACKAGE_VARIABLES)
                },
            },
            user=getpass.getuser(),
        )

    def _values(self, instance: Instance, sshd: str) -> dict[str, str]:
        marks = processes.marks(self.lab.state, instance.name).items()
        return {
            "name": instance.name,
            "address": str(instance.address),
            "port": str(SSH_PORT),
            "user": getpass.getuser(),
            "state": str(self.lab.state),
            "provider": str(self._directory),
            "directory": str(self.lab.state / instance.name),
            "path": _PATH,
            "pam": "yes" if _root_is_locked() else "no",
            "sshd": sshd,
            "program_limits": logs.limits("stdout_logfile"),
            "marks": " ".join(f"{key}={value}" for key, value in marks),
        }

    def _write_files(self, sshd: str) -> list[str]:
        """Write missing and changed files for the whole lab; return whose sshd_config changed."""
        changed = []
        state, provider = self.lab.state, self._directory
        for directory in (state, provider, state / "log", state / "shared"):
            directory.mkdir(parents=True, exist_ok=True)
        for secret in (state, provider):
            secret.chmod(0o700)
        key = login_shell.key(provider / "key")
        ssh_config = "# Made by setup-env.py: ssh -F with this file reaches every instance.\n"
        supervisor = _SUPERVISOR.substitute(
            state=state, provider=provider, limits=logs.limits("logfile")
        )
        known_hosts = ""
        for one in self.lab.instances:
            directory = state / one.name
            (directory / "home").mkdir(parents=True, exist_ok=True)
            (directory / "ssh").mkdir(mode=0o700, exist_ok=True)
            values = self._values(one, sshd)
            ssh_config += "\n" + _SSH_CONFIG.substitute(values)
            marks = values["marks"].replace(" ", ",")
            supervisor += _SUPERVISOR_PROGRAM.substitute(values | {"marks": marks})
            host_key = login_shell.key(directory / "ssh/host_key")
            known_hosts += f"[{one.address}]:{SSH_PORT} {host_key}\n"
            files.write(directory / "ssh/authorized_keys", f"{key}\n")
            if files.write(directory / "ssh/sshd_config", _SSHD_CONFIG.substitute(values)):
                changed.append(one.name)
            files.write(directory / "bashrc", login_shell.bashrc(login_shell.prompt(one.name)))
            files.write(directory / "login", login_shell.login(one.name, directory), 0o755)
        files.write(provider / "known_hosts", known_hosts)
        files.write(provider / "supervisord.conf", supervisor)
        files.write(self.ssh_config, ssh_config)
        return changed

    def _kill_supervisor(self) -> None:
        """Kill the supervisor, which has no data, before it restarts anything."""
        configuration = str(self._directory / "supervisord.conf")
        found = [
            process
            for process in processes.marked(self.lab.state)
            if configuration in _title(process)
        ]
        for process in found:
            process.kill()
        processes.wait(found, _PATIENCE)

    def _tidy(self) -> None:
        """Stop sshds and supervisors that a dead supervisor left; sessions stay."""
        if self._supervisor.running():
            return
        configurations = [
            str(self._directory / "supervisord.conf"),
            *(f"{self.lab.state}/{one.name}/ssh/sshd_config" for one in self.lab.instances),
        ]
        processes.stop(
            process
            for process in processes.marked(self.lab.state)
            if any(text in _title(process) for text in configurations)
        )

    def _start(self, instance: Instance) -> None:
        address = str(instance.address)
        if not self._supervisor.pid(instance.name):
            taker = ports.taker(address, SSH_PORT)
            if taker is not None:
                raise LabError(
                    f"{instance.name}: {address}:{SSH_PORT} is taken by {taker}: stop it, or "
                    "change the address in lab.yaml"
                )
            with _as_lab_error():
                self._supervisor.ensure([instance.name])
        deadline = time.monotonic() + _PATIENCE
        while not _greets(address):
            if time.monotonic() > deadline:
                log = self.lab.state / "log" / f"{instance.name}-sshd.log"
                last = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
                raise LabError(
                    f"{instance.name}: sshd does not answer on {address}:{SSH_PORT}: "
                    f"{' '.join(last) or 'no output'}; see {log}"
                )
            time.sleep(0.02)


@contextlib.contextmanager
def _as_lab_error() -> Iterator[None]:
    from lab.supervision import SupervisionError  # noqa: PLC0415

    try:
        yield
    except SupervisionError as error:
        raise LabError(f"the provider's supervisor: {error}") from error


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _program(name: str) -> str:
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise LabError(f"{name} is missing: apt-get install openssh-server")
    return path


def _cache() -> str:
    """The user's own cache of uv, which outlives the lab, and not one in an instance's home.

    https://docs.astral.sh/uv/concepts/cache/#cache-directory
    """
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv")


def uv() -> str:
    """The path of uv.

    :raises LabError: when it is missing.
    """
    beside = Path(sys.prefix) / "bin/uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise LabError(f"uv is missing in {sys.prefix}: remove .venv and try again")
    return found


def _greets(address: str) -> bool:
    try:
        with socket.create_connection((address, SSH_PORT), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _root_is_locked() -> bool:
    """Whether we are root and that account is locked: some installers set no root password.

    sshd refuses a locked user even with a key, unless PAM decides (``UsePAM`` in sshd_config(5)).
    """
    if os.geteuid() != 0:
        return False
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("root:!") for line in lines)


def _make_privilege_separation_directory(provider: Path) -> None:
    if os.geteuid() == 0 and not _PRIVSEP.exists():
        (provider / "made-run-sshd").touch()
        _PRIVSEP.mkdir(mode=0o755)


def _remove_privilege_separation_directory(provider: Path) -> None:
    """Remove /run/sshd if we made it, unless another sshd now needs it."""
    if (provider / "made-run-sshd").exists() and not any(
        process.info["name"] == "sshd" for process in psutil.process_iter(["name"])
    ):
        _PRIVSEP.rmdir()
