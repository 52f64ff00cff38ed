"""The report: one page, nothing from outside, hostile text harmless, at any moment of a batch."""

import json
import re
from html.parser import HTMLParser

import pytest

from e2gan_cluster.batch import run_fingerprint
from e2gan_cluster.config import RunConfig
from e2gan_cluster.evaluate.grids import grid_png
from e2gan_cluster.storage import keys, open_store
from e2gan_cluster.track.charts import line_chart, number
from e2gan_cluster.track.mlflow_tracker import Tracker
from e2gan_cluster.track.pictures import strips
from e2gan_cluster.track.report import write_report
from e2gan_cluster.track.report_cards import duration, mlflow_link, size
from tests.track.made_up_batch import BASE_ID, EDITS, SEARCH, fill, made_up_config, photos, stack


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags left open."""

    VOID = frozenset({"meta", "input", "img", "br", "line", "path", "circle", "polyline"})

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page.decode())
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return made_up_config(tmp_path)


def test_page_shows_every_concept_with_pick_quality_cost_and_reason(config):
    store = fill(config, count=4, side=48)
    page = Page(write_report(config, store))
    assert store.get(keys.REPORT).startswith(b"<!doctype html>")
    text = re.sub(r"\s+", " ", page.text)
    for name in [*EDITS, "fog", "broken", "oil", "ink"]:
        assert name in text
    assert "4 of 6 concepts finished" in text
    assert "31 black" in text
    assert "ranks ×2, 45 pairs" in text
    assert "0badcafe0001" in text
    assert BASE_ID in text
    assert "ab" * 32 in text
    assert "stopped early" in text
    assert "0.031" in text, "the floor"
    cards = [d.get("id") for d in page.all("details") if d.get("class") == "card"]
    assert cards == [f"c-{name}" for name in [*EDITS, "fog"]]
    assert len(page.all("svg")) == len(EDITS)


def test_nothing_is_fetched_from_outside(config):
    page = write_report(config, fill(config, count=3, side=48))
    text = page.decode()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", text)
    assert not re.findall(r"url\((?!data:)", text)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://", re.sub(r"data:[^)\"']*", "", text))


def test_pictures_are_those_of_the_search_and_the_pick_is_on_top(config):
    page = Page(write_report(config, fill(config, count=4, side=48)))
    left, right = page.all("select")[:2]
    assert (left["data-side"], right["data-side"]) == ("a", "b")
    chosen = [i for i, (tag, attributes) in enumerate(page.tags) if tag == "option" and "selected" in attributes][:2]
    options = [attributes["value"] for tag, attributes in page.tags if tag == "option"][:7]
    assert options == [str(i) for i in range(7)]
    assert [page.tags[i][1]["value"] for i in chosen] == ["1", "5"], "teacher against x2 n45"


@pytest.mark.parametrize("hostile", ["</style><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}"])
def test_hostile_prompts_labels_and_reasons_stay_text(tmp_path, hostile):
    config = made_up_config(tmp_path, prompts={"sepia": f"make it {hostile}"})
    store = fill(config, count=2, side=32)
    store.put(keys.run_status(run_fingerprint(config), "failures.json"), json.dumps({"broken": hostile}).encode())
    pictures = stack(photos(2, 32))
    columns = {"photo": pictures, hostile: pictures}
    store.put(keys.search_file("sepia", SEARCH, "samples.png"), grid_png(columns))
    page = Page(write_report(config, store))
    assert page.text.count(hostile) >= 3
    assert len(page.all("script")) == 1
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert not [a for a in page.all("img") if not (a["src"] or "").startswith("data:")]


def test_an_untouched_batch_and_a_half_done_one_have_a_report_too(config):
    page = Page(write_report(config, open_store(config.storage)))
    assert "not started" in page.text
    assert "0 of 6 concepts finished" in page.text
    store = fill(config, count=2, side=32)
    for info in list(store.list("search/")):
        if info.key.endswith(("result.json", "samples.png")):
            store.delete(info.key)
    assert "searching" in Page(write_report(config, store)).text


def test_damaged_records_and_pictures_do_not_stop_the_report(config):
    store = fill(config, count=2, side=32)
    store.put(keys.search_result("poster", SEARCH), b'{"half')
    store.put(keys.search_file("sepia", SEARCH, "samples.png"), b"\x89PNG cut")
    store.put(keys.evaluation("sepia", run_fingerprint(config)[:16]), b"[]")
    page = Page(write_report(config, store))
    assert "negative" in page.text


def test_passwords_in_addresses_do_not_reach_the_page(config):
    store = fill(config, count=2, side=32)
    links = {"uri": "http://me:***@mlflow:5000", "experiment_id": "1", "runs": {"concept/sepia": "r1"}}
    store.put(keys.run_status(run_fingerprint(config), "tracking.json"), json.dumps(links).encode())
    assert "me:***@" in Page(write_report(config, store)).text


def test_concepts_link_to_their_runs_on_a_server():
    links = {"uri": "http://host:5000/", "experiment_id": "3", "runs": {"concept/sepia": "abc"}}
    assert mlflow_link(links, "concept/sepia") == "http://host:5000/#/experiments/3/runs/abc"
    assert mlflow_link(links, "concept/other") == ""
    assert mlflow_link({**links, "uri": "javascript:alert(1)"}, "concept/sepia") == ""


def test_strips_hold_the_pictures_of_a_grid_and_nothing_for_damaged_ones():
    pictures = stack(photos(3, 32))
    made = strips(grid_png({"photo": pictures, "teacher": pictures[:2]}), max_rows=2, max_cell=16)
    assert [(strip.label, strip.count) for strip in made] == [("photo", 2), ("teacher", 2)]
    assert strips(b"", 2, 16) == strips(None, 2, 16) == []


def test_charts_and_figures_are_for_people():
    chart = line_chart({"<b>": [(1, 2), (3, 1)]}, "kB", "lpips", {"base": 3}, (3, 1))
    assert "<b>" not in chart
    assert chart.count("<circle") == 3
    assert line_chart({}, "x", "y") == ""
    assert [number(v) for v in (0, 0.12345, 12.3, 1234, 1e-5, 999.9)] == [
        "0",
        "0.123",
        "12.3",
        "1,234",
        "1.0e-05",
        "1000",
    ]
    assert [duration(v) for v in (0.5, 59.6, 200, 7500)] == ["0.5 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
    assert [size(v) for v in (12, 36_000, 2_500_000)] == ["12 B", "36 kB", "2.5 MB"]


def test_report_and_mlflow_point_at_each_other(config, tmp_path):
    from mlflow import MlflowClient

    store, uri = fill(config, count=2, side=32), f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = Tracker(uri, "demo", run_fingerprint(config))
    tracker.concept_run("sepia", "make it sepia")
    assert tracker.flush(60)
    page = write_report(config, store, tracker)
    assert tracker.close(60)
    assert f"mlflow ui --backend-store-uri {uri}".encode() in page
    links = json.loads(store.get(keys.run_status(run_fingerprint(config), "tracking.json")))
    client = MlflowClient(tracking_uri=uri)
    assert client.get_run(links["runs"]["concept/sepia"]).data.params["concept"] == "sepia"
    batch = client.get_run(links["runs"][""])
    assert batch.data.params["report"].endswith("/report.html")
    assert [item.path for item in client.list_artifacts(links["runs"][""])] == ["report.html"]
