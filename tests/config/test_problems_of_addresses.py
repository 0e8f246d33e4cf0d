"""Wrong addresses of listeners and targets: every problem of the file is reported."""

import pytest

from tests.config.texts import errors

RELATIVE = "is relative, and a daemon's working directory is /: write the whole path"

WRONG = {
    "two routes at one address": (
        'forward."tcp:127.0.0.1:80" = "3:80"\n[[route]]\nname = "b"\nlisten = 80\ntarget = "4:80"',
        ["route[0].listen: '80' is already in use by the route 'tcp:127.0.0.1:80': choose another"
         " address"],
    ),
    "one address and every address": (
        'forward."127.0.0.1:80" = "3:80"\nforward."0.0.0.0:80" = "3:80"\n'
        'forward."[::]:80" = "3:80"',
        ["forward.\"0.0.0.0:80\": '0.0.0.0:80' is already in use by the route '127.0.0.1:80':"
         " choose another address"],
    ),
    "one CID and any CID": (
        'forward."vsock::80" = "tcp:80"\nforward."vsock:2:80" = "tcp:81"',
        ["forward.\"vsock:2:80\": 'vsock:2:80' is already in use by the route 'vsock::80': choose"
         " another address"],
    ),
    "a mux listener and a unix listener at one path": (
        'forward."vsock-mux:/v:5" = "tcp:80"\nforward."unix:/v_5" = "tcp:81"',
        ["forward.\"unix:/v_5\": 'unix:/v_5' is already in use by the route 'vsock-mux:/v:5':"
         " choose another address"],
    ),
    "a listener at the address of the metrics": (
        'forward."localhost:9490" = "3:80"\nmetrics.listen = 9490',
        ["forward.\"localhost:9490\": 'localhost:9490' is already in use by metrics.listen:"
         " choose another address"],
    ),
    "overlapping ranges": (
        'forward.80-90 = "3:80-90"\nforward.85 = "3:85"\nforward.88-92 = "3:88-92"',
        [
            "forward.\"85\": '85' is already in use by the route '85': choose another address",
            "forward.\"88-92\": '88' is already in use by the route '88': choose another address",
        ],
    ),
    "unequal ranges": (
        'forward.80-90 = "3:80-89"\nforward.70 = "3:70-71"\nforward.9-8 = "3:80-81"',
        [
            "forward.\"80-90\": '3:80-89' has 10 ports and '80-90' has 11 ports: use ranges of"
            " equal length",
            "forward.\"70\": '3:70-71' has 2 ports and '70' has 1 port: use ranges of equal length",
            "forward.\"9-8\": the port range of '9-8' is reversed: write the lower port first",
        ],
    ),
    "relative paths": (
        'metrics.listen = "unix:m"\nguests.g.mux = "v.sock"\n'
        '[forward]\n80 = "unix:run/a"\n"vsock-mux:v:81" = "3:81"\n82 = "g:82"\n',
        [
            f"metrics.listen: 'm' {RELATIVE}",
            f"guests.g.mux: 'v.sock' {RELATIVE}",
            f"forward.\"80\": 'run/a' {RELATIVE}",
            f"forward.\"vsock-mux:v:81\": 'v' {RELATIVE}",
        ],
    ),
    "targets without a fixed CID or port": (
        'forward.80 = "vsock::80"\nforward.81 = "3:-1"\nforward.82 = "tcp:x:0"\n'
        'forward.83 = "tcp:x:65536"\nforward.84 = "fd:x"',
        [
            "forward.\"80\": 'vsock::80' cannot be a target: name one CID, not any",
            "forward.\"81\": '3:-1' cannot be a target: name one port, not any",
            "forward.\"82\": 'tcp:x:0' cannot be a target: TCP ports start at 1",
            'forward."83": 65536 is not a TCP port: 0 to 65535',
            "forward.\"84\": 'fd:x' cannot be a target: an inherited socket only listens",
        ],
    ),
    "listeners without a fixed port": (
        'forward.0 = "3:80"\nforward."vsock::any" = "tcp:80"\nforward.65536 = "3:80"\n'
        "metrics.listen = 0",
        [
            "forward.\"0\": '0' would listen on any free port: write a fixed port",
            "forward.\"vsock::any\": 'vsock::any' would listen on any free port: write a fixed"
            " port",
            'forward."65536": 65536 is not a TCP port: 0 to 65535',
            "metrics.listen: '0' would listen on any free port: write a fixed port",
        ],
    ),
    "metrics twice at one address": (
        'forward.80 = "3:80"\nmetrics.listen = ["0.0.0.0:9490", "127.0.0.1:9490"]',
        ["metrics.listen: '127.0.0.1:9490' is already in use by metrics.listen: remove one"],
    ),
    "metrics at no address": (
        'forward.80 = "3:80"\nmetrics.listen = []',
        [
            "metrics.listen: an empty list has no address: expected one, as in"
            ' ["0.0.0.0:9490", "[::]:9490"]'
        ],
    ),
    "metrics at a value that is not an address": (
        'forward.80 = "3:80"\nmetrics.listen = [9490, true]',
        [
            "metrics.listen: true is not an address: expected a text such as"
            ' "tcp:127.0.0.1:8080"'
        ],
    ),
    "metrics over vsock": (
        'forward.80 = "3:80"\nmetrics.listen = "vsock::9490"',
        ["metrics.listen: 'vsock::9490' cannot serve metrics: expected tcp:, unix: or fd:"],
    ),
    "loops": (
        'forward.80 = "tcp:80"\nforward."0.0.0.0:81" = "127.0.0.2:81"\n'
        'forward."unix:/a" = "unix:/a"\nforward."vsock::5" = "local:5"',
        [
            "forward.\"80\": 'tcp:80' is the route's own listener: choose another target",
            "forward.\"0.0.0.0:81\": '127.0.0.2:81' is the route's own listener: choose another"
            " target",
            "forward.\"unix:/a\": 'unix:/a' is the route's own listener: choose another target",
            "forward.\"vsock::5\": 'local:5' is the route's own listener: choose another target",
        ],
    ),
    "routes that dial each other": (
        'forward.8080 = "tcp:8081"\nforward.8081 = "tcp:8080"',
        ["routes dial each other in a loop, 8080 -> 8081 -> 8080: change a target"],
    ),
    "invalid lists of targets": (
        "[[route]]\nlisten = 80\ntargets = []\n[[route]]\nlisten = 81\ntargets = [3, true, {}]\n"
        '[[route]]\nlisten = 82\ntarget = "3:80"\ntargets = ["3:80"]\n'
        '[[route]]\nlisten = 83\ntargets = ["3:80", "4:80-81"]\n'
        '[[route]]\nlisten = 84\ntargets = ["3:80", "vsock:3:80"]\n'
        '[[route]]\nlisten = 85\ntargets = ["3:80", "tcp:85"]',
        [
            'route[0].targets: an empty list has no target: expected one, as in ["3:80", "4:80"]',
            "route[1].targets: true is not an address: expected a text such as"
            ' "tcp:127.0.0.1:8080"; a table is not an address: expected a text such as'
            ' "tcp:127.0.0.1:8080"',
            "route[2].targets: cannot be combined with target: remove one of them",
            "route[3].targets: '4:80-81' has 2 ports and '83' has 1 port: use ranges of equal"
            " length",
            "route[4].targets: 'vsock:3:80' is listed twice: remove one",
            "route[5].targets: 'tcp:85' is the route's own listener: choose another target",
        ],
    ),
    "an error on both sides of a route": (
        '[forward]\nx = "y"',
        [
            "forward.x: 'x' has no port: write HOST:PORT",
            "forward.x: 'y' is not a target: expected CID:PORT, GUEST:PORT or tcp:HOST:PORT",
        ],
    ),
    "one invalid listener of two routes": (
        '[[route]]\nlisten = "x"\ntarget = "3:80"\n[[route]]\nlisten = "x"\ntarget = "3:81"',
        [
            "route[0].listen: 'x' has no port: write HOST:PORT",
            "route[1].listen: 'x' has no port: write HOST:PORT",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "lines"), WRONG.values(), ids=WRONG)
def test_every_problem_of_addresses_is_reported(text: str, lines: list[str]) -> None:
    assert errors(text) == lines
