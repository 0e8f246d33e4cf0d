"""Draw the plots of docs/benchmarks.md, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("agg")  # no display

import matplotlib.pyplot as plt
from plan import OURS, REFERENCE
from targets import Table

_WIDTH: Final = 0.8  # of a group of bars, where the next group begins at 1
mpl.rcParams["svg.hashsalt"] = "vsockproxy"  # the same figures give the same file


def draw(table: Table, rows: Sequence[str], names: Sequence[str], folder: Path) -> None:
    """Draw all plots into a folder."""
    if not rows:
        return
    for figure, label, file in (
        ("rate", "units per second", "rate"),
        ("cpu_per_unit", "processor time per unit", "cpu"),
    ):
        picture, axes = plt.subplots(figsize=(11, 5))
        _bars(axes, rows, names, lambda r, n, f=figure: table.ratio(r, n, REFERENCE, f))
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_ylabel(f"{label}, HAProxy = 1")
        _save(picture, folder / file)
    _latency(table, [row for row in rows if row.startswith(("trips-", "churn-"))], names, folder)
    _growth(table, folder)


def _bars(axes: Any, groups: Sequence[str], names: Sequence[str], values: Any) -> None:
    """Draw a group of bars for each of `groups`, with a bar for each name."""
    width = _WIDTH / len(names)
    for index, name in enumerate(names):
        places = [group + index * width for group in range(len(groups))]
        heights = [values(group, name) or 0 for group in groups]
        axes.bar(places, heights, width, label=name)
    axes.set_xticks(
        [group + _WIDTH / 2 for group in range(len(groups))], groups, rotation=45, ha="right"
    )
    axes.legend(fontsize="small")
    axes.grid(axis="y", alpha=0.3)


def _latency(table: Table, rows: Sequence[str], names: Sequence[str], folder: Path) -> None:
    picture, (above, below) = plt.subplots(2, figsize=(11, 8), sharex=True)
    for axes, figure, label in ((above, "p50_us", "p50, µs"), (below, "p99_us", "p99, µs")):
        _bars(axes, rows, names, lambda row, name, f=figure: table.median(row, name, f))
        axes.set_yscale("log")
        axes.set_ylabel(label)
    _save(picture, folder / "latency")


def _growth(table: Table, folder: Path) -> None:
    rows = [row for row in table.rows if row.startswith("growth-")]
    connections = [int(row.removeprefix("growth-")) for row in rows]
    picture, axes = plt.subplots(figsize=(7, 4))
    for name in (OURS, REFERENCE):
        costs = [(table.median(row, name, "cpu_per_unit") or 0) * 1e6 for row in rows]
        axes.plot(connections, costs, marker="o", label=name)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("live connections")
    axes.set_ylabel("processor time of a round trip, µs")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(picture, folder / "growth")


def _save(picture: Any, file: Path) -> None:
    picture.tight_layout()
    picture.savefig(file.with_suffix(".svg"), metadata={"Date": None})
    picture.savefig(file.with_suffix(".png"), dpi=110, metadata={"Software": None})
    plt.close(picture)
