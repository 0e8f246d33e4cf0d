"""The Host of a client's first HTTP request; the bytes go to the target as they are."""

from __future__ import annotations

import h11

from vsockproxy.config.request import Request
from vsockproxy.request.http_head import HttpReader, header
from vsockproxy.request.reader import Asked, RequestError, Step, split_authority


class HttpHost(HttpReader):
    """Read the head of an HTTP request to an origin server."""

    def _read(self, head: h11.Request) -> Step:
        # A target with a host in it would win over Host at the server (RFC 9112, section 3.2.2).
        if not head.target.startswith(b"/") and head.target != b"*":
            raise RequestError("this is not a proxy: the request's target must be a path")
        host = header(head, b"host")
        if not host:
            raise RequestError("the request has no Host")
        name, port = split_authority(host)
        # Without a port it is HTTP's own (RFC 9110, section 4.2.1), whatever port was connected to.
        return Asked(Request(name, 80 if port is None else port), self._data)
