"""All metrics of one daemon, as a scrape reads them.

Owns: `Registry`, which adds those of the process and of Python to `metrics`.
"""

from __future__ import annotations

import trio
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from vsockproxy.metrics import MetricsCollector, MetricsSource


class Registry(CollectorRegistry):
    """The metrics of the routes, the process and the garbage collector."""

    def __init__(self, source: MetricsSource) -> None:
        super().__init__()
        self._process = ProcessMetrics()
        self.register(MetricsCollector(source))
        self.register(self._process)
        GCCollector(registry=self)

    async def read_process(self) -> None:
        """Read what the next `collect` returns of the process, beside the event loop.

        Its descriptors are counted by a list of their folder: 20 ms for 20,000 of them.
        """
        self._process.read = await trio.to_thread.run_sync(self._process.collect)


class ProcessMetrics(Collector):
    """The metrics of the process.

    Attributes:
      read: what the next `collect` returns; None reads them then.
    """

    def __init__(self) -> None:
        self.read: list[Metric] | None = None
        self._collector = ProcessCollector(registry=None)

    def collect(self) -> list[Metric]:
        """Return the metrics with their values."""
        read, self.read = self.read, None
        return list(self._collector.collect()) if read is None else read
