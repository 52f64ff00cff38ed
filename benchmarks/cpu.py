"""CPU seconds of this process and all that it started: a figure that other programs on the machine change little.

Example:
    start_s = tree_cpu_s()
    ...
    print(tree_cpu_s() - start_s)
"""

import os
from collections import defaultdict
from pathlib import Path


def tree_cpu_s(root: int | None = None) -> float:
    """User and system time of a process and its descendants, those that have ended included (Linux).

    Args:
        root: Process id; None = this process.
    """
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue  # it has just ended
        # The name in brackets may hold anything.
        fields = text.rpartition(")")[2].split()
        pid, parent = int(folder.name), int(fields[1])
        # Its own time and that of children it has waited for (proc(5): utime, stime, cutime, cstime).
        ticks[pid] = sum(int(value) for value in fields[11:15])
        children[parent].append(pid)
    total, todo = 0, [os.getpid() if root is None else root]
    while todo:
        pid = todo.pop()
        total += ticks.get(pid, 0)
        todo += children[pid]
    return total / os.sysconf("SC_CLK_TCK")
