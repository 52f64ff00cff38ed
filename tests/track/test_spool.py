"""The write-ahead log: what a killed process leaves behind is complete, in order, and taken once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from e2gan_cluster.track.spool import Spool


def record(number: int) -> dict:
    return {"op": "log", "run": "b/f", "number": number}


def numbers(spool: Spool) -> list[int]:
    found = []
    spool.close_for_input()
    while (item := spool.first()) is not None:
        found.append(item["number"])
        spool.drop_first()
    return found


def test_records_come_out_in_order_and_leave_no_file(tmp_path):
    spool = Spool(tmp_path)
    for i in range(5):
        spool.append(record(i))
    assert numbers(spool) == [0, 1, 2, 3, 4]
    spool.release()
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_keeps_its_records_and_a_released_one_hands_them_on(tmp_path):
    first = Spool(tmp_path)
    first.append(record(1))
    assert len(Spool(tmp_path)) == 0
    first.release()
    second = Spool(tmp_path)
    second.append(record(2))
    assert numbers(second) == [1, 2]


def test_records_of_a_killed_process_are_adopted_without_its_torn_last_line(tmp_path):
    program = f"""
import os, time
from pathlib import Path
from e2gan_cluster.track.spool import Spool
spool = Spool(Path({str(tmp_path)!r}))
for i in range(3):
    spool.append({{"op": "log", "run": "b/f", "number": i}})
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    left = next(tmp_path.glob("*.jsonl"))
    with left.open("a") as file:
        file.write(json.dumps(record(3))[:20])
    assert numbers(Spool(tmp_path)) == [0, 1, 2]


def test_a_folder_that_cannot_be_written_keeps_records_in_memory(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    spool = Spool(blocker / "tracking")
    spool.append(record(1))
    assert not spool.on_disk
    assert numbers(spool) == [1]
    spool.release()


def test_a_refused_record_is_kept_for_people_without_its_bytes(tmp_path):
    spool = Spool(tmp_path)
    spool.append({**record(1), "data": "x" * 1000})
    spool.reject_first("no such thing")
    line = json.loads((Path(tmp_path) / "rejected.jsonl").read_text())
    assert line["reason"] == "no such thing"
    assert line["record"]["data"] == "1000 characters"
    assert len(spool) == 0
