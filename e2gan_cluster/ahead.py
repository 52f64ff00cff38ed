"""Imports what later stages need while an earlier one works: torch and its like take seconds each.

Example:
    ahead = ImportAhead({"base": ["torch"], "publish": ["torch.onnx"]})
    ahead.allow("base")
    ...
    ahead.wait("base")
"""

import importlib
import threading
from collections.abc import Mapping, Sequence


class ImportAhead:
    """A thread that imports modules stage by stage.

    Two threads that import parts of one large package at once can each meet the other's half of it: a stage waits for
    its own modules before it imports anything.

    Args:
        modules: Stage -> modules, in the order of the stages.
    """

    def __init__(self, modules: Mapping[str, Sequence[str]]) -> None:
        self._modules = modules
        self._allowed = {stage: threading.Event() for stage in modules}
        self._done = {stage: threading.Event() for stage in modules}
        self._closing = threading.Event()
        # No daemon: an interpreter that ends in the middle of an import crashes.
        self._thread = threading.Thread(target=self._run, name="import-ahead")

    def allow(self, last: str) -> None:
        """Begin with the modules of all stages up to this one, unless that is done already."""
        if self._closing.is_set() or last not in self._modules:
            return
        for stage, allowed in self._allowed.items():
            allowed.set()
            if stage == last:
                break
        if self._thread.ident is None:
            self._thread.start()

    def wait(self, stage: str) -> None:
        """Return once a stage's modules, and those of the stages before, are imported; at once if not allowed."""
        if stage in self._modules and self._allowed[stage].is_set():
            self._done[stage].wait()

    def close(self) -> None:
        """Import no further module, and wait for the one under way."""
        self._closing.set()
        for allowed in self._allowed.values():
            allowed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            for stage, names in self._modules.items():
                self._allowed[stage].wait()
                for name in names:
                    if self._closing.is_set():
                        return
                    importlib.import_module(name)
                self._done[stage].set()
        except ImportError:
            return  # the stage that needs it meets the same error, and says so
        finally:
            for event in self._done.values():
                event.set()
