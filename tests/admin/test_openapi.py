"""Tests of the OpenAPI document of the control API."""

from __future__ import annotations

import json
from pathlib import Path

from tests.admin.running_daemon import controlled_daemon
from tests.daemon_process import REPOSITORY
from vsockproxy.admin.openapi import OPERATIONS, openapi

DOCUMENT = REPOSITORY / "docs" / "admin-api.json"


def test_the_published_openapi_document_matches_the_code() -> None:
    assert json.loads(DOCUMENT.read_text()) == openapi()


def test_the_openapi_document_describes_every_operation() -> None:
    described = {
        (method.upper(), path) for path, methods in openapi()["paths"].items() for method in methods
    }
    assert described == {(one.method, one.published_path) for one in OPERATIONS}


async def test_the_openapi_document_is_served(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        assert await daemon.get("/v1/schema") == openapi()
