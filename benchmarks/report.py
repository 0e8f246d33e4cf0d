"""Write the results into docs/benchmarks.md, between its markers, and draw the plots.

    python benchmarks/report.py

Reads build/bench/results.json and, where it is there, build/bench/vsock.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from plan import OURS, REFERENCE
from targets import Table, Verdict, verdicts

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "benchmarks.md"
BEGIN: Final = "<!-- results: benchmarks/report.py writes from here -->\n"
END: Final = "<!-- to here -->\n"

FIGURES: Final = {
    "rate": "per second",
    "cpu_per_unit": "cpu µs",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "p999_us": "p99.9 µs",
    "switches_per_unit": "switches",
    "calls_per_unit": "calls",
}
"""Columns of the table of all figures; each is per unit unless its title says otherwise."""


def main() -> None:
    """Read the results, write the page and draw the plots."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--results", type=Path, default=ROOT / "build/bench/results.json")
    options.add_argument("--vsock", type=Path, default=ROOT / "build/bench/vsock.json")
    options.add_argument("--page", type=Path, default=PAGE)
    chosen = options.parse_args()
    results = json.loads(chosen.results.read_text())
    vsock = json.loads(chosen.vsock.read_text()) if chosen.vsock.exists() else {"rows": {}}
    table, behind = Table(results["rows"]), Table(vsock["rows"])
    before, _, rest = chosen.page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    text = "\n".join(_page(results, table, behind))
    chosen.page.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}")
    _draw(table, chosen.page.parent / "benchmarks")


def _page(results: dict[str, Any], table: Table, vsock: Table) -> Iterator[str]:
    yield "### The targets\n"
    yield from _targets(verdicts(table, vsock))
    yield "\n### Compared with HAProxy\n"
    yield "Units per second, as ratios to HAProxy's: higher is better.\n"
    yield from _ratios(table, "rate")
    yield "\nProcessor time per unit, as ratios to HAProxy's: lower is better.\n"
    yield from _ratios(table, "cpu_per_unit")
    yield "\n![units per second](benchmarks/rate.svg)\n"
    yield "![processor time per unit](benchmarks/cpu.svg)\n"
    yield "![round trips](benchmarks/latency.svg)\n"
    yield "\n### Growth\n"
    yield "Ten round trips of 64 B are in progress at any time, on all live connections in turn.\n"
    yield from _growth(table)
    yield "\n![growth](benchmarks/growth.svg)\n"
    yield "### Idle connections, start, scrapes, threads\n"
    yield from _others(table)
    yield "### All figures\n"
    yield "Per unit: a GB in bulk, a request elsewhere. ± is half the interquartile range of the"
    yield "rounds. The latency of bulk is that of a request of 32 MiB.\n"
    yield from _figures(table)
    if vsock.rows:
        yield "\nAF_VSOCK targets, in a User-Mode Linux kernel, where only ratios are meaningful:\n"
        yield from _figures(vsock)
    yield "\n### The machine\n"
    yield from _machine(results)


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(cells: list[str]) -> Iterator[str]:
    yield _row(cells)
    yield _row(["---", *("---:" for _ in cells[1:])])


def _targets(found: Iterable[Verdict]) -> Iterator[str]:
    yield _row(["measurement", "target", "measured", "result"])
    yield _row(["---", "---", "---:", "---"])
    for verdict in found:
        reached, judged = "not measured", ""
        if verdict.reached is not None:
            reached = f"{_number(verdict.reached)}{verdict.unit}"
            judged = "met" if verdict.short <= 0 else f"**missed by {verdict.short:.0%}**"
        yield _row([verdict.work, verdict.aim, reached, judged])


def _compared(table: Table) -> list[str]:
    """Return the rows of all peers."""
    return [
        row for row in table.rows if row.startswith(("up-", "down-", "trips-", "churn-", "mix"))
    ]


def _names(table: Table) -> list[str]:
    """Return the names of the proxies in any of the rows, in order."""
    names: dict[str, None] = {}
    for row in _compared(table):
        names |= dict.fromkeys(table.rows[row]["samples"])
    return list(names)


def _ratios(table: Table, figure: str) -> Iterator[str]:
    names = [name for name in _names(table) if name != REFERENCE]
    yield from _head(["work", *names])
    for row in _compared(table):
        ratios = (table.ratio(row, name, REFERENCE, figure) for name in names)
        yield _row([table.rows[row]["title"], *map(_number, ratios)])


def _figures(table: Table) -> Iterator[str]:
    yield from _head(["work", "proxy", *FIGURES.values()])
    for row in _compared(table):
        title = table.rows[row]["title"]
        for name in table.rows[row]["samples"]:
            yield _row([title, name, *(_cell(table, row, name, figure) for figure in FIGURES)])
            title = ""
        for name, why in table.rows[row]["lost"].items():
            yield _row([title, name, f"lost bytes in {len(why)} runs: {why[0]}"])


def _cell(table: Table, row: str, name: str, figure: str) -> str:
    median, spread = table.median(row, name, figure), table.spread(row, name, figure)
    if median is not None and figure == "cpu_per_unit":
        median *= 1e6
    return _number(median) + (f" ± {spread:.0%}" if spread is not None else "")


def _growth(table: Table) -> Iterator[str]:
    columns = {"cpu_per_unit": "cpu µs", "p50_us": "p50 µs", "p99_us": "p99 µs"}
    names = (OURS, REFERENCE)
    heads = (f"{name} {column}" for name in names for column in columns.values())
    yield from _head(["live connections", *heads])
    for row in table.rows:
        if row.startswith("growth-"):
            cells = (_cell(table, row, name, figure) for name in names for figure in columns)
            yield _row([row.removeprefix("growth-"), *cells])


def _others(table: Table) -> Iterator[str]:
    """Yield a table for each row with special figures."""
    for row, entry in table.rows.items():
        if row in _compared(table) or row.startswith("growth-"):
            continue
        figures: dict[str, None] = {}
        for samples in entry["samples"].values():
            figures |= dict.fromkeys(samples)
        yield from _head([entry["title"], *(name.replace("_", " ") for name in figures)])
        for name in entry["samples"]:
            yield _row([name, *(_number(table.median(row, name, figure)) for figure in figures)])
        yield ""


def _machine(results: dict[str, Any]) -> Iterator[str]:
    machine = dict(results["machine"])
    yield from (f"- {peer}: {version}" for peer, version in machine.pop("peers").items())
    yield from (f"- {key.replace('_', ' ')}: {value}" for key, value in machine.items())
    lost = {peer: why for peer, why in results["half_close"].items() if why}
    yield from (
        f"- {peer} loses the answer to a half-closed request ({why})" for peer, why in lost.items()
    )


def _number(value: float | None) -> str:
    """Return the number with three significant digits."""
    if value is None:
        return "-"
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _draw(table: Table, folder: Path) -> None:
    try:
        from plots import draw  # noqa: PLC0415 - the tables do without matplotlib
    except ImportError:
        print("no plots: install matplotlib (the extra `bench`)")
        return
    folder.mkdir(exist_ok=True)
    draw(table, _compared(table), [OURS, *(n for n in _names(table) if n != OURS)], folder)


if __name__ == "__main__":
    main()
