"""A token bucket: a rate of events, and a burst after a pause. Knows no route."""

from __future__ import annotations

from time import monotonic


class TokenBucket:
    """A bucket of tokens; each event takes one."""

    def __init__(self, rate: float, burst: int) -> None:
        """Begin with ``burst`` tokens, the most it holds; ``rate`` tokens a second come in."""
        self._rate = rate
        self._burst = burst
        self._level = float(burst)
        self._filled = monotonic()

    def seconds(self) -> float:
        """Return the seconds until a token is there; 0 if one is."""
        now = monotonic()
        self._level = min(self._burst, self._level + self._rate * (now - self._filled))
        self._filled = now
        return max(0.0, (1.0 - self._level) / self._rate)

    def take(self) -> None:
        """Take a token."""
        self._level -= 1.0
