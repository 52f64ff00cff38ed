"""KID, FD and direction on plain arrays, against torchmetrics and against what they must mean."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from e2gan_cluster.errors import InputError
from e2gan_cluster.evaluate.distances import direction_cosine, frechet_distance, kid


def rows(seed: int, count: int, dim: int = 32, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, dim)) + shift).astype(np.float32)


def test_kid_is_torchmetrics_kid():
    a, b = rows(1, 50), rows(2, 50, shift=0.3)
    expected = float(poly_mmd(torch.from_numpy(a).double(), torch.from_numpy(b).double()))
    assert kid(a, b) == pytest.approx(expected, rel=1e-9)


def test_kid_is_unbiased_at_few_images_and_frechet_is_not():
    same = [kid(rows(i, 20), rows(1000 + i, 20)) for i in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    assert frechet_distance(rows(1, 20), rows(2, 20)) > 10


def test_paired_kid_of_photos_edited_by_equal_teachers_is_0_where_the_plain_one_is_negative():
    photos = rows(1, 40)
    assert kid(photos, photos, paired=True) == pytest.approx(0, abs=1e-12)
    assert kid(photos, photos) < -0.01
    estimates = []
    for i in range(200):
        shared = rows(i, 20)
        estimates.append(kid(shared + rows(5000 + i, 20), shared + rows(9000 + i, 20), paired=True))
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / np.sqrt(200)


def test_kid_above_the_subset_size_stays_near_the_full_estimate_and_repeats():
    a, b = rows(1, 600), rows(2, 600, shift=0.3)
    in_parts = kid(a, b, subset_size=150)
    assert in_parts == kid(a, b, subset_size=150)
    assert in_parts == pytest.approx(kid(a, b), rel=0.25)


@pytest.mark.parametrize("count", [20, 300])
def test_frechet_distance_is_torchmetrics_on_either_side_of_the_dimension(count):
    a, b = rows(1, count).astype(np.float64), rows(2, count, shift=0.5).astype(np.float64)
    mean_a, mean_b, cov_a, cov_b = (torch.from_numpy(x) for x in (a.mean(0), b.mean(0), np.cov(a.T), np.cov(b.T)))
    expected = float(_compute_fid(mean_a, cov_a, mean_b, cov_b))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)


def test_direction_is_1_for_the_same_change_0_for_none_and_minus_1_for_the_opposite():
    photos, change = rows(1, 10), rows(2, 10)
    assert direction_cosine(photos, photos + change, photos + 3 * change) == pytest.approx(1, abs=1e-5)
    assert direction_cosine(photos, photos + change, photos) == 0
    assert direction_cosine(photos, photos + change, photos - change) == pytest.approx(-1, abs=1e-5)


def test_one_image_is_refused_by_set_distances():
    with pytest.raises(InputError):
        kid(rows(1, 1), rows(2, 5))
    with pytest.raises(InputError):
        frechet_distance(rows(1, 1), rows(2, 5))
