"""The text of a scrape in pieces, each of which takes the event loop only for a short time.

Owns: how parts of a metric become one text.  The Prometheus library formats a whole registry at
once, which takes a second for 5,000 routes; here it formats one part after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder


class Scrape(NamedTuple):
    """A text that is made while it is read, and its media type."""

    pieces: Iterator[bytes]
    media_type: str


def scrape(metrics: Iterable[Metric], accept: str, names: Collection[str] = ()) -> Scrape:
    """Return metrics in the format that an ``Accept`` header asks for.

    Args:
      metrics: parts of one metric follow each other, each a `Metric` with the same name.
      names: of the samples to return; none are all.
    """
    encode, media_type = choose_encoder(accept)
    return Scrape(_pieces(metrics, encode, names), media_type)


def _pieces(
    metrics: Iterable[Metric], encode: Callable[[Any], bytes], names: Collection[str]
) -> Iterator[bytes]:
    """Yield the text of each part; an empty one where ``names`` leave nothing of it."""
    end = encode(_Part([]))
    last = ""
    for metric in metrics:
        if names:
            metric.samples = [sample for sample in metric.samples if sample.name in names]
            if not metric.samples:
                yield b""
                continue
        text = encode(_Part([metric])).removesuffix(end)
        if metric.name == last:
            metric.samples = []
            text = text.removeprefix(encode(_Part([metric])).removesuffix(end))
        last = metric.name
        yield text
    yield end


class _Part:
    """Some metrics, with the one method of a registry that an encoder calls."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics
