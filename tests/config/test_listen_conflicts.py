"""Listeners that conflict with another listener or with their own target."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockproxy.address.endpoint import GuestEndpoint
from vsockproxy.address.grammar import parse_listen, parse_target
from vsockproxy.config.listen_conflicts import Claims, find_loop, is_loop
from vsockproxy.config.settings import Route

# The first of each pair cannot be had beside the second.
CLASHES = [
    ("80", "127.0.0.1:80"),
    ("80", "[::1]:80"),
    ("80", "localhost:80"),
    ("80", "0.0.0.0:80"),
    ("80", "[::]:80"),
    ("[0::0]:80", "[::2]:80"),
    ("[::2]:80", "[0:0::2]:80"),
    ("WEB:80", "web:80"),
    ("vsock::80", "vsock:3:80"),
    ("vsock::80", "vsock::80"),
    ("unix:/a", "unix:/a"),
    ("unix:/a_5", "vsock-mux:/a:5"),
    ("fd:a", "fd:a"),
]
NEIGHBOURS = [
    ("80", "81"),
    ("80", "127.0.0.2:80"),
    ("0.0.0.0:80", "[::]:80"),
    ("10.0.0.1:80", "10.0.0.2:80"),
    ("vsock:1:80", "vsock:2:80"),
    ("vsock::80", "80"),
    ("unix:/a", "unix:@a"),
    ("unix:/a", "vsock-mux:/a:5"),
    ("fd:a", "unix:a"),
]


def clash(first: str, second: str) -> str | None:
    claims = Claims()
    assert claims.take(parse_listen(first), "first") is None
    return claims.take(parse_listen(second), "second")


@pytest.mark.parametrize(("one", "other"), CLASHES)
def test_two_listeners_on_one_address_conflict_in_either_order(one: str, other: str) -> None:
    assert clash(one, other) == "first"
    assert clash(other, one) == "first"


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_listeners_on_different_addresses_do_not_conflict(one: str, other: str) -> None:
    assert clash(one, other) is None
    assert clash(other, one) is None


@given(st.lists(st.sampled_from(sorted({text for pair in CLASHES for text in pair})), max_size=5))
def test_a_conflict_names_an_earlier_owner(texts: list[str]) -> None:
    claims = Claims()
    for index, text in enumerate(texts):
        owner = claims.take(parse_listen(text), str(index))
        assert owner is None or int(owner) < index
        assert owner is not None or text not in texts[:index]


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
