"""Imports while something else runs."""

import sys
from pathlib import Path

import pytest

from e2gan_cluster.ahead import ImportAhead


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names = ["ahead_first", "ahead_second"]
    for name in names:
        (tmp_path / f"{name}.py").write_text("import time\ntime.sleep(0.05)\nready = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return names


def test_a_stage_waits_for_its_own_modules(modules: list[str]) -> None:
    ahead = ImportAhead({"base": modules[:1], "publish": modules[1:]})
    ahead.allow("base")
    ahead.wait("base")
    assert sys.modules[modules[0]].ready
    ahead.wait("publish")
    assert modules[1] not in sys.modules, "not allowed yet"
    ahead.allow("publish")
    ahead.wait("publish")
    assert sys.modules[modules[1]].ready
    ahead.close()


def test_nothing_is_imported_and_nobody_waits_before_the_start(modules: list[str]) -> None:
    ahead = ImportAhead({"base": modules})
    ahead.wait("base")
    ahead.wait("another")
    ahead.close()
    assert not set(modules) & set(sys.modules)


def test_a_module_that_cannot_be_imported_keeps_nobody_waiting(modules: list[str]) -> None:
    ahead = ImportAhead({"base": ["ahead_missing"], "publish": modules})
    ahead.allow("publish")
    ahead.wait("publish")
    ahead.close()
    assert not set(modules) & set(sys.modules)


def test_closing_twice_and_starting_after_the_end_do_nothing(modules: list[str]) -> None:
    ahead = ImportAhead({"base": modules})
    ahead.close()
    ahead.allow("base")
    ahead.close()
    assert not set(modules) & set(sys.modules)
