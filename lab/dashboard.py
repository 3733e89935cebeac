"""The lab's dashboard: a vanilla Horizon on this machine, with a login for every instance.

Horizon reads ``local/local_settings.py`` from the first directory of its path that has one
(openstack_dashboard/settings.py), and so stays unchanged in ``.venv``. uWSGI serves it, under a
supervisord that ends with the lab.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from lab import files, logs, ports, processes
from lab.bootstrap import VENV, ensure
from lab.config import Lab
from lab.errors import LabError
from lab.passwords import passwords
from lab.steps import Step, Steps

if TYPE_CHECKING:
    from lab.supervision import Supervisor

#: The port of the dashboard.
PORT = 8880
#: Seconds that Horizon may take from its start to its first page, on a slow machine.
PATIENCE = 90
#: The program's name under supervisor, of its log, and of what it keeps in the lab's state.
NAME = "dashboard"

_SUPERVISOR = Template("""\
; Keeps Horizon running.
[supervisord]
logfile = $state/log/$name-supervisord.log
$limits
pidfile = $directory/supervisord.pid
childlogdir = $state/log
directory = $directory
umask = 077

[unix_http_server]
file = $directory/supervisor.sock
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[program:$name]
command = $command
; Supervisor restarts a program whose section changed, and so whose settings changed.
environment = SETTINGS="$digest"
autostart = false
autorestart = true
startretries = 3
redirect_stderr = true
stdout_logfile = $state/log/$name.log
$program_limits
""")


def logins(clouds: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The auth URL and the name of each entry of Horizon's login menu (AVAILABLE_REGIONS).

    These are the *clouds* of ``clouds.yaml``: the instances and the named scopes.
    """
    return [(str(cloud["auth"]["auth_url"]), name) for name, cloud in clouds.items()]


def settings(
    entries: Sequence[tuple[str, str]],
    address: str,
    directory: Path,
    secret_key: str,
    *,
    consoles: bool,
    cacert: str | None = None,
) -> str:
    """The text of Horizon's ``local_settings.py`` for the login *entries*.

    With *consoles*, servers have serial consoles; *cacert* has the authority for HTTPS.

    Source: Horizon's settings reference, and Django's for the names in its second half.
    """
    values = {
        "AVAILABLE_REGIONS": entries,
        "OPENSTACK_KEYSTONE_URL": entries[0][0],
        "OPENSTACK_SSL_CACERT": cacert,
        # Where there is none, Horizon would offer one that fails.
        "CONSOLE_TYPE": "SERIAL" if consoles else None,
        # The page of a server has its console in a frame, which Django forbids.
        "X_FRAME_OPTIONS": "SAMEORIGIN",
        # Another theme takes as long again to compile.
        "AVAILABLE_THEMES": [("default", "Default", "themes/default")],
        "COMPRESS_OFFLINE": True,
        "STATIC_ROOT": str(directory / "static"),
        "ALLOWED_HOSTS": [address],
        "SECRET_KEY": secret_key,
        # A session has two tokens and a catalog: too much for a cookie.
        "SESSION_ENGINE": "django.contrib.sessions.backends.file",
        "SESSION_FILE_PATH": str(directory / "sessions"),
        "CACHES": {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
        "TIME_ZONE": "UTC",
        "LOGGING": {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"console": {"class": "logging.StreamHandler"}},
            "root": {"handlers": ["console"], "level": "WARNING"},
        },
    }
    lines = [f"{name} = {value!r}\n" for name, value in values.items()]
    return "".join(["# Made by setup-env.py for Horizon.\n", *lines])


class Dashboard:
    """The dashboard of *lab*."""

    def __init__(self, lab: Lab) -> None:
        self._state = lab.state
        self._lab = lab
        self._directory = lab.state / NAME
        self._address = lab.dashboard

    @property
    def url(self) -> str:
        """Where the dashboard is."""
        return f"http://{self._address}:{PORT}/"

    @property
    def log(self) -> Path:
        """What Horizon and its server say."""
        return self._state / "log" / f"{NAME}.log"

    @cached_property
    def _supervisor(self) -> Supervisor:
        from lab.supervision import Supervisor  # noqa: PLC0415 - slow to import

        return Supervisor(
            self._directory / "supervisor.sock",
            self._directory / "supervisord.conf",
            self._state / "log" / f"{NAME}-supervisord.out",
        )

    def state(self) -> str | None:
        """The program's state in supervisor's words; None when there is no dashboard."""
        if not (self._directory / "supervisor.sock").exists():
            return None
        state = self._supervisor.states().get(NAME)
        return state and state.lower()

    def up(self, clouds: Mapping[str, Any], steps: Steps) -> None:
        """Bring the dashboard up for *clouds* of ``clouds.yaml``, from any state.

        :raises LabError: naming what does not come up.
        """
        self._require_port()
        with steps.step(None, "Horizon from PyPI"):
            installation = ensure("dashboard")
        self._write(clouds, installation)
        with steps.step(None, "Horizon's style sheets and scripts") as step:
            self._collect(installation, step)
        with steps.step(None, "Horizon"):
            try:
                self._start()
            except LabError:
                self.halt()
                raise

    def halt(self) -> None:
        """Stop the dashboard, from any state."""
        if self._directory.exists():
            self._supervisor.shutdown()
            self._supervisor.stop_leftovers()

    def _require_port(self) -> None:
        if self._directory.exists():
            self._supervisor.stop_leftovers()
        taker = None if self.state() == "running" else ports.taker(self._address, PORT)
        if taker:
            raise LabError(f"{self._address}:{PORT} is taken by {taker}: stop that, then try again")

    def _write(self, clouds: Mapping[str, Any], installation: str) -> None:
        local = self._directory / "local"
        for directory in (local, self._directory / "sessions", self._state / "log"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret_key = passwords(self._lab, NAME, ("secret_key",))["secret_key"]
        text = settings(
            logins(clouds),
            self._address,
            self._directory,
            secret_key,
            consoles=self._lab.stack == "wheels" and self._lab.has_guests,
            cacert=next(iter(clouds.values())).get("cacert"),
        )
        files.write(local / "__init__.py", "")
        files.write(local / "local_settings.py", text)
        supervisor = _SUPERVISOR.substitute(
            name=NAME,
            state=self._state,
            directory=self._directory,
            command=" ".join(self._command),
            limits=logs.limits("logfile"),
            program_limits=logs.limits("stdout_logfile"),
            digest=hashlib.sha256(f"{installation}{text}".encode()).hexdigest(),
        )
        files.write(self._directory / "supervisord.conf", supervisor)

    @property
    def _command(self) -> tuple[str, ...]:
        """Serves Horizon, and its static files without asking Horizon."""
        return (
            *(str(VENV / "bin/uwsgi"), "--http-socket", f"{self._address}:{PORT}"),
            *("--module", "openstack_dashboard.wsgi:application", "--need-app"),
            *("--static-map", f"/static={self._static}"),
            *("--threads", "8", "--buffer-size", "65535", "--die-on-term"),
        )

    @property
    def _environment(self) -> dict[str, str]:
        kept = ("HOME", "LANG", "PATH")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "DJANGO_SETTINGS_MODULE": "openstack_dashboard.settings",
            "PYTHONPATH": str(self._directory),
            # Libraries warn of what only their authors can change.
            "PYTHONWARNINGS": "ignore",
            **processes.marks(self._state),
        }

    @property
    def _static(self) -> Path:
        return self._directory / "static"

    def _collect(self, installation: str, step: Step) -> None:
        """Collect the static files and compile those that need it, unless that is done."""
        made_of = self._directory / "static-of"
        if made_of.exists() and made_of.read_text() == installation:
            return
        made_of.unlink(missing_ok=True)
        shutil.rmtree(self._static, ignore_errors=True)
        for command in (("collectstatic", "--no-input"), ("compress", "--force")):
            done = subprocess.run(
                [str(VENV / "bin/django-admin"), *command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            step.log(done.stdout)
            if done.returncode:
                raise LabError(f"Horizon: {command[0]} failed with status {done.returncode}")
        files.write(made_of, installation)

    def _start(self) -> None:
        self._supervisor.start(self._environment)
        self._supervisor.ensure((NAME,))
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            state = self.state()
            if state in {"fatal", None} or time.monotonic() > deadline:
                raise LabError(f"Horizon does not come up ({state}): see {self.log}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        # Not urllib, which would ask a proxy of the user's environment.
        connection = http.client.HTTPConnection(self._address, PORT, timeout=10)
        try:
            connection.request("GET", "/auth/login/")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
