"""Pairs in memory and the order in which training sees them.

The order depends on the seed and the number of images seen only: epoch ``e`` is a permutation drawn from a
counter-based generator keyed by (seed, e), and worker ``r`` of ``W`` takes rows ``r, r + W, ...`` of every batch. So a
resumed run goes on exactly where it stopped, and one worker or several see the same samples.

Example:
    >>> rows, mirrored = sample_order(num_pairs=100, seed=0, first=40, count=8)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from e2gan_cluster.errors import InputError, TrainingError
from e2gan_cluster.nn.augment import NUM_RANDOM

_ORDER, _MIRROR, _AUGMENT = 0, 1, 2


@dataclass(frozen=True)
class PairData:
    """All training pairs of one run, in memory. Arrays may be given as numpy or torch.

    Pairs whose photo is of one colour are left out: instance norm divides by a deviation of 0, layer after layer, and
    one such photo makes the gradient overflow.

    Attributes:
        inputs_NHWC: Photos, uint8.
        targets_NHWC: Their edits, uint8, same shape.
        concept_N: Index of each pair's concept, int64.
        tokens_CTD: Prompt tokens of every concept, float32, padding rows 0.
        pooled_CD: Pooled prompt of every concept, float32.
        names: Concept names, for messages; empty = numbers.

    Raises:
        TrainingError: There are no pairs.
        InputError: Shapes do not fit.
    """

    inputs_NHWC: torch.Tensor
    targets_NHWC: torch.Tensor
    concept_N: torch.Tensor
    tokens_CTD: torch.Tensor
    pooled_CD: torch.Tensor
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("inputs_NHWC", "targets_NHWC", "concept_N", "tokens_CTD", "pooled_CD"):
            object.__setattr__(self, field, torch.as_tensor(getattr(self, field)))
        if len(self.inputs_NHWC) == 0:
            raise TrainingError("There are no training pairs.", fix="Run `e2gan pairs` first and look at its counts.")
        shape = tuple(self.inputs_NHWC.shape)
        if len(shape) != 4 or shape[3] != 3 or shape[1] % 16 or shape[2] % 16:
            raise InputError(
                f"Training photos have shape {shape}; [N, height, width, 3] with multiples of 16 is needed.",
                fix="Set pairs.resolution to a multiple of 16 and make the pairs again.",
            )
        if tuple(self.targets_NHWC.shape) != shape or len(self.concept_N) != shape[0]:
            raise InputError(
                f"Photos {shape}, edits {tuple(self.targets_NHWC.shape)}, {len(self.concept_N)} concepts differ.",
                fix="Make the pairs again with one pairs.resolution.",
            )
        if int(self.concept_N.max()) >= len(self.tokens_CTD) or int(self.concept_N.min()) < 0:
            raise InputError(f"Concept number {int(self.concept_N.max())} has no prompt.")
        self._leave_out_flat()

    def _leave_out_flat(self) -> None:
        flat_NHW3 = self.inputs_NHWC.flatten(1, 2)
        keep_N = (flat_NHW3.amax(1) != flat_NHW3.amin(1)).any(1)
        if not keep_N.any():
            raise TrainingError("Every training photo is of one colour.", fix="Look at the photos of the run.")
        if not keep_N.all():
            for field in ("inputs_NHWC", "targets_NHWC", "concept_N"):
                object.__setattr__(self, field, getattr(self, field)[keep_N])

    def __len__(self) -> int:
        return len(self.inputs_NHWC)

    def name(self, concept: int) -> str:
        """Name of a concept for messages."""
        return self.names[concept] if self.names else f"number {concept}"


class PairSetLike(Protocol):
    """One concept's pairs, as `e2gan_cluster.pairs.shards.PairSet`."""

    concept: str
    prompt: str
    inputs_NHWC: np.ndarray
    edits_NHWC: np.ndarray


class Encoder(Protocol):
    """What turns prompts into tokens, as `e2gan_cluster.text.encoder.PromptEncoder`."""

    def encode(self, prompts: Sequence[str]) -> "Encoded":
        """Encodes prompts."""
        ...


class Encoded(Protocol):
    """Encoded prompts."""

    @property
    def tokens_BTD(self) -> torch.Tensor:
        """Token states; padding rows are 0."""
        ...

    @property
    def pooled_BD(self) -> torch.Tensor:
        """Pooled prompts."""
        ...


def pair_data(sets: Sequence[PairSetLike], encoder: Encoder) -> PairData:
    """Joins the pairs of several concepts.

    Args:
        sets: Pairs by concept; all of one resolution.
        encoder: Prompt encoder.

    Raises:
        TrainingError: A concept has no pairs.
        InputError: Resolutions differ.
    """
    empty = [s.concept for s in sets if len(s.inputs_NHWC) == 0]
    if empty or not sets:
        raise TrainingError(
            f"No usable pairs for {', '.join(empty) or 'any concept'}.",
            fix="Run `e2gan pairs` and look at its counts of dropped pairs, or leave the concept out.",
        )
    shapes = {s.concept: s.inputs_NHWC.shape[1:] for s in sets}
    if len(set(shapes.values())) > 1:
        raise InputError(
            "Pairs of different sizes cannot be trained together: "
            + ", ".join(f"{name} {shape[0]}x{shape[1]}" for name, shape in shapes.items()),
            fix="Make the pairs of all concepts with one pairs.resolution.",
        )
    encoded = encoder.encode([s.prompt for s in sets])
    return PairData(
        inputs_NHWC=torch.from_numpy(np.concatenate([s.inputs_NHWC for s in sets])),
        targets_NHWC=torch.from_numpy(np.concatenate([s.edits_NHWC for s in sets])),
        concept_N=torch.from_numpy(np.repeat(np.arange(len(sets)), [len(s.inputs_NHWC) for s in sets])),
        tokens_CTD=encoded.tokens_BTD,
        pooled_CD=encoded.pooled_BD,
        names=tuple(s.concept for s in sets),
    )


@dataclass(frozen=True)
class Batch:
    """One worker's part of one step.

    Attributes:
        source_BCHW: Photos in [-1, 1].
        target_BCHW: Edits in [-1, 1].
        text_BTD: Prompt tokens.
        pooled_BD: Pooled prompts.
        concepts: Concept name of every row, for messages.
        uniform_BK: Random numbers for augmentation, or None.
        images: Rows of the step over all workers.
    """

    source_BCHW: torch.Tensor
    target_BCHW: torch.Tensor
    text_BTD: torch.Tensor
    pooled_BD: torch.Tensor
    concepts: tuple[str, ...]
    uniform_BK: torch.Tensor | None
    images: int

    def split(self, parts: int) -> "list[Batch]":
        """Cuts the batch into equal parts for gradient accumulation."""
        if parts == 1:
            return [self]
        size = len(self.source_BCHW) // parts
        return [self._rows(slice(i * size, (i + 1) * size)) for i in range(parts)]

    def _rows(self, rows: slice) -> "Batch":
        uniform = None if self.uniform_BK is None else self.uniform_BK[rows]
        return Batch(
            self.source_BCHW[rows], self.target_BCHW[rows], self.text_BTD[rows], self.pooled_BD[rows],
            self.concepts[rows], uniform, self.images,
        )  # fmt: skip


def sample_order(num_pairs: int, seed: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs are images number ``first`` to ``first + count - 1`` of a run.

    Returns:
        Indices int64 [count], and bool [count]: mirrored or not.
    """
    positions = np.arange(first, first + count)
    epochs, offsets = positions // num_pairs, positions % num_pairs
    rows = np.empty(count, np.int64)
    mirrored = np.empty(count, bool)
    for epoch in np.unique(epochs):
        order, mirror = _epoch(num_pairs, seed, int(epoch))
        here = epochs == epoch
        rows[here], mirrored[here] = order[offsets[here]], mirror[offsets[here]]
    return rows, mirrored


def make_batch(
    data: PairData,
    *,
    seed: int,
    images_seen: int,
    batch_size: int,
    flip: bool,
    augment: bool,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> Batch:
    """The batch that follows ``images_seen`` images, or one worker's interleaved part of it.

    Args:
        data: All pairs.
        seed: Seed of the run.
        images_seen: Images seen before, over all workers.
        batch_size: Images of the step over all workers.
        flip: Mirror half of the pairs.
        augment: Also draw random numbers for `e2gan_cluster.nn.augment`.
        rank: This worker.
        world_size: Number of workers; divides ``batch_size``.
        device: Where the batch goes.
    """
    rows, mirrored = sample_order(len(data), seed, images_seen, batch_size)
    rows_B, mirrored_B = torch.from_numpy(rows[rank::world_size]), torch.from_numpy(mirrored[rank::world_size])
    concept_B = data.concept_N[rows_B]
    uniform = _uniform(seed, images_seen, batch_size)[rank::world_size] if augment else None
    flips = mirrored_B if flip else None
    return Batch(
        source_BCHW=_to_float(data.inputs_NHWC[rows_B], flips, device),
        target_BCHW=_to_float(data.targets_NHWC[rows_B], flips, device),
        text_BTD=data.tokens_CTD[concept_B].to(device, non_blocking=True),
        pooled_BD=data.pooled_CD[concept_B].to(device, non_blocking=True),
        concepts=tuple(data.name(c) for c in concept_B.tolist()),
        uniform_BK=None if uniform is None else torch.from_numpy(uniform).to(device),
        images=batch_size,
    )


def _to_float(images_BHWC: torch.Tensor, flips_B: torch.Tensor | None, device: torch.device | str) -> torch.Tensor:
    images_BCHW = images_BHWC.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 127.5 - 1
    if flips_B is not None:
        images_BCHW = torch.where(flips_B.to(device)[:, None, None, None], images_BCHW.flip(3), images_BCHW)
    return images_BCHW.contiguous()


@lru_cache(maxsize=4)
def _epoch(num_pairs: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    order = _generator(seed, _ORDER, epoch).permutation(num_pairs)
    mirror = _generator(seed, _MIRROR, epoch).random(num_pairs) < 0.5
    return order, mirror


def _uniform(seed: int, images_seen: int, batch_size: int) -> np.ndarray:
    return _generator(seed, _AUGMENT, images_seen).random((batch_size, NUM_RANDOM), dtype=np.float32)


def _generator(seed: int, purpose: int, counter: int) -> np.random.Generator:
    # The highest counter word: streams of neighbouring counters never meet.
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, 0, counter]))
