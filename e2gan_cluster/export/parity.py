"""Does an exported file compute what torch computes? Measured on held-out photos, in ONNX Runtime.

Example:
    >>> parity = measure(lambda x: session.run(None, {"image": x})[0], photos_1CHW, expected_1CHW)
    >>> require_exact("merged.onnx", parity, max_error=2e-3)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from e2gan_cluster.evaluate.inference import to_signed, to_uint8
from e2gan_cluster.evaluate.metrics import HIGHER_IS_BETTER, MAX_PSNR_DB, MetricNets, evaluate_outputs
from e2gan_cluster.export.graph import ExportError
from e2gan_cluster.export.names import Format

METRIC_TOLERANCE = 0.01
"""Relative change of the headline metric that an fp32 export may show; far below the noise between two seeds."""

MIN_PSNR_DB: dict[Format, float] = {"onnx-adapter-fp16": 40.0, "merged-fp16": 40.0, "merged-int8": 30.0}
"""Least agreement with torch, as 8-bit images, at which a smaller file is kept."""

MAX_LPIPS: dict[Format, float] = {"onnx-adapter-fp16": 0.01, "merged-fp16": 0.01, "merged-int8": 0.05}
"""Largest perceptual distance to torch's images at which a smaller file is kept."""


@dataclass(frozen=True)
class Parity:
    """How close an exported file is to torch.

    Attributes:
        photos: Photos compared.
        max_error: Largest absolute difference, images in [-1, 1].
        mean_error: Mean absolute difference.
        psnr_db: Of the two 8-bit images, dB (100 = equal).
        lpips: Perceptual distance of the two images; None where not measured (fp32).
        torch_metrics: Metrics of torch's outputs against the teacher's edits.
        metrics: The same for the exported file.
    """

    photos: int
    max_error: float
    mean_error: float
    psnr_db: float
    lpips: float | None = None
    torch_metrics: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """JSON-able form for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """Photos, torch's outputs on them and, if known, the teacher's edits.

    Attributes:
        photos_NHWC: uint8.
        expected: torch's outputs, float32 ``[1, 3, H, W]`` each, not clamped.
        references_NHWC: The teacher's edits, uint8, or None.
        metrics: Names of metrics to recompute against the references.
        nets: Networks of these metrics and of LPIPS.
    """

    photos_NHWC: np.ndarray
    expected: list[np.ndarray]
    references_NHWC: np.ndarray | None = None
    metrics: Sequence[str] = ()
    nets: MetricNets | None = None

    @classmethod
    def of(
        cls,
        edit: Callable[[torch.Tensor], torch.Tensor],
        photos_NHWC: np.ndarray,
        references_NHWC: np.ndarray | None = None,
        metrics: Sequence[str] = (),
        nets: MetricNets | None = None,
    ) -> "Probe":
        """Runs torch on the photos, one at a time as a device does."""
        with torch.inference_mode():
            expected = [edit(to_signed(photo_HWC[None])).float().numpy() for photo_HWC in photos_NHWC]
        if not all(np.isfinite(image).all() for image in expected):
            raise ExportError("the generator gives NaN or infinity on a held-out photo", "train the adapter again")
        return cls(photos_NHWC, expected, references_NHWC, metrics, nets)


def measure(run: Callable[[np.ndarray], np.ndarray], probe: Probe, *, lpips: bool = False) -> Parity:
    """Runs an exported file on the probe's photos.

    Args:
        run: float32 ``[1, 3, H, W]`` in [-1, 1] to the edited image.
        probe: What torch did.
        lpips: Also measure the perceptual distance to torch's images.

    Returns:
        Differences and metrics.

    Raises:
        ExportError: The output has another shape, or is not finite.
    """
    got = [np.asarray(run(to_signed(photo_HWC[None]).numpy()), np.float32) for photo_HWC in probe.photos_NHWC]
    for image, expected in zip(got, probe.expected, strict=True):
        if image.shape != expected.shape or not np.isfinite(image).all():
            raise ExportError(
                f"an exported graph gives {image.shape} where torch gives {expected.shape}, or is not finite"
            )
    errors = [np.abs(image - expected) for image, expected in zip(got, probe.expected, strict=True)]
    ours_NHWC, torch_NHWC = (np.concatenate([to_uint8(torch.from_numpy(i)) for i in s]) for s in (got, probe.expected))
    squared = float(np.mean((ours_NHWC.astype(np.float64) - torch_NHWC) ** 2))
    distance = None
    if lpips:
        distance = evaluate_outputs(probe.photos_NHWC, torch_NHWC, ours_NHWC, ["lpips"], probe.nets)["lpips"]
    return Parity(
        photos=len(got),
        max_error=float(max(error.max() for error in errors)),
        mean_error=float(np.mean([error.mean() for error in errors])),
        psnr_db=min(MAX_PSNR_DB, 10 * float(np.log10(255**2 / squared))) if squared else MAX_PSNR_DB,
        lpips=distance,
        torch_metrics=_metrics(probe, torch_NHWC),
        metrics=_metrics(probe, ours_NHWC),
    )


def require_exact(name: str, parity: Parity, max_error: float) -> None:
    """Refuses an fp32 export that differs from torch.

    Args:
        name: File, for the message.
        parity: Its measurement.
        max_error: Largest allowed absolute difference in [-1, 1].

    Raises:
        ExportError: Pixels differ too much, or a recomputed metric is worse than torch's.
    """
    if parity.max_error > max_error:
        raise ExportError(
            f"{name} differs from torch by {parity.max_error:.2g} (mean {parity.mean_error:.2g}, "
            f"{parity.psnr_db:.1f} dB), more than publish.max_error = {max_error:g}",
            "do not ship it: check that torch, onnx and onnxruntime are those of constraints.txt",
        )
    worse = worse_metrics(parity, METRIC_TOLERANCE)
    if worse:
        raise ExportError(f"{name} scores worse than the trained adapter: {worse}", "do not ship it; export again")


def require_close(name: str, kind: Format, parity: Parity) -> None:
    """Refuses a base of lower precision that is too far from torch.

    Args:
        name: File, for the message.
        kind: A format of `MIN_PSNR_DB`.
        parity: Its measurement.

    Raises:
        ExportError: The images differ too much.
    """
    reasons = reasons_to_drop(kind, parity, METRIC_TOLERANCE)
    if reasons:
        raise ExportError(f"{name}: {'; '.join(reasons)}", "do not ship it; train the base again")


def require_found_again(name: str, parity: Parity, expected: Mapping[str, float], tolerance: float) -> None:
    """Refuses an fp32 export whose metrics are not those that the search measured on the same photos.

    Parity with torch alone would not notice that torch was given other weights, another prompt or other photos than
    in the search.

    Args:
        name: File, for the message.
        parity: Its measurement.
        expected: The search's metrics on the photos of the measurement; empty: nothing to compare with.
        tolerance: Relative difference that the search takes for noise.

    Raises:
        ExportError: A metric is another one.
    """
    other = [
        f"{metric} {parity.metrics[metric]:.4f}, in the search {value:.4f}"
        for metric, value in expected.items()
        if metric in parity.metrics and abs(parity.metrics[metric] - value) > tolerance * abs(value) + 1e-3
    ]
    if other:
        raise ExportError(
            f"{name} does not score what the search measured: {', '.join(other)}",
            "do not ship it: were weights, pairs or the text encoder changed since? Search this concept again",
        )


def reasons_to_drop(kind: Format, parity: Parity, tolerance: float) -> list[str]:
    """Why a file of lower precision is not worth shipping; empty = keep it.

    Args:
        kind: A format of `MIN_PSNR_DB`.
        parity: Its measurement, with LPIPS.
        tolerance: Relative loss of a metric against the teacher's edits that the search takes for noise.
    """
    reasons = []
    if parity.psnr_db < MIN_PSNR_DB[kind]:
        reasons.append(f"PSNR to torch {parity.psnr_db:.1f} dB is below {MIN_PSNR_DB[kind]:g} dB")
    if parity.lpips is not None and parity.lpips > MAX_LPIPS[kind]:
        reasons.append(f"LPIPS to torch {parity.lpips:.3f} is above {MAX_LPIPS[kind]:g}")
    if worse := worse_metrics(parity, tolerance):
        reasons.append(f"scores worse against the teacher: {worse}")
    return reasons


def worse_metrics(parity: Parity, tolerance: float) -> str:
    """Metrics that an export loses, as text; empty = none."""
    return ", ".join(
        f"{name} {parity.metrics[name]:.4f} instead of {value:.4f}"
        for name, value in parity.torch_metrics.items()
        if _loss(name, parity.metrics, value) > tolerance * abs(value) + 1e-4
    )


def _loss(name: str, metrics: Mapping[str, float], value: float) -> float:
    return value - metrics[name] if name in HIGHER_IS_BETTER else metrics[name] - value


def _metrics(probe: Probe, outputs_NHWC: np.ndarray) -> dict[str, float]:
    if probe.references_NHWC is None or not probe.metrics:
        return {}
    return evaluate_outputs(probe.photos_NHWC, probe.references_NHWC, outputs_NHWC, list(probe.metrics), probe.nets)
