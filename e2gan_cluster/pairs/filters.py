"""Which pairs are worth learning from.

Cheap checks look at the pixels of one pair; the direction check compares a pair with its shard in the default feature
space; the CLIP checks are those of InstructPix2Pix 3.1.2 and run where a CLIP model is configured.

Example:
    >>> judge = PairFilter(FiltersConfig())
    >>> judge.check(photo_HWC, edit_HWC)
    Verdict(status='ok', reason='', scores={'change': 0.21, 'std': 0.18})
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from e2gan_cluster.config import FiltersConfig
from e2gan_cluster.pairs.rows import OK

if TYPE_CHECKING:
    from e2gan_cluster.evaluate.features import FeatureNet
    from e2gan_cluster.pairs.clip import ClipScorer

# Below this a leave-one-out mean direction says little.
MIN_DIRECTION_ROWS = 8


@dataclass
class Verdict:
    """What the filters say of one pair.

    Attributes:
        status: `ok` or a reason code.
        reason: A sentence with figure and threshold, where not `ok`.
        scores: Measured values.
    """

    status: str = OK
    reason: str = ""
    scores: dict[str, float] = field(default_factory=dict)

    def drop(self, status: str, reason: str) -> None:
        """Marks the pair as dropped; the first reason stays."""
        if self.status == OK:
            self.status, self.reason = status, reason


def check_pixels(photo_HWC: np.ndarray, edit: Any, cfg: FiltersConfig) -> Verdict:
    """Type, size, finite values, black or flat pictures, too little or too much change.

    Args:
        photo_HWC: The photo, uint8.
        edit: What the teacher returned for it.
        cfg: Thresholds.
    """
    verdict = Verdict()
    if not isinstance(edit, np.ndarray) or edit.shape != photo_HWC.shape:
        shape = getattr(edit, "shape", type(edit).__name__)
        verdict.drop("wrong-size", f"edit is {shape}, photo is {photo_HWC.shape}")
        return verdict
    if edit.dtype != np.uint8:
        finite = bool(np.isfinite(edit.astype(np.float64)).all())
        verdict.drop(*("wrong-type", f"edit is {edit.dtype}, not uint8") if finite else ("not-finite", "NaN or Inf"))
        return verdict
    change = float((np.maximum(edit, photo_HWC) - np.minimum(edit, photo_HWC)).mean() / 255)
    counts_L = np.bincount(edit.reshape(-1), minlength=256)
    std = _std(counts_L) / 255
    verdict.scores = {"change": change, "std": std}
    if not counts_L[5:].any():
        verdict.drop("black", "the edit is black: flagged by a safety checker, or not finite")
    elif std < cfg.min_std:
        verdict.drop("flat", f"standard deviation {std:.4f} is below {cfg.min_std}")
    elif change < cfg.min_change:
        verdict.drop("no-change", f"mean change {change:.4f} is below {cfg.min_change}")
    elif change > cfg.max_change:
        verdict.drop("too-much-change", f"mean change {change:.4f} is above {cfg.max_change}")
    return verdict


def _std(counts_L: np.ndarray) -> float:
    """Standard deviation of whole numbers, of which ``counts_L`` says how often each occurs; exact up to the root."""
    levels_L = np.arange(len(counts_L))
    total, first, second = (int(counts_L @ levels_L**power) for power in (0, 1, 2))
    return math.sqrt(total * second - first * first) / total


def direction_consistency(photo_ND: np.ndarray, edit_ND: np.ndarray) -> np.ndarray:
    """Cosine of each pair's edit direction with the mean direction of the others.

    Args:
        photo_ND: Features of the photos.
        edit_ND: Features of the edits.

    Returns:
        Cosines [N], float64; the mean leaves the pair itself out.
    """
    direction_ND = edit_ND.astype(np.float64) - photo_ND
    unit_ND = direction_ND / np.maximum(np.linalg.norm(direction_ND, axis=1, keepdims=True), 1e-12)
    others_ND = unit_ND.sum(axis=0, keepdims=True) - unit_ND
    others_ND /= np.maximum(np.linalg.norm(others_ND, axis=1, keepdims=True), 1e-12)
    return (unit_ND * others_ND).sum(axis=1)


def _load_features(device: str) -> "FeatureNet":
    from e2gan_cluster.evaluate.features import FeatureNet
    from e2gan_cluster.teacher.runtime import pick_device

    return FeatureNet(pick_device(device))


def _load_clip(model: str, device: str) -> "ClipScorer":
    from e2gan_cluster.pairs.clip import ClipScorer
    from e2gan_cluster.teacher.runtime import pick_device

    return ClipScorer(model, pick_device(device))


class PairFilter:
    """All filters of a config; networks are loaded once, and only those that are asked for.

    Args:
        cfg: Thresholds.
        device: Where the networks run: a torch device or `auto`.

    Raises:
        UserError: A network can't be loaded.
    """

    def __init__(self, cfg: FiltersConfig, device: str = "cpu") -> None:
        self.cfg = cfg
        self._features = _load_features(device) if cfg.min_direction is not None else None
        self._clip = _load_clip(cfg.clip_model, device) if cfg.clip_model else None

    def check(self, photo_HWC: np.ndarray, edit: Any) -> Verdict:
        """The pixel filters on one pair."""
        return check_pixels(photo_HWC, edit, self.cfg)

    def check_together(
        self, photos: Sequence[np.ndarray], edits: Sequence[np.ndarray], prompt: str, verdicts: Sequence[Verdict]
    ) -> None:
        """The filters that need a network, on all pairs of a shard that are still `ok`; changes ``verdicts``.

        Args:
            photos: Photos of those pairs.
            edits: Their edits.
            prompt: The concept's prompt.
            verdicts: One for each pair.
        """
        if not photos:
            return
        photos_NHWC, edits_NHWC = np.stack(photos), np.stack(edits)
        if self._features is not None and len(photos) >= MIN_DIRECTION_ROWS:
            self._check_direction(self._features, photos_NHWC, edits_NHWC, verdicts)
        if self._clip is not None:
            self._check_clip(self._clip, photos_NHWC, edits_NHWC, prompt, verdicts)

    def _check_direction(
        self, net: "FeatureNet", photos_NHWC: np.ndarray, edits_NHWC: np.ndarray, verdicts: Sequence[Verdict]
    ) -> None:
        threshold = self.cfg.min_direction or 0.0
        cosines = direction_consistency(net.features(photos_NHWC), net.features(edits_NHWC))
        for verdict, cosine in zip(verdicts, cosines.tolist(), strict=True):
            verdict.scores["direction"] = cosine
            if cosine < threshold:
                verdict.drop("direction", f"edit direction differs from the others: {cosine:.3f} < {threshold}")

    def _check_clip(
        self,
        clip: "ClipScorer",
        photos_NHWC: np.ndarray,
        edits_NHWC: np.ndarray,
        prompt: str,
        verdicts: Sequence[Verdict],
    ) -> None:
        thresholds = {
            "clip_image": self.cfg.min_clip_image,
            "clip_direction": self.cfg.min_clip_direction,
            "clip_text": self.cfg.min_clip_text,
        }
        scores = clip.scores(photos_NHWC, edits_NHWC, prompt)
        for name, threshold in thresholds.items():
            for verdict, value in zip(verdicts, scores[name].tolist(), strict=True):
                verdict.scores[name] = value
                if value < threshold:
                    verdict.drop(name.replace("_", "-"), f"{name} {value:.3f} is below {threshold}")
