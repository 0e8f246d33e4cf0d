"""OpenSSH, scp, rsync and git through `connect`, with the lines of `ssh-config`.

The server is a real sshd in a fake guest: one process for each connection, as inetd starts it.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import pytest
import trio

from tests.daemon_process import PATIENCE, command, environment
from tests.dial.fake_vmm import Vmm
from tests.fake_services import Service
from tests.kernel.boot import require, skip_or_fail
from tests.sockets import AF_VSOCK, CID_LOCAL

BULK: Final = os.urandom(1 << 16) * 48  # 3 MiB
DIGEST: Final = hashlib.sha256(BULK).hexdigest()
SSHD: Final = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")

Transport = Literal["vsock-mux", "vsock"]

EACH_TRANSPORT: Final = pytest.mark.parametrize(
    "transport", ["vsock-mux", pytest.param("vsock", marks=pytest.mark.vsock)]
)


@dataclass(frozen=True, slots=True)
class Client:
    """An ssh client whose configuration has the printed lines."""

    folder: Path
    host: str

    @property
    def ssh(self) -> str:
        """Return the command line of ssh."""
        return f"ssh -F {self.folder / 'config'}"

    async def run(self, *line: str | Path, stdin: bytes = b"") -> bytes:
        """Run a program of the client's side; return its output."""
        with trio.fail_after(4 * PATIENCE):
            done = await trio.run_process(
                list(map(str, line)),
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env={
                    **environment(),
                    "GIT_SSH_COMMAND": self.ssh,
                    "GIT_CONFIG_GLOBAL": "/dev/null",
                },
                cwd=self.folder,
            )
        assert not done.returncode, (self.folder / "sshd.log").read_text() + done.stderr.decode()
        return done.stdout


@asynccontextmanager
async def client_of(folder: Path, transport: Transport, *options: str) -> AsyncIterator[Client]:
    """Run a guest called web with an SSH server; yield a client that knows it as web.vm."""
    if SSHD is None:
        skip_or_fail("apt install openssh-server")
    _configure_server(folder)
    async with _guest(folder, transport, partial(_serve_ssh, folder)) as way:
        guests = folder / "a file.toml"
        guests.write_text(f"[guests]\nweb = {way}\n")
        (folder / "config").write_text(
            f"Host *\n  BatchMode yes\n  IdentityFile {folder}/client\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {folder}/known\n  StrictHostKeyChecking accept-new"
            + command("ssh-config", "-c", guests, *options).stdout
        )
        yield Client(folder, f"{getpass.getuser()}@web.vm")


def _configure_server(folder: Path) -> None:
    for name in ("client", "host"):
        make_key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make_key, check=True)
    if os.geteuid() == 0:  # ssh.service has it as its RuntimeDirectory=
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/client.pub\nStrictModes no\n"
        "PermitRootLogin yes\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
    )


async def _serve_ssh(folder: Path, client: trio.SocketStream) -> None:
    """Serve one connection by its own sshd."""
    assert SSHD is not None
    await trio.run_process(
        [SSHD, "-i", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")],
        stdin=client.socket.fileno(),
        capture_stdout=False,
        check=False,
        stdout=client.socket.fileno(),
        stderr=subprocess.DEVNULL,
    )


@asynccontextmanager
async def _guest(folder: Path, transport: Transport, service: Service) -> AsyncIterator[str]:
    """Run the guest's service; yield the guest as a table of the configuration."""
    if transport == "vsock-mux":
        async with Vmm(folder / "vmm", {22: service}).running():
            yield f'{{ mux = "{folder / "vmm"}" }}'
        return
    with socket.socket(AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.bind((CID_LOCAL, 22))
        sock.listen()
        sock.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, service, [listener])
            yield f"{{ cid = {CID_LOCAL} }}"
            nursery.cancel_scope.cancel()


@EACH_TRANSPORT
@pytest.mark.parametrize("options", [(), ("--pass-fd",)])
async def test_ssh_reaches_a_guest_by_its_name(
    transport: Transport, options: tuple[str, ...], tmp_path: Path
) -> None:
    async with client_of(tmp_path, transport, *options) as client:
        digest = await client.run(*client.ssh.split(), client.host, "sha256sum", stdin=BULK)
    assert digest.split()[0].decode() == DIGEST


@EACH_TRANSPORT
async def test_scp_copies_both_ways(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "bulk").write_bytes(BULK)
    async with client_of(tmp_path, transport) as client:
        scp = ["scp", "-q", "-F", "config"]
        await client.run(*scp, "bulk", f"{client.host}:{tmp_path}/there")
        await client.run(*scp, f"{client.host}:{tmp_path}/there", "back")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "back").read_bytes() == BULK


async def test_rsync_copies_a_folder(tmp_path: Path) -> None:
    require(rsync="rsync")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "bulk").write_bytes(BULK)
    async with client_of(tmp_path, "vsock-mux") as client:
        await client.run(
            "rsync", "-a", "-e", client.ssh, "here/", f"{client.host}:{tmp_path}/there"
        )
    assert (tmp_path / "there" / "bulk").read_bytes() == BULK


async def test_git_clones_a_repository(tmp_path: Path) -> None:
    require(git="git")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "bulk").write_bytes(BULK)
    author = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    async with client_of(tmp_path, "vsock-mux") as client:
        await client.run("git", "init", "-q", "here")
        await client.run("git", "-C", "here", "add", "bulk")
        await client.run("git", *author, "-C", "here", "commit", "-q", "-m", "bulk")
        await client.run("git", "clone", "-q", f"ssh://{client.host}{tmp_path}/here", "there")
    assert (tmp_path / "there" / "bulk").read_bytes() == BULK


async def test_a_guest_that_is_not_configured_is_named_by_ssh(tmp_path: Path) -> None:
    async with client_of(tmp_path, "vsock-mux") as client:
        done = await trio.run_process(
            [*client.ssh.split(), "wep.vm", "true"],
            capture_stderr=True,
            check=False,
            env=environment(),
        )
    assert done.returncode == 255
    assert b"no guest 'wep' in [guests]; did you mean web?" in done.stderr


def test_ssh_config_prints_absolute_paths_quoted_for_ssh_and_its_shell(tmp_path: Path) -> None:
    file = tmp_path / "100 % 'sure'.toml"
    lines = command("ssh-config", "-c", file, "--domain", "fleet.internal", "--wait", "5m").stdout
    assert lines.startswith("\n#")
    assert lines.splitlines()[2] == "Host *.fleet.internal"
    written = lines.splitlines()[3].removeprefix("    ProxyCommand ").replace("%%", "%")
    shell = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {written}"], capture_output=True, check=True
    )
    words = shell.stdout.decode().splitlines()
    assert Path(words[0]).is_absolute()
    assert words[words.index("connect") :] == [
        *("connect", "--domain", "fleet.internal", "--config", str(file)),
        *("--wait", "5m", "%h:%p"),
    ]


@pytest.mark.parametrize("domain", ["", "*", "a b", "a;b", "vm\nHost", ".vm"])
def test_ssh_config_with_a_domain_that_is_none_is_status_2(domain: str) -> None:
    done = command("ssh-config", "--domain", domain)
    assert done.returncode == 2
    assert f"--domain: {domain!r} is not a domain" in done.stderr
