"""The load of the soak test: clients, targets and reloads on the loopback."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections import Counter
from pathlib import Path

WORKERS = 8
# Of the loopback's network, and this process's: another run may listen beside it.
ADDRESS = ("127.77.{}.{}".format(*divmod(os.getpid() % 0x10000, 0x100)), 20000)

FORBIDDEN = frozenset({"exchange", "exchange_tcp", "reset", "reset_tcp"})
"""The scenes in which an error means that a client was refused or its stream truncated."""


class Weather:
    """The load and its outcomes.

    Attributes:
      outcomes: how often each scene was played, and each error in one that may have some.
      faults: what a client must never see, as sentences.
    """

    def __init__(self, folder: Path) -> None:
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self._folder = folder
        self._workers: list[threading.Thread] = []
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def start(self) -> None:
        """Start the clients."""
        self._stopped.clear()
        self._workers = [
            threading.Thread(target=self._work, args=(random.randrange(2**32),))
            for _ in range(WORKERS)
        ]
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        """Wait until the last client has finished."""
        self._stopped.set()
        for worker in self._workers:
            worker.join()

    def _serve(self) -> None:
        """Serve as the target: echo, or close on request."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._folder / "target"))
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

    def _work(self, seed: int) -> None:
        """Run one client after another."""
        chance = random.Random(seed)
        scenes = [self.exchange, self.reset, self.leave, self.refused]
        rare = [self.exchange_tcp, self.reset_tcp]
        while not self._stopped.is_set():
            scene = chance.choices([*scenes, *rare], weights=[8, 4, 4, 4, 1, 1])[0]
            try:
                scene(chance)
            except OSError as error:
                self._note(scene.__name__, error)
            else:
                self._count(scene.__name__)

    def _note(self, scene: str, error: OSError) -> None:
        outcome = f"{scene}: {type(error).__name__}"
        self._count(outcome)
        if scene in FORBIDDEN or isinstance(error, ConnectionRefusedError | FileNotFoundError):
            self.faults.append(outcome)

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def exchange(self, chance: random.Random) -> None:
        """Send, half-close, and expect all bytes back."""
        self._exchange(self._connect("echo"), chance)

    def exchange_tcp(self, chance: random.Random) -> None:
        """Do the same over TCP."""
        self._exchange(socket.create_connection(ADDRESS, timeout=30), chance)

    def _exchange(self, client: socket.socket, chance: random.Random) -> None:
        data = chance.randbytes(chance.randrange(1, 200_000))
        with client:
            sender = threading.Thread(target=self._send, args=(client, data))
            sender.start()
            try:
                received = b"".join(iter(lambda: client.recv(65536), b""))
            finally:
                sender.join()
        if received != data:
            self.faults.append(f"{len(received)} of {len(data)} bytes came back")

    def _send(self, client: socket.socket, data: bytes) -> None:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.faults.append(f"sending: {error}")

    def reset(self, chance: random.Random) -> None:
        """Close in mid-transfer with bytes unread, as a killed client does."""
        self._reset(self._connect("echo"), chance)

    def reset_tcp(self, chance: random.Random) -> None:
        """Do the same over TCP, with a reset."""
        self._reset(socket.create_connection(ADDRESS, timeout=30), chance)

    def _reset(self, client: socket.socket, chance: random.Random) -> None:
        with client:
            client.sendall(bytes(chance.randrange(1, 100_000)))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def leave(self, _chance: random.Random) -> None:
        """Have the target close in mid-transfer."""
        with self._connect("echo") as client:
            client.sendall(b"leave" + bytes(50_000))
            client.recv(1)

    def refused(self, _chance: random.Random) -> None:
        """Connect to a route whose target does not exist."""
        with self._connect("absent") as client:
            client.recv(1)

    def _connect(self, route: str) -> socket.socket:
        """Connect to one of the routes that listen on Unix sockets."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        client.connect(str(self._folder / route))
        return client


def configuration(folder: Path, number: int) -> str:
    """Return the routes of reload ``number``.

    Three have a new policy, not direct at every third reload; a fourth exists if it is odd.
    """
    lines = [
        "[log]",
        'format = "json"',
        'level = "warning"',
        "[metrics]",
        f'listen = "unix:{folder}/metrics"',
        "[defaults]",
        f'connect_timeout = "{1 + number % 5}s"',
        f'direct = "{"off" if number % 3 == 2 else "auto"}"',
        "[forward]",
        f'"unix:{folder}/echo" = "unix:{folder}/target"',
        f'"{ADDRESS[0]}:{ADDRESS[1]}" = "unix:{folder}/target"',
        f'"unix:{folder}/absent" = "unix:{folder}/nowhere"',
    ]
    if number % 2:
        lines.append(f'"unix:{folder}/sometimes" = "unix:{folder}/target"')
    return "\n".join(lines)


def active_connections(folder: Path) -> float:
    """Return the number of open connections of all routes, from the daemon's metrics."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(folder / "metrics"))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    shown = [
        line for line in text.splitlines() if line.startswith("vsockproxy_connections_active{")
    ]
    if not shown:
        raise SystemExit(f"no connections in the metrics: {text[:200]!r}")
    return sum(float(line.split()[-1]) for line in shown if 'route="' in line)
