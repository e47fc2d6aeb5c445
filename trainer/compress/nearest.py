"""The nearest that is possible, as text that can be asked for: rounded to the side on which it still is possible."""

import decimal

_DIGITS = 6


def at_least(value: float) -> str:
    """Six digits of `value` or of a little more: nothing below it is possible."""
    return _rounded(value, decimal.ROUND_CEILING)


def at_most(value: float) -> str:
    """Six digits of `value` or of a little less: nothing above it is possible."""
    return _rounded(value, decimal.ROUND_FLOOR)


def _rounded(value: float, away: str) -> str:
    text = f"{value:.{_DIGITS}g}"
    if float(text) == value:
        return text
    # In decimal: of binary fractions a product may lie on either side of a whole number.
    rounded = decimal.Context(_DIGITS, away).create_decimal_from_float(value)
    return f"{float(rounded):.{_DIGITS}g}"
