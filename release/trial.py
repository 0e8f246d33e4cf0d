"""Serve a route and its metrics with an installed vsockproxy, as in a user's first minute.

    trial.py native|portable COMMAND...

COMMAND starts vsockproxy: its path, or a Python with ``-m vsockproxy``.  Fails if the pump is
another one, if a byte is lost, or if the daemon does not end with status 0.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Final

TIMEOUT: Final = 60.0
"""Seconds for each wait; an emulated processor needs ten for a start."""

DATA: Final = os.urandom(1 << 20)


def try_out(pump: str, command: Sequence[str]) -> str:
    """Return a line that says what was tried; exit with the reason if it fails."""
    version = subprocess.check_output([*command, "version"], text=True, timeout=TIMEOUT)
    if f"\npump: {pump}" not in version:
        sys.exit(f"trial: the pump is not {pump}:\n{version}")
    with socket.create_server(("127.0.0.1", 0)) as service:
        route, metrics = _free_ports(2)
        threading.Thread(target=_echo_once, args=(service,), daemon=True).start()
        target = f"tcp:127.0.0.1:{service.getsockname()[1]}"
        options = ["forward", str(route), target, "--metrics", f"127.0.0.1:{metrics}"]
        with _daemon([*command, *options]) as seconds:
            if _echoed(route) != DATA:
                sys.exit("trial: the route returned other bytes")
            page = f"http://127.0.0.1:{metrics}/metrics"
            counted = urllib.request.urlopen(page, timeout=TIMEOUT).read().decode()
    if not re.search(r"(?m)^vsockproxy_connections_total\{.*\} 1(\.0)?$", counted):
        sys.exit(f"trial: the metrics do not count the connection:\n{counted}")
    name, python, _ = version.splitlines()[:3]
    return f"{name}, {python}, {pump} pump: ready after {seconds:.1f} s, 1 MiB echoed and counted"


@contextmanager
def _daemon(command: Sequence[str]) -> Iterator[float]:
    """Run the daemon, which must end with status 0; yield the seconds until it was ready."""
    began, log = monotonic(), list[str]()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        assert process.stderr is not None
        try:
            for line in process.stderr:
                log.append(line)
                if "event=ready" in line:
                    yield monotonic() - began
                    process.send_signal(signal.SIGTERM)
        finally:
            watchdog.cancel()
            process.kill()
    if process.returncode != 0:
        sys.exit(f"trial: the daemon ended with status {process.returncode}:\n{''.join(log)}")


def _echo_once(service: socket.socket) -> None:
    client, _ = service.accept()
    with client:
        while data := client.recv(1 << 16):
            client.sendall(data)


def _echoed(port: int) -> bytes:
    """Return what comes back for `DATA`, to the end."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as client:

        def send() -> None:
            client.sendall(DATA)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
        sender.join()
        return answer


def _free_ports(count: int) -> list[int]:
    """Return TCP ports of the loopback that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


if __name__ == "__main__":
    print(try_out(sys.argv[1], sys.argv[2:]))
