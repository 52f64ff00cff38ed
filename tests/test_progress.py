"""Progress lines for people and programs."""

import io
import json

from e2gan_cluster.progress import LineReporter, SilentReporter, _json_line, _plain_line, format_duration, make_reporter
from e2gan_cluster.redact import redact


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def reporter(format_line) -> tuple[LineReporter, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return LineReporter(stream, format_line, every_s=5, clock=clock), stream, clock


def test_a_plain_line_comes_every_few_seconds_and_at_the_end():
    lines, stream, clock = reporter(_plain_line)
    lines.start("pairs oil", 100, "photos")
    for done in range(0, 101, 10):
        clock.now_s += 1
        lines.update("pairs oil", done, loss=0.12345)
    lines.finish("pairs oil", "100 pairs")
    printed = stream.getvalue().splitlines()
    assert len(printed) == 5
    assert printed[1].endswith("pairs oil  40/100 photos  40%  10/s  eta 0:06  loss=0.1235")
    assert printed[-1].endswith("pairs oil  100 pairs  in 0:11")


def test_a_resumed_task_counts_only_new_work_as_speed():
    lines, stream, clock = reporter(_json_line)
    lines.start("base", 1000, "images")
    lines.update("base", 900)
    clock.now_s += 10
    lines.update("base", 950)
    event = json.loads(stream.getvalue().splitlines()[-1])
    assert event["per_second"] == 5
    assert event["eta_s"] == 10


def test_json_lines_are_json_whatever_the_facts():
    lines, stream, clock = reporter(_json_line)
    lines.start("t", 2, "x")
    clock.now_s += 9
    lines.update("t", 1, loss=float("nan"), where=object, event="clash")
    lines.note("two\nlines", concept="oil")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [e["event"] for e in events] == ["start", "update", "note"]
    assert (events[1]["task"], events[1]["loss"]) == ("t", "nan")
    assert events[2]["concept"] == "oil"


def test_json_goes_to_standard_output_and_plain_lines_do_not(capsys):
    make_reporter("json").note("hello")
    make_reporter("plain").note("world")
    out, err = capsys.readouterr()
    assert json.loads(out)["message"] == "hello"
    assert err.rstrip().endswith("world")


def test_updates_of_an_unknown_task_are_no_error():
    lines, stream, _ = reporter(_plain_line)
    lines.update("stray", 0)
    lines.finish("stray")
    assert "stray" in stream.getvalue()
    SilentReporter().update("stray", 1)


def test_durations_read_like_a_clock():
    assert [format_duration(s) for s in (7.4, 754, 10921)] == ["0:07", "12:34", "3:02:01"]


def test_secrets_never_reach_a_line(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretvalue")
    lines, stream, _ = reporter(_plain_line)
    lines.note("failed with verysecretvalue", address="postgresql://me:hunter2@db/x")
    assert "verysecretvalue" not in stream.getvalue()
    assert "hunter2" not in stream.getvalue()
    assert redact("https://b.s3.test/k?X-Amz-Signature=abc123&x=1") == "https://b.s3.test/k?X-Amz-Signature=***&x=1"
