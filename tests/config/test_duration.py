"""Durations as operators write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockproxy.config.duration import DurationError, parse_bound, parse_duration, parse_timeout


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *((0, 0), (5, 5), (1.5, 1.5), (0.001, 0.001), (366 * 86400, 366 * 86400), ("0s", 0)),
        *(("250ms", 0.25), ("30s", 30), ("1 s", 1), ("5m", 300), ("1.5h", 5400), ("1d", 86400)),
    ],
)
def test_a_duration_is_seconds_or_has_a_unit(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *("5", "", "s", "5 sec", "-1s", "1e3s", "٣s", "5S", "1h30m", "off", True, None, [], -1),
        *(float("nan"), float("inf"), 10**400, "0.0001ms", 0.0001, "367d", "9" * 5000 + "s"),
    ],
)
def test_a_value_that_is_not_a_duration_is_an_error(value: object) -> None:
    with pytest.raises(DurationError):
        parse_duration(value)


def test_off_and_zero_disable_an_optional_bound() -> None:
    assert [parse_bound(value) for value in ("off", 0, "0s", 5)] == [None, None, None, 5.0]
    for value in ("off", 0, "0s"):
        with pytest.raises(DurationError, match="cannot be off"):
            parse_timeout(value)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.lists(st.integers())))
def test_every_value_is_a_duration_or_an_error(value: object) -> None:
    try:
        assert parse_duration(value) >= 0
    except DurationError as error:
        assert str(error)  # noqa: PT017 - raising is allowed, not demanded
