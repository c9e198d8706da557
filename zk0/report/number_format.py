"""Formatting of numbers for readers. A missing number is a dash."""

import re
from collections.abc import Iterable
from math import floor, log10

DASH = "–"


def number(value: float | None, digits: int = 4) -> str:
    """A number with `digits` significant digits; a dash for None.

    >>> number(0.0020000001), number(1.64858, 3), number(None), number(0.0), number(12345.6)
    ('0.002', '1.65', '–', '0', '12346')
    >>> number(4.7e-7), number(-0.5)
    ('4.7e-07', '−0.5')
    """
    if value is None:
        return DASH
    if value and not 1e-4 <= abs(value) < 1e9:
        text = f"{value:.{max(digits - 2, 1)}e}"
        digits_part, exponent = text.split("e")
        text = f"{digits_part.rstrip('0').rstrip('.')}e{exponent}"
    else:
        places = max(digits - 1 - floor(log10(abs(value))), 0) if value else 0
        text = f"{value:.{places}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−", 1) if text.startswith("-") else text


def fixed(value: float | None, places: int) -> str:
    """A number with a fixed number of decimals; a dash for None.

    >>> fixed(9.1499, 2), fixed(-0.5, 3), fixed(None, 2), fixed(-0.0001, 2)
    ('9.15', '−0.500', '–', '0.00')
    """
    if value is None:
        return DASH
    text = f"{abs(value):.{places}f}"
    return f"−{text}" if value < 0 and float(text) else text


def plus_minus(value: float | None, half_width: float | None, places: int = 3) -> str:
    """A number ± half the width of its interval; without one, the number alone.

    >>> plus_minus(0.655, 0.0412), plus_minus(0.655, None), plus_minus(None, None)
    ('0.655 ± 0.041', '0.655', '–')
    """
    return fixed(value, places) if half_width is None else f"{fixed(value, places)} ± {fixed(half_width, places)}"


def count(value: int | None) -> str:
    """An integer with thin spaces between thousands; a dash for None.

    >>> count(2400), count(12), count(None)
    ('2\u202f400', '12', '–')
    """
    return DASH if value is None else f"{value:,}".replace(",", "\u202f")


def percent(share: float | None, places: int = 0) -> str:
    """A share in percent; a dash for None.

    >>> percent(1 / 3), percent(0.2346, 1), percent(None)
    ('33 %', '23.5 %', '–')
    """
    return DASH if share is None else f"{fixed(100 * share, places)} %"


def duration(seconds: float | None) -> str:
    """Seconds as seconds, minutes or hours; a dash for None.

    >>> duration(0.84), duration(75), duration(4000), duration(None)
    ('0.84 s', '1 min 15 s', '1 h 07 min', '–')
    """
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{number(seconds, 3)} s"
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    return f"{minutes} min {whole % 60:02d} s" if hours == 0 else f"{hours} h {round(whole / 60) % 60:02d} min"


def megabytes(size: int | None) -> str:
    """Bytes in MB (10^6); a dash for None.

    >>> megabytes(399_523_968), megabytes(785_552), megabytes(None)
    ('399.5 MB', '0.7856 MB', '–')
    """
    return DASH if size is None else f"{number(size / 1e6)} MB"


def spaced_timestamp(time: str) -> str:
    """An ISO 8601 time with spaces, so that a line can break in it.

    >>> spaced_timestamp("2025-11-22T03:01:00+00:00")
    '2025-11-22 03:01:00 +00:00'
    """
    return re.sub(r"(\d)T(\d\d:\d\d(?::\d\d)?)(?:\.\d+)?([+-])", r"\1 \2 \3", time)


def comma_separated(words: Iterable[str]) -> str:
    """Words separated by commas; a dash without words.

    >>> comma_separated(["a", "b"]), comma_separated([])
    ('a, b', '–')
    """
    return ", ".join(words) or DASH
