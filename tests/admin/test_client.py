"""Tests of the API client with fakes of a server: one answers early, others fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fake_services import unix_listener
from vsockproxy.admin.client import Client, DaemonUnreachableError, RequestError

ANSWER = b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 12\r\n\r\n{"done": 1}\n'


def test_an_answer_before_the_end_of_the_request_is_returned(tmp_path: Path) -> None:
    with answering(tmp_path, ANSWER) as client:
        body = {"more": "than a socket's buffer" * 100_000}
        assert client.post("/v1/x", body) == {"done": 1}


@pytest.mark.parametrize("body", [b"Internal Server Error", b'{"error": "it failed"}', b""])
def test_an_answer_with_status_500_is_the_daemons_error_and_names_its_log(
    tmp_path: Path, body: bytes
) -> None:
    answer = b"HTTP/1.1 500 Bad\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with answering(tmp_path, answer) as client, pytest.raises(RequestError) as caught:
        client.post("/v1/routes/web/pause")
    assert caught.value.status == 500
    assert "failed" in str(caught.value).splitlines()[0]
    assert "its log has the error" in str(caught.value)


@pytest.mark.parametrize("body", [b"[1]", b"hello"])
def test_an_answer_that_is_not_an_object_is_another_programs(tmp_path: Path, body: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with (
        answering(tmp_path, answer) as client,
        pytest.raises(DaemonUnreachableError, match="another program"),
    ):
        client.get("/v1/status")


@contextmanager
def answering(folder: Path, answer: bytes) -> Iterator[Client]:
    """Yield a client of a fake server that answers the first bytes of one request."""
    with unix_listener(folder / "admin.sock") as server:

        def answer_the_head() -> None:
            client, _ = server.accept()
            with client:
                client.recv(10)
                client.sendall(answer)

        serving = threading.Thread(target=answer_the_head)
        serving.start()
        try:
            yield Client(folder / "admin.sock")
        finally:
            serving.join()
