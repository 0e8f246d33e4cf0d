"""The parts of `top` without a terminal: rates, keys, and the screen as text."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.daemon_process import command
from vsockproxy.top.panel import ORDERS, Order, Panel
from vsockproxy.top.screen import ASCII, UNICODE, screen
from vsockproxy.top.terminal import keys
from vsockproxy.top.traffic import HISTORY, Look, Traffic


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def status(**changes: Any) -> dict[str, Any]:
    return {
        "version": "1.2.3",
        "pid": 4711,
        "started": 1000.0,
        "uptime_seconds": 192.0,
        "not_ready": [],
        "live": 3,
        "descriptors_free": 19829,
        **changes,
    }


def route(name: str = "web", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "listening",
        "live": 2,
        "accepted": 0,
        "dial_failures": {},
        "upstream_bytes": 0,
        "downstream_bytes": 0,
        **changes,
    }


def connection(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "route": "web",
        "client": f"203.0.113.7:{40000 + number}",
        "target": "vsock:3:80",
        "state": "open",
        "upstream_bytes": 100 * number,
        "downstream_bytes": 0,
        "upstream_rate": 10.0 * number,
        "downstream_rate": 0.0,
        "age_seconds": 60.0 - number,
        "idle_seconds": 0.5 * number,
        **changes,
    }


def event(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "time": 45296.0,
        "level": "warning",
        "event": "dial_failed",
        "route": "web",
        "message": "no running VM owns CID 7",
        **changes,
    }


def look(seconds: float, *routes: dict[str, Any], **changes: Any) -> Look:
    values: dict[str, Any] = {
        "status": status(),
        "connections": [],
        "total": 0,
        "events": [],
    } | changes
    return Look(seconds, routes=routes or (route(),), **values)


# ---- rates ----


def test_rates_are_what_changed_between_two_looks() -> None:
    traffic = Traffic()
    traffic.observe(look(10.0, route(upstream_bytes=100, accepted=5)))
    later = route(
        upstream_bytes=300,
        downstream_bytes=50,
        accepted=9,
        dial_failures={"refused": 1, "timeout": 3},
    )
    traffic.observe(look(12.0, later))
    [rates] = traffic.routes
    assert (rates.upstream, rates.downstream, rates.bytes) == (100, 25, 125)
    assert (rates.connections, rates.failures) == (2, 2)
    assert list(rates.history) == [125]


def test_a_first_look_and_a_new_route_have_no_rates() -> None:
    traffic = Traffic()
    traffic.observe(look(1.0, route(upstream_bytes=100)))
    traffic.observe(look(2.0, route(upstream_bytes=100), route("new", upstream_bytes=900)))
    assert [rates.bytes for rates in traffic.routes] == [0, 0]


def test_a_daemon_that_was_started_anew_begins_anew() -> None:
    traffic = Traffic()
    traffic.observe(look(1.0, route(upstream_bytes=900), events=[event(70)]))
    traffic.observe(look(2.0, route(upstream_bytes=950)))
    traffic.observe(look(3.0, route(upstream_bytes=5), status=status(started=2000.0)))
    [rates] = traffic.routes
    assert (rates.bytes, list(rates.history), traffic.last_event) == (0, [], 0)


def test_a_minute_is_remembered_and_no_more() -> None:
    traffic = Traffic()
    for second in range(HISTORY + 5):
        traffic.observe(look(float(second), route(upstream_bytes=second * second)))
    [rates] = traffic.routes
    assert len(rates.history) == HISTORY
    assert rates.history[-1] == 2 * second - 1


def test_what_was_seen_stays_while_the_daemon_is_gone() -> None:
    traffic = Traffic()
    traffic.observe(look(1.0, events=[event(3)]))
    traffic.miss("no daemon")
    assert traffic.look is not None
    assert (traffic.trouble, traffic.last_event) == ("no daemon", 3)
    traffic.observe(look(2.0))
    assert traffic.trouble is None


# ---- keys ----


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1bOB", ["up", "down"]),
        (b"\x1b[5~\x1b[6~", ["page up", "page down"]),
        (b"\x1b", ["escape"]),
        (b"ab\x7f\r", ["a", "b", "backspace", "enter"]),
        ("é€".encode(), ["é", "€"]),
        (b"\x1b[1;5Cx", ["x"]),
        (b"\xff\x00", ["\N{REPLACEMENT CHARACTER}"]),
    ],
)
def test_bytes_of_a_terminal_are_keys(data: bytes, names: list[str]) -> None:
    assert list(keys(data)) == names


def panel_with(*numbers: int) -> Panel:
    panel = Panel()
    panel.arrange([connection(number) for number in numbers])
    return panel


def press(panel: Panel, *names: str) -> list[Order]:
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
def test_names_and_ids_ascend_and_numbers_descend(sort: str, numbers: list[int]) -> None:
    panel = Panel()
    press(panel, *"s" * ORDERS.index(sort))
    rows = [connection(number) for number in (2, 3, 1)]
    assert [row["id"] for row in panel.arrange(rows)] == numbers
    press(panel, "r")
    assert [row["id"] for row in panel.arrange(rows)] == numbers[::-1]


def test_a_filter_is_typed_taken_and_cleared() -> None:
    panel = Panel()
    rows = [connection(1), connection(2, client="[2001:db8::1]:9"), connection(3, route="DB")]
    assert press(panel, "/", *"db8x", "backspace", "enter") == [Order("look")]
    assert [row["id"] for row in panel.arrange(rows)] == [2]
    press(panel, "/", "backspace", "enter")
    assert {row["id"] for row in panel.arrange(rows)} == {2, 3}
    press(panel, "/", "x", "escape")
    assert panel.filter == "db"
    press(panel, "escape")
    assert len(panel.arrange(rows)) == 3


def test_the_chosen_connection_stays_chosen_wherever_it_moves() -> None:
    panel = panel_with(3, 2, 1)
    press(panel, "down")
    assert panel.selected == 2
    panel.arrange([connection(1), connection(2), connection(9), connection(8)])
    assert panel.row == 2
    panel.arrange([connection(1), connection(9)])
    assert panel.row == 0


def test_the_choice_does_not_leave_the_table() -> None:
    panel = panel_with(3, 2, 1)
    press(panel, "up")
    assert panel.row == 0
    press(panel, "page down", "down")
    assert panel.row == 2
    press(panel, "home", "end", "page up")
    assert panel.row == 0


def test_a_connection_is_killed_after_a_question() -> None:
    panel = panel_with(3, 2, 1)
    assert press(panel, "down", "k") == []
    assert press(panel, "n") == []
    assert panel.said == "nothing was ended"
    assert press(panel, "k", "y") == [Order("kill", 2)]


def test_the_question_means_the_connection_that_it_names() -> None:
    panel = panel_with(3, 2, 1)
    press(panel, "down", "k")
    panel.arrange([connection(9), connection(1)])  # it ends while the question stands
    assert press(panel, "y") == [Order("kill", 2)]


def test_without_connections_there_is_nothing_to_kill() -> None:
    panel = panel_with()
    assert press(panel, "k", "y") == []
    assert press(panel, "down", "end") == []


def test_quitting_is_no_key_while_a_filter_is_typed() -> None:
    panel = panel_with(1)
    assert press(panel, "/", "q") == []
    assert press(panel, "enter", "q") == [Order("look"), Order("quit")]


# ---- the screen ----


def text_of(traffic: Traffic, panel: Panel, columns: int = 80, rows: int = 24) -> list[str]:
    """The screen on a terminal without colours, a row a line."""
    console = Console(width=columns, height=rows, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(screen(traffic, panel, columns, rows, UNICODE), end="")
    return capture.get().split("\n")


def busy() -> Traffic:
    traffic = Traffic()
    traffic.observe(look(0.0, route(), route("a-database-of-a-name-that-is-long")))
    for second in range(1, 5):
        traffic.observe(
            look(
                float(second),
                route(upstream_bytes=second**2 * 1000, downstream_bytes=second * 2_000_000),
                route(
                    "a-database-of-a-name-that-is-long",
                    state="queued",
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
routes       state      live  new/s fail/s   in/s  out/s          last minute
web          listening     2      0      0   6.8K   1.9M ████████ ████
a-database-… queued        2     12    1.0 488.3K      0 ██       ████
     id route client (3)             state      in    out   rate    idle     age
>123456 web   unix                   open     5.0G      0   1.2M      0s   1d 1h
     17 web   203.0.113.7:40017      open     1.7K      0    170    8.5s     43s
      2 web   [2001:db8:1:2:3:4:5:6… half      200      0     20    1.0s     58s









events
12:34:56 W web: dial_failed: no running VM owns CID 7 no running VM owns CID 7
    no running VM owns CID 7 no running VM owns CID 7
12:34:56 W web: dial_failed: no running VM owns CID 7 no running VM owns CID 7
    no running VM owns CID 7 no running VM owns CID 7
q quit  s sort  r reverse  / filter  p pause  k kill  ? help
"""


def test_the_screen_fits_a_terminal_of_80_by_24_without_colours() -> None:
    shown = text_of(busy(), Panel())
    assert [len(line) for line in shown] == [80] * 24
    assert "\n".join(line.rstrip() for line in shown) + "\n" == SCREEN


@pytest.mark.parametrize(("columns", "rows"), [(72, 16), (80, 24), (132, 43), (300, 100)])
@pytest.mark.parametrize("asking", ["nothing", "help", "kill", "filter"])
def test_the_screen_is_as_large_as_the_terminal(columns: int, rows: int, asking: Any) -> None:
    panel = Panel()
    panel.asking = asking
    shown = text_of(busy(), panel, columns, rows)
    assert [len(line) for line in shown] == [columns] * rows


def test_a_terminal_that_is_too_small_is_told_so() -> None:
    assert "72 columns and 16 rows" in text_of(busy(), Panel(), 71, 16)[0]
    assert "72 columns and 16 rows" in text_of(busy(), Panel(), 72, 15)[0]


def test_more_columns_show_targets_and_whole_names() -> None:
    shown = "\n".join(text_of(busy(), Panel(), 130, 30))
    assert "a-database-of-a-name-that-is-long" in shown
    assert "[2001:db8:1:2:3:4:5:6]:40000" in shown
    assert "vsock:3:80" in shown


def test_every_sign_is_ascii_where_the_terminal_has_no_more() -> None:
    drawn = screen(busy(), Panel(), 80, 24, ASCII).plain
    assert drawn.isascii()
    assert "########" in drawn


def test_routes_that_do_not_fit_leave_room_for_those_that_fail_and_the_busiest() -> None:
    def routes(second: int) -> list[dict[str, Any]]:
        return [
            route("dead", dial_failures={"refused": second}),
            *(route(f"r{number}", upstream_bytes=second * number) for number in range(9)),
        ]

    traffic = Traffic()
    for second in (1, 2):
        traffic.observe(look(float(second), *routes(second)))
    shown = text_of(traffic, Panel())
    assert [line.split()[0] for line in shown[2:7]] == ["routes", "dead", "r8", "r7", "r6"]
    assert "routes 4/10" in shown[2]


def test_the_row_that_is_chosen_is_on_the_screen_and_marked_without_colour() -> None:
    rows = [connection(number) for number in range(1, 60)]
    traffic, panel = Traffic(), Panel()
    traffic.observe(look(1.0, connections=rows, total=5000))
    panel.arrange(rows)
    for key in ("page down", "page down", "page down", "down"):
        panel.press(key)
    shown = text_of(traffic, panel)
    [chosen] = [line for line in shown if line.startswith(">")]
    assert f" {panel.selected} web" in chosen
    assert "client (59 of 5000)" in "".join(shown)


def test_the_second_line_says_what_is_out_of_the_ordinary() -> None:
    traffic, panel = busy(), Panel()
    panel.filter = "web"
    assert "those with 'web'" in text_of(traffic, panel)[1]
    traffic.observe(look(9.0, status=status(not_ready=["draining: 3 connections are left"])))
    assert "not ready: draining: 3 connections are left" in text_of(traffic, panel)[1]
    panel.press("p")
    assert "paused" in text_of(traffic, panel)[1]
    traffic.miss("no daemon: it has ended")
    assert "waiting for the daemon: no daemon: it has ended" in text_of(traffic, panel)[1]


def test_the_last_line_asks_and_answers() -> None:
    traffic, panel = busy(), Panel()
    text_of(traffic, panel)
    panel.press("k")
    assert text_of(traffic, panel)[-1].startswith("end connection 123456? y ends it")
    panel.press("n")
    assert text_of(traffic, panel)[-1].startswith("nothing was ended")
    panel.press("/")
    panel.press("x")
    assert text_of(traffic, panel)[-1].startswith("show only: x_")


# ---- the command ----


def test_what_is_no_terminal_is_told_what_to_do_instead(tmp_path: Path) -> None:
    done = command("top", "--socket", tmp_path / "none")
    assert done.returncode == 1
    assert "connections --watch" in done.stderr
