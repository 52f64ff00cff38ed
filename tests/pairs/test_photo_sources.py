"""Photos from folders, globs, lists, Parquet, HTTP and S3."""

import csv
import io
import json
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from e2gan_cluster.config import PhotosConfig
from e2gan_cluster.errors import InputError
from e2gan_cluster.pairs.photos import (
    PhotoError,
    PhotoRef,
    bundled_folder,
    list_photos,
    load_photo,
    read_photo,
    source_id,
    split_of,
)


def jpeg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), colour).save(buffer, "JPEG")
    return buffer.getvalue()


RED, BLUE = jpeg("red"), jpeg("blue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jpg").write_bytes(RED)
    (tmp_path / "sub" / "b.jpg").write_bytes(BLUE)
    (tmp_path / "CREDITS.tsv").write_text("credits")
    (tmp_path / ".hidden.jpg").write_bytes(RED)
    return tmp_path


def contents(source: object) -> list[bytes]:
    return [read_photo(ref) for ref in list_photos(PhotosConfig(source=str(source)))]


def refusal(source: object) -> str:
    with pytest.raises(InputError) as caught:
        list_photos(PhotosConfig(source=str(source)))
    return str(caught.value)


def test_a_folder_is_searched_with_its_sub_folders(folder):
    assert contents(folder) == [RED, BLUE]


def test_a_damaged_photo_in_a_folder_is_listed_and_counted(folder):
    (folder / "c.jpg").write_bytes(b"no image")
    (folder / "noextension").write_bytes(BLUE)
    refs = list_photos(PhotosConfig(source=str(folder)))
    assert [load_photo(ref, 64).status for ref in refs] == ["ok", "not-an-image", "ok", "ok"]


def test_a_glob_takes_what_matches(folder):
    assert contents(folder / "*.jpg") == [RED]
    assert contents(folder / "**" / "*.jpg") == [RED, BLUE]


def test_a_csv_list_counts_paths_from_its_own_folder(folder):
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["title", "path"], ["two, words", "sub/b.jpg"], ["x", "a.jpg"]])
    assert contents(folder / "list.csv") == [BLUE, RED]


def test_a_jsonl_list_takes_path_or_url(folder):
    rows = [{"path": "a.jpg"}, {"url": str(folder / "sub" / "b.jpg")}]
    (folder / "list.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    assert contents(folder / "list.jsonl") == [RED, BLUE]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("l.csv", "title\nx\n", ":1: no column `path` or `url`"),
        ("l.csv", "path,title\na.jpg,x\n,y\n", ":3: empty or malformed path"),
        ("l.csv", "path\nfile:///etc/passwd\n", ":2: only http, https and s3"),
        ("l.jsonl", '{"path": "a.jpg"}\n{"path": 3}\n', ":2: empty or malformed path"),
        ("l.jsonl", '{"path"\n', ":1: not JSON"),
        ("l.jsonl", "[]\n", ":1: expected an object"),
        ("l.csv", "", "no column"),
    ],
)
def test_a_malformed_list_says_where(folder, name, text, words):
    (folder / name).write_text(text)
    assert words in refusal(folder / name)


def test_a_missing_source_says_what_may_be_given(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nothing")
    assert "no such file" in refusal(tmp_path / "nothing.csv")
    assert "no photos there" in refusal(tmp_path)
    assert "no photos there" in refusal(tmp_path / "*.jpg")


@pytest.mark.parametrize("as_struct", [True, False])
def test_a_parquet_file_of_images_is_read_by_row(tmp_path, as_struct):
    cells = [RED, BLUE, RED]
    column = [{"bytes": c, "path": None} for c in cells] if as_struct else cells
    pq.write_table(pa.table({"image": column, "n": [1, 2, 3]}), tmp_path / "photos.parquet", row_group_size=2)
    assert contents(tmp_path / "photos.parquet") == cells


def test_a_parquet_cell_may_point_to_a_file_beside_it(folder):
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "a.jpg"}]}), folder / "photos.parquet")
    assert contents(folder / "photos.parquet") == [RED]


def test_a_parquet_file_without_images_or_damaged_is_refused(tmp_path):
    pq.write_table(pa.table({"n": [1]}), tmp_path / "numbers.parquet")
    assert "no column `image`" in refusal(tmp_path / "numbers.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    assert "not a readable Parquet file" in refusal(tmp_path / "broken.parquet")


def test_photos_under_an_s3_prefix_are_listed_and_read(s3_env):
    import boto3

    client = boto3.client("s3", endpoint_url=s3_env.endpoint)
    client.put_object(Bucket=s3_env.bucket, Key="photos/x/a.jpg", Body=RED)
    client.put_object(Bucket=s3_env.bucket, Key="photos/b.jpg", Body=BLUE)
    client.put_object(Bucket=s3_env.bucket, Key="other/c.jpg", Body=BLUE)
    source = f"s3://{s3_env.bucket}/photos"
    assert contents(source) == [BLUE, RED]
    assert load_photo(PhotoRef(f"{source}/gone.jpg"), 64).status == "missing"


def test_photos_of_a_list_are_fetched_over_http(folder):
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_address[1]}"
        (folder / "list.csv").write_text(f"url\n{root}/a.jpg\n{root}/gone.jpg\n")
        refs = list_photos(PhotosConfig(source=str(folder / "list.csv")))
        assert [load_photo(ref, 64).status for ref in refs] == ["ok", "missing"]
        server.shutdown()


def test_a_limit_takes_the_first_by_content_whatever_the_names(folder):
    (folder / "c.jpg").write_bytes(jpeg("green"))
    first = [read_photo(r) for r in list_photos(PhotosConfig(source=str(folder), limit=2))]
    (folder / "a.jpg").rename(folder / "zzz.jpg")
    assert [read_photo(r) for r in list_photos(PhotosConfig(source=str(folder), limit=2))] == first


def test_what_is_no_file_is_a_reason_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for origin, status in (("pipe", "unreadable"), ("gone", "missing"), ("", "unreadable")):
        photo = load_photo(PhotoRef(str(tmp_path / origin)), 64)
        assert (photo.status, photo.image_HWC) == (status, None)
        with pytest.raises(PhotoError):
            read_photo(PhotoRef(str(tmp_path / origin)))


def test_the_bundled_photos_are_small_credited_and_split_as_documented():
    refs = list_photos(PhotosConfig())
    with (bundled_folder() / "CREDITS.tsv").open(encoding="utf-8") as file:
        credits = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert {Path(ref.origin).name for ref in refs} == set(credits)
    assert len(refs) == 61
    assert all(row["title"] and row["author"] and row["licence"] for row in credits.values())
    assert sum(Path(ref.origin).stat().st_size for ref in refs) < 4e6
    photos = [load_photo(ref, 64) for ref in refs]
    assert {photo.status for photo in photos} == {"ok"}
    assert max(min(p.image_HWC.shape[:2]) for p in photos if p.image_HWC is not None) <= 384
    assert [split_of(p.source_id, 0.25) for p in photos].count("heldout") == 17
    assert source_id(read_photo(refs[0])) == photos[0].source_id
