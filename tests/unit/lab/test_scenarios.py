"""Scenario files of demos: their meaning, and the errors for a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from lab import cli, demo
from lab.errors import LabError

ROOT = Path(__file__).resolve().parents[3]


def described(tmp_path: Path, text: str) -> demo.Scenario:
    (tmp_path / "demos").mkdir(exist_ok=True)
    (tmp_path / "demos/mine.yaml").write_text(text)
    return demo.load(tmp_path, "mine")


def test_every_scenario_of_the_repository_can_be_read_and_has_a_title() -> None:
    names = demo.names(ROOT)
    assert {demo.DEFAULT, "everywhere", "image-elsewhere"} <= set(names)
    assert all(demo.load(ROOT, name).title for name in names)


def test_a_comment_is_typed_where_the_next_command_is(tmp_path: Path) -> None:
    scenario = described(
        tmp_path,
        "title: t\nsteps:\n- {say: one}\n- {in: A, type: x}\n- {say: two}\n- {in: B, type: y}\n"
        "- {say: three}\n",
    )
    assert [scenario.place(index) for index in range(5)] == ["A", "A", "B", "B", "A"]
    assert scenario.instances == {"A": "steps.1.in", "B": "steps.3.in"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is not YAML: expected the node content"),
        ("- 1", "must be a mapping; allowed keys: title, steps, finally"),
        ("title: t", "the key 'steps' is missing; allowed keys: title, steps, finally"),
        ("title: t\nsteps: []", "steps: Tuple should have at least 1 item"),
        ("title: t\nsteps: [{says: x}]", "unknown key 'steps.0.says'; allowed keys: in, say, type"),
        ("title: t\nsteps: [{in: A}]", "steps.0: a step has either `say` or `type`"),
        ("title: t\nsteps: [{say: x, type: y}]", "steps.0: a step has either `say` or `type`"),
        ("title: t\nsteps: [{type: y}]", "steps.0: `type` needs `in`, the name of an instance"),
        ("title: t\nsteps: [{say: x, shows: y}]", "steps.0: `shows` and `status` need `type`"),
        (
            "title: t\nsteps: [{in: A, type: x, shows: '('}]",
            "steps.0.shows: Input should be a valid regular expression (not '(')",
        ),
        ("title: t\nsteps: [{in: A, type: x, status: bad}]", "steps.0.status: Input should be"),
        (
            "title: t\nsteps: [{in: A, type: x, needs: luck}]",
            "steps.0.needs: 'luck' is not allowed",
        ),
        ('title: t\nsteps: [{in: A, type: "a\\tb"}]', "steps.0.type: it has to have characters"),
        (
            "title: t\nsteps: [{say: x}]\nfinally: [{run: x}]",
            "the key 'finally.0.in' is missing; allowed keys: in, run",
        ),
    ],
)
def test_a_wrong_scenario_is_a_one_line_error_that_names_the_place(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(LabError) as error:
        described(tmp_path, text)
    assert str(error.value).startswith("demos/mine.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_scenario_gets_the_names_of_those_that_there_are(tmp_path: Path) -> None:
    described(tmp_path, "title: t\nsteps: [{say: x}]")
    with pytest.raises(LabError, match=r"unknown scenario '\.\./mine'; known: mine"):
        demo.load(tmp_path, "../mine")


def test_the_shell_completes_names_of_scenarios() -> None:
    complete = ShellComplete(cli.commands, {"obj": ROOT}, "setup-env.py", "_COMPLETE")
    found = complete.get_completions(["demo"], "image")
    assert [one.value for one in found] == ["image-elsewhere"]
