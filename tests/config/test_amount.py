"""Counts, sizes, rates, users and modes as operators write them."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockproxy.config.amount import AmountError, parse_count, parse_rate, parse_size
from vsockproxy.config.duration import DurationError, parse_keepalive, parse_user_timeout
from vsockproxy.config.unix_users import group_id, parse_group, parse_mode, parse_owner, user_id
from vsockproxy.errors import AddressError

WRONG: list[object] = [
    True,
    None,
    [],
    {},
    -1,
    0,
    "",
    "x",
    float("nan"),
    float("inf"),
    10**400,
    "9" * 5000,
    "\ud800",
]
PARSERS = [parse_count, parse_rate, parse_size]


@pytest.mark.parametrize(
    ("parse", "value", "amount"),
    [
        (parse_count, 1, 1),
        (parse_count, 2**31 - 1, 2**31 - 1),
        (parse_count, "off", None),
        (parse_rate, 10, 10.0),
        (parse_rate, 0.5, 0.5),
        (parse_rate, "off", None),
        (parse_size, 4096, 4096),
        (parse_size, "1B", 1),
        (parse_size, "256KiB", 256 * 1024),
        (parse_size, "1 MiB", 1 << 20),
        (parse_size, "1GiB", 1 << 30),
        (parse_size, "auto", None),
    ],
)
def test_an_amount_is_read(
    parse: Callable[[object], object], value: object, amount: object
) -> None:
    assert parse(value) == amount


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("value", [*WRONG, "2GiB", "1KB", "1.5MiB", "10/s", 2**31])
def test_a_value_that_is_not_an_amount_is_an_error(
    parse: Callable[[object], object], value: object
) -> None:
    with pytest.raises(AmountError):
        parse(value)


@pytest.mark.parametrize("parse", PARSERS)
@given(value=st.none() | st.booleans() | st.integers() | st.floats() | st.text())
def test_every_value_is_an_amount_or_an_error(
    parse: Callable[[object], object], value: object
) -> None:
    try:
        amount = parse(value)
    except AmountError:
        return
    assert amount is None or (isinstance(amount, int | float) and amount > 0)


@pytest.mark.parametrize(
    ("value", "seconds"), [("off", None), (0, None), ("auto", "auto"), (1, 1.0)]
)
def test_keepalive_is_a_time_or_a_word(value: object, seconds: object) -> None:
    assert parse_keepalive(value) == seconds


@pytest.mark.parametrize("value", [0.5, "10h", "x", True])
def test_a_keepalive_outside_the_kernels_range_is_an_error(value: object) -> None:
    with pytest.raises(DurationError):
        parse_keepalive(value)


def test_a_user_timeout_has_milliseconds_and_fits_the_kernel() -> None:
    assert parse_user_timeout("250ms") == 0.25
    assert parse_user_timeout("off") is None
    with pytest.raises(DurationError):
        parse_user_timeout("25d")


def test_users_and_groups_are_names_or_numbers() -> None:
    user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(os.getgid())
    assert user_id(user.pw_name) == user_id(user.pw_uid) == user_id(str(user.pw_uid)) == os.getuid()
    assert group_id(group.gr_name) == group_id(group.gr_gid) == os.getgid()
    assert parse_owner("auto") is None
    assert parse_group("auto") is None


@pytest.mark.parametrize("find", [user_id, group_id])
@pytest.mark.parametrize(
    "value", [*WRONG[:5], "no-such-name", "a b", "\0", "\ud800", 2**32 - 1, 1.5]
)
def test_an_unknown_user_or_group_is_an_error(find: Callable[[object], int], value: object) -> None:
    with pytest.raises(AddressError):
        find(value)


@pytest.mark.parametrize(("value", "mode"), [("0660", 0o660), ("600", 0o600), ("auto", None)])
def test_a_mode_is_octal(value: object, mode: int | None) -> None:
    assert parse_mode(value) == mode


@pytest.mark.parametrize("value", [660, 0o660, "0888", "1777", "66", "rw-", True, "0660 "])
def test_a_value_that_is_not_a_mode_is_an_error(value: object) -> None:
    with pytest.raises(AddressError, match='as in "0660"'):
        parse_mode(value)
