"""Edits made with Pillow and numpy, for benchmarks that need pairs but no teacher. Four themes of four."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import PhotosConfig
from e2gan_cluster.pairs.photos import decode_photo, list_photos, read_photo, source_id, split_of, square_crop
from e2gan_cluster.pairs.shards import PairSet

Edit = Callable[[np.ndarray], np.ndarray]


def _grey(x: np.ndarray) -> np.ndarray:
    return (x @ np.array([0.3, 0.59, 0.11]))[..., None]


def _tint(colour: tuple[float, float, float], saturation: float = 0.0, gain: float = 1.0) -> Edit:
    return lambda x: (_grey(x) + saturation * (x - _grey(x))) * gain * np.array(colour)


def _filtered(image_filter: ImageFilter.Filter) -> Edit:
    def edit(x: np.ndarray) -> np.ndarray:
        picture = Image.fromarray((x.clip(0, 1) * 255).astype(np.uint8))
        return np.asarray(picture.filter(image_filter)) / 255.0

    return edit


_blur, _wide = _filtered(ImageFilter.GaussianBlur(2)), _filtered(ImageFilter.GaussianBlur(3))
_edges, _mode = _filtered(ImageFilter.FIND_EDGES()), _filtered(ImageFilter.ModeFilter(5))


def _sketch(x: np.ndarray) -> np.ndarray:
    return np.repeat(_grey(x) / (_grey(_wide(x)) + 1e-2) * 0.95, 3, axis=2)


EDITS: dict[str, tuple[str, str, Edit]] = {
    "sepia": ("colour", "turn it into an old sepia photograph", _tint((1.1, 0.9, 0.65))),
    "night": ("colour", "make it night in blue moonlight", _tint((0.45, 0.55, 0.9), 0.4, 0.7)),
    "sunset": ("colour", "bathe it in warm orange sunset light", _tint((1.2, 0.85, 0.55), 0.8)),
    "forest": ("colour", "give it a green forest mood", _tint((0.7, 1.1, 0.7), 0.5)),
    "pencil": ("drawing", "draw it as a pencil sketch", _sketch),
    "charcoal": ("drawing", "draw it in dark charcoal", lambda x: _sketch(x) ** 3),
    "blueprint": (
        "drawing",
        "turn it into a white on blue blueprint",
        lambda x: _edges(x) + np.array([0.05, 0.2, 0.5]),
    ),
    "neon": ("drawing", "make its outlines glow like neon", lambda x: 2.5 * _edges(x) * np.array([1.0, 0.4, 1.0])),
    "poster": ("paint", "make it a poster with few flat colours", lambda x: np.round(_blur(x) * 3) / 3),
    "oil": ("paint", "paint it with broad oil strokes", lambda x: 1.3 * (_mode(x) - 0.5) + 0.5),
    "watercolour": ("paint", "paint it in soft watercolour", lambda x: 0.6 * _mode(x) + 0.4),
    "pop-art": ("paint", "make it pop art in loud colours", lambda x: (_blur(x) > 0.45) * np.array([1.0, 0.85, 0.9])),
    "fog": ("weather", "fill it with thick white fog", lambda x: 0.4 * _wide(x) + 0.55),
    "snow": ("weather", "cover it in snow", lambda x: (0.35 * x + 0.65 * _grey(x)) ** 0.6),
    "storm": ("weather", "put it under a dark stormy sky", lambda x: (0.5 * x + 0.5 * _grey(x)) ** 2),
    "negative": ("weather", "show it as a photographic negative", lambda x: 1 - x),
}


def concepts() -> list[Concept]:
    """All of them; the theme is the tag."""
    return [Concept(name, prompt, tags=(theme,)) for name, (theme, prompt, _) in EDITS.items()]


def reference_pairs(names: list[str], resolution: int, crops: int, photos: str) -> dict[str, tuple[PairSet, PairSet]]:
    """Training and held-out pairs of some edits.

    Args:
        names: Keys of `EDITS`.
        resolution: Side, pixels.
        crops: Random crops per training photo.
        photos: ``bundled`` or a folder.
    """
    squares: dict[str, list[tuple[str, np.ndarray]]] = {"train": [], "heldout": []}
    for ref in list_photos(PhotosConfig.model_validate({"source": photos})):
        data = read_photo(ref)
        decoded, source = decode_photo(data, 64), source_id(data)
        if decoded.image_HWC is None:
            continue
        split = split_of(source, 0.25)
        for crop in range(crops if split == "train" else 1):
            squares[split].append((source, square_crop(decoded.image_HWC, resolution, crop, source)))
    return {name: (_set(name, squares["train"]), _set(name, squares["heldout"])) for name in names}


def _set(name: str, squares: list[tuple[str, np.ndarray]]) -> PairSet:
    _, prompt, edit = EDITS[name]
    inputs = np.stack([image for _, image in squares])
    edits = np.stack([(edit(image / 255.0).clip(0, 1) * 255).round().astype(np.uint8) for image in inputs])
    return PairSet(name, prompt, [source for source, _ in squares], inputs, edits, [0] * len(squares))


def save_picture(path: Path, png: bytes) -> None:
    """Writes a picture, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)
