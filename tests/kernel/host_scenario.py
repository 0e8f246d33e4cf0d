"""The scenario of test_host_and_guest.py, which runs on the host kernel and records facts.

Run as ``python host_scenario.py SCRATCH GUEST_COMMAND...``: starts the guest and the daemon,
connects one client after the other, and writes a JSON line of facts for each step to
SCRATCH/facts.  The assertions are in test_host_and_guest.py.
"""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Thread
from time import monotonic
from typing import Final
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

ROUTES: Final = {
    "digest": (8080, "3:9000"),
    "source": (8081, "3:9001"),
    "echo": (8082, "3:9002"),
    "out": (8083, "3:9003"),
    "nowhere": (8084, "77:9000"),
    "closed": (8085, "3:9999"),
    "named": (8086, "web:9002"),
}
EARLY: Final = (8087, "3:9002")
"""A route with `wait_for_guest`: its clients are held until the guest is up."""
IN_SOCKET: Final = "/run/guests.sock"
WEB_PORT: Final = 7080
CONNECT_TIMEOUT: Final = 4
MOVED_CID: Final = 4
UPLOAD, DOWNLOAD, ECHO, OUT = 4_000_001, 8_000_001, 1_000_001, 2_000_001
"""Bytes of each transfer; none is a multiple of a buffer's size."""

_TIMEOUT: Final = 240  # seconds; the host is emulated, and the guest twice

_CONFIG: Final = f"""
[log]
format = "json"
[metrics]
listen = "127.0.0.1:9490"
[defaults]
connect_timeout = "{CONNECT_TIMEOUT}s"
[guests]
web = {{ qmp = "/run/guest.qmp" }}
[[route]]
name = "names-in"
listen = "unix:{IN_SOCKET}"
by = "mux"
to = [{{ name = "*", target = "{{1}}:{{port}}" }}]
[[route]]
name = "names-out"
listen = "vsock::1080"
by = "proxy"
target_allow = [
    {{ pattern = "localhost:{WEB_PORT}", from = "web" }},
    {{ pattern = "127.0.0.1:{WEB_PORT}", from = "web" }},
]
[[route]]
name = "from-guest"
listen = "vsock::7000"
target = "tcp:127.0.0.1:7001"
[[route]]
name = "early"
listen = "127.0.0.1:{EARLY[0]}"
target = "{EARLY[1]}"
wait_for_guest = {_TIMEOUT}
"""
_CURL: Final = f"""\
exec 2>&1
http_proxy=http://127.0.0.1:1080 curl -sS http://localhost:{WEB_PORT}/page http://example.com/ \
    --next -sS --proxy socks5h://127.0.0.1:1080 http://localhost:{WEB_PORT}/page http://192.0.2.1/
echo "status $?"
"""
"""One process asks for a page and for a name that is denied, in both protocols of a proxy.

The guest has no network: each of them goes to its socat, and by vsock to the host.
"""

_PATTERN: Final = bytes((i * 31 + i // 256) % 256 for i in range(1 << 16))

Digest = list[int]
Facts = dict[str, object]


class Program:
    """A process and the lines that it prints."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._lines: list[str] = []
        self._changed = Condition()
        Thread(target=self._read, daemon=True).start()

    def line(self, matches: Callable[[str], bool]) -> str:
        """Return the first line that matches, printed already or later; raise TimeoutError."""
        with self._changed:
            self._changed.wait_for(lambda: any(map(matches, self._lines)), _TIMEOUT)
            for line in filter(matches, self._lines):
                return line
            raise TimeoutError(f"the expected line was not printed within {_TIMEOUT} s")

    def lines(self) -> list[str]:
        """Return every line printed so far."""
        with self._changed:
            return list(self._lines)

    def tail(self) -> str:
        """Return the last 50 lines."""
        with self._changed:
            return "".join(self._lines[-50:])

    def terminate(self) -> int:
        """Send SIGTERM, wait, and return the exit status."""
        self._process.terminate()
        return self._process.wait(_TIMEOUT)

    def kill(self) -> None:
        """Send SIGKILL and wait."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line.decode(errors="replace"))
                self._changed.notify_all()


class Daemon(Program):
    """The daemon with the routes above; its log is JSON."""

    def __init__(self, scratch: Path) -> None:
        config = scratch / "vsockproxy.toml"
        routes = [
            f'[[route]]\nname = "{name}"\nlisten = "127.0.0.1:{port}"\ntarget = "{target}"\n'
            for name, (port, target) in ROUTES.items()
        ]
        config.write_text(_CONFIG + "".join(routes))
        super().__init__([sys.executable, "-m", "vsockproxy", "run", "-c", str(config)])

    def event(self, **values: object) -> Facts:
        """Return the first event with these values, logged already or later."""

        def matches(line: str) -> bool:
            return line.startswith("{") and values.items() <= json.loads(line).items()

        return dict(json.loads(self.line(matches)))

    def last_event(self, **values: object) -> Facts:
        """Return the last event logged so far with these values; wait for the first."""
        self.event(**values)
        events = (json.loads(line) for line in self.lines() if line.startswith("{"))
        return [dict(event) for event in events if values.items() <= event.items()][-1]


class Guest(Program):
    """The guest; QEMU prints its console."""

    def wait_until_powered(self) -> None:
        """Wait for the kernel's first line: QEMU owns the CID, no driver answers yet."""
        self.line(lambda _: True)

    def wait_until_ready(self) -> None:
        """Wait until the guest's server listens."""
        self.line(lambda line: "guest: ready" in line)


class Scenario:
    """The steps; each returns its facts."""

    def __init__(self, daemon: Daemon, scratch: Path, guest_command: list[str]) -> None:
        self._scratch = scratch
        self._daemon = daemon
        self._guest_command = guest_command
        self._guest = Guest(guest_command)
        self._early: socket.socket | None = None

    def early_client_connects(self) -> Facts:
        """A client sends its request and a FIN while the guest boots, and is held."""
        self._early = socket.create_connection(("127.0.0.1", EARLY[0]), timeout=_TIMEOUT)
        send_all(self._early, b"early bird")
        down = self._daemon.event(event="target_down", route="early")
        return {"reason": down["reason"], "held": held_clients()}

    def early_client_is_served(self) -> Facts:
        """The guest listens now, and the held client gets its answer."""
        assert self._early is not None
        with self._early as sock:
            received = read_to_end(sock).decode()
        access = self._access("early")
        up = self._daemon.event(event="target_up", route="early")
        return {"received": received, "up": up, "held": held_clients()} | access

    def no_such_cid(self) -> Facts:
        return self._failed_dial("nowhere")

    def booting_guest(self) -> Facts:
        self._guest.wait_until_powered()
        return self._failed_dial("digest")

    def refused_port(self) -> Facts:
        self._guest.wait_until_ready()
        return self._failed_dial("closed")

    def upload(self) -> Facts:
        data = pattern(UPLOAD)
        with client("digest") as sock:
            send_all(sock, data)
            answer = read_to_end(sock)
        return {"guest_saw": digest_of(answer), "sent": digest(data)} | self._access("digest")

    def download(self) -> Facts:
        with client("source") as sock:
            sock.sendall(b"%d\n" % DOWNLOAD)
            data = read_to_end(sock)
        return {"received": digest(data), "expected": digest(pattern(DOWNLOAD))} | self._access(
            "source"
        )

    def echo(self) -> Facts:
        return echoed("echo") | self._access("echo")

    def guest_connects_to_the_host(self) -> Facts:
        with socket.create_server(("127.0.0.1", 7001)) as server:
            host_service = Thread(target=answer_with_digest, args=(server,))
            host_service.start()
            with client("out") as sock:
                sock.sendall(b"%d\n" % OUT)
                answer = read_to_end(sock)
            host_service.join()
        self._access("out")
        return {"host_saw": digest_of(answer), "sent": digest(pattern(OUT))} | self._access(
            "from-guest"
        )

    def ssh_to_the_guest(self) -> Facts:
        """Run a command in the guest, by its sshd; its clients reach what the host allows."""
        config = self._scratch / "vsockproxy.toml"
        connect = f"{sys.executable} -m vsockproxy connect -c {config} --domain vm %h:%p"
        options = {"ProxyCommand": connect, "UserKnownHostsFile": "/run/known"}
        # The default, sntrup761x25519, takes ten times as long where processors are emulated.
        options |= {"KexAlgorithms": "curve25519-sha256"}
        options |= {"StrictHostKeyChecking": "no", "BatchMode": "yes"}
        words = [word for pair in options.items() for word in ("-o", "=".join(pair))]
        line = ["ssh", "-F", "none", "-i", f"{self._scratch}/client", *words, "root@web.vm", _CURL]
        with self._web_server():
            done = subprocess.run(
                line, capture_output=True, text=True, check=False, timeout=_TIMEOUT
            )
        decided = [
            self._daemon.last_event(event="request_decided", route="names-out", asked=asked)
            for asked in (f"localhost:{WEB_PORT}", "example.com:80", "192.0.2.1:80")
        ]
        lines = done.stdout.splitlines()
        return {"status": done.returncode, "lines": lines, "errors": done.stderr, "log": decided}

    def sshd_by_the_name_of_its_guest(self) -> Facts:
        """Connect as to a VMM's socket that is the whole host's."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_TIMEOUT)
            sock.connect(IN_SOCKET)
            sock.sendall(b"CONNECT web 22\n")
            lines = sock.makefile("rb")
            answer = [lines.readline().decode() for _ in range(2)]
        decided = self._daemon.event(event="request_decided", route="names-in")
        return {"lines": answer, "log": decided}

    @contextmanager
    def _web_server(self) -> Iterator[None]:
        """Serve the files of ``web`` in the scratch folder."""
        handler = partial(SimpleHTTPRequestHandler, directory=str(self._scratch / "web"))
        with ThreadingHTTPServer(("127.0.0.1", WEB_PORT), handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            yield
            server.shutdown()

    def counters(self) -> Facts:
        return {"samples": list(scrape())}

    def killed_guest(self) -> Facts:
        with client("source") as busy, client("echo") as idle:
            idle.sendall(b"x")
            idle.recv(1)
            busy.sendall(b"%d\n" % 2**30)
            busy.recv(1)
            self._guest.kill()
            ends = {"busy": end_of(busy), "idle": end_of(idle)}
        reset = {"event": "connection_closed", "reason": "target_reset"}
        logged = [self._daemon.event(**reset, route=route) for route in ("source", "echo")]
        return {"client_saw": ends, "logged": logged}

    def dead_guest(self) -> Facts:
        return self._failed_dial("out")

    def named_guest(self) -> Facts:
        """Use the route whose guest is found by its QEMU monitor."""
        facts = echoed("named")
        found = self._daemon.last_event(event="guest_found")
        return facts | {"at": found["at"]}

    def guest_not_found(self) -> Facts:
        return self._failed_dial("named")

    def moved_guest(self) -> Facts:
        """Start the guest again with another CID and the same monitor, without the programs."""
        words = self._guest_command
        for before, after in (
            ("guest-cid=3", f"guest-cid={MOVED_CID}"),
            ("programs.cpio", "bare.cpio"),
            ("console=ttyS0", "console=ttyS0 quiet"),  # an emulated serial port is slow
        ):
            words = [word.replace(before, after) for word in words]
        self._guest = Guest(words)
        self._guest.wait_until_ready()
        return self.named_guest() | {"samples": list(scrape())}

    def stop(self) -> Facts:
        return {"status": self._daemon.terminate()}

    def end(self) -> None:
        """Kill the guest, whichever step failed."""
        self._guest.kill()

    def evidence(self) -> str:
        """Return the last lines of the daemon and the guest."""
        return f"--- daemon ---\n{self._daemon.tail()}\n--- guest ---\n{self._guest.tail()}"

    def _failed_dial(self, route: str) -> Facts:
        started = monotonic()
        try:
            with client(route) as sock:
                outcome = end_of(sock)
        except ConnectionResetError:  # the reset arrived before connect(2) returned
            outcome = "ECONNRESET"
        seconds = monotonic() - started
        logged = self._daemon.event(event="dial_failed", route=route)
        return {"client_saw": outcome, "seconds": seconds, "logged": logged}

    def _access(self, route: str) -> Facts:
        return {
            "logged": self._daemon.event(event="connection_closed", route=route, reason="finished")
        }


def client(route: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", ROUTES[route][0]), timeout=_TIMEOUT)


def echoed(route: str) -> Facts:
    """Send data through a route to the guest's echo service; return what came back."""
    data = pattern(ECHO)
    with client(route) as sock:
        writer = Thread(target=send_all, args=(sock, data))
        writer.start()
        returned = read_to_end(sock)
        writer.join()
    return {"received": digest(returned), "sent": digest(data)}


def pattern(size: int) -> bytes:
    return (_PATTERN * (size // len(_PATTERN) + 1))[:size]


def digest(data: bytes) -> Digest:
    return [len(data), zlib.crc32(data)]


def digest_of(answer: bytes) -> Digest:
    """Return the numbers of an answer "BYTES CRC32"."""
    return [int(number) for number in answer.split()]


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send everything and the FIN."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def read_to_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 18), b""))


def end_of(sock: socket.socket) -> str:
    """Read to the end; return ``EOF``, or an errno's name."""
    try:
        read_to_end(sock)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    return "EOF"


def answer_with_digest(server: socket.socket) -> None:
    sock, _ = server.accept()
    with sock:
        sock.sendall(b"%d %d\n" % tuple(digest(read_to_end(sock))))


def held_clients() -> float:
    """Return the number of clients that the early route holds."""
    return next(
        value
        for name, labels, value in scrape()
        if name == "vsockproxy_clients_held" and labels["route"] == "early"
    )


def scrape() -> Iterator[tuple[str, dict[str, str], float]]:
    with urlopen("http://127.0.0.1:9490/metrics", timeout=_TIMEOUT) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


@contextmanager
def started(scratch: Path, guest_command: list[str]) -> Iterator[Scenario]:
    daemon = Daemon(scratch)
    scenario = Scenario(daemon, scratch, guest_command)
    try:
        daemon.event(event="ready")
        yield scenario
    finally:
        scenario.end()
        daemon.kill()


def run(scratch: Path, guest_command: list[str]) -> None:
    """Run every step; one that fails records its traceback, and the next one runs."""
    with started(scratch, guest_command) as scenario, (scratch / "facts").open("w") as file:
        steps: list[Callable[[], Facts]] = [
            *(scenario.early_client_connects, scenario.no_such_cid, scenario.booting_guest),
            *(scenario.refused_port, scenario.early_client_is_served),
            *(
                scenario.upload,
                scenario.download,
                scenario.echo,
                scenario.guest_connects_to_the_host,
            ),
            *(scenario.ssh_to_the_guest, scenario.sshd_by_the_name_of_its_guest),
            *(scenario.named_guest, scenario.counters, scenario.killed_guest, scenario.dead_guest),
            *(scenario.guest_not_found, scenario.moved_guest, scenario.stop),
        ]
        for step in steps:
            began = monotonic()
            try:
                facts = step()
            except (OSError, ValueError, subprocess.SubprocessError):
                facts = {"error": traceback.format_exc() + scenario.evidence()}
            facts |= {"step": step.__name__, "took": monotonic() - began}
            file.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
