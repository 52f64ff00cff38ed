"""How long a run was at its work, edits, training and measuring, as opposed to everything around it.

Every process counts its own seconds; a worker hands over what it counted with its reports, and the driver adds it up.
The three kinds of work count themselves, so the sum is measured, not estimated.

Example:
    with busy.working():
        edits = teacher.edit(photos, prompts, seeds)
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_total_s = 0.0
_taken_s = 0.0
_depth = 0


@contextmanager
def working() -> Iterator[None]:
    """Counts the block's wall time (or, as a decorator, the function's); a block inside another counts once."""
    global _depth
    _depth += 1
    start_s = time.perf_counter()
    try:
        yield
    finally:
        _depth -= 1
        add(time.perf_counter() - start_s)


def add(seconds: float) -> None:
    """Counts seconds that were measured elsewhere, unless the caller is being counted already."""
    global _total_s
    if not _depth:
        _total_s += seconds


def total_s() -> float:
    """Seconds counted in this process so far."""
    return _total_s


def take_s() -> float:
    """Seconds counted since the last call: what a worker puts into its next report."""
    global _taken_s
    new_s = _total_s - _taken_s
    _taken_s = _total_s
    return new_s
