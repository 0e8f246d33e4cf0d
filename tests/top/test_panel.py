"""Tests of the keys of `top`: sort, filter, selection and kill."""

import pytest

from tests.top.api_answers import connection
from vsockproxy.top.panel import SORT_KEYS, Action, Panel


def panel_with(*numbers: int) -> Panel:
    panel = Panel()
    panel.arrange([connection(number) for number in numbers])
    return panel


def press(panel: Panel, *names: str) -> list[Action]:
    return [order for name in names if (order := panel.press(name)) is not None]


@pytest.mark.parametrize(
    ("sort", "numbers"),
    [
        ("rate", [3, 2, 1]),
        ("bytes", [3, 2, 1]),
        ("age", [1, 2, 3]),
        ("idle", [3, 2, 1]),
        ("id", [1, 2, 3]),
        ("route", [1, 2, 3]),
        ("client", [1, 2, 3]),
    ],
)
def test_names_and_ids_sort_ascending_and_numbers_descending(sort: str, numbers: list[int]) -> None:
    panel = Panel()
    press(panel, *"s" * SORT_KEYS.index(sort))
    rows = [connection(number) for number in (2, 3, 1)]
    assert [row["id"] for row in panel.arrange(rows)] == numbers
    press(panel, "r")
    assert [row["id"] for row in panel.arrange(rows)] == numbers[::-1]


def test_a_filter_is_applied_by_enter_and_cleared_by_escape() -> None:
    panel = Panel()
    rows = [connection(1), connection(2, client="[2001:db8::1]:9"), connection(3, route="DB")]
    assert press(panel, "/", *"db8x", "backspace", "enter") == [Action("refresh")]
    assert [row["id"] for row in panel.arrange(rows)] == [2]
    press(panel, "/", "backspace", "enter")
    assert {row["id"] for row in panel.arrange(rows)} == {2, 3}
    press(panel, "/", "x", "escape")
    assert panel.filter == "db"
    press(panel, "escape")
    assert len(panel.arrange(rows)) == 3


def test_the_selection_follows_its_connection_until_it_closes() -> None:
    panel = panel_with(3, 2, 1)
    press(panel, "down")
    assert panel.selected == 2
    panel.arrange([connection(1), connection(2), connection(9), connection(8)])
    assert panel.row == 2
    panel.arrange([connection(1), connection(9)])
    assert panel.row == 0


def test_the_selection_stops_at_the_first_and_the_last_row() -> None:
    panel = panel_with(3, 2, 1)
    press(panel, "up")
    assert panel.row == 0
    press(panel, "page down", "down")
    assert panel.row == 2
    press(panel, "home", "end", "page up")
    assert panel.row == 0


def test_kill_needs_a_confirmation() -> None:
    panel = panel_with(3, 2, 1)
    assert press(panel, "down", "k") == []
    assert press(panel, "n") == []
    assert panel.message == "no connection was ended"
    assert press(panel, "k", "y") == [Action("kill", 2)]


def test_a_confirmed_kill_is_for_the_connection_in_the_prompt() -> None:
    panel = panel_with(3, 2, 1)
    press(panel, "down", "k")
    panel.arrange([connection(9), connection(1)])  # connection 2 closes while the prompt is open
    assert press(panel, "y") == [Action("kill", 2)]


def test_without_connections_kill_and_selection_keys_do_nothing() -> None:
    panel = panel_with()
    assert press(panel, "k", "y") == []
    assert press(panel, "down", "end") == []


def test_q_in_the_filter_prompt_is_text() -> None:
    panel = panel_with(1)
    assert press(panel, "/", "q") == []
    assert press(panel, "enter", "q") == [Action("refresh"), Action("quit")]
