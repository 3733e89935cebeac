"""Other people's tests: Tempest against the running lab, without a scope and with several.

What counts is the difference. A test may fail without a scope, because the lab lacks something. It
may not end otherwise with one.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lab.bootstrap import VENV, ensure
from lab.config import Lab
from lab.errors import LabError
from openstackoid.scope import Scope, ScopeError, read, scoped_auth_url

if TYPE_CHECKING:
    from openstack.connection import Connection

#: What Tempest runs: all of its tests for the services that the lab has.
WHOLE = (
    r"^tempest\.(api\.(compute|identity|image|network)\.|scenario\."
    r"test_(minimum_basic|network_basic_ops|security_groups_basic_ops|server_basic_ops))"
)
#: Three minutes' worth of it: logins, tokens, catalogs, images, networks, and servers' metadata.
SHORT = (
    r"^tempest\.api\.(identity\.v3\.test_(tokens|catalog|api_discovery|projects|users)"
    r"|identity\.admin\.v3\.test_tokens"
    r"|image\.v2\.test_images\.(ListUserImages|BasicOperations|ListShared)"
    r"|compute\.(flavors\.test_flavors|keypairs\.test_keypairs\.|images\.test_list_images)"
    r"|network\.(test_networks|test_security_groups)\.)"
)
#: Differences that are no fault, as regular expressions, with their reasons.
LIMITS: Mapping[str, str] = {}

#: Tests spend most of their time waiting.
_WORKERS = 3 * (os.cpu_count() or 1)
_DONE = {"success", "xfail"}


@dataclass(frozen=True)
class Way:
    """A way into the lab: an auth URL and a region, with the administrator whom they take."""

    name: str
    auth_url: str
    region: str
    user: Mapping[str, str]
    #: The scope of its requests.
    scope: Scope = field(default_factory=Scope)
    #: The file with the authority that signs its certificate, if it is HTTPS.
    cacert: str = ""


@dataclass(frozen=True)
class Outcome:
    """The end of one test: ``success``, ``fail`` or ``skip``, and the last line of its reason."""

    status: str
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """A test that ends otherwise with a scope."""

    test: str
    way: str
    without: Outcome
    within: Outcome
    #: Why this is no fault; empty if it is one.
    limit: str


def ways(lab: Lab, clouds: Mapping[str, Any], scopes: Sequence[str]) -> list[Way]:
    """The way without a scope, then those of *scopes*: texts, or ``region:NAME``.

    Without *scopes*: each service elsewhere, in turn and all together, then each region.

    :raises LabError: when a scope is invalid, or there is nobody to log in as.
    """
    home = lab.names[0]
    wanted = scopes or _default_scopes(lab)
    found = [_way(home, home, clouds, home, Scope())]
    for text in wanted:
        region = text.removeprefix("region:")
        try:
            if region != text:
                found.append(_way(text, home, clouds, region, _of_region(lab, region)))
                continue
            scope = Scope(read(text, lambda: lab.scopes))
        except ScopeError as error:
            raise LabError(f"--scope: {error}") from error
        for instance in scope.values():
            if instance not in lab.names:
                raise LabError(f"--scope: {instance!r} is not an instance of the lab")
        issuer = scope.get("identity", home)
        name = ", ".join(f"{service}={instance}" for service, instance in scope.items())
        found.append(_way(name, home, clouds, issuer, scope))
    return found


def _default_scopes(lab: Lab) -> list[str]:
    if len(lab.names) == 1:
        raise LabError("conformance compares instances: the lab has only one")
    other = lab.names[1]
    groups = (("image",), ("identity",), ("compute", "network", "placement"),
              ("compute", "identity", "image", "network", "placement"))  # fmt: skip
    texts = [",".join(f"{service}={other}" for service in group) for group in groups]
    regions = [other, *lab.plain_scopes] if lab.regions else []
    return [*texts, *(f"region:{name}" for name in regions)]


def _of_region(lab: Lab, region: str) -> Scope:
    if region in lab.names:
        return Scope(dict.fromkeys(("compute", "image", "network", "placement"), region))
    if region not in lab.plain_scopes:
        raise LabError(f"--scope: the lab has no region {region!r}")
    return Scope({s: one for s, one in lab.plain_scopes[region].items() if s != "identity"})


def _way(name: str, home: str, clouds: Mapping[str, Any], region: str, scope: Scope) -> Way:
    issuer = scope.get("identity", home)
    auth_url = clouds[home]["auth"]["auth_url"]
    if scope and not name.startswith("region:"):
        auth_url = scoped_auth_url(auth_url, scope)
    cacert = clouds[home].get("cacert", "")
    return Way(name, auth_url, region, clouds[issuer]["auth"], scope, cacert)


def compare(
    lab: Lab,
    clouds: Mapping[str, Any],
    scopes: Sequence[str],
    regex: str,
    say: Callable[[str], None],
) -> list[Difference]:
    """Run the tests of *regex* without a scope and with each of *scopes*: the differences.

    :raises LabError: when a scope is invalid, or Tempest does not run.
    """
    plain, *scoped = ways(lab, clouds, scopes)
    ensure("conformance")
    conformance = Conformance(lab, clouds, say)
    found: list[Difference] = []
    try:
        without = conformance.run(plain, regex)
        for way in scoped:
            found += differences(without, conformance.run(way, regex), way)
    finally:
        conformance.clean_up()
    return found


class Conformance:
    """Tempest's runs against *lab*; *say* shows a line."""

    def __init__(self, lab: Lab, clouds: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self._lab = lab
        self._clouds = clouds
        self._say = say
        self._directory = lab.state / "conformance"

    def run(self, way: Way, regex: str) -> dict[str, Outcome]:
        """Run the tests that *regex* chooses on *way*: their ends.

        :raises LabError: when Tempest does not run at all.
        """
        directory = self._directory / re.sub(r"[^A-Za-z0-9]+", "-", way.name)
        (directory / "etc").mkdir(parents=True, exist_ok=True)
        (directory / "lock").mkdir(exist_ok=True)
        config = directory / "etc" / "tempest.conf"
        with config.open("w") as stream:
            os.fchmod(stream.fileno(), 0o600)
            self.settings(way, directory).write(stream)
        (directory / ".stestr.conf").write_text(
            f"[DEFAULT]\ntest_path={_tests()}\ntop_dir={_tests().parents[1]}\n"
            "group_regex=([^\\.]*\\.)*\n"
        )
        began = time.monotonic()
        command = [
            *(str(VENV / "bin" / "tempest"), "run", "--config-file", str(config), "--subunit"),
            *("--regex", regex, "--concurrency", str(_WORKERS)),
        ]
        with (directory / "tempest.log").open("wb") as log:
            # Its workers do not end with it: they are in a group of their own.
            process = subprocess.Popen(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
            assert process.stdout  # noqa: S101 - a pipe
            try:
                outcomes = _read(process.stdout, lambda found: self._progress(way, found))
            except BaseException:
                os.killpg(process.pid, signal.SIGTERM)
                raise
            finally:
                process.wait()
        if not outcomes:
            raise LabError(f"Tempest ran no test: see {directory / 'tempest.log'}")
        (directory / "outcomes.json").write_text(
            json.dumps({test: vars(outcome) for test, outcome in outcomes.items()}, indent=1)
        )
        took = time.monotonic() - began
        self._say(f"{way.name}: {_counts(outcomes)} in {took:.0f} s")
        return outcomes

    def clean_up(self) -> None:
        """Remove what a test that failed has left behind, in all instances."""
        for index, name in enumerate(self._lab.names):
            self._delete_servers(name)
            way = _way(name, name, self._clouds, name, Scope())
            config = self._directory / f"cleanup-{index}.conf"
            with config.open("w") as stream:
                os.fchmod(stream.fileno(), 0o600)
                self.settings(way, self._directory).write(stream)
            with (self._directory / "cleanup.log").open("ab") as log:
                subprocess.run(
                    [str(VENV / "bin" / "tempest"), "cleanup", "--prefix", "tempest"],
                    env={**os.environ, "TEMPEST_CONFIG": str(config)},
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=False,
                )

    def settings(self, way: Way, directory: Path) -> configparser.ConfigParser:
        """Tempest's configuration. Source: ``tempest/config.py``."""
        found = self._resources(way)
        is_real = str(self._lab.has_guests).lower()
        config = configparser.ConfigParser(interpolation=None)
        config.read_dict(
            {
                "DEFAULT": {"log_file": str(directory / "debug.log"), "debug": "false"},
                "oslo_concurrency": {"lock_path": str(directory / "lock")},
                "auth": {
                    "use_dynamic_credentials": "true",
                    "tempest_roles": "member,reader",
                    # Tempest gives such a network a router, which the fake hypervisor's lab lacks.
                    "create_isolated_networks": is_real,
                    "admin_username": way.user["username"],
                    "admin_password": way.user["password"],
                    "admin_project_name": way.user["project_name"],
                    "admin_domain_name": "Default",
                },
                "identity": {"uri_v3": way.auth_url, "auth_version": "v3", "region": way.region,
                             "ca_certificates_file": way.cacert},
                "service_available": {
                    "nova": "true", "glance": "true", "neutron": "true", "cinder": "false",
                    "swift": "false", "horizon": "false",
                },
                "compute": {
                    "image_ref": found["image"], "image_ref_alt": found["image"],
                    "flavor_ref": found["flavor"], "flavor_ref_alt": found["other flavor"],
                    "fixed_network_name": next((one.name for one in self._lab.networks), ""),
                    "min_compute_nodes": "1", "build_timeout": "120",
                },
                "compute-feature-enabled": {
                    "vnc_console": "false", "spice_console": "false", "live_migration": "false",
                    "block_migration_for_live_migration": "false",
                    "attach_encrypted_volume": "false",
                    "resize": is_real, "snapshot": is_real,
                },
                "validation": {"run_validation": "false", "image_ssh_user": "root"},
                # An image is ready within seconds, or never.
                "image": {"build_timeout": "60"},
                "network": {
                    "public_network_id": found["public"],
                    "floating_network_name": "public" if found["public"] else "",
                },
                "network-feature-enabled": {"api_extensions": found["extensions"]},
            }
        )  # fmt: skip
        return config

    def _resources(self, way: Way) -> dict[str, str]:
        """The IDs of what the lab has on this way."""
        home = next(name for name in self._lab.names if self._is_at(name, way))
        with self._connect(home, way.scope) as connection:
            flavors = {flavor.name: flavor.id for flavor in connection.compute.flavors()}
            smallest, other, *_ = [flavors[flavor.name] for flavor in self._lab.flavors]
            image = connection.image.find_image(self._lab.image.name, ignore_missing=False)
            public = connection.network.find_network("public")
            extensions = [extension.alias for extension in connection.network.extensions()]
        return {
            "image": image.id,
            "flavor": smallest,
            "other flavor": other,
            "public": public.id if public else "",
            "extensions": ",".join(extensions),
        }

    def _delete_servers(self, name: str) -> None:
        """Delete Tempest's servers in the instance *name*: its own clean-up misses some."""
        with self._connect(name, {}) as connection:
            servers = list(connection.compute.servers(all_projects=True, name="^tempest-"))
            for server in servers:
                connection.compute.delete_server(server)
            for server in servers:
                connection.compute.wait_for_delete(server)

    def _connect(self, name: str, scope: Mapping[str, str]) -> Connection:
        from openstackoid import connect  # noqa: PLC0415 - slow to import

        os.environ["OS_CLIENT_CONFIG_FILE"] = str(self._lab.state / "clouds.yaml")
        return connect(name, scope)

    def _is_at(self, name: str, way: Way) -> bool:
        auth_url: str = self._clouds[name]["auth"]["auth_url"]
        return urlsplit(way.auth_url).netloc == urlsplit(auth_url).netloc

    def _progress(self, way: Way, found: Mapping[str, Outcome]) -> None:
        if sys.stderr.isatty():
            print(f"\r{way.name}: {_counts(found)} ", end="", file=sys.stderr, flush=True)


def differences(
    without: Mapping[str, Outcome], within: Mapping[str, Outcome], way: Way
) -> list[Difference]:
    """The tests whose status differs; one that is missing on one side counts as ``missing``."""
    missing = Outcome("missing")
    found = []
    for test in sorted({*without, *within}):
        plain, scoped = without.get(test, missing), within.get(test, missing)
        if plain.status != scoped.status:
            limit = next((why for form, why in LIMITS.items() if re.search(form, test)), "")
            found.append(Difference(test, way.name, plain, scoped, limit))
    return found


def table(found: Iterable[Difference]) -> str:
    """*found* for a terminal: a test, its two ends, and the reason, for each."""
    lines = []
    for one in found:
        lines.append(f"{one.test}\n  without a scope: {one.without.status} {one.without.reason}")
        lines.append(f"  {one.way}: {one.within.status} {one.within.reason}")
        if one.limit:
            lines.append(f"  a known limit: {one.limit}")
    return "\n".join(lines)


def _counts(outcomes: Mapping[str, Outcome]) -> str:
    statuses = [outcome.status for outcome in outcomes.values()]
    names = (("passed", "success"), ("failed", "fail"), ("skipped", "skip"))
    return ", ".join(f"{statuses.count(status)} {name}" for name, status in names)


def _tests() -> Path:
    """The directory of Tempest's tests."""
    import importlib.util  # noqa: PLC0415

    spec = importlib.util.find_spec("tempest.test_discover")
    if spec is None or spec.origin is None:
        raise LabError("Tempest is not installed")
    return Path(spec.origin).parent


def _read(
    stream: IO[bytes], progress: Callable[[Mapping[str, Outcome]], None]
) -> dict[str, Outcome]:
    """The ends of tests in a *stream* of subunit, version 2."""
    import subunit  # noqa: PLC0415 - installed with Tempest
    import testtools  # noqa: PLC0415

    outcomes: dict[str, Outcome] = {}

    def take(test: Mapping[str, Any]) -> None:
        if test["status"] in ("exists", "inprogress"):
            return
        name = re.sub(r"\[.*\]", "", test["id"])
        status = "success" if test["status"] in _DONE else test["status"]
        details = test["details"].get("reason") or test["details"].get("traceback")
        lines = [line.strip() for line in details.as_text().splitlines()] if details else []
        outcomes[name] = Outcome(status, next((line for line in reversed(lines) if line), ""))
        progress(outcomes)

    result = testtools.StreamToDict(take)
    result.startTestRun()
    subunit.ByteStreamToStreamResult(stream).run(result)
    result.stopTestRun()
    return outcomes
