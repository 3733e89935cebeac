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
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, NoReturn

from autopage.argparse import AutoPageArgumentParser
from keystoneauth1.loading import get_plugin_options
from openstack.config.cloud_region import CloudRegion
from osc_lib.api import auth
from osc_lib.cli.client_config import OSC_Config
from osc_lib.shell import prompt_for_password

from openstackoid.scope import (
    Scope,
    ScopeError,
    is_expression,
    quoted,
    read,
    scoped_auth_url,
)

API_NAME = "openstackoid"
API_VERSION_OPTION = "os_openstackoid_api_version"
#: Empty: this plugin has no API, so the shell loads no command group and no client.
DEFAULT_API_VERSION = ""

ENVIRONMENT = "OS_SCOPE"
HELP = (
    "Which instance provides which service for this command, as JSON or in shorthand: "
    """--scope '{"image":"InstanceTwo"}' or --scope image=InstanceTwo,network=InstanceTwo. """
    "The home instance provides the services that are left out. "
    "image='InstanceOne & InstanceTwo' means both, 'InstanceOne | InstanceTwo' the first that "
    "works, and image=* every instance. The option may appear anywhere and "
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


def environment_scope(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The instance or expression of each service in *environ*, and the variable that says so.

    ``OS_SCOPE_<SERVICE>`` overrides ``OS_SCOPE``.

    :raises ScopeError: naming the variable that is wrong.
    """
    general = _parse(environ.get(ENVIRONMENT, ""), ENVIRONMENT)
    services: dict[str, tuple[str, str]] = {}
    for variable, value in sorted(environ.items()):
        name = variable.removeprefix(f"{ENVIRONMENT}_")
        if name == variable or not value.strip():
            continue
        for service, instance in _parse(json.dumps({name: value.strip()}), variable).items():
            other, said_by = services.get(service, (instance, variable))
            if other != instance:
                raise ScopeError(
                    f"{said_by} and {variable} name two instances for one service: "
                    f"{other} and {instance}"
                )
            services[service] = instance, variable
    return {**{service: (value, ENVIRONMENT) for service, value in general.items()}, **services}


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

    #: The scope of a fork that runs a command for one plain scope of an expression.
    forced: ClassVar[Scope | None] = None
    #: The instance or expression of each service, and the option or variable that says so.
    sources: ClassVar[Mapping[str, tuple[str, str]]] = {}
    #: The settings of its cloud, besides those that the user has chosen.
    settings: ClassVar[Mapping[str, object]] = {}

    def __init__(self, known: argparse.ArgumentParser) -> None:
        super().__init__(
            prog=known.prog, description=known.description, add_help=False, parents=[known]
        )
        self._own_options = [
            self.add_argument(
                "--scope",
                "--os-scope",
                metavar="<scope>",
                dest=_DEST,
                action=_ScopeOption,
                default=[],
                help=HELP,
            ),
            self.add_argument(
                "--scope-timeout",
                metavar="<seconds>",
                dest="openstackoid_timeout",
                type=_seconds,
                default=30.0,
                help="How long a scope with an expression waits for each instance (default: 30)",
            ),
            self.add_argument(
                "--scope-cleanup",
                dest="openstackoid_cleanup",
                action="store_true",
                help="Remove a server that ends in ERROR before the next instance of '|' is tried",
            ),
            self.add_argument(
                "--scope-ask",
                dest="openstackoid_ask",
                action="store_true",
                help="On a terminal, show where a scope with an expression leads, and ask first",
            ),
        ]

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """The options, with the scope in auth URL and region, and the remaining arguments.

        An unusable scope ends the program with status 2 and a one-line error.
        """
        options, remainder = super().parse_known_args(args, namespace)
        # Everything left in the options becomes a key of the cloud's configuration.
        given: list[tuple[str, str]] = vars(options).pop(_DEST)
        timeout, cleanup, ask = (
            vars(options).pop(f"openstackoid_{name}") for name in ("timeout", "cleanup", "ask")
        )
        environ = _take_environment()
        if options.deferred_help or (remainder and remainder[0] in _OFFLINE):
            return options, remainder
        try:
            sources, foreign = _command_line_scope(given, keep_foreign=_has_own_scope(remainder))
            remainder[2:2] = foreign
            sources = {**environment_scope(environ), **sources}
            scope = {service: value for service, (value, _) in sources.items()}
            ScopeParser.sources = sources
            if self.forced is not None:
                ScopeParser.sources = {s: (self.forced[s], by) for s, (_, by) in sources.items()}
                vars(options).update(self.settings)
                self._apply(self.forced, options)
            elif remainder and remainder[0] == "scope":
                # These commands tell of expressions, and log in without them.
                plain = {s: value for s, value in scope.items() if not is_expression(value)}
                if plain:
                    self._apply(Scope(plain), options)
            elif any(map(is_expression, scope.values())):
                if not remainder:
                    raise ScopeError("a scope with an expression needs a command")
                argv = sys.argv[1:] if args is None else args
                self._fan_out(scope, options, argv, timeout=timeout, cleanup=cleanup, ask=ask)
            elif scope:
                self._apply(Scope(scope), options)
        except ScopeError as error:
            self.exit(2, f"{self.prog}: error: {error}\n")
        return options, remainder

    def _fan_out(
        self,
        scope: Mapping[str, str],
        options: argparse.Namespace,
        argv: Sequence[str],
        *,
        timeout: float,
        cleanup: bool,
        ask: bool,
    ) -> NoReturn:
        """Run the command for each plain scope of *scope*, and end."""
        from openstackoid import expression, fanout, sdk  # noqa: PLC0415 - only expressions need it

        def force(plain: Scope) -> None:
            ScopeParser.forced, ScopeParser.settings = plain, expression.NO_RETRIES

        self._ask_for_password(options)
        known: list[str] = []
        if any(expression.ANY in value for value in scope.values()):
            config = OSC_Config(override_defaults={"auth_type": _auth_type(options)})
            home = _select(config, cloud=options.cloud, argparse=options, validate=True)
            try:
                known = sdk.known_instances(home)
            except Exception as error:  # The command itself would fail in as many ways.
                raise ScopeError(f"'*': {_one_line(error)}") from error
        plan = expression.expand(scope, known)
        if ask and sys.stdin.isatty() and not fanout.confirm(plan):
            self.exit(1)
        self.exit(fanout.run(plan, argv, fanout.Options(timeout, cleanup), force))

    def _ask_for_password(self, options: argparse.Namespace) -> None:
        """Ask once for all runs, as osc_lib.shell would, if a password is missing."""
        if not sys.stdin.isatty():
            return
        config = OSC_Config(
            override_defaults={"auth_type": _auth_type(options)}, pw_func=prompt_for_password
        )
        home = _select(config, cloud=options.cloud, argparse=options, validate=True)
        if password := home.config["auth"].get("password"):
            os.environ["OS_PASSWORD"] = options.password = password

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # ``--s`` for a command's own ``--size`` worked before this plugin, and still does.
        found = super()._get_option_tuples(option_string)
        return [match for match in found if match[0] not in self._own_options]

    def _apply(self, scope: Scope, options: argparse.Namespace) -> None:
        # osc_lib.shell.OpenStackShell later makes the same from the options.
        config = OSC_Config(override_defaults={"auth_type": _auth_type(options)})
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


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number of seconds")


def _parse(text: str, source: str) -> dict[str, str]:
    """The instance or expression of each service in *text*."""
    try:
        return read(text, lambda: OSC_Config().cloud_config.get("scopes"))
    except ScopeError as error:
        raise ScopeError(f"{source}: {error}") from error


def _command_line_scope(
    given: Iterable[tuple[str, str]], keep_foreign: bool
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """The instance or expression of each service, with the option that says so, and the arguments
    that belong to the command.
    """
    sources: dict[str, tuple[str, str]] = {}
    foreign = []
    for option, text in given:
        try:
            sources |= {service: (value, option) for service, value in _parse(text, option).items()}
        except ScopeError:
            if not (keep_foreign and option == "--scope"):
                raise
            foreign.append(f"{option}={text}")
    return sources, foreign


def _has_own_scope(command: Sequence[str]) -> bool:
    """Whether *command* has its own ``--scope``; cliff allows abbreviated words."""
    return any(
        len(command) > 1
        and command[0].startswith("ts")
        and noun.startswith(command[0])
        and verb.startswith(command[1])
        for noun, verb in _OWNERS
    )


def _select(
    config: OSC_Config,
    *,
    validate: bool = False,
    **selection: Any,  # noqa: ANN401
) -> CloudRegion:
    """The cloud that *selection* selects in *config*."""
    try:
        return config.get_one(validate=validate, **selection)
    except Exception as error:  # The shell would also report any kind in one line, a little later.
        raise ScopeError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _auth_type(options: argparse.Namespace) -> str:
    """The default of osc_lib.shell.OpenStackShell."""
    return "admin_token" if options.endpoint and options.token else "password"


def _check_login(auth_type: str) -> None:
    """Refuse an *auth_type* without an auth URL: it would silently lose the scope."""
    if auth_type in auth.get_plugin_list() and "auth_url" not in {
        option.dest for option in get_plugin_options(auth_type)
    }:
        raise ScopeError(
            f"auth type {auth_type!r} does not log in, so it cannot carry a scope: "
            "use another one with an auth URL, for example password"
        )
