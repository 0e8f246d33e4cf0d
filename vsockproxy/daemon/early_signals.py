"""Signals that come while the daemon's modules are still imported: kept until it can act on them.

Owns: `hold`, which `__main__` calls before anything else, and `take`, for `signals`. Imports
nothing but `signal`: until `hold` has run, the kernel's defaults end the process, or as process 1
drop the signal.
"""

import os
import signal

STOPS = (signal.SIGTERM, signal.SIGINT)
_HELD = (*STOPS, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_came: list[int] = []
_hangup_at_start: object = None


def hold() -> None:
    """Keep the signals that come from now on for `take`; a second stop ends the process at once."""
    global _hangup_at_start  # noqa: PLW0603 - a process has one disposition
    _hangup_at_start = signal.getsignal(signal.SIGHUP)
    for number in _HELD:
        signal.signal(number, _keep)


def take() -> list[int]:
    """Return the signals that have come, oldest first, and forget them."""
    taken = _came[:]
    _came.clear()
    return taken


def is_hangup_ignored() -> bool:
    """Return whether the process was started with SIGHUP ignored, as nohup(1) does."""
    return (_hangup_at_start or signal.getsignal(signal.SIGHUP)) is signal.SIG_IGN


def _keep(number: int, _frame: object) -> None:
    if number in STOPS and any(earlier in STOPS for earlier in _came):
        os._exit(1)  # nothing is open yet, or everything has ended
    _came.append(number)
