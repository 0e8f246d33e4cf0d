"""The scenario of test_systemd_pid1.py, which runs under a real systemd and records facts.

Run as root, as ``python systemd_scenario.py FOLDER``: installs a configuration, starts,
reloads, restarts, breaks and stops the daemon as an operator would, and writes a JSON line of
facts for each step to FOLDER/facts.  The assertions are in test_systemd_pid1.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from tests.kernel.echo_service import (
    TIMEOUT,
    Address,
    connect,
    exchange,
    load,
    round_trip,
    serve,
)

UNITS: Final = Path("/etc/systemd/system")
SHIPPED: Final = Path("/opt/vsockproxy/systemd")
CONFIG: Final = Path("/etc/vsockproxy/config.toml")
WATCHDOG: Final = 6
STOP_TIMEOUT: Final = 3
DRAINED_FOR: Final = STOP_TIMEOUT + 2
SIZE: Final = 1_000_001

Facts = dict[str, object]
FRONT: Final[Address] = (socket.AF_INET, ("127.0.0.1", 8080))
ADDED: Final[Address] = (socket.AF_INET, ("127.0.0.1", 8081))
GUESTS: Final[Address] = (socket.AF_VSOCK, (1, 5432))
GUEST_SERVICE: Final[Address] = (socket.AF_VSOCK, (1, 9000))
HOST_SERVICE: Final[Address] = (socket.AF_INET, ("127.0.0.1", 9001))
NEW_SERVICE: Final[Address] = (socket.AF_INET, ("127.0.0.1", 9002))

_HEAD: Final = '[log]\nformat = "json"\n[defaults]\ndrain_timeout = "20s"\n[forward]\n'
_ROUTES: Final = '8080 = "1:9000"\n"vsock::5432" = "tcp:127.0.0.1:9001"\n'
_CHANGED: Final = (
    '8080 = "tcp:127.0.0.1:9002"\n"vsock::5432" = "tcp:127.0.0.1:9001"\n8081 = "1:9000"\n'
)
_TAKEN: Final = _ROUTES + '"127.0.0.1:9001" = "1:9000"\n'
_ACTIVATED: Final = '"fd:web" = "1:9000"\n"fd:guests" = "tcp:127.0.0.1:9001"\n'

_DROP_IN: Final = f"[Service]\nWatchdogSec={WATCHDOG}s\nTimeoutStopSec={STOP_TIMEOUT}s\n"

# ---- systemd ----


def systemctl(*words: str) -> tuple[int, str]:
    """Run systemctl; return its exit status and its output."""
    done = subprocess.run(
        ["systemctl", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout


def show(name: str, unit: str = "vsockproxy") -> str:
    """Return a property of a unit."""
    return systemctl("show", "--value", "--property", name, unit)[1].strip()


def main_pid(unit: str = "vsockproxy") -> int:
    return int(show("MainPID", unit))


def wait_until(state: str, reached: Callable[[], object]) -> float:
    """Wait until a state is reached; return the seconds that it took, or raise TimeoutError."""
    began = monotonic()
    while not reached():
        if monotonic() - began > TIMEOUT:
            raise TimeoutError(
                f"{state}: not within {TIMEOUT} s\n{systemctl('status', 'vsockproxy')[1]}"
            )
        sleep(0.1)
    return monotonic() - began


def journal(unit: str = "vsockproxy") -> list[str]:
    """Return the log lines of the unit, and systemd's about it."""
    line = ["journalctl", "--no-pager", "--output=cat", f"--unit={unit}"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()


def events(name: str, since: int = 0) -> list[Facts]:
    """Return the daemon's events of this name, from line ``since`` of the journal on."""
    lines = [line for line in journal()[since:] if line.startswith("{")]
    return [event for event in map(json.loads, lines) if event["event"] == name]


def configure(routes: str, path: Path = CONFIG) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(_HEAD + routes)


def drop_in(name: str, text: str) -> None:
    folder = UNITS / "vsockproxy.service.d"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    systemctl("daemon-reload")


# ---- the steps ----


def start() -> Facts:
    configure(_ROUTES)
    began = monotonic()
    status, output = systemctl("start", "vsockproxy")
    seconds = monotonic() - began
    return {
        "status": status,
        "output": output,
        "seconds": seconds,
        "text": show("StatusText"),
        "exchange": exchange(FRONT),
        "state": show("ActiveState"),
    }


def relays() -> Facts:
    data = os.urandom(SIZE)
    return {"to_guest": exchange(FRONT, data), "from_guest": exchange(GUESTS, data)}


def reload() -> Facts:
    with connect(FRONT) as live:
        before = round_trip(live).decode()
        configure(_CHANGED)
        status, _ = systemctl("reload", "vsockproxy")
        state = show("ActiveState")
        wait_until("reloaded", lambda: events("reloaded"))
        wait_until("active", lambda: show("ActiveState") == "active")
        with connect(FRONT) as new:
            greeting = new.recv(100).decode()
        return {
            "status": status,
            "state": state,
            "before": before,
            "after": round_trip(live).decode(),
            "new": greeting,
            "added": exchange(ADDED),
            "text": show("StatusText"),
        }


def reload_of_a_wrong_file() -> Facts:
    pid = main_pid()
    configure(_ROUTES + "nonsense = 1\n")
    status, _ = systemctl("reload", "vsockproxy")
    output = [line for line in journal() if "nonsense" in line]
    return {
        "status": status,
        "output": output,
        "state": show("ActiveState"),
        "same_process": pid == main_pid(),
        "exchange": exchange(ADDED),
    }


def reload_that_cannot_bind() -> Facts:
    pid = main_pid()
    configure(_TAKEN)
    systemctl("reload", "vsockproxy")
    wait_until("reload_failed", lambda: events("reload_failed"))
    wait_until("active", lambda: show("ActiveState") == "active")
    facts: Facts = {
        "logged": events("reload_failed"),
        "text": show("StatusText"),
        "same_process": pid == main_pid(),
        "exchange": exchange(ADDED),
    }
    configure(_ROUTES)
    systemctl("reload", "vsockproxy")
    wait_until("a good reload", lambda: "failed" not in show("StatusText"))
    return facts | {"text_after": show("StatusText")}


def restart() -> Facts:
    """Restart twice under load over TCP and vsock, then once without the vsock route."""
    pids = [main_pid()]
    with load(FRONT, FRONT, GUESTS) as outcomes:
        for _ in range(2):
            sleep(0.5)  # load on a running daemon
            systemctl("restart", "vsockproxy")
            pids.append(main_pid())
        sleep(0.5)
    configure('8080 = "1:9000"\n')
    systemctl("restart", "vsockproxy")
    removed = exchange(GUESTS)
    return {"tcp": outcomes[FRONT], "vsock": outcomes[GUESTS], "pids": pids, "removed": removed}


def hung_pump() -> Facts:
    """Stop a pump thread by ptrace, until the watchdog kills the daemon."""
    pid, restarts = main_pid(), int(show("NRestarts"))
    thread = next(
        int(task.name)
        for task in Path(f"/proc/{pid}/task").iterdir()
        if (task / "comm").read_text() == "vsp-pump\n"
    )
    began = monotonic()
    stop_thread(thread)
    reap_thread(thread)  # the process stays a zombie until its tracer has waited for it
    killed = monotonic() - began
    outcome = exchange(FRONT)
    return {
        "killed_after": killed,
        "output": [line for line in journal() if "atchdog" in line],
        "logged": events("pump_hung"),
        "restarts": int(show("NRestarts")) - restarts,
        "new": main_pid() not in (0, pid),
        "exchange": outcome,
    }


def sandbox() -> Facts:
    """Record the sandbox as /proc shows it, as root sees it, and as the probe finds it."""
    status = Path(f"/proc/{main_pid()}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    return {
        "status": {key: fields[key].split()[0] for key in ("Uid", "NoNewPrivs", "Seccomp")},
        "capabilities": [fields[key] for key in ("CapEff", "CapPrm", "CapBnd", "CapAmb")],
        "root": [write_as_root(place) for place in ("/etc", "/usr", "/var/lib")],
        "devices": [path.name for path in Path(f"/proc/{main_pid()}/root/dev").iterdir()],
        "found": probe(),
    }


def write_as_root(place: str) -> str:
    """Create a file as root in the daemon's mount namespace; return the error's text."""
    line = ["nsenter", f"--target={main_pid()}", "--mount", "touch", f"{place}/probe"]
    return subprocess.run(line, stderr=subprocess.PIPE, text=True, check=False).stderr


def probe() -> Facts:
    """Run sandbox_probe.py as a service with the daemon unit's settings."""
    found = Path("/run/found")
    unit = (UNITS / "vsockproxy.service").read_text()
    lines = [
        line
        for line in unit.splitlines()
        if not line.startswith(("Type=", "ExecStart=", "ExecReload=", "Watchdog", "Restart"))
    ]
    script = "/opt/vsockproxy/tests/kernel/sandbox_probe.py"
    at = lines.index("[Service]") + 1
    lines[at:at] = [
        "Type=oneshot",
        f"StandardOutput=truncate:{found}",
        f"ExecStart=python {script}",
    ]
    (UNITS / "probe.service").write_text("\n".join(lines))
    systemctl("daemon-reload")
    systemctl("start", "probe")
    return dict(json.loads(found.read_text()))


def drain() -> Facts:
    """Stop while a connection stays open for longer than TimeoutStopSec=."""
    with connect(FRONT) as live:
        round_trip(live)
        began = monotonic()
        systemctl("stop", "--no-block", "vsockproxy")
        wait_until("stopping", lambda: show("ActiveState") == "deactivating")
        text = show("StatusText")
        while monotonic() - began < DRAINED_FOR:
            answer = round_trip(live).decode()
            sleep(0.2)
        state = show("ActiveState")
    wait_until("stopped", lambda: show("ActiveState") != "deactivating")
    return {
        "text": text,
        "answer": answer,
        "state_before": state,
        "state": show("ActiveState"),
        "result": show("Result"),
        "logged": events("stopped")[-1]["drained"],
        "connect": exchange(FRONT),
    }


def activation() -> Facts:
    """Connect to each kind of socket unit while the daemon is stopped."""
    configure(_ACTIVATED)
    systemctl("start", "vsockproxy.socket", "vsockproxy-guests.socket")
    facts: Facts = {"before": show("ActiveState")}
    for name, first, then in (("tcp", FRONT, GUESTS), ("vsock", GUESTS, FRONT)):
        facts[name] = [exchange(first), _state_once_started(), exchange(then)]
        systemctl("stop", "vsockproxy")
    return facts


def _state_once_started() -> str:
    systemctl("start", "vsockproxy")  # waits for the start that the client caused
    return show("ActiveState")


def private_network() -> Facts:
    """Start in a private network, with a socket that no route uses."""
    configure('"fd:web" = "1:9000"\n')
    since = len(journal())
    drop_in("private.conf", (SHIPPED / "drop-ins/private-network.conf").read_text())
    systemctl("start", "vsockproxy")
    return {
        "private": _link(main_pid(), "net") != _link("self", "net"),
        "exchange": exchange(FRONT),
        "unused_socket": events("unused_socket", since),
    }


def _link(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def instance() -> Facts:
    """Start an instance of the template unit whose port another process uses at first."""
    configure('8081 = "1:9000"\n', CONFIG.with_name("edge.toml"))
    unit = "vsockproxy@edge"
    with socket.create_server(("127.0.0.1", 8081)):
        status, _ = systemctl("start", unit)
        state = show("ActiveState", unit)
        output = [line for line in journal(unit) if "8081" in line]
    seconds = wait_until("active", lambda: show("ActiveState", unit) == "active")
    return {
        "status": status,
        "state": state,
        "output": output,
        "seconds": seconds,
        "exchange": exchange(ADDED),
    }


# ---- ptrace(2) ----

_PTRACE_ATTACH: Final = 16
_WALL: Final = 0x40000000


def stop_thread(thread: int) -> None:
    """Stop one thread of another process; its other threads go on."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long] * 4
    if ptrace(_PTRACE_ATTACH, thread, 0, 0):
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(thread, _WALL)


def reap_thread(thread: int) -> None:
    """Wait until a thread that `stop_thread` stopped has ended."""
    while os.WIFSTOPPED(os.waitpid(thread, _WALL)[1]):
        pass


def main(folder: Path) -> None:
    drop_in("test.conf", _DROP_IN)
    serve(GUEST_SERVICE)
    serve(HOST_SERVICE)
    serve(NEW_SERVICE, b"new")
    steps: list[Callable[[], Facts]] = [
        *(start, relays, sandbox, reload, reload_of_a_wrong_file, reload_that_cannot_bind),
        *(restart, hung_pump, drain, activation, private_network, instance),
    ]
    with (folder / "facts").open("w", buffering=1) as file:
        for step in steps:
            began = monotonic()
            try:
                facts = step()
            except (OSError, ValueError, LookupError, subprocess.SubprocessError):
                facts = {"error": traceback.format_exc()}
            file.write(
                json.dumps(facts | {"step": step.__name__, "took": monotonic() - began}) + "\n"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
