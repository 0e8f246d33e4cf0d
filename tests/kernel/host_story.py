"""What happens on the host of the host-and-guest test, told as facts.

Run there as ``python host_story.py SCRATCH GUEST_COMMAND...``: starts the guest and the
daemon, plays one client after the other, and writes a JSON line of facts for each step to
SCRATCH/story.  It judges nothing; test_host_and_guest.py does.
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
"""A route whose clients wait for the guest."""
CONNECT_TIMEOUT: Final = 4
MOVED_CID: Final = 4
UPLOAD, DOWNLOAD, ECHO, OUT = 4_000_001, 8_000_001, 1_000_001, 2_000_001
"""Bytes of each transfer; not multiples of any buffer."""

_PATIENCE: Final = 240  # seconds; everything here is emulated, the guest twice

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
name = "from-guest"
listen = "vsock::7000"
target = "tcp:127.0.0.1:7001"
[[route]]
name = "early"
listen = "127.0.0.1:{EARLY[0]}"
target = "{EARLY[1]}"
wait_for_guest = {_PATIENCE}
"""
_PATTERN: Final = bytes((i * 31 + i // 256) % 256 for i in range(1 << 16))

Digest = list[int]
Facts = dict[str, object]


class Program:
    """A process, and the lines that it prints."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._lines: list[str] = []
        self._news = Condition()
        Thread(target=self._read, daemon=True).start()

    def line(self, wanted: Callable[[str], bool]) -> str:
        """The first line, printed or to come, that is wanted; raises TimeoutError."""
        with self._news:
            self._news.wait_for(lambda: any(map(wanted, self._lines)), _PATIENCE)
            for line in filter(wanted, self._lines):
                return line
            raise TimeoutError("a line that was waited for was not printed")

    def lines(self) -> list[str]:
        """Everything that it has printed so far."""
        with self._news:
            return list(self._lines)

    def tail(self) -> str:
        """The last lines that it printed."""
        with self._news:
            return "".join(self._lines[-50:])

    def terminate(self) -> int:
        """Ask it to end; its exit status."""
        self._process.terminate()
        return self._process.wait(_PATIENCE)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._lines.append(line.decode(errors="replace"))
                self._news.notify_all()


class Daemon(Program):
    """The daemon, which logs events as JSON."""

    def __init__(self, scratch: Path) -> None:
        config = scratch / "vsockproxy.toml"
        routes = [
            f'[[route]]\nname = "{name}"\nlisten = "127.0.0.1:{port}"\ntarget = "{target}"\n'
            for name, (port, target) in ROUTES.items()
        ]
        config.write_text(_CONFIG + "".join(routes))
        super().__init__([sys.executable, "-m", "vsockproxy", "run", "-c", str(config)])

    def event(self, **wanted: object) -> Facts:
        """The first event, logged or to come, with these values."""

        def is_wanted(line: str) -> bool:
            return line.startswith("{") and wanted.items() <= json.loads(line).items()

        return dict(json.loads(self.line(is_wanted)))

    def last_event(self, **wanted: object) -> Facts:
        """The last event of those logged so far with these values."""
        self.event(**wanted)
        events = (json.loads(line) for line in self.lines() if line.startswith("{"))
        return [dict(event) for event in events if wanted.items() <= event.items()][-1]


class Guest(Program):
    """The guest, whose console is what QEMU prints."""

    def wait_until_powered(self) -> None:
        """Until its kernel says a word: the CID is taken, no driver answers yet."""
        self.line(lambda _: True)

    def wait_until_ready(self) -> None:
        """Until its server listens."""
        self.line(lambda line: "guest: ready" in line)


class Story:
    """The steps: each returns its facts."""

    def __init__(self, daemon: Daemon, guest_command: list[str]) -> None:
        self._daemon = daemon
        self._guest_command = guest_command
        self._guest = Guest(guest_command)
        self._early: socket.socket | None = None

    def early_client_comes(self) -> Facts:
        """A client says all that it has to say while the guest boots; nobody reads it yet."""
        self._early = socket.create_connection(("127.0.0.1", EARLY[0]), timeout=_PATIENCE)
        send_all(self._early, b"early bird")
        down = self._daemon.event(event="target_down", route="early")
        return {"reason": down["reason"], "waiting": waiting()}

    def early_client_is_served(self) -> Facts:
        """The guest listens by now."""
        assert self._early is not None
        with self._early as sock:
            received = read_to_end(sock).decode()
        access = self._access("early")
        up = self._daemon.event(event="target_up", route="early")
        return {"received": received, "up": up, "waiting": waiting()} | access

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
        return {"received": digest(data), "wanted": digest(pattern(DOWNLOAD))} | self._access(
            "source"
        )

    def echo(self) -> Facts:
        data = pattern(ECHO)
        with client("echo") as sock:
            writer = Thread(target=send_all, args=(sock, data))
            writer.start()
            returned = read_to_end(sock)
            writer.join()
        return {"received": digest(returned), "sent": digest(data)} | self._access("echo")

    def out_of_the_guest(self) -> Facts:
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
        """By the route that knows no CID, only the monitor."""
        data = pattern(ECHO)
        with client("named") as sock:
            writer = Thread(target=send_all, args=(sock, data))
            writer.start()
            returned = read_to_end(sock)
            writer.join()
        found = self._daemon.last_event(event="guest_found")
        return {"received": digest(returned), "sent": digest(data), "at": found["at"]}

    def lost_guest(self) -> Facts:
        return self._failed_dial("named")

    def moved_guest(self) -> Facts:
        """The guest starts again with another CID, and its monitor is where it was."""
        here, there = "guest-cid=3", f"guest-cid={MOVED_CID}"
        self._guest = Guest([word.replace(here, there) for word in self._guest_command])
        self._guest.wait_until_ready()
        return self.named_guest() | {"samples": list(scrape())}

    def stop(self) -> Facts:
        return {"status": self._daemon.terminate()}

    def end(self) -> None:
        """End the guest, however far the story came."""
        self._guest.kill()

    def last_words(self) -> str:
        """The end of what the daemon and the guest printed."""
        return f"--- daemon ---\n{self._daemon.tail()}\n--- guest ---\n{self._guest.tail()}"

    def _failed_dial(self, route: str) -> Facts:
        started = monotonic()
        try:
            with client(route) as sock:
                saw = end_of(sock)
        except ConnectionResetError:  # the reset was here before connect(2) returned
            saw = "ECONNRESET"
        seconds = monotonic() - started
        logged = self._daemon.event(event="dial_failed", route=route)
        return {"client_saw": saw, "seconds": seconds, "logged": logged}

    def _access(self, route: str) -> Facts:
        return {
            "logged": self._daemon.event(event="connection_closed", route=route, reason="finished")
        }


def client(route: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", ROUTES[route][0]), timeout=_PATIENCE)


def pattern(size: int) -> bytes:
    return (_PATTERN * (size // len(_PATTERN) + 1))[:size]


def digest(data: bytes) -> Digest:
    return [len(data), zlib.crc32(data)]


def digest_of(answer: bytes) -> Digest:
    """What an answer "BYTES CRC32" says."""
    return [int(number) for number in answer.split()]


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send everything and the EOF."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def read_to_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 18), b""))


def end_of(sock: socket.socket) -> str:
    """How a connection ends, in errno's word or ``EOF``."""
    try:
        read_to_end(sock)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    return "EOF"


def answer_with_digest(server: socket.socket) -> None:
    sock, _ = server.accept()
    with sock:
        sock.sendall(b"%d %d\n" % tuple(digest(read_to_end(sock))))


def waiting() -> float:
    """How many clients of the early route are held."""
    return next(
        value
        for name, labels, value in scrape()
        if name == "vsockproxy_clients_held" and labels["route"] == "early"
    )


def scrape() -> Iterator[tuple[str, dict[str, str], float]]:
    with urlopen("http://127.0.0.1:9490/metrics", timeout=_PATIENCE) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


@contextmanager
def started(scratch: Path, guest_command: list[str]) -> Iterator[Story]:
    daemon = Daemon(scratch)
    story = Story(daemon, guest_command)
    try:
        daemon.event(event="ready")
        yield story
    finally:
        story.end()
        daemon.kill()


def tell(scratch: Path, guest_command: list[str]) -> None:
    with started(scratch, guest_command) as story, (scratch / "story").open("w") as told:
        steps: list[Callable[[], Facts]] = [
            *(story.early_client_comes, story.no_such_cid, story.booting_guest),
            *(story.refused_port, story.early_client_is_served),
            *(story.upload, story.download, story.echo, story.out_of_the_guest),
            *(story.named_guest, story.counters, story.killed_guest, story.dead_guest),
            *(story.lost_guest, story.moved_guest, story.stop),
        ]
        for step in steps:
            began = monotonic()
            try:
                facts = step()
            except (OSError, ValueError, subprocess.SubprocessError):
                facts = {"error": traceback.format_exc() + story.last_words()}
            facts |= {"step": step.__name__, "took": monotonic() - began}
            told.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    tell(Path(sys.argv[1]), sys.argv[2:])
