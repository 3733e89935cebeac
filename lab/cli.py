"""The commands of ``setup-env.py``."""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast, get_args

import click

from lab import completion as completions
from lab import faults
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
        status = commands(
            obj=root,
            prog_name="./setup-env.py",
            complete_var=completions.VARIABLE,
            standalone_mode=False,
        )
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


_Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _completes(names: Callable[[Path], Iterable[str]]) -> _Complete:
    """Complete an argument to one of *names* of the lab in a repository."""

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        try:
            known = list(names(context.obj if isinstance(context.obj, Path) else ROOT))
        except LabError:
            # In the middle of a command line is no place for it: the command itself will say it.
            return []
        return [name for name in known if name.startswith(incomplete)]

    return complete


@_completes
def _complete_instance(root: Path) -> Iterable[str]:
    from lab.config import load  # noqa: PLC0415 - slow to import, and not for --help

    return load(root).names


@_completes
def _complete_scenario(root: Path) -> Iterable[str]:
    from lab.demo import names  # noqa: PLC0415 - slow to import, and not for --help

    return names(root)


@_completes
def _complete_snapshot(root: Path) -> Iterable[str]:
    return (one.name for one in _lifecycle(root).snapshots.all())


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _echo_json(facts: object) -> None:
    import json  # noqa: PLC0415

    click.echo(json.dumps(facts, indent=2))


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
@click.option(
    "--offline", is_flag=True, help="Use no network: take what an earlier `up` left, or a bundle."
)
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
    offline: bool,
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
    if offline:
        from lab.offline import require  # noqa: PLC0415 - few commands need it

        require(lifecycle.lab, lifecycle.debian_packages)
    lifecycle.up(names)
    click.echo(_next_commands(lifecycle))
    if not no_attach and _on_terminal():
        _attach()


@commands.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def bundle(root: Path, file: Path) -> None:
    """Write this repository and all that the lab installs into FILE, a .tar.

    On another machine of the same kind without any network, unpack it there, and run
    `./setup-env.py up --offline` in it.
    """
    from lab.bundle import write  # noqa: PLC0415 - few commands need it
    from lab.hypervisors import decide  # noqa: PLC0415
    from lab.lifecycle import Lifecycle  # noqa: PLC0415

    lifecycle = Lifecycle.of(root, decide=decide)
    write(lifecycle.lab, lifecycle.debian_packages, file, click.echo)
    click.echo("On the other machine, unpack it with tar -xf, and run:")
    click.echo(f"  cd {file.stem} && ./setup-env.py up --offline")


@commands.command()
@click.pass_obj
def attach(root: Path) -> None:
    """Show the tmux session, and restore missing panes."""
    lifecycle = _lifecycle(root)
    lifecycle.require_hosts()
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
@_json_option
@click.pass_obj
def conformance(
    root: Path, *, scopes: tuple[str, ...], regex: str | None, short: bool, as_json: bool
) -> None:
    """Run Tempest with and without scopes, and show where it ends otherwise.

    \b
    With --json, and with the progress on standard error:
      {"differences": [DIFFERENCE…]}
      DIFFERENCE: {"test": TEXT, "way": TEXT, "without": END, "within": END, "limit": TEXT}
      END: {"status": "success" or "fail" or "skip" or "missing", "reason": TEXT}
    "way" is the scope; "limit" is why a difference is no fault, and empty if it is one.
    """
    from lab import conformance as tempest  # noqa: PLC0415 - few commands need it

    if short and regex:
        raise LabError("--short is a choice of tests, and so is --regex: give one of them")
    regex = tempest.SHORT if short else regex or tempest.WHOLE
    found = _lifecycle(root).conformance(scopes, regex, lambda s: click.echo(s, err=as_json))
    if as_json:
        _echo_json({"differences": [asdict(one) for one in found]})
    else:
        click.echo(tempest.table(found) or "Every test ends the same with and without a scope.")
    if any(not one.limit for one in found):
        sys.exit(1)


@commands.command()
@_json_option
@click.pass_obj
def status(root: Path, *, as_json: bool) -> None:
    """Show each instance's address, its services, and its proxy's view of the peers.

    \b
    With --json:
      {"provider": TEXT, "stack": TEXT, "instances": [INSTANCE…],
       "dashboard": {"state": TEXT or null, "url": TEXT}}
      INSTANCE: {"name": TEXT, "address": TEXT, "up": BOOLEAN, "services": [SERVICE…],
                 "peers": {NAME: TEXT…}}
      SERVICE: {"name": TEXT, "state": TEXT, "detail": TEXT}
    An instance that is not up has no services and no peers. The state of the dashboard is null when
    there is none.
    """
    overview = _lifecycle(root).status()
    if as_json:
        _echo_json(overview)
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
@click.argument("name", required=False, shell_complete=_complete_instance)
@click.argument("service", required=False)
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.option(
    "--export",
    "target",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all logs and more into FILE, a .tar.zst or .tar.gz.",
)
@click.pass_obj
def logs(
    root: Path, *, name: str | None, service: str | None, follow: bool, target: Path | None
) -> None:
    """Print the log of SERVICE in the instance NAME, or the last lines of all its logs.

    With --export, and without a NAME, write an archive for somebody who helps: logs, configuration,
    versions, `status` and `doctor` of the whole lab, up or down. Passwords, keys and tokens are
    replaced by their names.
    """
    if target:
        if name or follow:
            raise click.UsageError("--export is about the whole lab: leave out NAME and -f.")
        _export(root, target)
        return
    if not name:
        raise click.UsageError("Missing argument 'NAME', or --export FILE.")
    lifecycle = _lifecycle(root)
    _exec_ssh(lifecycle, name, lifecycle.log_command(name, service, follow=follow))


def _export(root: Path, target: Path) -> None:
    from lab.export import export  # noqa: PLC0415 - few commands need it

    for line in export(root, target):
        click.echo(f"warning: left out {line}", err=True)
    click.echo(f"Wrote {target}. Look at it before you pass it on.")


@commands.command()
@click.argument("command", metavar="[last | -- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--in", "name", metavar="NAME", shell_complete=_complete_instance)
@click.option("--svg", type=click.File("w", lazy=False, atomic=True), help="Write a diagram.")
@_json_option
@click.option("--follow", is_flag=True, help="Show the requests of everybody, until Ctrl-C.")
@click.pass_obj
def trace(
    root: Path,
    *,
    command: tuple[str, ...],
    name: str | None,
    svg: IO[str] | None,
    as_json: bool,
    follow: bool,
) -> None:
    """Run COMMAND in an instance, and show every request that it caused in all instances.

    The command is run in the instance NAME, by default the first one. `last` shows the last trace
    again.

    \b
    With --json:
      {"command": TEXT, "home": NAME, "started": TIME, "requests": [REQUEST…], "others": [REQUEST…]}
      REQUEST: {"time": TIME, "method": TEXT, "path": TEXT, "service": TYPE, "instance": NAME,
                "through": [NAME…], "status": NUMBER, "milliseconds": NUMBER,
                "request_id": TEXT or null, "agent": TEXT, "caused": [REQUEST…]}
    """
    from lab import trace as tracing  # noqa: PLC0415 - few commands need it

    if bool(command) == follow:
        raise click.UsageError("give a command after --, or last, or --follow")
    lifecycle = _lifecycle(root)
    status = 0
    if command == ("last",):
        found = tracing.last(lifecycle.lab.state)
    else:
        name = name or lifecycle.lab.names[0]
        lifecycle.require_up(name)
        if follow:
            # The proxies stop tracing even if the terminal is closed.
            signal.signal(signal.SIGHUP, signal.default_int_handler)
            return tracing.follow(lifecycle, click.echo)
        progress = (lambda line: click.echo(line, err=True)) if _on_terminal() else (lambda _: None)
        status, found = tracing.run(lifecycle, name, command, progress)
    if svg:
        svg.write(tracing.svg(found))
    if as_json:
        _echo_json(vars(found))
    else:
        click.echo(tracing.tree(found))
    sys.exit(status)


def _measured(units: Mapping[str, float]) -> Callable[..., float | None]:
    """A callback for an option whose value is a number with one of *units*."""

    def convert(
        _context: click.Context, _option: click.Parameter, text: str | None
    ) -> float | None:
        try:
            return None if text is None else faults.measure(text, units)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return convert


@commands.command()
@click.argument("one", required=False, shell_complete=_complete_instance)
@click.argument("two", required=False, shell_complete=_complete_instance)
@click.option("--cut", is_flag=True, help="Refuse connections, and break open ones.")
@click.option("--hang", is_flag=True, help="Take connections and answer nothing.")
@click.option("--lie", is_flag=True, help="Answer every request with 200 and garbage.")
@click.option("--heal", is_flag=True, help="Take the faults away: of all links, if none is named.")
@click.option(
    "--delay", metavar="80ms", callback=_measured(faults.TIMES), help="Make each round trip longer."
)
@click.option(
    "--jitter", metavar="20ms", callback=_measured(faults.TIMES), help="Vary the delay by so much."
)
@click.option(
    "--rate", metavar="1mbit", callback=_measured(faults.RATES), help="Limit each direction."
)
@click.option(
    "--loss", metavar="5%", callback=_measured(faults.SHARES), help="Lose so many pieces of data."
)
@click.option("--both", is_flag=True, help="Do the same to the link from TWO to ONE.")
@_json_option
@click.pass_obj
def net(
    root: Path,
    /,
    *,
    one: str | None,
    two: str | None,
    both: bool,
    as_json: bool,
    **options: float | bool | None,
) -> None:
    """Break the link by which the proxy of ONE reaches that of TWO, or show all links.

    A fault replaces the one before. All are gone after --heal, `up` or `destroy`.

    \b
    With --json: [LINK…]
      LINK: {"from": NAME, "peer": NAME, "fault": TEXT, "state": TEXT, "seconds": NUMBER or null,
             "error": TEXT}
    """
    fault = _fault({name: value for name, value in options.items() if value and name != "heal"})
    if options["heal"] and fault:
        raise click.UsageError("--heal takes a fault away: name no other one")
    if not options["heal"] and fault is None:
        if one or both:
            raise click.UsageError("say what happens to the link: see ./setup-env.py net --help")
        links = _lifecycle(root).links()
        if as_json:
            _echo_json(links)
        else:
            click.echo(_links_text(links))
        return
    if two is None and (one or fault or both):
        raise click.UsageError("a link has two ends: name two instances")
    lifecycle = _lifecycle(root)
    directions = [(one, two), (two, one)] if both else [(one, two)]
    for source, target in directions:
        if fault and source and target:
            lifecycle.break_link(source, target, fault)
        else:
            lifecycle.heal(source, target)


def _fault(given: Mapping[str, Any]) -> faults.Fault | None:
    """The fault that the options *given* of ``net`` describe; None with none of them.

    :raises click.UsageError: when they contradict each other.
    """
    alone = [name for name in given if name in get_args(faults.Kind)]
    if alone and len(given) > 1:
        raise click.UsageError(f"--{alone[0]} stands alone: drop the other faults")
    if given.get("jitter", 0) > given.get("delay", 0):
        raise click.UsageError("--jitter varies --delay: give it one that is as long, or longer")
    if given.get("loss", 0) >= 1:
        raise click.UsageError("--loss has to be less than 100%: use --hang")
    if alone:
        return faults.Fault(cast("faults.Kind", alone[0]))
    return faults.Fault("slow", **given) if given else None


@commands.command()
@click.argument("target", metavar="NAME[/SERVICE]", shell_complete=_complete_instance)
@click.option(
    "--hang", is_flag=True, help="Freeze instead: it keeps connections, and does nothing."
)
@click.pass_obj
def kill(root: Path, target: str, *, hang: bool) -> None:
    """Kill the service SERVICE of the instance NAME, or all of them, until the next `up`."""
    name, separator, service = target.partition("/")
    _lifecycle(root).kill(name, service if separator else None, hang=hang)


@commands.command()
@click.argument("scenario", required=False, shell_complete=_complete_scenario)
@click.option("--list", "listed", is_flag=True, help="List the scenarios.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0),
    default=1.0,
    help="A factor for 12 characters a second; 0 types at once.",
)
@click.option("--step", is_flag=True, help="Wait for a key before each step.")
@click.option(
    "--record", type=click.Path(path_type=Path, dir_okay=False), help="Write an asciicast."
)
@click.pass_obj
def demo(
    root: Path, *, scenario: str | None, listed: bool, speed: float, step: bool, record: Path | None
) -> None:
    """Play SCENARIO, a file of demos/, into the panes of the lab, and remove what it made.

    Watch it by ./setup-env.py attach in another terminal. Without SCENARIO, it is the README's
    story.
    """
    from lab import demo as scenarios  # noqa: PLC0415 - few commands need it

    if listed:
        for name in scenarios.names(root):
            click.echo(f"{name:<20} {scenarios.load(root, name).title}")
        return
    if step and not _on_terminal():
        raise LabError("--step waits for a key: it needs a terminal")
    if _on_terminal():
        click.echo("Watch: ./setup-env.py attach   (in another terminal)")
    pause = (lambda: click.pause("next: any key …")) if step else (lambda: None)
    manner = scenarios.Manner(speed, pause, record)
    scenarios.play(_lifecycle(root), scenario or scenarios.DEFAULT, manner, click.echo)


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
    # A script that runs this in the background ignores SIGINT, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
@click.argument("name")
@click.option("--delete", is_flag=True, help="Remove the snapshot NAME instead.")
@click.pass_obj
def snapshot(root: Path, name: str, *, delete: bool) -> None:
    """Keep the present state of the whole lab as the snapshot NAME.

    The lab is down in the meantime. A snapshot has everything but logs: databases, message queues,
    images, servers' disks, networks, passwords, homes. It is a part of the lab in .lab, and
    `destroy` removes it, too. Only the provider local with the stack wheels has snapshots.
    """
    lifecycle = _lifecycle(root)
    if delete:
        return lifecycle.remove_snapshot(name)
    _survive_own_pane()
    return lifecycle.snapshot(name)


@commands.command()
@_json_option
@click.pass_obj
def snapshots(root: Path, *, as_json: bool) -> None:
    """Show the lab's snapshots, the oldest first.

    \b
    With --json: [SNAPSHOT…]
      SNAPSHOT: {"name": TEXT, "created": TIME, "size": BYTES, "misfit": TEXT}
    """
    found = _lifecycle(root).snapshots.all()
    if as_json:
        _echo_json([asdict(one) for one in found])
    elif found:
        for one in found:
            misfit = f"  does not fit: {one.misfit}" if one.misfit else ""
            click.echo(f"{one.name:<20} {one.created}  {one.size / 2**20:6.0f} MiB{misfit}")
    else:
        click.echo("There are no snapshots: ./setup-env.py snapshot NAME makes one.")


@commands.command()
@click.argument("name", shell_complete=_complete_snapshot)
@click.pass_obj
def restore(root: Path, name: str) -> None:
    """Make the lab what it was in the snapshot NAME.

    What was made since then is gone, in every instance, and tokens of before may not work. Logs
    stay. A lab that is up is up again afterwards. The lab must have the same version, OpenStack,
    path, hypervisor and instances as the snapshot.
    """
    _survive_own_pane()
    _lifecycle(root).restore(name)


@commands.command()
@click.pass_obj
def destroy(root: Path) -> None:
    """Remove the lab and its snapshots without trace.

    What is not the lab's alone stays: .venv, uv's cache and Debian packages.
    """
    from lab.lifecycle import destroy as remove  # noqa: PLC0415

    _survive_own_pane()
    remove(root)


@commands.command()
@_json_option
@click.pass_obj
def doctor(root: Path, *, as_json: bool) -> None:
    """Show what this machine lacks for each provider and stack, and how to fix it.

    \b
    With --json:
      {"sections": [{"title": TEXT, "findings": [FINDING…]}…]}
      FINDING: {"what": TEXT, "present": BOOLEAN, "mend": TEXT}
    "mend" is how to get what is not present.
    """
    from lab.doctor import examine, facts  # noqa: PLC0415

    if as_json:
        _echo_json(facts(root))
        return
    for section in examine(root):
        click.echo(section)


@commands.command()
@click.argument("shell", type=click.Choice(completions.SHELLS))
def completion(shell: str) -> None:
    """Print a script by which SHELL completes commands, options and instances.

    Switch it on with `source <(./setup-env.py completion bash)`, likewise in zsh, and with
    `./setup-env.py completion fish | source`.
    """
    click.echo(completions.script(commands, shell), nl=False)


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


def _links_text(links: Sequence[Mapping[str, Any]]) -> str:
    rows = [("from", "to", "fault", "round trip", "the proxy says")]
    for link in links:
        took = link["error"] or f"{link['seconds'] * 1000:.1f} ms"
        fault = link["fault"] or ("none" if link["state"] else "")
        rows.append((link["from"], link["peer"], fault, took, link["state"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


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
