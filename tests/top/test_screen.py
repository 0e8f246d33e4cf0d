"""Tests of the screen of `top` as text."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.top.api_answers import connection, event, route, snapshot, status, target
from vsockproxy.top.panel import Panel
from vsockproxy.top.screen import ASCII, SMALLEST, UNICODE, screen
from vsockproxy.top.traffic import Traffic


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def text_of(traffic: Traffic, panel: Panel, columns: int = 80, rows: int = 24) -> list[str]:
    """Return the rows of the screen on a terminal without colours."""
    console = Console(width=columns, height=rows, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(screen(traffic, panel, columns, rows, UNICODE), end="")
    return capture.get().split("\n")


def busy() -> Traffic:
    traffic = Traffic()
    traffic.observe(snapshot(0.0, route(), route("a-database-of-a-name-that-is-long")))
    for second in range(1, 5):
        traffic.observe(
            snapshot(
                float(second),
                route(upstream_bytes=second**2 * 1000, downstream_bytes=second * 2_000_000),
                route(
                    "a-database-of-a-name-that-is-long",
                    state="queued",
                    targets=[target("up"), target("down"), target("refused")],
                    upstream_bytes=second * 500_000,
                    accepted=second * 12,
                    dial_failures={"refused": second},
                ),
                connections=[
                    connection(17),
                    connection(2, state="half-closed", client="[2001:db8:1:2:3:4:5:6]:40000"),
                    connection(
                        123456,
                        client="unix",
                        age_seconds=90000,
                        idle_seconds=0,
                        upstream_bytes=5 << 30,
                    ),
                ],
                total=3,
                events=[event(second, message="no running VM owns CID 7 " * 4)],
            )
        )
    return traffic


SCREEN = """\
vsockproxy 1.2.3  process 4711  up 3m 12s  3 connections  19829 fds free
connections by rate, descending
routes       state     target    live  new/s fail/s   in/s  out/s last minute
web          listening up           2      0      0   6.8K   1.9M ████
a-database-… queued    down 2/3     2     12    1.0 488.3K      0 ████
     id route client (3)             state      in    out   rate    idle     age
>123456 web   unix                   open     5.0G      0   1.2M      0s   1d 1h
     17 web   203.0.113.7:40017      open     1.7K      0    170    8.5s     43s
      2 web   [2001:db8:1:2:3:4:5:6… half      200      0     20    1.0s     58s









events
12:34:56 W web: dial_failed: no running VM owns CID 7 no running VM owns CID 7
    no running VM owns CID 7 no running VM owns CID 7
12:34:56 W web: dial_failed: no running VM owns CID 7 no running VM owns CID 7
    no running VM owns CID 7 no running VM owns CID 7
q quit  s sort  / filter  tab routes  k kill  ? help
"""


def test_the_screen_of_80_by_24_without_colours_has_the_expected_text() -> None:
    shown = text_of(busy(), Panel())
    assert [len(line) for line in shown] == [80] * 24
    assert "\n".join(line.rstrip() for line in shown) + "\n" == SCREEN


@pytest.mark.parametrize(("columns", "rows"), [(60, 16), (72, 16), (80, 24), (132, 43), (300, 100)])
@pytest.mark.parametrize("prompt", ["nothing", "help", "kill", "filter"])
def test_the_screen_has_exactly_the_size_of_the_terminal(
    columns: int, rows: int, prompt: Any
) -> None:
    panel = Panel()
    panel.prompt = prompt
    shown = text_of(busy(), panel, columns, rows)
    assert [len(line) for line in shown] == [columns] * rows


def test_a_too_small_terminal_shows_the_needed_size() -> None:
    assert "60 columns and 16 rows" in text_of(busy(), Panel(), 59, 16)[0]
    assert "60 columns and 16 rows" in text_of(busy(), Panel(), 60, 15)[0]


def test_a_wide_terminal_shows_targets_and_full_names() -> None:
    shown = "\n".join(text_of(busy(), Panel(), 130, 30))
    assert "a-database-of-a-name-that-is-long" in shown
    assert "[2001:db8:1:2:3:4:5:6]:40000" in shown
    assert "vsock:3:80" in shown


def test_an_ascii_terminal_gets_only_ascii_characters() -> None:
    drawn = screen(busy(), Panel(), 120, 24, ASCII).plain
    assert drawn.isascii()
    assert "########" in drawn


def test_with_too_many_routes_the_failing_and_the_busiest_are_shown() -> None:
    def routes(second: int) -> list[dict[str, Any]]:
        return [
            route("dead", dial_failures={"refused": second}),
            *(route(f"r{number}", upstream_bytes=second * number) for number in range(9)),
        ]

    traffic = Traffic()
    for second in (1, 2):
        traffic.observe(snapshot(float(second), *routes(second)))
    shown = text_of(traffic, Panel())
    assert [line.split()[0] for line in shown[2:7]] == ["routes", "dead", "r8", "r7", "r6"]
    assert "routes 4/10" in shown[2]


def test_the_selected_row_is_scrolled_into_view_and_marked_without_colour() -> None:
    rows = [connection(number) for number in range(1, 60)]
    traffic, panel = Traffic(), Panel()
    traffic.observe(snapshot(1.0, connections=rows, total=5000))
    panel.arrange(rows)
    for key in ("page down", "page down", "page down", "down"):
        panel.press(key)
    shown = text_of(traffic, panel)
    [chosen] = [line for line in shown if line.startswith(">")]
    assert f" {panel.selected} web" in chosen
    assert "client (59 of 5000)" in "".join(shown)


def test_the_second_line_shows_the_most_serious_condition() -> None:
    traffic, panel = busy(), Panel()
    panel.filter = "web"
    assert "filter 'web'" in text_of(traffic, panel)[1]
    traffic.observe(snapshot(9.0, status=status(not_ready=["draining: 3 connections are left"])))
    assert "not ready: draining: 3 connections are left" in text_of(traffic, panel)[1]
    panel.press("p")
    assert "screen frozen" in text_of(traffic, panel)[1]
    traffic.record_failure("no daemon: it has ended")
    assert "retrying: no daemon: it has ended" in text_of(traffic, panel)[1]


def test_the_last_line_shows_the_prompt_and_the_result() -> None:
    traffic, panel = busy(), Panel()
    text_of(traffic, panel)
    panel.press("k")
    assert text_of(traffic, panel)[-1].startswith("end connection 123456? press y to confirm")
    panel.press("n")
    assert text_of(traffic, panel)[-1].startswith("no connection was ended")
    panel.press("/")
    panel.press("x")
    assert text_of(traffic, panel)[-1].startswith("filter: x_")


def test_the_help_fits_the_smallest_terminal() -> None:
    panel = Panel()
    panel.press("?")
    wide = [line.rstrip() for line in text_of(busy(), panel, 200, 50)]
    smallest = [line.rstrip() for line in text_of(busy(), panel, *SMALLEST)]
    assert smallest == wide[: SMALLEST[1]]
    assert not any(wide[SMALLEST[1] :])


def test_names_with_control_or_wide_characters_leave_every_row_its_width() -> None:
    name = "a\x1b[2J\u202e日本語の名前"
    traffic = Traffic()
    traffic.observe(
        snapshot(
            1.0,
            route(name),
            connections=[connection(1, route=name, client=name, target=name)],
            total=1,
            events=[event(1, route=name)],
            status=status(not_ready=[name]),
        )
    )
    for columns in (60, 80, 120):
        shown = text_of(traffic, Panel(), columns)
        assert {cell_len(line) for line in shown} == {columns}
        assert not [line for line in shown if not line.isprintable()]


def fleet() -> Traffic:
    """Return what is shown of 200 routes and 500 connections, with hostile and wide names."""

    def name(number: int) -> str:
        return f"{number:03}-\x1b[2J\u202e\u65e5\u672c\u8a9e"

    traffic = Traffic()
    traffic.observe(
        snapshot(
            1.0,
            *(route(name(each), targets=[target("refused")]) for each in range(200)),
            connections=[connection(each, route=name(each)) for each in range(500)],
            total=500,
            events=[event(1, route=name(1), message=name(2))],
        )
    )
    return traffic


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_every_route_and_connection_of_a_fleet_is_reached_by_scrolling(columns: int) -> None:
    traffic, panel = fleet(), Panel()
    connections, routes = set[str](), set[str]()
    for _ in range(501):
        shown = text_of(traffic, panel, columns)
        assert {cell_len(line) for line in shown} == {columns}
        assert not [line for line in shown if not line.isprintable()]
        connections.update(line[1:].split()[0] for line in shown if line.startswith(">"))
        panel.press("down")
    panel.press("tab")
    for _ in range(201):
        shown = text_of(traffic, panel, columns)
        assert {cell_len(line) for line in shown} == {columns}
        rows = [line for line in shown if "listening refused" in line]
        routes.update(row[:3] for row in rows)
        panel.press("down")
    assert len(rows) == 9
    assert connections == {str(each) for each in range(500)}
    assert routes == {f"{each:03}" for each in range(200)}
    assert shown[1].startswith("routes 192 to 200 of 200")
    panel.press("home")
    assert text_of(traffic, panel, columns)[3].startswith("000-")


def test_60_columns_show_states_targets_failures_and_clients() -> None:
    shown = text_of(busy(), Panel(), 60)
    assert shown[2].split() == ["routes", "state", "target", "live", "fail/s", "in/s", "out/s"]
    assert shown[4].split()[1:5] == ["queued", "down", "2/3", "2"]
    assert any("203.0.113.7:40017" in line for line in shown)
    assert not [line for line in (shown[0], shown[-1]) if not line.endswith(" ")]
    panel = Panel()
    text_of(busy(), panel, 60)
    panel.press("k")
    assert text_of(busy(), panel, 60)[-1].rstrip().endswith("n to cancel")


def test_of_many_idle_routes_those_with_a_target_down_are_shown() -> None:
    traffic = Traffic()
    idle = [route(f"r{number}") for number in range(9)]
    traffic.observe(snapshot(1.0, *idle, route("dead", targets=[target("up"), target("down")])))
    assert text_of(traffic, Panel())[3].split()[:4] == ["dead", "listening", "down", "1/2"]
