"""Which pairs are kept, and why others are not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from e2gan_cluster.config import FiltersConfig
from e2gan_cluster.errors import ConfigError
from e2gan_cluster.pairs.filters import PairFilter, Verdict, check_pixels, direction_consistency
from tests.teacher.tiny_models import clip_tokenizer

CFG = FiltersConfig()
PHOTO = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("edit", "status"),
    [
        (255 - PHOTO // 2, "ok"),
        (PHOTO, "no-change"),
        (np.zeros_like(PHOTO), "black"),
        (np.full_like(PHOTO, 120), "flat"),
        (PHOTO[:16], "wrong-size"),
        (None, "wrong-size"),
        (PHOTO.astype(np.float32), "wrong-type"),
        (np.full(PHOTO.shape, np.nan), "not-finite"),
    ],
)
def test_pixel_filters_name_what_is_wrong(edit: object, status: str) -> None:
    assert check_pixels(PHOTO, edit, CFG).status == status


def test_an_edit_that_leaves_nothing_of_the_photo_is_dropped() -> None:
    dark, light = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 250, np.uint8)
    light[::2] = 255
    light[0] = 0
    assert check_pixels(dark, light, CFG).status == "too-much-change"


def test_direction_is_measured_against_the_other_pairs() -> None:
    rng = np.random.default_rng(0)
    photos_ND = rng.normal(size=(10, 64))
    edits_ND = photos_ND + np.eye(64)[0] * 3 + rng.normal(size=(10, 64)) * 0.05
    edits_ND[4] = photos_ND[4] - np.eye(64)[0] * 3
    cosines = direction_consistency(photos_ND, edits_ND)
    assert cosines[4] < -0.9
    assert np.delete(cosines, 4).min() > 0.9


def test_an_edit_against_the_direction_of_its_shard_is_dropped() -> None:
    judge = PairFilter(FiltersConfig(min_direction=0.0))
    rng = np.random.default_rng(1)
    photos = [rng.integers(60, 190, (32, 32, 3), dtype=np.uint8) for _ in range(9)]
    edits = [np.clip(p.astype(int) * [1.3, 0.5, 0.2], 0, 255).astype(np.uint8) for p in photos]
    edits[3] = np.roll(photos[3], 7, axis=1)
    verdicts = [Verdict() for _ in photos]
    judge.check_together(photos, edits, "warm light", verdicts)
    scores = [verdict.scores["direction"] for verdict in verdicts]
    assert scores[3] == min(scores)
    assert all(v.status == ("ok" if v.scores["direction"] >= 0 else "direction") for v in verdicts)


def tiny_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    text = {
        "vocab_size": 200, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "bos_token_id": 188, "eos_token_id": 189, "pad_token_id": 189,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    clip_tokenizer(folder / "t").save_pretrained(folder)
    return folder


def test_clip_thresholds_drop_by_their_own_scores(tmp_path: Path) -> None:
    model = str(tiny_clip(tmp_path))
    edits = [255 - PHOTO // 2, PHOTO]
    loose = PairFilter(FiltersConfig(clip_model=model, min_clip_image=-1, min_clip_direction=-1, min_clip_text=-1))
    verdicts = [Verdict(), Verdict()]
    loose.check_together([PHOTO, PHOTO], edits, "make it snow", verdicts)
    assert [v.status for v in verdicts] == ["ok", "ok"]
    assert verdicts[1].scores["clip_image"] == pytest.approx(1, abs=1e-5)
    assert set(verdicts[0].scores) == {"clip_image", "clip_direction", "clip_text"}
    strict = PairFilter(FiltersConfig(clip_model=model, min_clip_image=-1, min_clip_direction=-1, min_clip_text=1.1))
    strict.check_together([PHOTO, PHOTO], edits, "make it snow", verdicts)
    assert [v.status for v in verdicts] == ["clip-text", "clip-text"]


def test_a_clip_model_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clip_model"):
        PairFilter(FiltersConfig(clip_model=str(tmp_path)))
