"""A client of a database, which knows no proxy: psql and PostgreSQL's server, of Debian."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGINT
from tempfile import TemporaryDirectory
from typing import Final

import pytest
import trio
import trustme

from tests.fake_services import unused_tcp_port
from tests.kernel.boot import require
from tests.relay.test_real_clients import EACH_WAY, proxy_for, run
from tests.waiting import PATIENCE
from vsockproxy.address.endpoint import TcpEndpoint

NAME: Final = "db.vm"
_VERSIONS: Final = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
BIN: Final = _VERSIONS[-1] if _VERSIONS else Path("/usr/lib/postgresql/bin")
_AS_NOBODY: Final = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
_FAST: Final = ["fsync=off", "shared_buffers=1MB", "autovacuum=off", "max_connections=10"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the server's user, which enters none of root's."""
    with TemporaryDirectory() as name:
        if os.geteuid() == 0:
            shutil.chown(name, "nobody", "nogroup")
        yield Path(name)


def as_server(program: str, *words: str | Path) -> list[str]:
    """Return the line of a server's program, which refuses to run as root."""
    user = _AS_NOBODY if os.geteuid() == 0 else []
    return [*user, str(BIN / program), *map(str, words)]


@asynccontextmanager
async def database(folder: Path, authority: trustme.CA) -> AsyncIterator[TcpEndpoint]:
    """Run a new database's server, which takes the user postgres over TLS alone."""
    data, port = folder / "data", unused_tcp_port()
    line = as_server("initdb", "-D", data, "-U", "postgres", "-A", "reject", "--no-sync")
    # A time zone that is given is not searched for among all files.
    environment = os.environ | {"TZ": "UTC"}
    await trio.run_process([*line, "--locale=C"], capture_stdout=True, env=environment)
    (data / "pg_hba.conf").write_text("hostssl all postgres 127.0.0.1/32 trust\n")
    identity = authority.issue_cert(NAME)
    identity.private_key_pem.write_to_path(str(folder / "key.pem"))
    identity.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    for file in ("key.pem", "cert.pem"):
        (folder / file).chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(folder / file, "nobody", "nogroup")
    settings = [
        *_FAST,
        *(f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories="),
        *("ssl=on", f"ssl_cert_file={folder}/cert.pem", f"ssl_key_file={folder}/key.pem"),
    ]
    words = [word for setting in settings for word in ("-c", setting)]
    async with running(as_server("postgres", "-D", data, *words)) as log:
        with trio.fail_after(6 * PATIENCE):
            text = b""
            while b"is ready to accept connections" not in text:
                piece = await log.receive_some()
                assert piece, text.decode()
                text += piece
        yield TcpEndpoint("127.0.0.1", port)


@asynccontextmanager
async def running(line: list[str]) -> AsyncIterator[trio.abc.ReceiveStream]:
    """Run a program until the end; yield its standard error."""
    process = await trio.lowlevel.open_process(
        line, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        yield process.stderr
    finally:
        with trio.CancelScope(shield=True):
            process.send_signal(SIGINT)  # postgres waits for no client then
            await process.stderr.aclose()
            await process.wait()


async def listens(port: int) -> None:
    """Wait until a port listens."""
    with trio.fail_after(PATIENCE):
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    return
            await trio.lowlevel.checkpoint()


@EACH_WAY
async def test_psql_reaches_a_database_by_its_name_through_the_proxy(
    way: str, folder: Path, tmp_path: Path
) -> None:
    """By the socat of docs/egress.md in the guest; the certificate is checked for the name."""
    require(psql="postgresql-client", socat="socat", **{str(BIN / "postgres"): "postgresql"})
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with (
        database(folder, authority) as target,
        proxy_for(way, {NAME: target}) as (route, port),
    ):
        ours = unused_tcp_port()
        guest = [
            *("socat", "-t", "300", f"TCP4-LISTEN:{ours},bind=127.0.0.1,reuseaddr,fork"),
            f"PROXY:127.0.0.1:{NAME}:5432,proxyport={port}",
        ]
        async with running(guest):
            await listens(ours)
            there = f"host={NAME} hostaddr=127.0.0.1 port={ours} user=postgres dbname=postgres"
            done = await run(
                *("psql", f"{there} sslmode=verify-full sslrootcert={tmp_path}/ca.pem"),
                *("--no-psqlrc", "--tuples-only", "--no-align"),
                data=b"select repeat('x', 100000);\nselect ssl from pg_stat_ssl;\n",
            )
        assert done.stdout.split() == [b"x" * 100_000, b"t"], done
        assert {line["asked"] for line in route.events("request_decided")} == {f"{NAME}:5432"}
