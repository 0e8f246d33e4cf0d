"""Answers of the control API, as `top` receives them."""

from typing import Any

from vsockproxy.top.traffic import Snapshot


def status(**changes: Any) -> dict[str, Any]:
    """Return the answer of /v1/status."""
    return {
        "version": "1.2.3",
        "pid": 4711,
        "started": 1000.0,
        "uptime_seconds": 192.0,
        "not_ready": [],
        "live": 3,
        "descriptors_free": 19829,
        **changes,
    }


def target(state: str) -> dict[str, Any]:
    """Return a target of a route."""
    return {"address": "vsock:3:80", "state": state}


def route(name: str = "web", **changes: Any) -> dict[str, Any]:
    """Return a route of /v1/routes."""
    return {
        "name": name,
        "state": "listening",
        "targets": [target("up")],
        "live": 2,
        "accepted": 0,
        "dial_failures": {},
        "upstream_bytes": 0,
        "downstream_bytes": 0,
        **changes,
    }


def connection(number: int, **changes: Any) -> dict[str, Any]:
    """Return a connection of /v1/connections."""
    return {
        "id": number,
        "route": "web",
        "client": f"203.0.113.7:{40000 + number}",
        "target": "vsock:3:80",
        "state": "open",
        "upstream_bytes": 100 * number,
        "downstream_bytes": 0,
        "upstream_rate": 10.0 * number,
        "downstream_rate": 0.0,
        "age_seconds": 60.0 - number,
        "idle_seconds": 0.5 * number,
        **changes,
    }


def event(number: int, **changes: Any) -> dict[str, Any]:
    """Return an event of /v1/events."""
    return {
        "id": number,
        "time": 45296.0,
        "level": "warning",
        "event": "dial_failed",
        "route": "web",
        "message": "no running VM owns CID 7",
        **changes,
    }


def snapshot(seconds: float, *routes: dict[str, Any], **changes: Any) -> Snapshot:
    """Return a snapshot at a time, with default answers except for ``changes``."""
    values: dict[str, Any] = {
        "status": status(),
        "connections": [],
        "total": 0,
        "events": [],
    } | changes
    return Snapshot(seconds, routes=routes or (route(),), **values)
