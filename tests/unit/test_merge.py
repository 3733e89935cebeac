"""The output of several runs of one command."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from openstackoid.merge import Cell, Output, Result, show

ADDRESS = Cell("private=10.0.0.4", {"private": ["10.0.0.4"]})
LOST = (
    "Retriable status code 503. Retrying in 2.0s. 1 retries left\n"
    "HttpException: 503: Server Error for url: http://127.0.1.1:8888/image/v2/images, "
    "instance InstanceTwo cannot be reached from InstanceOne: no proxy of this name answers\n"
)


def output(
    *rows: tuple[Any, ...],
    formatter: str = "table",
    columns: tuple[str, ...] = (),
    sort: tuple[str, ...] = (),
    is_list: bool = True,
) -> Output:
    options = argparse.Namespace(
        formatter=formatter,
        columns=list(columns),
        sort_columns=list(sort),
        sort_direction=None,
        max_width=0,
        fit_width=False,
        print_empty=False,
        noindent=True,
        quote_mode="nonnumeric",
        prefix="",
        variables=[],
    )
    return Output(("Name", "Networks"), list(rows), is_list, options)


def both(formatter: str, **options: Any) -> list[Result]:  # noqa: ANN401
    return [
        Result("One", 0, output(("b", ADDRESS), formatter=formatter, **options)),
        Result("Two", 0, output(("a", ADDRESS), formatter=formatter, **options)),
    ]


def test_a_table_has_the_instance_of_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(both("table")) == 0
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["Instance", "Name", "Networks"],
        ["One", "b", "private=10.0.0.4"],
        ["Two", "a", "private=10.0.0.4"],
    ]


def test_json_has_values_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(both("json")) == 0
    assert json.loads(capsys.readouterr().out)[1] == {
        "Instance": "Two",
        "Name": "a",
        "Networks": {"private": ["10.0.0.4"]},
    }


def test_chosen_columns_keep_the_instance(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(both("value", columns=("name",), sort=("Name",))) == 0
    assert capsys.readouterr().out == "Two a\nOne b\n"


def test_csv_has_the_instance(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(both("csv", columns=("Name",))) == 0
    assert capsys.readouterr().out.splitlines() == ['"Instance","Name"', '"One","b"', '"Two","a"']


def test_one_object_of_each_instance_is_a_table_with_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert show(both("table", is_list=False)) == 0
    shown = capsys.readouterr().out
    assert shown.index("=== One") < shown.index("=== Two")


def test_one_object_of_each_instance_is_an_array_in_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert show(both("json", is_list=False)) == 0
    assert [row["Instance"] for row in json.loads(capsys.readouterr().out)] == ["One", "Two"]


def test_shell_variables_begin_with_the_instance(capsys: pytest.CaptureFixture[str]) -> None:
    results = both("shell", is_list=False, columns=("Name",))
    assert show(results) == 0
    assert capsys.readouterr().out == 'One_name="b"\nTwo_name="a"\n'


@pytest.mark.parametrize("formatter", ["table", "json", "yaml"])
def test_a_failure_has_a_row_with_its_reason(
    capsys: pytest.CaptureFixture[str], formatter: str
) -> None:
    good = Result("One", 0, output(("b", ADDRESS), formatter=formatter))
    assert show([good, Result("InstanceTwo", 1, stderr=LOST)]) == 1
    told = capsys.readouterr()
    assert "503: instance InstanceTwo cannot be reached" in told.out
    assert "for url" not in told.out
    assert told.err == ""


@pytest.mark.parametrize("formatter", ["csv", "value"])
def test_a_failure_goes_to_stderr_where_a_format_has_no_place(
    capsys: pytest.CaptureFixture[str], formatter: str
) -> None:
    good = Result("One", 0, output(("b", ADDRESS), formatter=formatter))
    assert show([good, Result("InstanceTwo", 1, stderr=LOST)]) == 1
    told = capsys.readouterr()
    assert "InstanceTwo" not in told.out
    assert "InstanceTwo: HttpException: 503" in told.err


def test_a_single_result_looks_as_without_an_expression(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert show(both("csv", columns=("Name",))[:1]) == 0
    assert capsys.readouterr().out.splitlines() == ['"Name"', '"b"']


def test_a_wrong_option_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [Result(name, 2, stderr="usage: openstack …\n") for name in ("One", "Two")]
    assert show(wrong) == 2
    assert capsys.readouterr().err == "usage: openstack …\n"


def test_commands_that_print_nothing_say_where_they_are_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert show([Result("One", 0), Result("Two", 1, stderr="No Server found for x\n")]) == 1
    told = capsys.readouterr()
    assert told.out == "One: done\n"
    assert told.err == "Two: No Server found for x\n"


def test_text_of_each_instance_comes_after_its_name(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    assert show([Result("One", 0, stdout=b"a\xff\n"), Result("Two", 0, stdout=b"b\n")]) == 0
    assert capfdbinary.readouterr().out == b"=== One\na\xff\n=== Two\nb\n"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (2, "unrecognized arguments"),
        (1, "Bad flavor (HTTP 400) (Request-ID: req-1)"),
        (1, "BadRequestException: 400: Client Error for url: http://x, Invalid"),
    ],
)
def test_the_users_own_error_is_not_tried_elsewhere(status: int, text: str) -> None:
    assert Result("One", status, stderr=text).is_wrong_use
    assert not Result("One", 1, stderr=LOST).is_wrong_use
