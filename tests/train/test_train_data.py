import dataclasses

import numpy as np
import pytest
import torch

from e2gan_cluster.errors import InputError, TrainingError
from e2gan_cluster.train.data import make_batch, pair_data, sample_order
from tests.tiny_training import tiny_data


def _batch(data, **options):
    return make_batch(data, **{"seed": 3, "images_seen": 8, "batch_size": 4, "flip": True, "augment": True} | options)


def test_every_epoch_shows_every_pair_once_in_another_order():
    rows, _ = sample_order(10, seed=1, first=0, count=30)
    epochs = rows.reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert not np.array_equal(epochs[0], epochs[1])


def test_order_depends_on_seed_and_images_seen_only():
    whole, mirrored = sample_order(7, seed=5, first=0, count=40)
    part, part_mirrored = sample_order(7, seed=5, first=13, count=20)
    assert np.array_equal(whole[13:33], part)
    assert np.array_equal(mirrored[13:33], part_mirrored)
    assert not np.array_equal(whole, sample_order(7, seed=6, first=0, count=40)[0])


def test_two_workers_together_see_the_batch_of_one():
    data = tiny_data()
    whole = _batch(data)
    parts = [_batch(data, rank=rank, world_size=2) for rank in (0, 1)]
    for field in ("source_BCHW", "target_BCHW", "text_BTD", "pooled_BD", "uniform_BK"):
        interleaved = torch.stack([getattr(p, field) for p in parts], dim=1).flatten(0, 1)
        assert torch.equal(interleaved, getattr(whole, field))


def test_photo_and_edit_are_mirrored_together():
    data = tiny_data(concepts=1)
    for seed in range(6):
        batch = _batch(data, seed=seed)
        assert torch.allclose(batch.source_BCHW, -batch.target_BCHW, atol=1e-6)


def test_half_of_the_pairs_are_mirrored():
    _, mirrored = sample_order(1000, seed=0, first=0, count=1000)
    assert 400 < mirrored.sum() < 600


@dataclasses.dataclass
class _Set:
    concept: str
    inputs_NHWC: np.ndarray
    edits_NHWC: np.ndarray
    prompt: str = "p"


def _set(name: str, count: int, side: int = 32) -> _Set:
    images = np.zeros((count, side, side, 3), np.uint8)
    images[:, : side // 2] = 255
    return _Set(name, images, images)


class _Encoder:
    def encode(self, prompts):
        self.tokens_BTD, self.pooled_BD = torch.ones(len(prompts), 2, 4), torch.ones(len(prompts), 4)
        return self


def test_sets_are_joined_with_their_concept_numbers():
    data = pair_data([_set("a", 2), _set("b", 3)], _Encoder())
    assert data.concept_N.tolist() == [0, 0, 1, 1, 1]
    assert data.name(1) == "b"


def test_photo_of_one_colour_is_left_out():
    pairs = _set("a", 3)
    pairs.inputs_NHWC[1] = 7
    assert len(pair_data([pairs], _Encoder())) == 2


def test_concept_without_pairs_is_named():
    with pytest.raises(TrainingError, match="snow"):
        pair_data([_set("oil", 2), _set("snow", 0)], _Encoder())


def test_no_concept_at_all_is_an_error():
    with pytest.raises(TrainingError, match="any concept"):
        pair_data([], _Encoder())


def test_pairs_of_different_sizes_are_refused_with_their_sizes():
    with pytest.raises(InputError, match="oil 32x32, snow 64x64"):
        pair_data([_set("oil", 1), _set("snow", 1, 64)], _Encoder())


def test_side_that_is_no_multiple_of_16_is_refused():
    with pytest.raises(InputError, match="multiples of 16"):
        pair_data([_set("oil", 1, 40)], _Encoder())


def test_photos_and_edits_of_different_number_are_refused():
    data = tiny_data()
    with pytest.raises(InputError, match="differ"):
        dataclasses.replace(data, targets_NHWC=data.targets_NHWC[:-1])
