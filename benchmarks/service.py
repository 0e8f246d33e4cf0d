"""A daemon as a service manager runs it: started, reloaded, restarted with its sockets kept.

Fake of the service manager's end of sd_notify(3) and sd_listen_fds(3), as far as `systemctl
restart` needs it: descriptors that the daemon stores (FDSTORE=1) are given to its next process.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 60.0  # seconds for an expected event; drain_timeout is 30

FIRST_FILE = 500
"""Stored descriptors are numbered from here, above the ones that start at 3."""

HAND_IN = """
import os, sys
for place, file in enumerate(map(int, sys.argv[1].split()), 3):
    os.dup2(file, place)
    os.close(file)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "vsockproxy", *sys.argv[2:]])
"""


class Service:
    """A daemon whose processes follow one another.

    Attributes:
      store: the descriptors that it has stored, by their names.
      events: how often each event was logged by the processes that have ended.
      faults: what the service did wrong, as sentences.
    """

    def __init__(self, folder: Path, configuration: Path) -> None:
        self.store: dict[str, int] = {}
        self.events: Counter[str] = Counter()
        self.faults: list[str] = []
        self._folder = folder
        self._arguments = ["run", "-c", str(configuration)]
        self._notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notifications.bind(str(folder / "notify"))
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()  # without effect once it has ended
        self._process.wait()
        self._notifications.close()

    @property
    def pid(self) -> int:
        """The PID of the current process."""
        return self._process.pid

    def start(self) -> None:
        """Start a process with the stored descriptors; return when it is ready."""
        files = list(self.store.values())
        variables = os.environ | {
            "NOTIFY_SOCKET": str(self._folder / "notify"),
            "RUNTIME_DIRECTORY": str(self._folder),
        }
        if files:
            names = ":".join(self.store)
            variables |= {"LISTEN_FDS": str(len(files)), "LISTEN_FDNAMES": names}
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", HAND_IN, " ".join(map(str, files)), *self._arguments],
                env=variables,
                pass_fds=files,
                stderr=log,
            )
        self._wait_until_ready()

    def reload(self) -> None:
        """Reload the configuration; return when it is reloaded."""
        self._process.send_signal(signal.SIGHUP)
        self._wait_until_ready()

    def stop(self) -> None:
        """Drain the process; return when it has ended."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(PATIENCE)
        if status:
            self.faults.append(f"exit status {status}")
        while self._receive(socket.MSG_DONTWAIT):
            pass
        self._read_log()

    def restart(self) -> float:
        """Restart as `systemctl restart` does; return the seconds without a ready process."""
        self.stop()
        stopped = time.monotonic()
        self.start()
        return time.monotonic() - stopped

    def holds(self) -> tuple[int, int]:
        """Return its descriptors and KiB of dirty memory; clean pages come and go."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        sizes = dict(line.split(":", 1) for line in text.splitlines()[1:])
        files = list(Path(f"/proc/{self.pid}/fd").iterdir())
        return len(files), int(sizes["Private_Dirty"].split()[0])

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        self._notifications.settimeout(1)
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise SystemExit(f"the daemon ended: {(self._folder / 'log').read_text()}")
            if self._receive().get("READY"):
                return
        raise SystemExit("the daemon does not say that it is ready")

    def _receive(self, flags: int = 0) -> dict[str, str]:
        """Handle and return the next notification; empty when there is none."""
        try:
            data, files, _, _ = socket.recv_fds(self._notifications, 4096, 8, flags)
        except (BlockingIOError, TimeoutError):
            return {}
        message = dict(line.split("=", 1) for line in data.decode().split("\n"))
        name = message.get("FDNAME", "")
        for file in files:
            if "FDSTORE" in message and name not in self.store:
                self.store[name] = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, FIRST_FILE)
            os.close(file)
        if "FDSTOREREMOVE" in message and name in self.store:
            os.close(self.store.pop(name))
        return message

    def _read_log(self) -> None:
        """Count the log lines of a process that has ended."""
        with (self._folder / "log").open() as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except ValueError:  # a line of a traceback
                    self.events[line.strip()] += 1
                else:
                    self.events[f"{record['event']} {record.get('reason', '')}".strip()] += 1
