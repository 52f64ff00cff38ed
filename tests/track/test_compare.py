"""The comparison: rows across batches from storage, and tables that spreadsheets can open safely."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from e2gan_cluster.cli import app
from e2gan_cluster.config_io import to_yaml
from e2gan_cluster.track.compare import CompareRow, compare, pivot, to_csv, to_json
from tests.track.made_up_batch import fill, made_up_config


@pytest.fixture
def two(tmp_path):
    batches = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        config = made_up_config(tmp_path / name).model_copy(update={"name": name})
        batches.append((config, fill(config, count=2, side=32)))
    return batches


def test_rows_hold_picks_beside_base_photo_and_floor(two):
    rows = {row.concept: row for row in compare(two[:1])}
    assert set(rows) == {"sepia", "poster", "negative", "night", "fog", "broken"}
    sepia = rows["sepia"]
    assert (sepia.rank_multiplier, sepia.data_size, sepia.metric, sepia.adapter) == (2, 45, "lpips", 0.12)
    assert (sepia.base, sepia.photo, sepia.floor) == (0.27, 0.41, 0.031)
    assert sepia.gain == pytest.approx(0.41 / 0.12)
    assert "31 black" in rows["broken"].failure
    assert rows["fog"].adapter is None


def test_batches_stand_side_by_side(two):
    batches, lines = pivot(compare(two))
    assert batches == ["one", "two"]
    assert dict(lines)["poster"] == [0.133, 0.133]


def test_other_search_settings_of_the_storage_are_listed_on_request(two):
    _, store = two[0]
    found = next(info.key for info in store.list("search/sepia/") if info.key.endswith("result.json"))
    other = json.loads(store.get(found)) | {"fingerprint": "b" * 16, "state": "stopped"}
    store.put(found.replace("3f0c9a5e1b2d4c6f", "b" * 16), json.dumps(other).encode())
    assert len(compare(two[:1])) == 6
    rows = [row for row in compare(two[:1], every_search=True) if row.concept == "sepia"]
    assert len(rows) == 2
    assert rows[0].search == "3f0c9a5e1b2d4c6f"


def test_csv_starts_no_formula_and_reads_back():
    rows = [CompareRow("=HYPERLINK(1)", "+a", "-b", failure='@x, "quoted"\nline', adapter=-0.5, seconds=1.5)]
    text = to_csv(rows)
    (back,) = csv.DictReader(io.StringIO(text))
    assert [back[k] for k in ("batch", "concept", "state")] == ["'=HYPERLINK(1)", "'+a", "'-b"]
    assert back["failure"] == '\'@x, "quoted"\nline'
    assert (back["adapter"], back["base"], back["seconds"]) == ("-0.5", "", "1.5")
    assert json.loads(to_json(rows))[0]["batch"] == "=HYPERLINK(1)"


def test_commands_print_and_write(two, tmp_path):
    files = []
    for config, _ in two:
        files.append(tmp_path / f"{config.name}.yaml")
        files[-1].write_text(to_yaml(config))
    runner = CliRunner()
    arguments = ["compare", "-c", str(files[0]), "-c", str(files[1]), "--csv", str(tmp_path / "t.csv")]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "x2 n45" in result.output
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 13
    result = runner.invoke(app, ["report", "-c", str(files[0]), "--output", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "page.html").read_bytes().startswith(b"<!doctype html>")
