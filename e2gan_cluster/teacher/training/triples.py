"""Training triples (photo, prompt, edited photo) for the bundled teacher.

`build_cache` cuts square crops from a folder of photos and makes the slow reference edits once; `TripleSampler` draws
crops, adds the fast edits and settings, and picks a wording; `TripleFeed` does so in processes of its own. What a draw
returns depends only on (seed, images seen), so a resumed run sees the same triples as an unbroken one.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageOps

from e2gan_cluster.errors import InputError
from e2gan_cluster.teacher.training import edits

log = logging.getLogger(__name__)

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
SIDE_PX = 128
# Crops of each photo. Edits are made of the very crop that is trained on, mirrored ones too: strokes of the style
# networks lie elsewhere when the crop or its orientation changes.
CROPS = 12

# Edits of structure take longer to learn than edits of tone: drawn twice as often.
SLOW_TO_LEARN = frozenset(
    (*edits.SLOW_EDITS, "anaglyph-3d", "campaign-poster", "ink-drawing", "motion-blur", "out-of-focus", "pixel-art")
)

SETTING_PHRASES: dict[str, tuple[str, ...]] = {
    "golden-hour": ("in golden evening light", "in warm golden hour light", "lit by a low golden sun"),
    "moonlit-night": ("on a moonlit night", "at night in the moonlight", "on a dark blue night"),
    "thick-fog": ("in thick fog", "on a foggy morning", "in dense pale mist"),
    "snowy-winter": ("in snowy winter", "on a snowy winter day", "covered in snow"),
    "autumn-colours": ("in autumn colours", "in autumn", "with orange autumn leaves"),
    "red-sunset": ("at a burning red sunset", "at sunset", "under a purple and red evening sky"),
    "neon-lights": ("in neon lights", "with neon lights at night", "in a neon cyberpunk city"),
    "underwater": ("underwater", "deep under water", "at the bottom of the sea"),
}


@dataclass(frozen=True)
class Wordings:
    """One concept's prompts: the first is the catalogue's prompt."""

    name: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Triple:
    """Photo and edit, uint8 [H, W, 3], with one wording of the prompt; `edit` is "look" or "look+setting"."""

    photo: NDArray[np.uint8]
    edited: NDArray[np.uint8]
    prompt: str
    edit: str


def load_wordings(catalogue: Path) -> list[Wordings]:
    """Reads name, prompt and wordings of a catalogue whose concepts all have a reference edit.

    Raises:
        InputError: A concept has no reference edit or fewer than 3 wordings.
    """
    concepts = []
    for entry in yaml.safe_load(catalogue.read_text()):
        prompts = tuple(dict.fromkeys([entry["prompt"], *entry.get("wordings", [])]))
        if entry["name"] not in edits.EDIT_NAMES or len(prompts) < 3:
            raise InputError(
                f"{catalogue}: concept {entry['name']!r} has no reference edit, or fewer than 3 wordings.",
                fix="Use names from e2gan_cluster/teacher/training/edits.py with a prompt and 2 or more wordings.",
            )
        concepts.append(Wordings(entry["name"], prompts))
    return concepts


def is_held_out(look: str, setting: str) -> bool:
    """Every fifth composition is never trained on, to see whether unseen ones compose."""
    return hashlib.sha256(f"{look}+{setting}".encode()).digest()[0] % 5 == 0


def composed_prompt(wording: str, setting_phrase: str, comma: bool = False) -> str:
    """Joins a look's wording and a setting's phrase."""
    return f"{wording}{',' if comma else ''} {setting_phrase}"


def list_photos(folder: Path) -> list[Path]:
    """Photos below a folder in a fixed order.

    Raises:
        InputError: There are none.
    """
    photos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        raise InputError(f"No photos in {folder}.", fix="Give a folder with .jpg, .png or .webp files.")
    return photos


def square_photo(path: Path, side_px: int, crop: int = 0) -> NDArray[np.uint8]:
    """A square piece of a photo: crop 0 is the largest in the middle, later ones are smaller, odd ones mirrored."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    rng = np.random.default_rng([crop, *hashlib.sha256(path.name.encode()).digest()[:4]])
    short = min(image.size)
    side = short if crop == 0 else int(short * rng.uniform(0.55, 1.0))
    left = (image.width - side) // 2 if crop == 0 else int(rng.integers(0, image.width - side + 1))
    top = (image.height - side) // 2 if crop == 0 else int(rng.integers(0, image.height - side + 1))
    box = (left, top, left + side, top + side)
    piece = np.asarray(image.resize((side_px, side_px), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))
    return np.ascontiguousarray(piece[:, ::-1]) if crop % 2 else piece


def build_cache(photos: Path, folder: Path, crops: int = CROPS, side_px: int = SIDE_PX, workers: int = 1) -> None:
    """Makes the square crops and the slow edits, one .npy file each; finished files are kept.

    Args:
        photos: Folder of training photos.
        folder: Where the arrays go, about 50 kB per crop and edit.
        crops: Crops of each photo.
        side_px: Side of the crops.
        workers: Processes that make the edits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = list_photos(photos)
    end = f"{len(paths)}x{crops}-{side_px}.npy"
    pieces = _cached(
        folder / f"photos-{end}",
        lambda: np.stack([square_photo(path, side_px, crop) for crop in range(crops) for path in paths]),
    )
    with ProcessPoolExecutor(workers) as pool:
        for name in edits.SLOW_EDITS:
            started = time.monotonic()
            edit = partial(edits.reference_edit, name)
            _cached(folder / f"{name}-{end}", lambda edit=edit: np.stack(list(pool.map(edit, pieces, chunksize=32))))
            log.info("reference edit %s: %d crops, %.1f s", name, len(pieces), time.monotonic() - started)


def _cached(path: Path, make) -> NDArray[np.uint8]:  # noqa: ANN001 - a closure without arguments
    if not path.exists():
        partial_file = path.with_suffix(".partial.npy")
        np.save(partial_file, make())
        partial_file.replace(path)
    return np.load(path, mmap_mode="r")


class TripleSampler:
    """Draws training triples.

    Args:
        folder: Made by `build_cache`.
        concepts: From `load_wordings`.
        seed: Of the order of draws.
        composed_share: Share of draws that lay a setting over a look.
        identity_share: Share of draws in which an empty prompt returns the photo, the base of guidance above 1.
    """

    def __init__(
        self,
        folder: Path,
        concepts: list[Wordings],
        seed: int = 0,
        composed_share: float = 0.25,
        identity_share: float = 0.03,
    ) -> None:
        self.photos = _only(folder, "photos")
        self.slow = {name: _only(folder, name) for name in edits.SLOW_EDITS}
        self.prompts = {concept.name: concept.prompts for concept in concepts}
        self.names = [name for name in self.prompts for _ in range(2 if name in SLOW_TO_LEARN else 1)]
        looks = [look for look in edits.LOOKS if look in self.prompts]
        self.compositions = [(lk, st) for lk in looks for st in edits.SETTINGS if not is_held_out(lk, st)]
        self.seed = seed
        self.composed_share, self.identity_share = composed_share, identity_share

    def draw(self, images_seen: int, batch_size: int) -> list[Triple]:
        """The batch that follows `images_seen` images."""
        rng = np.random.default_rng([self.seed, images_seen])
        return [self._draw_one(rng) for _ in range(batch_size)]

    def _draw_one(self, rng: np.random.Generator) -> Triple:
        look, setting, prompt = self._draw_prompt(rng)
        # An edit may be at hand for the first crops only.
        index = int(rng.integers(len(self.slow.get(look, self.photos))))
        photo = np.asarray(self.photos[index])
        edited = np.asarray(self.slow[look][index]) if look in self.slow else edits.reference_edit(look, photo)
        name = f"{look}+{setting}" if setting else look
        return Triple(photo, edits.compose(look, setting, photo, edited), prompt, name)

    def _draw_prompt(self, rng: np.random.Generator) -> tuple[str, str, str]:
        kind = rng.random()
        if kind < self.identity_share:
            return edits.NEUTRAL, "", ""
        if kind < self.identity_share + self.composed_share and self.compositions:
            look, setting = self.compositions[int(rng.integers(len(self.compositions)))]
            wording = self.prompts[look][int(rng.integers(len(self.prompts[look])))]
            phrases = SETTING_PHRASES[setting]
            phrase = phrases[int(rng.integers(len(phrases)))]
            return look, setting, composed_prompt(wording, phrase, bool(rng.random() < 0.5))
        look = self.names[int(rng.integers(len(self.names)))]
        return look, "", self.prompts[look][int(rng.integers(len(self.prompts[look])))]


@dataclass(frozen=True)
class TripleBatch:
    """Triples, ready for the device: photos and edits uint8 [B, H, W, 3], and B prompts."""

    photos_BHWC: torch.Tensor
    edits_BHWC: torch.Tensor
    prompts: list[str]


class TripleFeed:
    """Draws batches ahead in processes of its own; the batches are those of `TripleSampler.draw`.

    Args:
        sampler: Source of triples.
        batch_size: Triples a call.
        workers: Processes; 0 draws in this one.
    """

    def __init__(self, sampler: TripleSampler, batch_size: int, workers: int = 0) -> None:
        self.sampler, self.batch_size, self.workers = sampler, batch_size, workers
        self._next_images = -1
        self._batches: Iterator[TripleBatch] = iter(())

    def __call__(self, images_seen: int) -> TripleBatch:
        """The batch that follows `images_seen` images."""
        if images_seen != self._next_images:
            self._batches = self._batches_from(images_seen)
        self._next_images = images_seen + self.batch_size
        return next(self._batches)

    def _batches_from(self, images_seen: int) -> Iterator[TripleBatch]:
        steps = _Steps(self.sampler, self.batch_size, images_seen)
        ahead = {"prefetch_factor": 4, "worker_init_fn": _one_thread} if self.workers else {}
        return iter(torch.utils.data.DataLoader(steps, batch_size=None, num_workers=self.workers, **ahead))


@dataclass(frozen=True)
class _Steps(torch.utils.data.Dataset[TripleBatch]):
    """The batches of a run by number, without end."""

    sampler: TripleSampler
    batch_size: int
    first: int

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, step: int) -> TripleBatch:
        triples = self.sampler.draw(self.first + step * self.batch_size, self.batch_size)
        return TripleBatch(
            torch.from_numpy(np.stack([t.photo for t in triples])),
            torch.from_numpy(np.stack([t.edited for t in triples])),
            [t.prompt for t in triples],
        )


def _one_thread(worker: int) -> Any:
    del worker
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _only(folder: Path, name: str) -> NDArray[np.uint8]:
    found = [p for p in folder.glob(f"{name}-[0-9]*.npy") if not p.name.endswith(".partial.npy")]
    if len(found) != 1:
        raise InputError(
            f"{folder} holds {len(found)} files for {name!r}; one is needed.",
            fix="Build the cache again into an empty folder.",
        )
    return np.load(found[0], mmap_mode="r")
