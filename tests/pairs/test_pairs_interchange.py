"""Shards in other tools, pairs from elsewhere, previews and commands."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from e2gan_cluster.config_io import to_yaml
from e2gan_cluster.errors import InputError
from e2gan_cluster.pairs.generate import pairs_pending, run_local
from e2gan_cluster.pairs.importer import import_pairs
from e2gan_cluster.pairs.preview import preview_png
from e2gan_cluster.pairs.shards import load_pairs
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.storage import open_store
from tests.fake_editor import FakeEditor
from tests.pairs.pairs_setup import INVERT, OTHER, config_for, write_photos

QUIET = SilentReporter()


def test_shards_open_as_a_hugging_face_data_set_with_the_columns_of_instruct_pix2pix(tmp_path: Path) -> None:
    import datasets

    config = config_for(write_photos(tmp_path / "photos", 20), tmp_path / "store")
    store = open_store(config.storage)
    result = run_local(config, store, [INVERT], QUIET)["invert"]
    files = [str(path) for path in sorted((tmp_path / "store/pairs/invert").glob("train-*.parquet"))]
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == result.train_ok
    row = data[0]
    # What diffusers' train_instruct_pix2pix.py does with a row.
    assert np.asarray(row["input_image"].convert("RGB").resize((16, 16))).shape == (16, 16, 3)
    assert row["edited_image"].convert("RGB").size == (32, 32)
    assert row["edit_prompt"] == INVERT.prompt
    assert row["scores"]["change"] > 0


def folder_of_pairs(folder: Path, count: int) -> Path:
    for name in ("input", "edited"):
        (folder / name).mkdir(parents=True)
    for n in range(count):
        image = np.random.default_rng(n).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "input" / f"{n}.png")
        Image.fromarray(255 - image).save(folder / "edited" / f"{n}.png")
    (folder / "input" / "broken.png").write_bytes(b"no picture")
    (folder / "edited" / "broken.png").write_bytes(b"no picture")
    return folder


def test_a_folder_of_pairs_becomes_a_concepts_pairs_and_is_left_alone(tmp_path: Path) -> None:
    config = config_for(write_photos(tmp_path / "photos", 8), tmp_path / "store")
    store = open_store(config.storage)
    result = import_pairs(config, store, INVERT, folder_of_pairs(tmp_path / "mine", 24), QUIET)
    assert result.failure is None
    assert result.train_ok + result.heldout_ok == 24
    assert result.dropped == {"photo-not-an-image": 1}
    assert not pairs_pending(config, store, [INVERT])
    again = run_local(config, store, [INVERT], QUIET, teacher=object())["invert"]  # pyright: ignore[reportArgumentType]
    assert (again.train_ok, again.heldout_ok) == (result.train_ok, result.heldout_ok)
    pairs = load_pairs(store, INVERT, "train", config)
    assert np.abs(pairs.inputs_NHWC.astype(int) + pairs.edits_NHWC - 255).max() <= 1


def test_parquet_pairs_are_imported_by_prompt(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def png(seed: int) -> dict[str, object]:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    table = pa.table(
        {
            "original_image": [png(n) for n in range(16)],
            "edited_image": [png(100 + n) for n in range(16)],
            "edit_prompt": ["make it snow", "something else"] * 8,
        }
    )
    (tmp_path / "hub").mkdir()
    pq.write_table(table, tmp_path / "hub" / "train-00000-of-00001.parquet")
    config = config_for(write_photos(tmp_path / "photos", 8), tmp_path / "store")
    store = open_store(config.storage)
    result = import_pairs(config, store, INVERT, tmp_path / "hub", QUIET, only_prompt="make it snow")
    assert result.train_ok + result.heldout_ok == 8
    with pytest.raises(InputError, match="no pairs"):
        import_pairs(config, store, OTHER, tmp_path / "photos", QUIET)


def test_a_preview_shows_photos_beside_edits_and_stores_nothing(tmp_path: Path) -> None:
    config = config_for(write_photos(tmp_path / "photos", 8), tmp_path / "store")
    png = preview_png(config, open_store(config.storage), [INVERT, OTHER], QUIET, photos=3, teacher=FakeEditor())
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width > 3 * 32
        assert picture.height > 3 * 32
    assert not (tmp_path / "store").exists()


def test_the_command_makes_pairs_previews_and_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from e2gan_cluster.cli import main

    config = config_for(write_photos(tmp_path / "photos", 10), tmp_path / "store")
    concepts = config.concepts.model_copy(update={"base": ["oil-painting"], "new": ["sepia"]})
    catalogue = tmp_path / "concepts.yaml"
    catalogue.write_text(
        "- {name: oil-painting, prompt: turn it into an oil painting}\n- {name: sepia, prompt: make it sepia}\n"
    )
    concepts = concepts.model_copy(update={"catalogue": str(catalogue)})
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config.model_copy(update={"concepts": concepts, "tracking": "none"})))

    def call(*arguments: str) -> int:
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--config", str(file)])
        return int(stop.value.code or 0)

    preview = tmp_path / "look.png"
    assert call("pairs", "--preview", "--concept", "sepia", "--photos", "2", "--out", str(preview)) == 0
    assert preview.read_bytes().startswith(b"\x89PNG")
    assert call("pairs", "--local", "--concept", "oil-painting") == 0
    assert "held-out" in capsys.readouterr().out
    folder = folder_of_pairs(tmp_path / "mine", 12)
    assert call("import-pairs", str(folder), "--concept", "sepia") == 0
    assert call("pairs", "--local") == 0
    assert call("pairs", "--local", "--concept", "sepiaa") == 2
