"""What a name may look like, and the nearest known name to a wrong one.

Names of concepts, versions and channels become folder names, S3 keys, MLflow tags and file names in an app, so one
narrow alphabet is allowed everywhere.

Example:
    check_name("oil-painting", "concept")     # returns it
    nearest("oil-paintin", ["oil-painting"])  # ["oil-painting"]
"""

import difflib
import re
from collections.abc import Iterable

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
NAME_RULE = "1 to 63 of a-z, 0-9 and -, starting and ending with a-z or 0-9"


def check_name(name: object, what: str = "name") -> str:
    """Return ``name`` if it may be used in a key.

    Args:
        name: The name.
        what: What it names, for the message.

    Raises:
        ValueError: it is not 1 to 63 of ``a-z 0-9 -`` with a letter or digit at both ends.
    """
    if not isinstance(name, str) or not NAME.match(name):
        shown = ascii(name)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise ValueError(f"{what} {shown} must be {NAME_RULE}")
    return name


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like ``name``, best first; empty if none is alike."""
    return difflib.get_close_matches(name[:200], list(known), n=count, cutoff=0.6)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean `x`?`` or an empty string."""
    found = nearest(name, known)
    return f"; did you mean {' or '.join(f'`{n}`' for n in found)}?" if found else ""
