"""The plugin of the ``openstack`` command: a global ``--scope``.

A scope needs no support in any command or client library: the proxy mints a tagged token for
every login through a scoped auth URL. The plugin only completes a command's options, after they are
parsed and before anything reads them. It makes no API client.

Source of the contract: ``openstackclient.common.clientmanager``, the entry points
``openstack.cli.base``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autopage.argparse import AutoPageArgumentParser
from keystoneauth1.loading import get_plugin_options
from openstack.config.cloud_region import CloudRegion
from osc_lib.api import auth
from osc_lib.cli.client_config import OSC_Config

from openstackoid.scope import Scope, ScopeError, scoped_auth_url

API_NAME = "openstackoid"
API_VERSION_OPTION = "os_openstackoid_api_version"
#: Empty: this plugin has no API, so the shell loads no command group and no client.
DEFAULT_API_VERSION = ""

ENVIRONMENT = "OS_SCOPE"
HELP = (
    "Which instance provides which service for this command, as JSON or in shorthand: "
    """--scope '{"image":"InstanceTwo"}' or --scope image=InstanceTwo,network=InstanceTwo. """
    "The home instance provides the services that are left out. The option may appear anywhere and "
    "repeatedly; for each service, the last one wins "
    "(Env: OS_SCOPE for all services, OS_SCOPE_<SERVICE> for one: OS_SCOPE_IMAGE=InstanceTwo)"
)

#: Designate's commands that have their own ``--scope``, with the value POOL or ZONE.
_OWNERS = [("tsigkey", verb) for verb in ("create", "list", "set")]
#: Commands that make no request, and have to work even if the scope is wrong.
_OFFLINE = ("help", "complete")
_DEST = "openstackoid_scopes"


def make_client(instance: object) -> None:
    """Do nothing: a scope has no API, but the plugin contract requires this function."""


def build_option_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """A parser with the options of *parser* and ``--scope``."""
    return ScopeParser(parser)


def environment_scope(environ: Mapping[str, str]) -> Scope:
    """The scope in *environ*; ``OS_SCOPE_<SERVICE>`` overrides ``OS_SCOPE``.

    :raises ScopeError: naming the variable that is wrong.
    """
    scope = _parse(environ.get(ENVIRONMENT, ""), ENVIRONMENT)
    said_by: dict[str, str] = {}
    services: dict[str, str] = {}
    for variable, value in sorted(environ.items()):
        name = variable.removeprefix(f"{ENVIRONMENT}_")
        if name == variable or not value.strip():
            continue
        for service, instance in _parse(json.dumps({name: value.strip()}), variable).items():
            if services.get(service, instance) != instance:
                raise ScopeError(
                    f"{said_by[service]} and {variable} name two instances for one service: "
                    f"{services[service]} and {instance}"
                )
            services[service], said_by[service] = instance, variable
    return scope.merged(services)


class _ScopeOption(argparse.Action):
    """Collects every ``--scope`` in order, with the name under which it was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), (option_string, values)])


class ScopeParser(AutoPageArgumentParser):
    """The global options of ``openstack``, completed according to the scope."""

    def __init__(self, known: argparse.ArgumentParser) -> None:
        super().__init__(
            prog=known.prog, description=known.description, add_help=False, parents=[known]
        )
        self._scope_option = self.add_argument(
            "--scope",
            "--os-scope",
            metavar="<scope>",
            dest=_DEST,
            action=_ScopeOption,
            default=[],
            help=HELP,
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """The options, with the scope in auth URL and region, and the remaining arguments.

        An unusable scope ends the program with status 2 and a one-line error.
        """
        options, remainder = super().parse_known_args(args, namespace)
        # Everything left in the options becomes a key of the cloud's configuration.
        given: list[tuple[str, str]] = vars(options).pop(_DEST)
        environ = _take_environment()
        if options.deferred_help or (remainder and remainder[0] in _OFFLINE):
            return options, remainder
        try:
            scope, foreign = _command_line_scope(given, keep_foreign=_has_own_scope(remainder))
            remainder[2:2] = foreign
            scope = environment_scope(environ).merged(scope)
            if scope:
                self._apply(scope, options)
        except ScopeError as error:
            self.exit(2, f"{self.prog}: error: {error}\n")
        return options, remainder

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # ``--s`` for a command's own ``--size`` worked before this plugin, and still does.
        found = super()._get_option_tuples(option_string)
        return [match for match in found if match[0] is not self._scope_option]

    def _apply(self, scope: Scope, options: argparse.Namespace) -> None:
        # osc_lib.shell.OpenStackShell later makes the same from the options.
        auth_type = "admin_token" if options.endpoint and options.token else "password"
        config = OSC_Config(override_defaults={"auth_type": auth_type})
        home = _select(config, cloud=options.cloud, argparse=options)
        _check_login(home.config["auth_type"])
        auth_url = home.config.get("auth_url") or home.config["auth"].get("auth_url")
        if not auth_url:
            return  # The command will fail by itself: the URL is missing.
        issuer = scope.get("identity")
        if issuer and issuer not in (home.name, home.region_name):
            self._log_in_as(issuer, config, options)
        options.auth_url = scoped_auth_url(auth_url, scope)

    def _log_in_as(self, issuer: str, config: OSC_Config, options: argparse.Namespace) -> None:
        """Make *options* those of the cloud *issuer*, except what the command line sets."""
        if issuer not in config.get_cloud_names():
            raise ScopeError(
                f"the scope names {issuer} for identity, but clouds.yaml has no cloud {issuer!r} "
                "with its user and password: add it there"
            )
        for name in ["auth-type", *auth.get_options_list()]:
            dest = name.replace("-", "_")
            if getattr(options, dest, None) == self.get_default(dest):
                setattr(options, dest, None)  # An OS_* variable, which is for the home instance.
        options.cloud = issuer
        options.region_name = _select(config, cloud=issuer).region_name or issuer


def _take_environment() -> dict[str, str]:
    """Take the variables of this plugin out of the environment.

    openstacksdk makes a cloud of all ``OS_*`` variables and prefers it to a single cloud in
    clouds.yaml. It also formats the values, and fails at the braces of JSON.
    """
    names = [name for name in os.environ if f"{name}_".startswith(f"{ENVIRONMENT}_")]
    return {name: os.environ.pop(name) for name in names}


def _parse(text: str, source: str) -> Scope:
    try:
        return Scope.parse(text)
    except ScopeError as error:
        raise ScopeError(f"{source}: {error}") from error


def _command_line_scope(
    given: Iterable[tuple[str, str]], keep_foreign: bool
) -> tuple[Scope, list[str]]:
    """The merged scopes of the command line, and the arguments that belong to the command."""
    scope, foreign = Scope(), []
    for option, text in given:
        try:
            scope = scope.merged(_parse(text, option))
        except ScopeError:
            if not (keep_foreign and option == "--scope"):
                raise
            foreign.append(f"{option}={text}")
    return scope, foreign


def _has_own_scope(command: Sequence[str]) -> bool:
    """Whether *command* has its own ``--scope``; cliff allows abbreviated words."""
    return any(
        len(command) > 1
        and command[0].startswith("ts")
        and noun.startswith(command[0])
        and verb.startswith(command[1])
        for noun, verb in _OWNERS
    )


def _select(config: OSC_Config, **selection: Any) -> CloudRegion:  # noqa: ANN401
    """The cloud that *selection* selects in *config*."""
    try:
        return config.get_one(validate=False, **selection)
    except Exception as error:  # The shell would also report any kind in one line, a little later.
        raise ScopeError(" ".join(str(error).split())) from error


def _check_login(auth_type: str) -> None:
    """Refuse an *auth_type* without an auth URL: it would silently lose the scope."""
    if auth_type in auth.get_plugin_list() and "auth_url" not in {
        option.dest for option in get_plugin_options(auth_type)
    }:
        raise ScopeError(
            f"auth type {auth_type!r} does not log in, so it cannot carry a scope: "
            "use another one with an auth URL, for example password"
        )
