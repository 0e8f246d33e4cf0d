"""The forms of sizes, durations and counts that every command shows."""

import pytest

from vsockproxy.readable import count, duration, size


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 20, "1.0 MiB"), (5e15, "4.4 PiB")],
)
def test_a_size_has_the_largest_unit_that_fits(number: float, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0, "0s"),
        (0.00034, "340us"),
        (0.0009999, "1.0ms"),
        (0.0123, "12ms"),
        (0.9999, "1.0s"),
        (5.0, "5.0s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m 0s"),
        (192, "3m 12s"),
        (3600, "1h 0m"),
        (187_200, "2d 4h"),
    ],
)
def test_a_duration_has_its_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("seconds", [0.000_999, 0.9994, 9.949, 59.49, 3599, 86_399, 8_639_999])
def test_a_duration_fits_a_column_of_seven(seconds: float) -> None:
    assert len(duration(seconds)) <= 7


@pytest.mark.parametrize(("number", "text"), [(0, "0 routes"), (1, "1 route"), (2, "2 routes")])
def test_a_noun_is_singular_for_one_alone(number: int, text: str) -> None:
    assert count(number, "route") == text
