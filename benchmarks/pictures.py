"""The README's pictures: `top`, and plots of what the dashboard shows, from one run of the demo.

    make pictures

Runs `vsockproxy demo` with five routes under a light load on the loopback: two that are busy,
one at its limit, one whose guest refuses and, in the middle third, one whose target is gone.
top.svg is the screen of `top` in the last second, metrics.svg the scrapes of all of them.
"""

from __future__ import annotations

import argparse
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple
from urllib.request import urlopen

import matplotlib as mpl

mpl.use("agg")  # no display

import matplotlib.pyplot as plt
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from vsockproxy.admin.client import Client, DaemonUnreachableError
from vsockproxy.top.panel import Panel
from vsockproxy.top.screen import screen
from vsockproxy.top.session import take
from vsockproxy.top.traffic import Traffic

COLUMNS: Final = 100
ROWS: Final = 28
REQUESTS: Final = b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n" * 8

ROUTES: Final = {
    # name: target, clients at a time, seconds between two requests, more settings
    "web": ("demo:80", 8, 0.02, ""),
    "api": ("demo:80", 4, 0.1, ""),
    "database": ("demo:80", 3, 0.3, "max_connections = 2"),
    "debug": ("demo:81", 1, 0.3, ""),
    "backup": ("unix:{folder}/backup.sock", 1, 0.5, ""),
}

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""The samples of one scrape, by name and labels."""


class Scrape(NamedTuple):
    """The metrics at one time, in seconds since the first."""

    time: float
    series: Series


def main() -> int:
    """Run the demo, look at it, and draw."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=int, default=60)
    arguments.add_argument("--folder", type=Path, default=Path("docs/pictures"))
    options = arguments.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as name:
        traffic, scrapes = _watch(Path(name), options.seconds)
    _draw_top(traffic, options.folder / "top.svg")
    _draw_metrics(scrapes, options.folder / "metrics.svg")
    return 0


# ---- the run ----


def _watch(folder: Path, seconds: int) -> tuple[Traffic, list[Scrape]]:
    ports = dict(zip([*ROUTES, "metrics"], _free_ports(len(ROUTES) + 1), strict=True))
    traffic, scrapes = Traffic(), []
    with _demo(folder, ports) as client, _load(folder, ports, seconds):
        started = time.monotonic()
        while (passed := time.monotonic() - started) < seconds:
            traffic.observe(take(client, Panel(), traffic.last_event))
            scrapes.append(Scrape(passed, _scrape(ports["metrics"])))
            time.sleep(1.0)
    return traffic, scrapes


def _free_ports(number: int) -> list[int]:
    """TCP ports where nobody listened a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@contextmanager
def _demo(folder: Path, ports: dict[str, int]) -> Iterator[Client]:
    file = folder / "demo.toml"
    routes = [
        f'[[route]]\nname = "{name}"\nlisten = "127.0.0.1:{ports[name]}"\n'
        f'target = "{target.format(folder=folder)}"\n{more}\n'
        for name, (target, _, _, more) in ROUTES.items()
    ]
    file.write_text(
        f'[guests]\ndemo = {{ mux = "{folder}/guest.sock" }}\n'
        f'[metrics]\nlisten = "127.0.0.1:{ports["metrics"]}"\n'
        f'[admin]\nsocket = "{folder}/admin.sock"\n[defaults]\nhalf_close = "forward"\n'
        + "".join(routes)
    )
    command = [sys.executable, "-m", "vsockproxy", "demo", "--config", str(file)]
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = Client(folder / "admin.sock")
        _until_ready(client)
        yield client
    finally:
        daemon.kill()
        daemon.wait()


def _until_ready(client: Client) -> None:
    for _ in range(100):
        with suppress(DaemonUnreachableError):
            client.get("/v1/status")
            return
        time.sleep(0.1)
    raise TimeoutError("the demo does not start: try `vsockproxy demo` by hand")


@contextmanager
def _load(folder: Path, ports: dict[str, int], seconds: int) -> Iterator[None]:
    """Clients of every route, while the block runs."""
    over = threading.Event()
    tasks = [
        threading.Thread(target=_client, args=(ports[name], pause, over))
        for name, (_, clients, pause, _) in ROUTES.items()
        for _ in range(clients)
    ]
    tasks.append(threading.Thread(target=_backup, args=(folder / "backup.sock", seconds, over)))
    for task in tasks:
        task.start()
    try:
        yield
    finally:
        over.set()
        for task in tasks:
            task.join()


def _client(port: int, pause: float, over: threading.Event) -> None:
    """One connection after the other, each with some requests."""
    while not over.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            for _ in range(random.randint(5, 200)):
                sock.sendall(REQUESTS)
                if not sock.recv(65536) or over.wait(random.random() * pause):
                    break
        over.wait(pause)


def _backup(path: Path, seconds: int, over: threading.Event) -> None:
    """A target that answers, is gone in the middle third, and is there again."""
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(0.2)
            end = time.monotonic() + seconds / 3
            while time.monotonic() < end and not over.is_set():
                with suppress(TimeoutError):
                    _answer(listener.accept()[0])
        path.unlink()
        over.wait(seconds / 3)


def _answer(client: socket.socket) -> None:
    with client, suppress(OSError):
        client.sendall(client.recv(65536))


def _scrape(port: int) -> Series:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        text = page.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# ---- the pictures ----


def _draw_top(traffic: Traffic, file: Path) -> None:
    console = Console(
        record=True, file=StringIO(), width=COLUMNS, height=ROWS, force_terminal=True,
        color_system="truecolor", legacy_windows=False,
    )  # fmt: skip
    console.print(screen(traffic, Panel(), COLUMNS, ROWS))
    console.save_svg(str(file), title="vsockproxy top", unique_id="top")


def _draw_metrics(scrapes: list[Scrape], file: Path) -> None:
    mpl.rcParams["svg.hashsalt"] = "vsockproxy"
    picture, axes = plt.subplots(2, 2, figsize=(12, 6), sharex=True)
    _plot(axes[0][0], "bytes a second", scrapes, "vsockproxy_bytes_total", _rate)
    _plot(axes[0][1], "connections open", scrapes, "vsockproxy_connections_active", _value)
    _plot(axes[1][0], "connections a second", scrapes, "vsockproxy_connections_total", _rate)
    _plot(axes[1][1], "failed dials a second", scrapes, "vsockproxy_dial_failures_total", _rate)
    axes[0][0].set_yscale("symlog", linthresh=100)
    axes[0][0].set_ylim(bottom=0)
    for below in axes[1]:
        below.set_xlabel("seconds")
    picture.tight_layout()
    picture.savefig(file, metadata={"Date": None})
    plt.close(picture)


Reading = Callable[[float, float, float], float]
"""What is drawn of a value, the value before it, and the seconds between them."""


def _rate(now: float, before: float, seconds: float) -> float:
    return (now - before) / seconds


def _value(now: float, _before: float, _seconds: float) -> float:
    return now


def _plot(axes: Any, title: str, scrapes: list[Scrape], name: str, read: Reading) -> None:
    """A line for each series of a metric."""
    for key in sorted({key for scrape in scrapes for key in scrape.series if key[0] == name}):
        values = [
            read(now.series.get(key, 0.0), before.series.get(key, 0.0), now.time - before.time)
            for before, now in pairwise(scrapes)
        ]
        label = " ".join(value for _, value in sorted(key[1], key=lambda pair: pair[0] != "route"))
        axes.plot([scrape.time for scrape in scrapes[1:]], values, label=label, linewidth=1.2)
    axes.set_title(title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    sys.exit(main())
