"""JSON with exactly one spelling, so that any changed byte shows.

Example:
    data = dump({"b": 1, "a": [0.5]})
    assert dump(parse(data, "x.json")) == data
"""

import json
from typing import Any

from e2gan_cluster.errors import IntegrityError

MAX_BYTES = 8 << 20


def dump(value: Any) -> bytes:
    """Sorted keys, two-space indent, UTF-8, one newline at the end.

    Raises:
        ValueError: NaN, infinity, a lone surrogate, or something that is not JSON.
    """
    try:
        return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, UnicodeEncodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


def parse(data: bytes, what: str) -> Any:
    """Parse what `dump` wrote, and nothing else.

    Raises:
        IntegrityError: Not that; names ``what``.
    """
    if len(data) > MAX_BYTES:
        raise IntegrityError(f"{what}: {len(data)} bytes of JSON, at most {MAX_BYTES} are read")
    try:
        value = json.loads(data)
        same = dump(value) == data
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{what} is not valid: {str(error)[:200]}", "fetch it again, or publish a new version"
        ) from None
    if not same:
        raise IntegrityError(
            f"{what} is not in the form this program writes: it was edited or damaged",
            "fetch it again, or publish a new version; never edit it by hand",
        )
    return value
