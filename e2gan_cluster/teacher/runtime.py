"""What all diffusers back-ends share: settings, pixels, seeds, caches, batches that shrink when memory runs out.

Example:
    >>> settings = resolve(cfg, Defaults(steps=20, guidance_scale=7.5), overrides={"steps": 4})
    >>> batches = Batches(cfg.batch_size)
    >>> edits = batches.run(len(photos), lambda rows: edit_rows(photos[rows]))
"""

import gc
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.errors import TeacherError

_LOG = logging.getLogger(__name__)
_LATENT_CACHE_BYTES = 256 << 20
_PROMPT_CACHE = 512
V = TypeVar("V")


@dataclass(frozen=True)
class Defaults:
    """A back-end's settings where the config leaves them empty.

    Attributes:
        steps: Denoising steps.
        guidance_scale: Text guidance.
        image_guidance_scale: Image guidance; None where the kind has none.
        strength: Share of the noise schedule that is run; None where the kind has none.
    """

    steps: int
    guidance_scale: float
    image_guidance_scale: float | None = None
    strength: float | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of one call.

    Attributes:
        steps: Denoising steps.
        guidance_scale: Text guidance.
        image_guidance_scale: Image guidance, 0 where the kind has none.
        strength: Share of the schedule, 1 where the kind has none.
        negative_prompt: What to avoid; may be empty.
    """

    steps: int
    guidance_scale: float
    image_guidance_scale: float
    strength: float
    negative_prompt: str


def resolve(
    cfg: TeacherConfig,
    defaults: Defaults,
    overrides: Mapping[str, float] | None = None,
    negative_prompt: str | None = None,
) -> Settings:
    """Settings of a call: the concept's overrides before the config before the back-end's defaults.

    Args:
        cfg: Teacher settings.
        defaults: Of the back-end.
        overrides: Of the concept.
        negative_prompt: Of the concept; None takes the config's.

    Raises:
        TeacherError: An option is set that this kind of teacher has not.
    """
    chosen: dict[str, float] = {}
    for name in ("steps", "guidance_scale", "image_guidance_scale", "strength"):
        default = getattr(defaults, name)
        value = (overrides or {}).get(name, getattr(cfg, name))
        if value is not None and default is None:
            raise TeacherError(f"the teacher {cfg.backend} has no {name}", f"remove {name} from the concept or teacher")
        chosen[name] = default if value is None else value
    return Settings(
        steps=int(chosen["steps"]),
        guidance_scale=float(chosen["guidance_scale"]),
        image_guidance_scale=float(chosen["image_guidance_scale"] or 0.0),
        strength=float(chosen["strength"] or 1.0),
        negative_prompt=cfg.negative_prompt if negative_prompt is None else negative_prompt,
    )


def pick_device(device: str) -> str:
    """The torch device of a config's `device`."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator per row: a row's noise depends on its seed alone, on every device."""
    return [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]


def to_signed(images_NHWC: np.ndarray, device: str | torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Images uint8 NHWC to a tensor NCHW in [-1, 1], by the arithmetic of diffusers' image processor."""
    x_BHWC = torch.from_numpy(np.ascontiguousarray(images_NHWC)).to(device)
    return (x_BHWC.permute(0, 3, 1, 2).float() / 255 * 2 - 1).to(dtype)


def to_uint8(x_BCHW: torch.Tensor) -> np.ndarray:
    """A tensor NCHW in [-1, 1] to uint8 NHWC; an image that is not finite becomes black, which the filters drop."""
    x_BCHW = (x_BCHW.float() / 2 + 0.5).clamp(0, 1)
    finite_B = torch.isfinite(x_BCHW).flatten(1).all(dim=1)
    if not bool(finite_B.all()):
        _LOG.warning("%d of %d edits are not finite and become black", int((~finite_B).sum()), len(finite_B))
        x_BCHW = torch.where(finite_B[:, None, None, None], x_BCHW, torch.zeros_like(x_BCHW))
    return (x_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def resized(images_NHWC: np.ndarray, side: int) -> np.ndarray:
    """Square images uint8 scaled to another side, bicubic with anti-aliasing; unchanged if they have it."""
    if images_NHWC.shape[1] == side:
        return images_NHWC
    x_BCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float()
    x_BCHW = torch.nn.functional.interpolate(x_BCHW, size=(side, side), mode="bicubic", antialias=True)
    return x_BCHW.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


class Lru(Generic[V]):
    """Values by key, the least recently used dropped beyond a total weight.

    Args:
        limit: Largest total weight.
        weigh: Weight of a value.
    """

    def __init__(self, limit: int, weigh: Callable[[V], int] = lambda _: 1) -> None:
        self._limit = limit
        self._weigh = weigh
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._total = 0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of ``key``, made if it is not there."""
        if key not in self._values:
            self.put(key, make())
        self._values.move_to_end(key)
        return self._values[key]

    def peek(self, key: Hashable) -> V | None:
        """The value, if it is there."""
        return self._values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        """Adds a value; the newest always stays."""
        self._values[key] = value
        self._total += self._weigh(value)
        while self._total > self._limit and len(self._values) > 1:
            self._total -= self._weigh(self._values.popitem(last=False)[1])


class LatentCache:
    """Latents of photos by content: concepts that edit the same photo encode it once."""

    def __init__(self, max_bytes: int = _LATENT_CACHE_BYTES) -> None:
        self._rows: Lru[torch.Tensor] = Lru(max_bytes, lambda z: z.numel() * z.element_size())

    def get(self, images_NHWC: np.ndarray, encode: Callable[[np.ndarray], torch.Tensor]) -> torch.Tensor:
        """Latents of a batch; photos not seen before are encoded together.

        Args:
            images_NHWC: Photos, uint8.
            encode: Photos to latents, row by row independent.
        """
        digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images_NHWC]
        rows = {digest: row for digest in digests if (row := self._rows.peek(digest)) is not None}
        new = {digest: n for n, digest in enumerate(digests) if digest not in rows}
        if new:
            fresh = encode(images_NHWC[list(new.values())])
            for digest, row in zip(new, fresh, strict=True):
                rows[digest] = row.clone()
                self._rows.put(digest, rows[digest])
        return torch.stack([rows[digest] for digest in digests])


def prompt_cache() -> Lru[Any]:
    """Prompt embeddings by (prompt, negative prompt, ...): once per concept."""
    return Lru(_PROMPT_CACHE)


def _out_of_memory(error: BaseException) -> bool:
    """PyTorch's allocator on CPUs raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class Batches:
    """Runs rows in batches; a batch that does not fit in memory is halved, and later ones stay small.

    Args:
        size: Rows per batch at first.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, rows: int, edit: Callable[[slice], np.ndarray]) -> np.ndarray:
        """Edits all rows.

        Args:
            rows: How many.
            edit: Edits a slice of them.

        Raises:
            torch.OutOfMemoryError: Not even one row fits.
        """
        parts: list[np.ndarray] = []
        start = 0
        while start < rows:
            part = slice(start, min(start + self.size, rows))
            try:
                parts.append(edit(part))
            except (RuntimeError, MemoryError) as error:
                if part.stop - part.start == 1 or not _out_of_memory(error):
                    raise
                failed = error
            else:
                start = part.stop
                continue
            self._halve(part.stop - part.start, failed)
        return np.concatenate(parts)

    def _halve(self, rows: int, error: BaseException) -> None:
        self.size = rows // 2
        _LOG.warning("out of memory with %d photos at once, going on with %d: %s", rows, self.size, error)
        error.__traceback__ = None  # it keeps the failed batch's tensors alive
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


EditRows = Callable[[np.ndarray, Sequence[str], Sequence[int]], np.ndarray]
"""Photos at the model's side, their prompts and seeds, to edits."""


def edit_at_side(
    batches: Batches,
    side: int | None,
    images_BHWC: np.ndarray,
    prompts: Sequence[str],
    seeds: Sequence[int],
    edit: EditRows,
) -> np.ndarray:
    """Edits photos in batches at the model's own side, and brings the edits back to the photos' side.

    Args:
        batches: Of the teacher.
        side: Pixels the model edits at; None = as the photos are.
        images_BHWC: Photos, uint8, square.
        prompts: One per photo.
        seeds: One per photo.
        edit: Edits one batch.
    """
    own = images_BHWC.shape[1]
    images_BHWC = resized(images_BHWC, side or own)
    edits = batches.run(len(images_BHWC), lambda rows: edit(images_BHWC[rows], prompts[rows], seeds[rows]))
    return resized(edits, own)
