"""Tests of the API client with a server that answers early."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.fake_services import unix_listener
from vsockproxy.admin.client import Client

ANSWER = b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 12\r\n\r\n{"done": 1}\n'


def test_an_answer_before_the_end_of_the_request_is_returned(tmp_path: Path) -> None:
    with unix_listener(tmp_path / "admin.sock") as server:

        def answer_the_head() -> None:
            client, _ = server.accept()
            with client:
                client.recv(10)
                client.sendall(ANSWER)

        answering = threading.Thread(target=answer_the_head)
        answering.start()
        body = {"more": "than a socket's buffer" * 100_000}
        assert Client(tmp_path / "admin.sock").post("/v1/x", body) == {"done": 1}
        answering.join()
