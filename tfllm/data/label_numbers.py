"""Labels that are numbers: `1`, `1.0` and `+1` are one label, whatever a table writes."""

from __future__ import annotations

import re
from decimal import Decimal

# Not what float() accepts: "nan", "inf" and "1_000" are names.
NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?\s*", re.ASCII)


def as_number(label: object) -> Decimal | None:
    """Return the exact value of a label that is written as a finite number, else None."""
    text = str(label)
    return Decimal(text.strip()) if NUMBER.fullmatch(text) else None
