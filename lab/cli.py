"""The commands of ``setup-env.py``."""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lab.bootstrap import ROOT, VENV, ensure
from lab.errors import LabError

if TYPE_CHECKING:
    from lab.lifecycle import Lifecycle

_INTERRUPTED = 130
# Errors of a write to a full or broken file.
_WRITE_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(root: Path = ROOT) -> NoReturn:
    """Run the command line on the lab of the repository *root*, and exit.

    The status is 0, 1 for an error of the lab, 2 for a usage error and 130 after a Ctrl-C.
    """
    from lab.processes import INSTANCE_MARK, LAB_MARK  # noqa: PLC0415

    # Even if it is run inside an instance, this process does not belong to that instance.
    for mark in (LAB_MARK, INSTANCE_MARK):
        os.environ.pop(mark, None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        # In a locale without UTF-8, show ✔ and … by their names.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="namereplace")
    try:
        status = _run(root)
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in _WRITE_ERRORS:
            raise
        # Discard what is buffered: flushing it at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
        # A reader that closed the pipe has read enough.
        if error.errno != errno.EPIPE:
            click.echo(
                f"error: cannot write to standard output or into .lab: {error.strerror}", err=True
            )
    sys.exit(status)


def _run(root: Path) -> int:
    """Run the command line, show its error if it fails, and return the exit status."""
    try:
        status = commands(obj=root, prog_name="./setup-env.py", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except LabError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return _INTERRUPTED
    return status if isinstance(status, int) else 0


def _lifecycle(root: Path) -> Lifecycle:
    """The lab of lab.yaml, with the choices of earlier commands."""
    from lab.lifecycle import Lifecycle  # noqa: PLC0415 - slow to import, and not for --help

    return Lifecycle.of(root)


def _complete_instance(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    root = context.obj if isinstance(context.obj, Path) else ROOT
    from lab.config import load  # noqa: PLC0415 - slow to import, and not for --help

    return [name for name in load(root).names if name.startswith(incomplete)]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Several real OpenStacks side by side, and scopes that say which of them does what."""


@commands.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=_complete_instance)
@click.option(
    *("-n", "number"),
    type=click.IntRange(1, 99),
    help="Make InstanceOne to Instance<N> instead of the instances in lab.yaml.",
)
@click.option("--provider", type=click.Choice(["auto", "local", "vagrant", "hosts"]))
@click.option("--stack", type=click.Choice(["wheels", "devstack"]))
@click.option("--hypervisor", type=click.Choice(["auto", "libvirt", "fake"]))
@click.option("--no-attach", is_flag=True, help="Do not show the tmux session at the end.")
@click.pass_obj
def up(
    root: Path,
    *,
    names: tuple[str, ...],
    number: int | None,
    provider: str | None,
    stack: str | None,
    hypervisor: str | None,
    no_attach: bool,
) -> None:
    """Bring the lab up, from any state, and show it in tmux.

    Later commands keep the choices of -n, --provider, --stack and --hypervisor, until `destroy`.
    """
    from lab.config import Choices  # noqa: PLC0415
    from lab.hypervisors import decide  # noqa: PLC0415
    from lab.lifecycle import Lifecycle  # noqa: PLC0415

    given = Choices.model_validate(
        {"number": number, "provider": provider, "stack": stack, "hypervisor": hypervisor}
    )
    lifecycle = Lifecycle.of(root, given, decide)
    lifecycle.up(names)
    click.echo(_next_commands(lifecycle))
    if not no_attach and _on_terminal():
        _attach()


@commands.command()
@click.pass_obj
def attach(root: Path) -> None:
    """Show the tmux session, and restore missing panes."""
    lifecycle = _lifecycle(root)
    if not lifecycle.hosts_up():
        raise LabError("the lab is down: run ./setup-env.py up")
    if not _on_terminal():
        raise LabError("attach needs a terminal: use ./setup-env.py ssh NAME -- COMMAND instead")
    lifecycle.show()
    _attach()


@commands.command()
@click.pass_obj
def dashboard(root: Path) -> None:
    """Bring up Horizon, OpenStack's dashboard, and show it in the browser of a desktop.

    It stops with the lab. Run the command again when the lab has other instances.
    """
    url = _lifecycle(root).dashboard()
    click.echo(f"The dashboard: {url}")
    click.echo("Log in as admin, with the instance's password in .lab/clouds.yaml.")
    if os.environ.get("DISPLAY"):
        import webbrowser  # noqa: PLC0415

        webbrowser.open(url)


@commands.command()
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help="A scope to compare, or region:NAME; repeat it for several. Default: all kinds.",
)
@click.option("--regex", help="The tests, as Tempest chooses them. Default: all for our services.")
@click.option("--short", is_flag=True, help="Three minutes' worth of tests for two scopes.")
@click.pass_obj
def conformance(root: Path, scopes: tuple[str, ...], regex: str | None, short: bool) -> None:
    """Run Tempest with and without scopes, and show where it ends otherwise."""
    from lab import conformance as tempest  # noqa: PLC0415 - few commands need it

    if short and regex:
        raise LabError("--short is a choice of tests, and so is --regex: give one of them")
    regex = tempest.SHORT if short else regex or tempest.WHOLE
    found = _lifecycle(root).conformance(scopes, regex, click.echo)
    click.echo(tempest.table(found) or "Every test ends the same with and without a scope.")
    if any(not one.limit for one in found):
        sys.exit(1)


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(root: Path, as_json: bool) -> None:
    """Show each instance's address, its services, and its proxy's view of the peers."""
    overview = _lifecycle(root).status()
    if as_json:
        import json  # noqa: PLC0415

        click.echo(json.dumps(overview, indent=2))
    else:
        click.echo(_overview_text(overview))


@commands.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("name", shell_complete=_complete_instance)
@click.argument("command", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def ssh(root: Path, name: str, command: tuple[str, ...]) -> None:
    """Open a shell in the instance NAME, or run COMMAND there with exactly these arguments."""
    lifecycle = _lifecycle(root)
    lifecycle.require_up(name)
    words = command[1:] if command[:1] == ("--",) else command
    _exec_ssh(lifecycle, name, words)


@commands.command()
@click.argument("name", shell_complete=_complete_instance)
@click.argument("service", required=False)
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.pass_obj
def logs(root: Path, name: str, service: str | None, follow: bool) -> None:
    """Print the log of SERVICE in the instance NAME, or the last lines of all its logs."""
    lifecycle = _lifecycle(root)
    lifecycle.require_up(name)
    _exec_ssh(lifecycle, name, lifecycle.log_command(name, service, follow=follow))


@commands.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": [],
    }
)
@click.argument("arguments", metavar="[PYTEST ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def test(root: Path, arguments: tuple[str, ...]) -> None:
    """Run linters and tests; bring up the lab if they need it, and restore its state afterwards."""
    from lab import apt, suite  # noqa: PLC0415
    from lab.hypervisors import decide  # noqa: PLC0415
    from lab.lifecycle import Lifecycle  # noqa: PLC0415

    # Before any test: some use these programs without a lab.
    needed = Lifecycle.of(root, decide=decide).debian_packages
    apt.ensure(needed, lambda line: click.echo(line, err=True))
    ensure("test")
    os.chdir(root)
    pytest = [str(VENV / "bin/python"), "-m", "pytest"]
    if arguments:
        os.execv(pytest[0], [*pytest, *arguments])  # noqa: S606
    sys.exit(suite.run(pytest))


@commands.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=_complete_instance)
@click.pass_obj
def halt(root: Path, names: tuple[str, ...]) -> None:
    """Stop the lab, or some instances of it; `up` continues with the same data."""
    _survive_own_pane()
    _lifecycle(root).halt(names)


@commands.command()
@click.pass_obj
def destroy(root: Path) -> None:
    """Remove the lab without trace; .venv and Debian packages stay."""
    from lab.lifecycle import destroy as remove  # noqa: PLC0415

    _survive_own_pane()
    remove(root)


@commands.command()
@click.pass_obj
def doctor(root: Path) -> None:
    """Show what this machine lacks for each provider and stack, and how to fix it."""
    from lab.doctor import report  # noqa: PLC0415

    for line in report(root):
        click.echo(line)


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _attach() -> NoReturn:
    from lab import tmux  # noqa: PLC0415

    tmux.attach()


def _exec_ssh(lifecycle: Lifecycle, name: str, words: tuple[str, ...] | list[str]) -> NoReturn:
    """Replace this process by ssh, so that streams and status are ssh's own."""
    sys.stdout.flush()
    remote = [shlex.join(words)] if words else []
    os.execvp("ssh", ["ssh", "-F", str(lifecycle.provider.ssh_config), name, *remote])  # noqa: S606


def _survive_own_pane() -> None:
    """Keep running if the command closes the pane that it runs in."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _next_commands(lifecycle: Lifecycle) -> str:
    first, *others = lifecycle.lab.names
    lines = [
        "",
        "The lab is up. Next:",
        "  ./setup-env.py attach                      one pane for each instance",
        f"  ./setup-env.py ssh {first} -- openstack image list",
    ]
    if others:
        scope = shlex.quote(f'{{"image": "{others[0]}"}}')
        lines += [
            f"  ./setup-env.py ssh {first} -- openstack server create my-vm --scope {scope} \\",
            f"      --image {lifecycle.lab.image.name} --flavor m1.tiny --network private --wait",
        ]
    return "\n".join([*lines, "  ./setup-env.py halt | destroy"])


def _overview_text(overview: dict[str, Any]) -> str:
    if not any(one["up"] for one in overview["instances"]):
        return "The lab is down: run ./setup-env.py up"
    lines = [f"provider {overview['provider']}, stack {overview['stack']}"]
    for one in overview["instances"]:
        lines.append(f"{one['name']}  {one['address']}  {'up' if one['up'] else 'down'}")
        for service in one["services"]:
            state = f"  {service['name']:<20} {service['state']:<10} {service['detail']}"
            lines.append(state.rstrip())
        lines += [f"  peer {name:<15} {state}" for name, state in one["peers"].items()]
    if overview["dashboard"]["state"]:
        lines.append(f"dashboard  {overview['dashboard']['url']}  {overview['dashboard']['state']}")
    return "\n".join(lines)
