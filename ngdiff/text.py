"""Untrusted text and numbers, as a reader may see them."""

import math
import re
from collections.abc import Iterator, Mapping

# C0 and C1 controls except newline and tab, marks that change the direction or the line, lone surrogates (no UTF-8 for them).
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with every character that could act on a screen, instead of appearing on it, written as its escape: `\\x1b`."""
    return _HIDDEN.sub(lambda match: ascii(match[0])[1:-1], text)


def number(value: object) -> str:
    """Three significant digits (integers in full); an en dash for what is missing or not finite."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "\u2013"
    if not isinstance(value, float):
        return str(value)
    if 999.5 <= abs(value) < 1e6:
        return f"{value:.0f}"  # rather than 1.23e+03
    return f"{value:#.3g}".removesuffix(".").replace("e-0", "e-")


def rate(value: object) -> str:
    """A learning rate as people write it, 0.01 or 3e-5, without padding; or automatic."""
    if not isinstance(value, float) or not math.isfinite(value):
        return "automatic" if value == "auto" else number(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def percent(value: float | None) -> str:
    """A share of one, as 98.3%."""
    return number(value) if value is None else f"{number(100.0 * value)}%"


def entries(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """(name, value) of every leaf of nested data, for a table of two columns; an item of a list goes by its own name."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = [(item.get("name", i) if isinstance(item, Mapping) else i, _unnamed(item)) for i, item in enumerate(value)]
    else:
        yield name, (", ".join(map(str, value)) or None) if isinstance(value, list | tuple) else value
        return
    for key, item in items:
        yield from entries(item, f"{name} / {key}" if name else str(key))


def _unnamed(item: object) -> object:
    return {key: value for key, value in item.items() if key != "name"} if isinstance(item, Mapping) else item
