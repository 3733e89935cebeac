"""The plugin of the ``openstack`` command: a global ``--scope``.

A scope needs no support in any command or client library: the proxy mints a tagged token for
whoever logs in through a scoped auth URL. So all that happens here is that the options of a command
are completed, after they were parsed and before anything reads them. No API client is made.

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
#: Empty: there is no API behind this plugin, so the shell loads no command group and no client.
DEFAULT_API_VERSION = ""

ENVIRONMENT = "OS_SCOPE"
HELP = (
    "Which instance provides which service for this command, as JSON or in shorthand: "
    """--scope '{"image":"InstanceTwo"}' or --scope image=InstanceTwo,network=InstanceTwo. """
    "A service that is left out is the home instance's. Stands anywhere on the line; of several, "
    "the later one wins, service by service "
    "(Env: OS_SCOPE for all services, OS_SCOPE_<SERVICE> for one: OS_SCOPE_IMAGE=InstanceTwo)"
)

#: Commands that have a ``--scope`` of their own: designate's, whose value is POOL or ZONE.
_OWNERS = [("tsigkey", verb) for verb in ("create", "list", "set")]
#: Commands that make no request, and that help somebody whose scope is wrong.
_OFFLINE = ("help", "complete")
_DEST = "openstackoid_scopes"


def make_client(instance: object) -> None:
    """Nothing: a scope has no API. The plugin contract asks for this function."""


def build_option_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """A parser that knows what *parser* knows, and scopes besides."""
    return ScopeParser(parser)


def environment_scope(environ: Mapping[str, str]) -> Scope:
    """The scope that *environ* asks for: ``OS_SCOPE_<SERVICE>`` over ``OS_SCOPE``.

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
    """Collects every ``--scope`` in order, and under which of its names it was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), (option_string, values)])


class ScopeParser(AutoPageArgumentParser):
    """The global options of ``openstack``, completed by what a scope means for them."""

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
        """The options, with the scope put into auth URL and region, and what is not theirs.

        A scope that cannot be used ends the program with status 2 and one line.
        """
        options, remainder = super().parse_known_args(args, namespace)
        # Whatever stays in the options becomes a key of the cloud's configuration.
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
        # As osc_lib.shell.OpenStackShell makes it, later, from the options that leave here.
        auth_type = "admin_token" if options.endpoint and options.token else "password"
        config = OSC_Config(override_defaults={"auth_type": auth_type})
        home = _select(config, cloud=options.cloud, argparse=options)
        _check_login(home.config["auth_type"])
        auth_url = home.config.get("auth_url") or home.config["auth"].get("auth_url")
        if not auth_url:
            return  # The command goes no further either: it says itself that the URL is missing.
        issuer = scope.get("identity")
        if issuer and issuer not in (home.name, home.region_name):
            self._log_in_as(issuer, config, options)
        options.auth_url = scoped_auth_url(auth_url, scope)

    def _log_in_as(self, issuer: str, config: OSC_Config, options: argparse.Namespace) -> None:
        """Make *options* those of the cloud *issuer*; what the command line says itself stays."""
        if issuer not in config.get_cloud_names():
            raise ScopeError(
                f"identity is {issuer} in the scope, but clouds.yaml has no cloud {issuer!r} "
                "to take its user and password from: add it there"
            )
        for name in ["auth-type", *auth.get_options_list()]:
            dest = name.replace("-", "_")
            if getattr(options, dest, None) == self.get_default(dest):
                setattr(options, dest, None)  # An OS_* variable: it is about the home instance.
        options.cloud = issuer
        options.region_name = _select(config, cloud=issuer).region_name or issuer


def _take_environment() -> dict[str, str]:
    """Take the variables of this plugin out of the environment.

    openstacksdk makes a cloud of all ``OS_*`` variables, prefers it to the only one in clouds.yaml,
    and formats its values, where the braces of JSON are an error.
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
    """The merged scopes of the command line, and the arguments that are the command's own."""
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
    """Whether *command* has a ``--scope`` itself; its words may be cut short, as cliff allows."""
    return any(
        len(command) > 1
        and command[0].startswith("ts")
        and noun.startswith(command[0])
        and verb.startswith(command[1])
        for noun, verb in _OWNERS
    )


def _select(config: OSC_Config, **selection: Any) -> CloudRegion:  # noqa: ANN401
    """The cloud that *selection* means in *config*."""
    try:
        return config.get_one(validate=False, **selection)
    except Exception as error:  # Of any kind: the shell too reports it in a line, a little later.
        raise ScopeError(" ".join(str(error).split())) from error


def _check_login(auth_type: str) -> None:
    """Refuse an *auth_type* without an auth URL: the scope would be lost without a word."""
    if auth_type in auth.get_plugin_list() and "auth_url" not in {
        option.dest for option in get_plugin_options(auth_type)
    }:
        raise ScopeError(
            f"auth type {auth_type!r} does not log in, so it cannot carry a scope: "
            "use another, for example password, and an auth URL"
        )
