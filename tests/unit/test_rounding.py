"""Numbers are printed with the digits that their uncertainties allow."""

from __future__ import annotations

import math

import pytest

from common.rounding import number, rounded, rounded_yield

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        # The examples of the Particle Data Group
        (0.827, 0.119, ("0.83", "0.12")),
        (0.827, 0.367, ("0.8", "0.4")),
        # The borders of its rule
        (1.0, 0.100, ("1.00", "0.10")),
        (1.0, 0.354, ("1.00", "0.35")),
        (1.0, 0.355, ("1.0", "0.4")),
        (1.0, 0.949, ("1.0", "0.9")),
        (1.0, 0.950, ("1.0", "1.0")),
        (1.0, 0.9999, ("1.0", "1.0")),
        (12.3456, 9.96, ("12", "10")),
        # What a run gives
        (1.70115, 0.27, ("1.70", "0.27")),
        (14.9846, 0.047, ("14.98", "0.05")),
        (0.420756, 0.0024, ("0.4208", "0.0024")),
        (-0.754, 0.372, ("-0.8", "0.4")),
        (5.66, 4.38, ("6", "4")),
        # Zero and signs
        (0.0, 0.0, ("0", "0")),
        (0.0, 0.25, ("0.00", "0.25")),
        (-0.001, 0.25, ("0.00", "0.25")),
        (-0.4, 12.0, ("0", "12")),
        (3.25, 0.0, ("3.25", "0")),
        (1234.5678, 0.0, ("1,234.6", "0")),
        # Missing and not finite
        (3.14159, None, ("3.142", "–")),
        (3.14159, NAN, ("3.142", "–")),
        (3.14159, INFINITE, ("3.142", "–")),
        (NAN, 0.1, ("–", "0.1")),
        (INFINITE, None, ("–", "–")),
        # Large and huge
        (1234567.0, 1234.0, ("1,234,600", "1,200")),
        (1234567.0, 98765.0, ("1,230,000", "100,000")),
        (5.0, 1234.0, ("0", "1,200")),
        (1e300, 2e298, ("1.000e+300", "2.0e+298")),
        (1.5e300, 0.0, ("1.5e+300", "0")),
        # Tiny
        (0.00123456, 0.0000123, ("0.001235", "0.000012")),
        (3.21e-9, 1.23e-10, ("3.21e-9", "1.2e-10")),
        (0.0, 1.23e-10, ("0", "1.2e-10")),
        (4.2e-11, 5.6e-10, ("0", "6e-10")),
        (9.6e-11, 5.6e-10, ("1e-10", "6e-10")),
        (1.0, 5e-324, (f"1.{'0' * 324}e+0", "5e-324")),
    ],
)  # fmt: skip
def test_a_value_and_its_uncertainty_are_rounded_by_the_pdg_rule(
    value: float, error: float | None, shown: tuple[str, str]
) -> None:
    assert rounded(value, error) == shown


def test_the_smallest_of_several_uncertainties_gives_the_last_digit() -> None:
    assert rounded(124.83, 1.61, 0.318, 2.2) == ("124.83", "1.61", "0.32", "2.20")
    assert rounded(124.83, None, 1.61) == ("124.8", "–", "1.6")
    assert rounded(124.83, 0.0, 1.61) == ("124.8", "0.0", "1.6")
    assert rounded(124.83) == ("124.8",)


def test_the_texts_round_trip_to_within_half_of_the_last_digit() -> None:
    for exponent in range(-12, 14):
        for leading in (1.0, 1.23, 2.345, 3.54, 3.55, 5.0, 9.49, 9.5, 9.99):
            error = leading * 10.0**exponent
            value, error_text = (float(text.replace(",", "")) for text in rounded(17.3 * error, error))
            assert math.isclose(error_text, error, rel_tol=0.15)
            assert abs(value - 17.3 * error) <= 0.15 * error


def test_a_count_keeps_all_its_digits() -> None:
    assert rounded_yield(15, 15.0, math.sqrt(15)) == ("15", "4")
    assert rounded_yield(12, 12.0, math.sqrt(12)) == ("12", "3.5")
    assert rounded_yield(1_234_567, 1_234_567.0, 1111.1) == ("1,234,567", "1,100")
    assert rounded_yield(0, 0.0, 0.0) == ("0", "0")
    assert rounded_yield(41, 1.70115, 0.27) == ("1.70", "0.27")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (NAN, "–"), (-INFINITE, "–"), (0.0, "0"), (-0.0, "0"), (1234, "1,234"), (1234.56, "1,234.6"),
        (0.0123456, "0.01235"), (36.6, "36.6"), (1e-300, "1e-300"), (1e300, "1e+300"),
        (123456789012345, "123,456,789,012,345"),
    ],
)  # fmt: skip
def test_a_number_without_an_uncertainty_has_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text
