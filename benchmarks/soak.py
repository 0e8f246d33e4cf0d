"""Hours of bad weather: does the daemon end with what it began with?

    python benchmarks/soak.py [--minutes 60]

Runs a daemon and, on the loopback, all that happens to one in years: clients that finish,
clients that reset in mid-transfer, clients that half-close and wait, targets that refuse,
targets that reset, scrapes, and a reload every second that changes, adds and removes routes.
Prints descriptors and memory as it goes. Exit status 1 when bytes were lost, or when the
daemon, idle again, has more descriptors than before the load, or 10 % more memory than after
its first minute (or the first tenth of a shorter run).
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

WORKERS = 8
REPORT_SECONDS = 10.0


class Weather:
    """The load, and what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stopped = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Be the target: echo, or reset whoever asks for it."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / "target"))
            listener.listen(1024)
            while True:  # until the program ends: this is a daemon thread
                server, _ = listener.accept()
                threading.Thread(target=self._echo, args=(server,), daemon=True).start()

    def _echo(self, server: socket.socket) -> None:
        with server:
            try:
                while data := server.recv(65536):
                    if data.startswith(b"leave"):
                        return
                    server.sendall(data)
            except OSError:
                return

    def work(self, seed: int) -> None:
        """Be one client after another."""
        chance = random.Random(seed)
        while not self.stopped.is_set():
            scene = chance.choice(
                [self.exchange, self.exchange, self.reset, self.leave, self.refused]
            )
            try:
                scene(chance)
            except OSError as error:
                self.count(f"{scene.__name__}: {type(error).__name__}")
            else:
                self.count(scene.__name__)

    def count(self, outcome: str) -> None:
        """Note what happened."""
        with self._lock:
            self.outcomes[outcome] += 1

    def exchange(self, chance: random.Random) -> None:
        """Send, half-close, and want all of it back."""
        data = chance.randbytes(chance.randrange(1, 200_000))
        with self.connect("echo") as client:
            sender = threading.Thread(target=self._send, args=(client, data))
            sender.start()
            received = b""
            while piece := client.recv(65536):
                received += piece
            sender.join()
        if received != data:
            self.faults.append(f"{len(received)} of {len(data)} bytes came back")

    def _send(self, client: socket.socket, data: bytes) -> None:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    def reset(self, chance: random.Random) -> None:
        """Go away in the middle."""
        with self.connect("echo") as client:
            client.sendall(bytes(chance.randrange(1, 100_000)))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def leave(self, _chance: random.Random) -> None:
        """Have the target go away in the middle."""
        with self.connect("echo") as client:
            client.sendall(b"leave" + bytes(50_000))
            client.recv(1)

    def refused(self, _chance: random.Random) -> None:
        """Ask for a target that is not there."""
        with self.connect("nobody") as client:
            client.recv(1)

    def connect(self, route: str) -> socket.socket:
        """A client of a route, which is a Unix socket unless it is the TCP one."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        client.connect(str(self.folder / route))
        return client


def configuration(folder: Path, number: int) -> str:
    """The routes of one moment: two that stay, one whose policy changes, one now and then."""
    lines = [
        "[log]",
        'format = "json"',
        'level = "warning"',
        "[metrics]",
        f'listen = "unix:{folder}/metrics"',
        "[defaults]",
        f'connect_timeout = "{1 + number % 5}s"',
        "[forward]",
        f'"unix:{folder}/echo" = "unix:{folder}/target"',
        f'"unix:{folder}/nobody" = "unix:{folder}/nowhere"',
    ]
    if number % 2:
        lines.append(f'"unix:{folder}/sometimes" = "unix:{folder}/target"')
    return "\n".join(lines)


def scrape(folder: Path) -> bool:
    """Whether the metrics answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(folder / "metrics"))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")
        return client.recv(15).startswith(b"HTTP/1.1 200")


def holds(pid: int) -> tuple[int, int]:
    """Descriptors, and private memory in KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = dict(line.split(":", 1) for line in text.splitlines()[1:])
    kib = sum(int(sizes[key].split()[0]) for key in ("Private_Clean", "Private_Dirty"))
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), kib


def settled(pid: int, folder: Path) -> tuple[int, int]:
    """What it holds once its connections have ended."""
    for _ in range(100):
        if scrape_value(folder, 'vsockproxy_connections_active{route="') == 0:
            break
        time.sleep(0.1)
    return holds(pid)


def scrape_value(folder: Path, start: str) -> float:
    """The sum of a metric over its labels."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "metrics"))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(start))


def main() -> int:
    """Run, report, judge."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=60.0)
    seconds = options.parse_args().minutes * 60
    with TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "routes.toml"
        file.write_text(configuration(folder, 0))
        weather = Weather(folder)
        threading.Thread(target=weather.serve, daemon=True).start()
        command = [sys.executable, "-m", "vsockproxy", "run", "-c", str(file)]
        log = folder / "log"
        with log.open("w") as output, subprocess.Popen(command, stderr=output) as process:
            wait_until_it_answers(process, folder)
            verdict = run(weather, process, file, seconds)
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
        print(f"exit status {status}")
        for event, number in told(log).most_common():
            print(f"{number:8} log lines: {event}")
        return verdict or status


def told(log: Path) -> Counter[str]:
    """How often each event was logged."""
    events: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        record = json.loads(line)
        events[f"{record['event']} {record.get('reason', '')}".strip()] += 1
    return events


def wait_until_it_answers(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Return when the daemon serves; it binds everything before it answers anything."""
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit("the daemon ended")
        try:
            if scrape(folder):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the daemon does not answer")


def run(weather: Weather, process: subprocess.Popen[bytes], file: Path, seconds: float) -> int:
    """The soak itself: 0 when nothing was lost and nothing has grown."""
    reload(process, file, 0)
    idle, _ = settled(process.pid, weather.folder)
    workers = [threading.Thread(target=weather.work, args=(n,)) for n in range(WORKERS)]
    for worker in workers:
        worker.start()
    started = reported = time.monotonic()
    warm = 0
    number = 0
    while (passed := time.monotonic() - started) < seconds:
        number += 1
        reload(process, file, number)
        if not warm and passed > min(60, seconds / 10):
            _, warm = holds(process.pid)
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            files, kib = holds(process.pid)
            print(f"{passed:6.0f} s {files:5} descriptors {kib:8} KiB {dict(weather.outcomes)}")
    weather.stopped.set()
    for worker in workers:
        worker.join()
    reload(process, file, 0)
    files, kib = settled(process.pid, weather.folder)
    print(f"began with {idle} descriptors, and {warm} KiB once warm")
    print(f"ended with {files} descriptors and {kib} KiB, after {number} reloads")
    print(f"clients: {dict(weather.outcomes)}")
    for fault in weather.faults[:10]:
        print(f"LOST: {fault}")
    return int(bool(weather.faults) or files > idle or kib > warm * 1.1)


def reload(process: subprocess.Popen[bytes], file: Path, number: int) -> None:
    """Put another configuration in place, and give it a second."""
    file.write_text(configuration(file.parent, number))
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    scrape(file.parent)


if __name__ == "__main__":
    sys.exit(main())
