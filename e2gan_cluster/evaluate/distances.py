"""Distances between sets of feature rows, and the edit direction. Pure functions on arrays.

Example:
    >>> kid(output_ND, reference_ND, paired=True)
"""

import numpy as np
import torch

from e2gan_cluster.errors import InputError


def kid(a_ND: np.ndarray, b_ND: np.ndarray, *, paired: bool = False, subset_size: int = 1000, seed: int = 0) -> float:
    """Kernel distance: unbiased squared MMD, kernel ``(a.b / D + 1)^3`` (Binkowski et al. 2018, section 4).

    Up to ``subset_size`` rows it is one estimate over all of them, which has the least variance; above, the
    mean over disjoint random subsets of that size, which bounds memory.

    Args:
        a_ND: Features of one set.
        b_ND: Features of the other; the longer set is cut to the length of the shorter.
        paired: Row i of both sets belongs to one photo. The usual estimator takes the two sets as independent
            and comes out too low for such sets, below 0 for equal ones; the estimator over pairs (Gretton et
            al. 2012, equation 4) leaves the products of a row with its own partner out and is 0 for equal
            sets.
        subset_size: Rows of one estimate.
        seed: Seed of the subsets.

    Returns:
        The distance, 0 in expectation for sets of the same kind; may be slightly negative.

    Raises:
        InputError: A set has fewer than 2 rows.
    """
    count = min(len(a_ND), len(b_ND))
    if count < 2:
        raise InputError(f"KID needs at least 2 images in both sets, got {len(a_ND)} and {len(b_ND)}.")
    a = torch.from_numpy(np.asarray(a_ND[:count])).double()
    b = torch.from_numpy(np.asarray(b_ND[:count])).double()
    if count <= subset_size:
        return _mmd(a, b, paired)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    subsets = [order[i * subset_size : (i + 1) * subset_size] for i in range(count // subset_size)]
    return sum(_mmd(a[rows], b[rows], paired) for rows in subsets) / len(subsets)


def _mmd(a: torch.Tensor, b: torch.Tensor, paired: bool) -> float:
    from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel

    k_ab = poly_kernel(a, b)
    value = maximum_mean_discrepancy(poly_kernel(a, a), k_ab, poly_kernel(b, b))
    if paired:
        n, own = len(a), k_ab.diagonal().sum()
        value = value + 2 * k_ab.sum() / n**2 - 2 * (k_ab.sum() - own) / (n * (n - 1))
    return float(value)


def frechet_distance(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to two sets (Heusel et al. 2017, equation 6).

    Biased upwards by the number of images, strongly below some thousands: compare sets of equal size only.
    The trace of the root of the product of covariances is taken as the nuclear norm of the product of centred
    factors: exact, and quick when there are fewer rows than dimensions.

    Args:
        a_ND: Features of one set.
        b_ND: Features of the other.

    Returns:
        The squared distance.

    Raises:
        InputError: A set has fewer than 2 rows.
    """
    if min(len(a_ND), len(b_ND)) < 2:
        raise InputError(f"A Frechet distance needs at least 2 images, got {len(a_ND)} and {len(b_ND)}.")
    mean_a, mean_b = a_ND.mean(0, dtype=np.float64), b_ND.mean(0, dtype=np.float64)
    root_a, root_b = _covariance_root(a_ND, mean_a), _covariance_root(b_ND, mean_b)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    traces = np.square(root_a).sum() + np.square(root_b).sum()
    return float(max(np.square(mean_a - mean_b).sum() + traces - 2 * cross, 0.0))


def _covariance_root(rows_ND: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    """A matrix R with at most D rows and ``R^T R`` = the unbiased covariance."""
    root = (rows_ND.astype(np.float64) - mean_D) / np.sqrt(len(rows_ND) - 1)
    return np.asarray(np.linalg.qr(root, mode="r")) if root.shape[0] > root.shape[1] else root


def direction_cosine(source_ND: np.ndarray, reference_ND: np.ndarray, output_ND: np.ndarray) -> float:
    """Mean cosine between what the reference and what the output changed.

    The direction similarity of InstructPix2Pix 3.1.2, with the teacher's edit in the place of the text.

    Args:
        source_ND: Features of the photos.
        reference_ND: Features of the teacher's edits.
        output_ND: Features of what is measured.

    Returns:
        1 = the same change, 0 = an unrelated one or none at all.
    """
    wanted_ND, made_ND = reference_ND - source_ND, output_ND - source_ND
    lengths_N = np.linalg.norm(wanted_ND, axis=1) * np.linalg.norm(made_ND, axis=1)
    dots_N = (wanted_ND * made_ND).sum(axis=1)
    return float(np.where(lengths_N > 1e-8, dots_N / np.maximum(lengths_N, 1e-8), 0.0).mean())
