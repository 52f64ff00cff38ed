"""A write-ahead log of tracking records: JSON lines on disk that outlive the process.

Every record is on disk before anything is sent, so a killed driver or an absent server loses nothing: the next
tracker on the same folder adopts what a dead one left behind. Applying a record twice must do no harm.

Example:
    spool = Spool(Path("runs/demo/tracking"))
    spool.append({"op": "open", "run": "demo/0123"})
    spool.first(timeout_s=1.0)  # {"op": "open", ...}
    spool.drop_first()
"""

import base64
import fcntl
import json
import os
import threading
import time
import uuid
from collections import deque
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]


class Spool:
    """Records waiting to be sent, in order, in memory and in one file per process.

    Never raises for a full or read-only disk: records are then kept in memory alone (`on_disk` is False).

    Args:
        folder: Where the files lie; shared by all processes of a run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.on_disk = True
        self._changed = threading.Condition()
        self._records: deque[Record] = deque()
        self._adopted: list[tuple[Path, IO[bytes]]] = []
        self._closing = False
        self._file: IO[bytes] | None = None
        self._path = folder / f"{time.time_ns():020d}-{os.getpid()}-{uuid.uuid4().hex[:6]}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._adopt()
            self._file = self._path.open("ab")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.on_disk = False

    def __len__(self) -> int:
        return len(self._records)

    def append(self, record: Record) -> None:
        """Put a record at the end, on disk first."""
        with self._changed:
            self._write(record)
            self._records.append(record)
            self._changed.notify_all()

    def first(self, timeout_s: float | None = None) -> Record | None:
        """The oldest record, waiting for one; None on timeout, or if none is left after `close_for_input`."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._records) or self._closing, timeout_s)
            return self._records[0] if self._records else None

    def drop_first(self) -> None:
        """The oldest record is done; with the last one the files are emptied."""
        with self._changed:
            self._records.popleft()
            if not self._records:
                self._clear()
                self._changed.notify_all()

    def reject_first(self, reason: str) -> None:
        """The oldest record can never be sent: keep it in ``rejected.jsonl`` for people and go on."""
        with self._changed:
            line = json.dumps({"reason": reason, "record": _without_data(self._records[0])}) + "\n"
            try:
                with (self.folder / "rejected.jsonl").open("a") as file:
                    file.write(line)
            except OSError:
                self.on_disk = False
        self.drop_first()

    def close_for_input(self) -> None:
        """Wake a waiting `first`; it returns None once nothing is left."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until nothing is left; False on timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._records, timeout_s)

    def release(self) -> None:
        """Let go of the files; what is left in them is adopted by the next process."""
        with self._changed:
            for _, file in self._adopted:
                file.close()
            if self._file is not None:
                if not self._records:
                    self._path.unlink(missing_ok=True)
                self._file.close()
                self._file = None

    def _write(self, record: Record) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            self.on_disk = True
        except OSError:
            self.on_disk = False

    def _adopt(self) -> None:
        """Take over the files of processes that are gone; their locks went with them."""
        for path in sorted(self.folder.glob("[0-9]*.jsonl")):
            file = path.open("rb+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                continue
            self._records.extend(_whole_records(file.read()))
            self._adopted.append((path, file))
        if self._adopted and not self._records:
            self._clear()

    def _clear(self) -> None:
        for path, file in self._adopted:
            path.unlink(missing_ok=True)
            file.close()
        self._adopted.clear()
        if self._file is not None:
            self._file.truncate(0)


def pack(data: bytes) -> str:
    """Bytes as text for a record."""
    return base64.b64encode(data).decode("ascii")


def unpack(text: str) -> bytes:
    """Inverse of `pack`."""
    return base64.b64decode(text)


def _whole_records(data: bytes) -> list[Record]:
    """Records of a file whose last line may be torn."""
    records = []
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"op", "run"} <= record.keys():
            records.append(record)
    return records


def _without_data(record: Record) -> Record:
    return {**record, "data": f"{len(record['data'])} characters"} if "data" in record else record
