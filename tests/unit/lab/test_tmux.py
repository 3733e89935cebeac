"""The session as its user sees it: panes, prompts, order, repair."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest

from tests.unit.lab.conftest import Sandbox, eventually

PROMPTS = ["stack@InstanceOne:~$", "stack@InstanceTwo:~$"]


def panes(sandbox: Sandbox, what: str = "@instance") -> list[str]:
    """*what* of each pane, from top to bottom."""
    return sandbox.tmux("list-panes", "-t", "openstackoid", "-F", f"#{{{what}}}").splitlines()


def screen(sandbox: Sandbox, index: int) -> str:
    return sandbox.tmux("capture-pane", "-p", "-t", f"openstackoid:0.{index}")


def shows_prompts(sandbox: Sandbox) -> bool:
    return [screen(sandbox, index).rstrip("\n").split("\n")[-1] for index in (0, 1)] == PROMPTS


def test_each_instance_has_a_pane_with_its_prompt_top_to_bottom(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    assert panes(sandbox) == ["InstanceOne", "InstanceTwo"]
    assert eventually(lambda: shows_prompts(sandbox))
    tops = [int(top) for top in panes(sandbox, "pane_top")]
    assert tops == sorted(set(tops))
    assert len(set(panes(sandbox, "pane_left"))) == 1


def test_a_pane_does_what_is_typed_into_it(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    assert eventually(lambda: shows_prompts(sandbox))
    sandbox.tmux("send-keys", "-t", "openstackoid:0.1", "echo $OS_CLOUD; cd /; pwd", "Enter")
    expected = ["InstanceTwo", "/", "stack@InstanceTwo:/$"]
    assert eventually(lambda: screen(sandbox, 1).split("\n")[1:4] == expected)


def test_the_borders_show_names_whatever_a_shell_calls_its_title(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    assert eventually(lambda: shows_prompts(sandbox))
    sandbox.tmux("send-keys", "-t", "openstackoid:0.0", r"printf '\033]2;mine\007'", "Enter")
    assert eventually(lambda: panes(sandbox, "pane_title")[0] == "mine")
    borders = sandbox.tmux("show-options", "-w", "-t", "openstackoid:0")
    assert "pane-border-status top" in borders
    shown = sandbox.tmux(
        "display-message", "-p", "-t", "openstackoid:0.0", "#{E:pane-border-format}"
    )
    assert shown.strip() == "InstanceOne"


def test_three_or_more_panes_are_tiled(sandbox: Sandbox) -> None:
    addresses = enumerate(("A", "B", "C", "D"), start=1)
    sandbox.describe(
        "instances:\n"
        + "".join(
            f"  - {{name: {name}, address: 127.{sandbox.network}.{number}.1}}\n"
            for number, name in addresses
        )
    )
    sandbox.ok("up")
    assert panes(sandbox) == ["A", "B", "C", "D"]
    assert len(set(panes(sandbox, "pane_left"))) == 2
    assert len(set(panes(sandbox, "pane_top"))) == 2


def test_an_existing_session_is_reused(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    before = panes(sandbox, "pane_pid")
    sandbox.tmux("split-window", "-t", "openstackoid", "sleep 600")
    sandbox.ok("up")
    after = dict(zip(panes(sandbox), panes(sandbox, "pane_pid"), strict=True))
    assert [after["InstanceOne"], after["InstanceTwo"]] == before
    assert "" in after


@pytest.mark.parametrize("lost", [0, 1])
def test_a_missing_pane_is_put_back_in_its_place(sandbox: Sandbox, lost: int) -> None:
    sandbox.ok("up")
    sandbox.tmux("kill-pane", "-t", f"openstackoid:0.{lost}")
    sandbox.ok("up")
    assert panes(sandbox) == ["InstanceOne", "InstanceTwo"]
    assert eventually(lambda: shows_prompts(sandbox))


def test_a_lost_session_is_made_again(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    sandbox.tmux("kill-server")
    sandbox.ok("up")
    assert panes(sandbox) == ["InstanceOne", "InstanceTwo"]


def test_panes_are_revived_after_a_halt(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    assert eventually(lambda: shows_prompts(sandbox))
    sandbox.ok("halt")
    sandbox.ok("up")
    assert panes(sandbox) == ["InstanceOne", "InstanceTwo"]
    assert panes(sandbox, "pane_dead") == ["0", "0"]
    assert eventually(lambda: shows_prompts(sandbox))


def test_panes_of_former_instances_go_away(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    sandbox.ok("halt", "InstanceOne")
    sandbox.ok("up", "InstanceTwo")
    assert panes(sandbox) == ["InstanceTwo"]


def attached_terminal(sandbox: Sandbox, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    ours, theirs = pty.openpty()
    client = subprocess.Popen(
        sandbox.argv(*arguments),
        env=sandbox.environment | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    return client, ours


@pytest.mark.parametrize("command", ["up", "attach"])
def test_on_a_terminal_the_session_is_shown(sandbox: Sandbox, command: str) -> None:
    sandbox.ok("up")
    client, terminal = attached_terminal(sandbox, command)
    try:
        assert eventually(lambda: "openstackoid" in sandbox.tmux("list-clients"))
    finally:
        sandbox.tmux("detach-client", "-s", "openstackoid")
        os.close(terminal)
        client.wait(10)


def test_inside_tmux_the_client_switches_to_the_session(sandbox: Sandbox) -> None:
    # A server on a socket of ours, which TMUX names, plays the user's own tmux server.
    sandbox.ok("up")
    client, terminal = attached_terminal(sandbox, "attach")
    try:
        assert eventually(lambda: "openstackoid" in sandbox.tmux("list-clients"))
        sandbox.tmux("new-session", "-d", "-s", "other")
        sandbox.tmux(
            "switch-client",
            "-c",
            sandbox.tmux("list-clients", "-F", "#{client_name}").strip(),
            "-t",
            "other",
        )
        assert eventually(lambda: "other" in sandbox.tmux("list-clients"))
        command = " ".join(["unset OPENSTACKOID_TMUX_SOCKET;", *sandbox.argv("attach")])
        sandbox.tmux("send-keys", "-t", "other:0.0", command, "Enter")
        assert eventually(
            lambda: "openstackoid" in sandbox.tmux("list-clients", "-F", "#{session_name}")
        )
    finally:
        sandbox.tmux("detach-client", "-a")
        os.close(terminal)
        client.wait(10)
