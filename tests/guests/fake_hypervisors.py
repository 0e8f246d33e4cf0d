"""Fakes of QEMU's monitor, systemd-machined and Incus; each speaks its protocol over a socket."""

from __future__ import annotations

import json
import socketserver
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio

from tests.fake_services import unix_listener

Serve = Callable[[trio.SocketStream], Awaitable[None]]

QMP_GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2}}, "capabilities": ["oob"]}}


@asynccontextmanager
async def fake_server(path: Path, serve_client: Serve) -> AsyncIterator[None]:
    """Run a server at ``path`` that serves one client at a time, as QEMU does."""

    async def serve(sock: trio.socket.SocketType) -> None:
        while True:
            client, _ = await sock.accept()
            async with trio.SocketStream(client) as stream:
                try:
                    await serve_client(stream)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    continue

    with unix_listener(path) as sock:
        sock.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, trio.socket.from_stdlib_socket(sock))
            yield
            nursery.cancel_scope.cancel()


async def documents(stream: trio.SocketStream, end: bytes) -> AsyncIterator[dict[str, Any]]:
    """Yield the documents that a client sends until it closes the connection."""
    received = b""
    async for piece in stream:
        *whole, received = (received + piece).split(end)
        for text in whole:
            yield json.loads(text)


def fake_answer(data: bytes) -> Serve:
    """Return a server that sends ``data`` and waits for the client to close the connection."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        async for _ in stream:
            pass

    return serve


async def fake_busy_monitor(stream: trio.SocketStream) -> None:
    """Accept the connection and do nothing, as QEMU does while it serves another client."""
    await trio.sleep_forever()


class FakeQemuMonitor:
    """QEMU's monitor: a greeting, capabilities, then qom-list and qom-get on a tree of objects.

    Attributes:
      tree: type and properties of each device, by its path.
    """

    def __init__(self, tree: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
        self.tree = dict(tree)
        self._negotiated = False

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client; send an event before each answer."""
        self._negotiated = False
        await self._send(stream, QMP_GREETING)
        async for request in documents(stream, b"\n"):
            await self._send(stream, {"event": "RESUME", "timestamp": {"seconds": 1}})
            await self._send(stream, self._answer(request))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        command, arguments = request["execute"], request.get("arguments", {})
        if command == "qmp_capabilities":
            self._negotiated = True
            return {"return": {}}
        path = arguments["path"]
        if self._negotiated and command == "qom-list":
            inside = {
                key: value for key, value in self.tree.items() if Path(key).parent == Path(path)
            }
            listed = [{"name": Path(key).name, "type": kind} for key, (kind, _) in inside.items()]
            return {"return": [{"name": "type", "type": "string"}, *listed]}
        if self._negotiated and command == "qom-get":
            return {"return": self.tree[path][1][arguments["property"]]}
        return {
            "error": {"class": "CommandNotFound", "desc": f"The command {command} is not there"}
        }

    @staticmethod
    async def _send(stream: trio.SocketStream, document: dict[str, Any]) -> None:
        await stream.send_all(json.dumps(document).encode() + b"\r\n")


def fake_machined(machines: Mapping[str, Mapping[str, Any]]) -> Serve:
    """Return a fake ``io.systemd.Machine.List``: one machine by name or, with ``more``, all."""

    def replies(request: dict[str, Any]) -> list[dict[str, Any]]:
        assert request["method"] == "io.systemd.Machine.List"
        name = request["parameters"].get("name")
        if name is not None and name not in machines:
            return [{"error": "io.systemd.Machine.NoSuchMachine", "parameters": {}}]
        if name is not None:
            return [{"parameters": {"name": name, "class": "vm", **machines[name]}}]
        if not request.get("more"):
            return [{"error": "org.varlink.service.ExpectedMore", "parameters": {}}]
        if not machines:
            return [{"error": "io.systemd.Machine.NoSuchMachine", "parameters": {}}]
        found = [{"parameters": {"name": key, "class": "vm", **machines[key]}} for key in machines]
        return [*({**one, "continues": True} for one in found[:-1]), found[-1]]

    async def serve(stream: trio.SocketStream) -> None:
        async for request in documents(stream, b"\0"):
            for reply in replies(request):
                await stream.send_all(json.dumps(reply).encode() + b"\0")

    return serve


@contextmanager
def fake_incus(path: Path, instances: list[dict[str, Any]], status: int = 200) -> Iterator[None]:
    """Run a fake of the REST API for instances of Incus and LXD while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            name = url.path.removeprefix("/1.0/instances").strip("/")
            project = query.get("project", ["default"])[0]
            if status != 200:
                self._send(status, {"type": "error", "error": "Forbidden", "error_code": status})
            elif not name:
                self._send(200, {"type": "sync", "metadata": instances})
            else:
                named = [
                    one for one in instances if (one["name"], one["project"]) == (name, project)
                ]
                gone = {"type": "error", "error": "Instance not found", "error_code": 404}
                self._send(200 if named else 404, {"metadata": named[0]} if named else gone)

        def _send(self, code: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: object) -> None:
            pass

    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink()


def instance(
    name: str, cid: str | None, *, status: str = "Running", kind: str = "virtual-machine"
) -> dict[str, Any]:
    """Return an instance in the form of the API."""
    config = {"image.os": "debian"} | ({"volatile.vsock_id": cid} if cid else {})
    return {"name": name, "project": "default", "type": kind, "status": status, "config": config}
