"""A new user's way from README's configuration to a reload; root, systemd: release/try_readme.py.

    python3 -m release.readme_scenario FOLDER

Only the standard library, for it runs on the host's own Python.  The guest `web` is the one that
`vsockproxy demo` embeds, at the path that README's configuration names.
"""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from release.deb_scenario import expect
from release.readme import CLONE, configuration, lines_after

CONFIG: Final = Path("/etc/vsockproxy/config.toml")
VMM: Final = Path("/run/firecracker")
GUEST: Final = 'forward."unix:/tmp/front" = "vsock-mux:/run/firecracker/web.sock:443"\n'
PATIENCE: Final = 60.0


def main() -> None:
    """Print a line for each step; exit with the reason at the first that fails."""
    stand_in_for_vhost()
    CONFIG.parent.mkdir()
    CONFIG.write_text(configuration())
    for line in lines_after("As a service, as root"):
        status, output = shell(line)
        is_doctor = line == "vsockproxy doctor"
        expect(status == int(is_doctor), f"{line}: status {status}\n{output}")
        if is_doctor:
            named = "web" in output and "3:80" in output
            expect(named, "doctor names both guests that are not up")
    expect("vsockproxy_route_state" in get("http://127.0.0.1:9490/metrics"), "metrics are served")
    start_guest()
    with suppress(OSError):  # a client of the guest, whose socket is root's
        urllib.request.urlopen("http://127.0.0.1:8443/", timeout=PATIENCE).close()
    output = shell("vsockproxy doctor")[1]
    words = " ".join(output.split())
    expect("let the daemon's user write" in words, f"doctor tells root of the mode:\n{output}")
    (VMM / "web.sock").chmod(0o666)
    reload(configuration())


def reload(text: str) -> None:
    """Add a route, then break the file: what ran goes on."""
    CONFIG.write_text(text.replace("\n[guests]", '8444 = "web:80"\n\n[guests]'))
    status, output = shell("vsockproxy reload")
    expect(status == 0 and "added: 8444" in output, f"a reload adds a route:\n{output}")
    expect("port 80" in get("http://127.0.0.1:8444/"), "and serves it")
    CONFIG.write_text(text.replace("\n[guests]", "\n[guest]"))
    status, output = shell("vsockproxy check")
    expect(status == 2 and f"{CONFIG}:" in output, f"check names the place of an error:\n{output}")
    status, output = shell("vsockproxy reload")
    expect(status == 1 and "nothing has changed" in output, f"a reload refuses it:\n{output}")
    expect("port 80" in get("http://127.0.0.1:8444/"), "and the routes go on")


def stand_in_for_vhost() -> None:
    """Have modprobe(8) find the host's modules, which this kernel was not built with."""
    Path("/etc/modprobe.d/stand-in.conf").write_text("install vhost_vsock /bin/true\n")
    subprocess.run(["modprobe", "vsock_loopback"], check=True)


def start_guest() -> None:
    """Start the guest that README's configuration expects, as a service."""
    VMM.mkdir()
    Path("/tmp/guest.toml").write_text(GUEST)
    unit = ("systemd-run", "--quiet", "--unit=guest")
    subprocess.run([*unit, "vsockproxy", "demo", "--config", "/tmp/guest.toml"], check=True)
    began = monotonic()
    while not (VMM / "web.sock").exists():
        expect(monotonic() - began < PATIENCE, "the guest starts", quiet=True)
        sleep(0.1)


def shell(line: str) -> tuple[int, str]:
    """Run a line in the clone; return its status and its output."""
    done = subprocess.run(line, shell=True, cwd=CLONE, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def get(url: str) -> str:
    """Return a page; the daemon, and the guest, may still be starting."""
    began = monotonic()
    while True:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError) as error:
            expect(monotonic() - began < PATIENCE, f"{url} answers: {error}", quiet=True)
            sleep(0.2)


if __name__ == "__main__":
    main()
