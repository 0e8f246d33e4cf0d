"""Which connections `top` requests, from a fake client."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from tests.top.api_answers import connection, status
from vsockproxy.admin.client import Client
from vsockproxy.top.panel import Panel
from vsockproxy.top.session import take_snapshot

TOTAL = 2500


class FakeClient:
    """A client of a daemon with `TOTAL` connections, which it sends in pages."""

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        return status(routes=[], events=[])

    def connections(self, *, limit: int, **query: Any) -> Iterator[dict[str, Any]]:
        for first in range(0, TOTAL, limit):
            page = [connection(each) for each in range(first, min(first + limit, TOTAL))]
            yield {"connections": page, "total": TOTAL}


@pytest.mark.parametrize("key", ["end", "page down"])
def test_a_selection_at_the_end_of_what_was_requested_requests_more(key: str) -> None:
    client, panel = cast(Client, FakeClient()), Panel()
    panel.sort = "id"
    sizes = list[int]()
    while len(sizes) < TOTAL // 10 + 5 and panel.row != TOTAL - 1:
        taken = take_snapshot(client, panel, 0).connections
        panel.arrange(taken)
        panel.press(key)
        sizes.append(len(taken))
    assert sizes[0] == 200
    assert sizes == sorted(sizes)
    assert panel.row == TOTAL - 1
