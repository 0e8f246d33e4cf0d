"""Listeners that conflict with another listener."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockproxy.address.grammar import parse_listen
from vsockproxy.config.listen_conflicts import Claims

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
