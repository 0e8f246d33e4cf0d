"""Routes that would dial themselves or each other."""

import pytest

from vsockproxy.address.endpoint import GuestEndpoint
from vsockproxy.address.grammar import parse_listen, parse_target
from vsockproxy.config.loops import find_loop, is_loop
from vsockproxy.config.settings import Route


@pytest.mark.parametrize(
    ("listen", "target", "loop"),
    [
        ("80", "tcp:80", True),
        ("80", "127.0.0.1:80", True),
        ("0.0.0.0:80", "127.9.9.9:80", True),
        ("[::]:80", "[::1]:80", True),
        ("0.0.0.0:80", "10.0.0.1:80", False),
        ("80", "tcp:81", False),
        ("vsock::80", "local:80", True),
        ("vsock::80", "3:80", False),
        ("unix:/a", "vsock-mux:/a:80", True),
        ("vsock-mux:/a:80", "vsock-mux:/a:80", False),
    ],
)
def test_a_route_that_would_dial_itself_is_a_loop(listen: str, target: str, loop: bool) -> None:
    endpoint = parse_target(target)
    assert not isinstance(endpoint, GuestEndpoint)
    assert is_loop(parse_listen(listen), endpoint) is loop


@pytest.mark.parametrize(
    ("pairs", "loop"),
    [
        ({"8080": "tcp:8081", "8081": "tcp:8080"}, True),
        ({"8080": "tcp:8081", "8081": "tcp:8082", "8082": "tcp:8080"}, True),
        ({"8080": "tcp:8081", "0.0.0.0:8081": "tcp:127.0.0.1:8080"}, True),
        ({"8080": "unix:/run/a", "unix:/run/a": "tcp:localhost:8080"}, True),
        ({"vsock::5": "tcp:8080", "8080": "vsock:1:5"}, True),
        ({"vsock-mux:/run/vm:5": "tcp:8080", "8080": "unix:/run/vm_5"}, True),
        ({"8080": "tcp:8081", "8081": "3:80"}, False),
        ({"8080": "tcp:8082", "8081": "tcp:8082"}, False),
        ({"8080": "tcp:10.0.0.1:8081", "8081": "tcp:10.0.0.1:8080"}, False),
    ],
)
def test_routes_that_dial_each_other_are_a_loop(pairs: dict[str, str], loop: bool) -> None:
    routes = [Route(one, parse_listen(one), parse_target(two)) for one, two in pairs.items()]
    found = find_loop(routes)
    assert bool(found) == loop
    if found:
        assert found[0] == found[-1]
        assert set(found) <= set(pairs)
