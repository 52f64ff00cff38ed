"""Which pairs to keep when few must do: clusters of image features, the pair nearest each centre (E2GAN 3.4).

Subsets are nested: a larger one contains every smaller one, so the rungs of a data ladder differ by what is added.

Example:
    >>> nested_subset(features_ND, [50, 100])[50]
    [3, 17, ...]
"""

from collections.abc import Sequence

import numpy as np


def nested_subset(features_ND: np.ndarray, sizes: Sequence[int], seed: int = 0) -> dict[int, list[int]]:
    """Rows to keep for each size.

    The smallest size is clustered freely; each larger one keeps the rows of the smaller and adds, from a clustering
    of its own, the rows nearest those centres that the kept rows cover least.

    Args:
        features_ND: Image features, float [N, D].
        sizes: Numbers of rows, each between 1 and N.
        seed: Of the clustering.

    Returns:
        Size -> rising row numbers.

    Raises:
        ValueError: A size is below 1 or above N.
    """
    count = len(features_ND)
    bad = [size for size in sizes if not 1 <= size <= count]
    if bad:
        raise ValueError(f"cannot keep {bad[0]} of {count} rows")
    kept: list[int] = []
    chosen: dict[int, list[int]] = {}
    for size in sorted(set(sizes)):
        kept = list(range(count)) if size == count else _grow(features_ND, kept, size, seed)
        chosen[size] = sorted(kept)
    return chosen


def _grow(features_ND: np.ndarray, kept: list[int], size: int, seed: int) -> list[int]:
    centres_KD = _centres(features_ND, size, seed)
    free = np.setdiff1d(np.arange(len(features_ND)), kept)
    rows = list(kept)
    # Centres far from everything kept come first: they are what the smaller subset misses.
    order = range(len(centres_KD)) if not kept else np.argsort(-_nearest(centres_KD, features_ND[kept]), kind="stable")
    for centre in order:
        if len(rows) == size:
            break
        distance_F = ((features_ND[free] - centres_KD[centre]) ** 2).sum(1)
        pick = int(free[distance_F.argmin()])
        rows.append(pick)
        free = free[free != pick]
    return rows


def _centres(features_ND: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    # One start (n_init "auto" with k-means++): the subset must not cost more than a trial.
    return KMeans(count, n_init="auto", random_state=seed).fit(features_ND).cluster_centers_


def _nearest(points_KD: np.ndarray, others_MD: np.ndarray) -> np.ndarray:
    """Squared distance of each point to the nearest of ``others_MD``."""
    return np.stack([((others_MD - point_D) ** 2).sum(1).min() for point_D in points_KD])
