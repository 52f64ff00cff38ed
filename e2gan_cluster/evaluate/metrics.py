"""Metrics of edited photos against the teacher's edits, always on photos that no training saw.

Keys, all from `evaluate_outputs`: ``l1``, ``psnr``, ``ssim``, ``lpips`` compare pair by pair; ``kid``, ``fd``
and ``fid`` compare the two sets; ``direction`` and the ``clip_*`` scores compare the edits. Lower is better
for ``l1``, ``lpips``, ``kid``, ``fd``, ``fid``; higher for the others.

Example:
    >>> nets = MetricNets.load(["kid", "lpips"])
    >>> evaluate_outputs(photos_NHWC, teacher_NHWC, outputs_NHWC, ["l1", "kid", "lpips"], nets)
    {'l1': 0.081, 'kid': 0.042, 'lpips': 0.19}
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from e2gan_cluster import busy
from e2gan_cluster.errors import InputError
from e2gan_cluster.evaluate.clip import ClipScorer
from e2gan_cluster.evaluate.distances import direction_cosine, frechet_distance, kid
from e2gan_cluster.evaluate.features import FeatureNet
from e2gan_cluster.evaluate.inception import InceptionFeatures
from e2gan_cluster.evaluate.inference import to_signed
from e2gan_cluster.evaluate.lpips import Lpips

DEFAULT_METRICS = ("l1", "psnr", "ssim", "lpips", "kid", "fd", "direction")
CLIP_METRICS = ("clip_image", "clip_text", "clip_direction")
ALL_METRICS = (*DEFAULT_METRICS, "fid", *CLIP_METRICS)
HIGHER_IS_BETTER = frozenset({"psnr", "ssim", "direction", *CLIP_METRICS})
_CHUNK = 16
_Net = TypeVar("_Net")

MAX_PSNR_DB = 100.0
"""PSNR of equal images, which would be infinite."""


@dataclass
class MetricNets:
    """The networks that some metrics need; load once per process.

    Attributes:
        features: For ``kid``, ``fd``, ``direction``.
        lpips: For ``lpips``.
        inception: For ``fid``.
        clip: For the ``clip_*`` scores.
    """

    features: FeatureNet | None = None
    lpips: Lpips | None = None
    inception: InceptionFeatures | None = None
    clip: ClipScorer | None = None

    @classmethod
    def load(
        cls,
        metrics: Sequence[str] = DEFAULT_METRICS,
        device: str | torch.device = "cpu",
        inception: Path | None = None,
        clip: str | None = None,
    ) -> "MetricNets":
        """Loads what ``metrics`` need and nothing else.

        Args:
            metrics: Names out of `ALL_METRICS`.
            device: Where the networks run.
            inception: TorchScript file of the Inception network, for ``fid``.
            clip: Folder or hub id of a CLIP model, for ``clip_*``.

        Raises:
            InputError: An unknown metric, or one whose weights are not given.
            UserError: A package or file is missing.
        """
        check_metrics(metrics)
        wanted = set(metrics)
        if "fid" in wanted and inception is None:
            raise InputError("fid needs the Inception network.", fix="give its TorchScript file with --inception FILE")
        if wanted & set(CLIP_METRICS) and clip is None:
            raise InputError("clip_* scores need a CLIP model.", fix="give a folder or hub id with --clip MODEL")
        return cls(
            features=FeatureNet(device) if wanted & {"kid", "fd", "direction"} else None,
            lpips=Lpips("alex").to(device) if "lpips" in wanted else None,
            inception=InceptionFeatures(inception, device) if "fid" in wanted and inception else None,
            clip=ClipScorer(clip, device) if wanted & set(CLIP_METRICS) and clip else None,
        )


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuses unknown metric names.

    Raises:
        InputError: Names the unknown ones and those there are.
    """
    unknown = [name for name in metrics if name not in ALL_METRICS]
    if unknown:
        raise InputError(f"Unknown metrics: {', '.join(unknown)}.", fix=f"choose from {', '.join(ALL_METRICS)}")


def evaluate_outputs(
    source_NHWC: np.ndarray,
    reference_NHWC: np.ndarray,
    output_NHWC: np.ndarray,
    metrics: Sequence[str] = DEFAULT_METRICS,
    nets: MetricNets | None = None,
    *,
    prompt: str | None = None,
) -> dict[str, float]:
    """Measures outputs against references; row i of all three belongs to one photo.

    With the teacher's edits under another seed as output, the result is the seed floor: no student can be
    expected to come closer to a teacher than the teacher does itself.

    Args:
        source_NHWC: Photos, uint8.
        reference_NHWC: The teacher's edits, uint8.
        output_NHWC: What is measured, uint8.
        metrics: Names out of `ALL_METRICS`.
        nets: Networks for the metrics that need some; empty = loaded here.
        prompt: The concept's prompt, for ``clip_text``.

    Returns:
        One finite value per metric, in the order asked.

    Raises:
        InputError: An unknown metric, sets that do not match, too few images for a set metric, or missing
            weights.
    """
    check_metrics(metrics)
    if not source_NHWC.shape == reference_NHWC.shape == output_NHWC.shape or source_NHWC.ndim != 4:
        shapes = ", ".join(str(a.shape) for a in (source_NHWC, reference_NHWC, output_NHWC))
        raise InputError(f"Photos, references and outputs differ in shape: {shapes}.", fix="measure equal sets")
    if len(source_NHWC) < (2 if set(metrics) & {"kid", "fd", "fid"} else 1):
        raise InputError(f"{len(source_NHWC)} held-out photos are too few to measure on.", fix="use at least 2")
    batch = _Batch(source_NHWC, reference_NHWC, output_NHWC, nets or MetricNets.load(metrics), prompt)
    if set(metrics) & {"psnr", "ssim", "kid"}:
        importlib.import_module("torchmetrics")  # takes a second, which is no measuring
    with busy.working():
        return {name: float(_METRICS[name](batch)) for name in metrics}


@dataclass
class _Batch:
    """Three sets of images and their features, each computed once and only when a metric asks."""

    source: np.ndarray
    reference: np.ndarray
    output: np.ndarray
    nets: MetricNets
    prompt: str | None = None

    def paired(self, metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
        """Mean over images of a metric on [-1, 1] batches that returns one value per image."""
        values = []
        device = next(self.nets.lpips.parameters()).device if self.nets.lpips else "cpu"
        with torch.inference_mode():
            for start in range(0, len(self.output), _CHUNK):
                part = slice(start, start + _CHUNK)
                values.append(metric(to_signed(self.output[part], device), to_signed(self.reference[part], device)))
        return float(torch.cat(values).double().mean())

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Default features of source, reference, output."""
        net = _needed(self.nets.features, "the feature network")
        return net.features(self.source), net.features(self.reference), net.features(self.output)

    @cached_property
    def clip(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CLIP embeddings of source, reference, output, unit length."""
        net = _needed(self.nets.clip, "a CLIP model")
        return net.images(self.source), net.images(self.reference), net.images(self.output)


def _needed(net: _Net | None, what: str) -> _Net:
    if net is None:
        raise InputError(f"A metric needs {what}, which was not loaded.", fix="list the metric in MetricNets.load")
    return net


def _l1(batch: _Batch) -> float:
    return batch.paired(lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)) / 2)


def _psnr(batch: _Batch) -> float:
    def per_image(a_BCHW: torch.Tensor, b_BCHW: torch.Tensor) -> torch.Tensor:
        from torchmetrics.functional.image import peak_signal_noise_ratio

        value_B = peak_signal_noise_ratio(a_BCHW, b_BCHW, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3))
        return value_B.clamp_max(MAX_PSNR_DB)

    return batch.paired(per_image)


def _ssim(batch: _Batch) -> float:
    def per_image(a_BCHW: torch.Tensor, b_BCHW: torch.Tensor) -> torch.Tensor:
        from torchmetrics.functional.image import structural_similarity_index_measure

        value = structural_similarity_index_measure(a_BCHW, b_BCHW, data_range=(-1.0, 1.0), reduction="none")
        assert isinstance(value, torch.Tensor)
        return value.reshape(-1)

    return batch.paired(per_image)


def _lpips(batch: _Batch) -> float:
    return batch.paired(_needed(batch.nets.lpips, "LPIPS"))


def _kid(batch: _Batch) -> float:
    _, reference_ND, output_ND = batch.features
    return kid(output_ND, reference_ND, paired=True)


def _fd(batch: _Batch) -> float:
    _, reference_ND, output_ND = batch.features
    return frechet_distance(output_ND, reference_ND)


def _fid(batch: _Batch) -> float:
    net = _needed(batch.nets.inception, "the Inception network")
    return frechet_distance(net.features(batch.output), net.features(batch.reference))


def _direction(batch: _Batch) -> float:
    return direction_cosine(*batch.features)


def _clip_image(batch: _Batch) -> float:
    source_ND, _, output_ND = batch.clip
    return float((source_ND * output_ND).sum(axis=1).mean())


def _clip_text(batch: _Batch) -> float:
    if not batch.prompt:
        raise InputError("clip_text needs the concept's prompt.", fix="pass prompt=, or leave clip_text out")
    text_1D = _needed(batch.nets.clip, "a CLIP model").texts([batch.prompt])
    return float((batch.clip[2] @ text_1D.T).mean())


def _clip_direction(batch: _Batch) -> float:
    return direction_cosine(*batch.clip)


_METRICS: Mapping[str, Callable[[_Batch], float]] = {
    "l1": _l1,
    "psnr": _psnr,
    "ssim": _ssim,
    "lpips": _lpips,
    "kid": _kid,
    "fd": _fd,
    "fid": _fid,
    "direction": _direction,
    "clip_image": _clip_image,
    "clip_text": _clip_text,
    "clip_direction": _clip_direction,
}
