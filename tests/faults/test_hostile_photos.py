"""F31, F32: pixel and text-chunk bombs, absurd shapes, other kinds of files. Each is a reason; memory stays bounded.
F33: where most photos are bad, a run stops before it has cost anything.

The photos are decoded in a process of its own whose address space may grow by 700 MB; the largest bombs would need
gigabytes.
"""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from e2gan_cluster.config import PhotosConfig
from e2gan_cluster.errors import EXIT_BAD_INPUT, InputError
from e2gan_cluster.pairs import scan
from e2gan_cluster.pairs.generate import run_local
from e2gan_cluster.pairs.photos import MAX_PHOTO_BYTES, PhotoRef, load_photo
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.storage import open_store
from tests.pairs.pairs_setup import INVERT, config_for, write_photos

PROGRAM = """
import json, resource, sys, pathlib
from e2gan_cluster.pairs.photos import PhotoRef, load_photo
load_photo(PhotoRef(sys.argv[2]), 64)
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 700 * 2**20,) * 2)
folder = pathlib.Path(sys.argv[1])
statuses = {p.name: load_photo(PhotoRef(str(p)), 64).status for p in sorted(folder.iterdir())}
# Not ru_maxrss: that keeps the peak of the process this one was forked from.
peak_kb = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"statuses": statuses, "peak_mb": peak_kb / 1024}))
"""


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, body: bytes, *, before: bytes = b"", after: bytes = b"", bits: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", body) + after + chunk(b"IEND", b"")


def zeros(size: int) -> bytes:
    squeeze = zlib.compressobj(1)
    block = bytes(2**20)
    parts = [squeeze.compress(block) for _ in range(size // len(block))]
    return b"".join([*parts, squeeze.compress(bytes(size % len(block))), squeeze.flush()])


def saved(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tiff(width: int, height: int, tile: int) -> bytes:
    """A TIFF header whose single tile claims ``tile`` x ``tile`` pixels."""
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1),
        (322, 4, tile), (323, 4, tile), (324, 4, 400), (325, 4, 100),
    ]  # fmt: skip
    body = struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return (b"II*\0" + struct.pack("<I", 8) + body + bytes(4)).ljust(400, b"\0") + zeros(5000)


def hostile_files() -> dict[str, tuple[bytes, set[str]]]:
    """File name -> bytes and the reasons that are right for it."""
    photo = saved(Image.effect_noise((64, 64), 50), "JPEG")
    bomb, row = zeros(200 * 2**20), zlib.compress(bytes(33 * 32))
    text = chunk(b"zTXt", b"Comment\0\0" + bomb)
    many = chunk(b"zTXt", b"Comment\0\0" + zeros(2**20 - 1)) * 200
    i_text = chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb)
    sof = photo.index(b"\xff\xc0") + 5
    gif = bytearray(saved(Image.new("L", (64, 64)), "GIF"))
    frame = gif.index(b"\x2c", 13 + 3 * 2 ** ((gif[10] & 7) + 1)) + 5
    gif[frame : frame + 4] = struct.pack("<HH", 60000, 60000)
    webp = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes([0x10, 0, 0, 0])
        + b"\xfe\x3f\0" * 2
        + saved(Image.new("RGB", (32, 32)), "WEBP")[12:]
    )
    bmp = bytearray(saved(Image.new("L", (64, 64)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    broken = {"broken", "truncated", "not-an-image"}
    return {
        "empty.jpg": (b"", {"empty"}),
        "144-megapixels.png": (png(12000, 12000, zeros(12000 * 1501), bits=1), {"too-many-pixels"}),
        "60000x1.png": (png(60000, 1, zeros(60001)), {"too-small"}),
        "1x60000.png": (png(1, 60000, zeros(120000)), {"too-small"}),
        "1x1.png": (saved(Image.new("RGB", (1, 1)), "PNG"), {"too-small"}),
        "0x0.png": (png(0, 0, b""), {"too-small", *broken}),
        "ztxt-bomb.png": (png(32, 32, row, before=text), {"ok", *broken}),
        "ztxt-bomb-at-the-end.png": (png(32, 32, row, after=text), {"ok", *broken}),
        "many-ztxt-bombs.png": (png(32, 32, row, before=many), {"ok", *broken}),
        "itxt-bomb.png": (png(32, 32, row, before=i_text), {"ok", *broken}),
        "profile-bomb.png": (png(32, 32, row, before=chunk(b"iCCP", b"p\0\0" + bomb)), {"ok", *broken}),
        "data-bomb.png": (png(32, 32, bomb), {"ok", *broken}),
        "huge-header.jpg": (photo[:sof] + b"\xff\xdc\xff\xdc" + photo[sof + 4 :], {"too-many-pixels"}),
        "huge-frame.gif": (bytes(gif), {"too-many-pixels", *broken}),
        "huge-canvas.webp": (b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp, {"too-many-pixels"}),
        "huge-tile.tif": (tiff(64, 64, 60000), {"too-many-pixels", *broken}),
        "huge-header.bmp": (bytes(bmp), {"too-many-pixels"}),
        "truncated.jpg": (saved(Image.effect_noise((500, 500), 50), "JPEG")[:9000], {"truncated"}),
        "renamed.jpg": (b"just text, no image at all\n" * 9, {"not-an-image"}),
        "drawing.jpg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', {"format-not-allowed"}),
        "document.jpg": (b"%PDF-1.7\n", {"format-not-allowed"}),
        "telescope.jpg": (b"SIMPLE  =                    T".ljust(2880), {"format-not-allowed"}),
        "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", {"format-not-allowed"}),
        "icon.jpg": (saved(Image.new("RGB", (32, 32)), "ICO"), {"format-not-allowed"}),
        "pickle.jpg": (b"\x80\x04\x95cos\nsystem\n", {"not-an-image"}),
        "photo.jpg": (photo, {"ok"}),
    }


def test_hostile_photos_become_reasons_within_bounded_memory(tmp_path):
    files = hostile_files()
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    with (tmp_path / "one-gigabyte.jpg").open("wb") as file:
        file.truncate(2**30)
    files["one-gigabyte.jpg"] = (b"", {"too-many-bytes"})
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(tmp_path / "photo.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    wrong = {n: s for n, s in result["statuses"].items() if s not in files[n][1]}
    assert not wrong
    assert set(result["statuses"]) == set(files)
    assert result["peak_mb"] < 900


def test_a_file_larger_than_any_photo_is_not_read(tmp_path: Path):
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_PHOTO_BYTES + 1)
    assert load_photo(PhotoRef(str(tmp_path / "huge.jpg")), 64).status == "too-many-bytes"


def test_f33_a_run_on_bad_photos_stops_before_the_teacher_with_the_count_of_each_reason(tmp_path: Path):
    photos = write_photos(tmp_path / "photos", 2)
    for n in range(4):
        (photos / f"text-{n}.jpg").write_bytes(b"no photo, number %d" % n)
    (photos / "cut.png").write_bytes((photos / "00000.png").read_bytes()[:2000])
    (photos / "nothing.jpg").touch()
    (photos / "huge.jpg").touch()
    os.truncate(photos / "huge.jpg", MAX_PHOTO_BYTES + 1)
    no_teacher = {"backend": "custom", "model": "no_such_module:make"}
    config = config_for(photos, tmp_path / "store", teacher=no_teacher)
    with pytest.raises(InputError) as caught:
        run_local(config, open_store(config.storage), [INVERT], SilentReporter())
    assert caught.value.exit_code == EXIT_BAD_INPUT
    assert caught.value.message.startswith(f"7 of 9 photos looked at in {photos} ")
    assert caught.value.message.endswith(": 1 empty, 4 not-an-image, 2 ok, 1 truncated, 1 unreadable")
    assert "photos.max_bad_fraction (now 0.5)" in caught.value.fix
    assert not list((tmp_path / "store").rglob("*"))


@pytest.mark.parametrize(("allowed", "goes_on"), [(0.6, True), (0.59, False), (1.0, True), (0.0, False)])
def test_f33_the_share_of_bad_photos_that_is_borne_is_the_configured_one(tmp_path: Path, allowed: float, goes_on: bool):
    photos = write_photos(tmp_path / "photos", 4)
    for n in range(6):
        (photos / f"bad-{n}.jpg").write_bytes(b"no photo, number %d" % n)
    config = PhotosConfig(source=str(photos), max_bad_fraction=allowed)
    if goes_on:
        assert len(scan.scan_photos(config).origins) == 10
    else:
        with pytest.raises(InputError, match="6 of 10 photos"):
            scan.scan_photos(config)


def test_f33_no_share_is_high_enough_for_photos_of_which_none_can_be_read(tmp_path: Path):
    (tmp_path / "list.csv").write_text("path\ngone.jpg\n")
    with pytest.raises(InputError, match=r"1 of 1 photos .* 1 unreadable"):
        scan.scan_photos(PhotosConfig(source=str(tmp_path / "list.csv"), max_bad_fraction=1.0))


def test_f33_thousands_of_bad_photos_are_judged_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for n in range(2000):
        (tmp_path / f"{n}.jpg").write_bytes(b"no photo, number %d" % n)
    decoded: list[str] = []

    def load(ref: PhotoRef, max_megapixels: float):
        decoded.append(ref.origin)
        return load_photo(ref, max_megapixels)

    monkeypatch.setattr(scan, "load_photo", load)
    with pytest.raises(InputError, match=r"200 of 200 photos looked at .* 200 not-an-image"):
        scan.scan_photos(PhotosConfig(source=str(tmp_path)))
    assert len(decoded) == 200
