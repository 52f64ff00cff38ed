"""Photo filters in numpy and OpenCV: the light, season, film, drawing, print and material looks.

Every filter takes and gives a float32 image [H, W, 3] in [0, 1] and is deterministic. Sizes are in pixels of a
128-px photo; screens (halftone, engraving, scan lines) have a period of 4 px, the fold of the bundled teacher.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.floating[Any]]

# Edits run beside the network on the same cores; threads of their own would fight with it.
cv2.setNumThreads(1)


def luma(x: Image) -> Image:
    """Brightness [H, W] (Rec. 601)."""
    return x @ np.array([0.299, 0.587, 0.114], np.float32)


def saturate(x: Image, factor: float) -> Image:
    """Moves colours away from (factor > 1) or towards grey."""
    grey = luma(x)[..., None]
    return grey + (x - grey) * np.float32(factor)


def blur(x: Image, sigma: float) -> Image:
    """Gaussian blur."""
    return np.asarray(cv2.GaussianBlur(x, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), np.float32)


def contrast(x: Image, factor: float, centre: float = 0.5) -> Image:
    """Linear contrast around `centre`."""
    return np.clip((x - centre) * np.float32(factor) + np.float32(centre), 0, 1)


def equalise(grey: Image) -> Image:
    """Stretches brightness so that its 3rd and 97th percentile become 0 and 1."""
    low, high = np.percentile(grey, (3, 97))
    return np.clip((grey - low) / max(high - low, 0.1), 0, 1).astype(np.float32)


def ramp(grey: Image, *stops: tuple[float, float, float]) -> Image:
    """Maps brightness to evenly spaced colour stops."""
    positions = np.linspace(0, 1, len(stops))
    colours = np.array(stops, np.float32)
    return np.stack([np.interp(grey, positions, colours[:, c]) for c in range(3)], -1).astype(np.float32)


def mix(x: Image, colour: tuple[float, float, float] | Image, amount: float | Image) -> Image:
    """Blends towards a colour or image; `amount` is a number or [H, W]."""
    weight = np.asarray(amount, np.float32)
    weight = weight[..., None] if weight.ndim == 2 else weight
    return x * (1 - weight) + np.asarray(colour, np.float32) * weight


def frame_grid(x: Image) -> tuple[Image, Image]:
    """Row and column coordinates [H, W], -1 to 1 over the frame."""
    rows, columns = np.mgrid[-1 : 1 : x.shape[0] * 1j, -1 : 1 : x.shape[1] * 1j]
    return rows.astype(np.float32), columns.astype(np.float32)


def vignette(x: Image, inner: float, outer: float, floor: float = 0.0) -> Image:
    """Darkens from radius `inner` to `outer` (1 = middle of a side) down to `floor`."""
    rows, columns = frame_grid(x)
    radius = np.sqrt(rows**2 + columns**2)
    keep = 1 - np.clip((radius - inner) / (outer - inner), 0, 1) * (1 - floor)
    return x * keep[..., None]


def edges(x: Image, sigma: float = 0.8) -> Image:
    """Edge strength [H, W] in [0, 1]."""
    grey = blur(luma(x), sigma)
    dx, dy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    return np.clip(np.sqrt(dx**2 + dy**2) * 1.4, 0, 1).astype(np.float32)


def smoothstep(value: Image, low: float, high: float) -> Image:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def greenness(x: Image) -> Image:
    """How much a pixel looks like foliage, [H, W] in [0, 1]."""
    return np.clip((x[..., 1] - np.maximum(x[..., 2], x[..., 0] * 0.92)) * 6, 0, 1)


def screen_of(x: Image, period: int = 4) -> tuple[Image, Image]:
    """Phases [H, W] in [0, 1) of a screen aligned with the frame."""
    rows, columns = np.mgrid[: x.shape[0], : x.shape[1]]
    return ((rows % period + 0.5) / period).astype(np.float32), ((columns % period + 0.5) / period).astype(np.float32)


# --- light, weather, season: also used as settings on top of a look ---


def golden_hour(x: Image) -> Image:
    """Low warm sun: amber highlights, brown shadows, glow."""
    glow = blur(x, 6)
    warm = 1 - (1 - x) * (1 - 0.45 * glow)
    return contrast(warm, 1.1, 0.45) * np.array([1.12, 0.86, 0.45], np.float32) + np.array(
        [0.10, 0.03, 0.0], np.float32
    )


def moonlit_night(x: Image) -> Image:
    """Dark and blue, highlights like moonlight."""
    night = np.clip(saturate(x, 0.3), 0, 1) ** 1.3 * np.array([0.36, 0.50, 0.88], np.float32)
    return night + np.array([0.0, 0.015, 0.06], np.float32)


def thick_fog(x: Image) -> Image:
    """Pale grey haze, thicker towards the top of the frame."""
    rows, _ = frame_grid(x)
    return mix(blur(saturate(x, 0.45), 1.0), (0.82, 0.84, 0.86), 0.62 - 0.2 * rows)


def snowy_winter(x: Image) -> Image:
    """Snow on foliage and on whatever lies light side up; cold grey light."""
    grey = luma(x)
    below = np.roll(blur(grey, 1.5), -3, axis=0)
    top_side = smoothstep(blur(grey, 1.2) - below, 0.01, 0.09)
    snow = np.clip(0.95 * smoothstep(blur(grey, 1.0), 0.32, 0.55) + 0.5 * top_side + 0.6 * greenness(x), 0, 1)
    cold = saturate(x, 0.35) * np.array([0.85, 0.95, 1.1], np.float32)
    white = ramp(np.clip(0.45 + 0.75 * grey, 0, 1), (0.5, 0.56, 0.68), (0.8, 0.86, 0.95), (0.98, 0.99, 1.0))
    return mix(cold, white, 0.9 * snow)


def autumn_colours(x: Image) -> Image:
    """Foliage and everything else in orange, red and ochre."""
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    shifted = np.stack([0.45 * r + 0.75 * g, 0.16 * r + 0.42 * g + 0.05 * b, 0.28 * b], -1)
    return saturate(contrast(shifted.astype(np.float32), 1.25, 0.4), 1.35)


def red_sunset(x: Image) -> Image:
    """A burning evening sky: purple above, red and orange below, dark ground."""
    rows, _ = frame_grid(x)
    sky = ramp((rows + 1) / 2, (0.38, 0.12, 0.52), (0.95, 0.25, 0.38), (1.0, 0.55, 0.15))
    grey = contrast(luma(x), 1.4, 0.45)[..., None]
    return 0.25 * x * sky + grey**1.2 * sky * 1.05 + 0.03


def neon_lights(x: Image) -> Image:
    """Night city: violet shadows, magenta and cyan lights, glowing edges."""
    base = ramp(equalise(luma(x)), (0.03, 0.0, 0.12), (0.28, 0.02, 0.45), (0.85, 0.08, 0.65), (0.25, 0.9, 1.0))
    glow = edges(x)[..., None] * np.array([0.1, 0.75, 0.9], np.float32)
    return 0.9 * base + 0.9 * glow


def underwater(x: Image) -> Image:
    """Red is gone, blue-green light from above."""
    rows, _ = frame_grid(x)
    soft = saturate(blur(x, 0.9), 0.6)
    tint = soft * np.array([0.18, 0.75, 0.75], np.float32) + np.array([0.0, 0.14, 0.22], np.float32)
    return tint * (1 - 0.35 * rows)[..., None]


def candlelight(x: Image) -> Image:
    """One warm light in the middle of a dark room."""
    warm = saturate(x, 0.6) * np.array([1.35, 0.78, 0.32], np.float32)
    return vignette(warm, 0.15, 1.05, 0.04)


def cherry_blossom(x: Image) -> Image:
    """Spring: foliage turns pink, light turns soft and rosy."""
    light = 1 - (1 - x) * (1 - 0.5 * blur(x, 4))
    pink = ramp(luma(x), (0.55, 0.18, 0.35), (1.0, 0.6, 0.76), (1.0, 0.92, 0.95))
    return mix(mix(light, (1.0, 0.78, 0.86), 0.3), pink, 0.45 + 0.5 * greenness(x))


def sandstorm(x: Image) -> Image:
    """Orange dust in the air."""
    return mix(blur(saturate(x, 0.35), 1.0), (0.84, 0.56, 0.26), 0.62)


# --- photo, film, optics ---


def sepia(x: Image) -> Image:
    """Brown-toned old photograph."""
    return ramp(luma(x), (0.12, 0.06, 0.02), (0.58, 0.42, 0.27), (0.98, 0.91, 0.76))


def cyanotype(x: Image) -> Image:
    """Prussian-blue photographic print."""
    return ramp(equalise(luma(x)), (0.02, 0.10, 0.32), (0.18, 0.42, 0.68), (0.90, 0.95, 0.97))


def film_noir(x: Image) -> Image:
    """Black and white with hard contrast and dark corners."""
    grey = contrast(equalise(luma(x)), 1.9, 0.52)[..., None].repeat(3, -1)
    return vignette(grey, 0.75, 1.4, 0.1)


def infrared_film(x: Image) -> Image:
    """False-colour infrared: foliage crimson, the rest shifted to cyan and grey."""
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    swapped = np.stack([1.5 * g - 0.5 * b + 0.1, 0.95 * r * 0.75, 0.9 * g + 0.15 * b], -1).astype(np.float32)
    return mix(np.clip(swapped, 0, 1), (0.88, 0.12, 0.35), 0.65 * greenness(x))


def polaroid(x: Image) -> Image:
    """Instant photo: white frame, faded yellow-green tones."""
    rows, columns = frame_grid(x)
    faded = saturate(x, 0.7) * np.array([0.75, 0.72, 0.52], np.float32) + np.array([0.20, 0.19, 0.17], np.float32)
    border = (np.abs(columns) > 0.87) | (rows < -0.87) | (rows > 0.68)
    return np.where(border[..., None], np.float32(0.96), faded).astype(np.float32)


def teal_orange(x: Image) -> Image:
    """Duotone in teal shadows and orange lights."""
    return ramp(equalise(luma(x)), (0.0, 0.16, 0.2), (0.05, 0.45, 0.48), (0.98, 0.55, 0.18), (1.0, 0.88, 0.65))


def vaporwave(x: Image) -> Image:
    """Pastel violet, pink and cyan."""
    return ramp(equalise(luma(x)), (0.30, 0.12, 0.62), (0.95, 0.42, 0.80), (0.45, 0.90, 0.98), (0.95, 1.0, 0.95))


def thermal_camera(x: Image) -> Image:
    """False colours from cold blue to hot yellow."""
    stops = ((0.0, 0.0, 0.35), (0.45, 0.0, 0.6), (0.9, 0.1, 0.25), (1.0, 0.6, 0.0), (1.0, 1.0, 0.4))
    return ramp(equalise(blur(luma(x), 1.2)), *stops)


def photo_negative(x: Image) -> Image:
    """Inverted colours, as on the film strip."""
    return 1 - x


def solarised(x: Image) -> Image:
    """Sabattier effect: bright tones turn over."""
    return np.clip(1 - np.abs(2 * x - 0.85), 0, 1) * np.array([0.95, 0.9, 1.0], np.float32)


def night_vision(x: Image) -> Image:
    """Green image intensifier with scan lines and a round view."""
    row_phase, _ = screen_of(x)
    green = ramp(equalise(luma(x)), (0.0, 0.08, 0.0), (0.1, 0.65, 0.1), (0.75, 1.0, 0.6))
    return vignette(green * (0.72 + 0.28 * (row_phase < 0.5))[..., None], 0.85, 1.1, 0.0)


def vhs_tape(x: Image) -> Image:
    """Worn video tape: colour bleeds sideways, scan lines, washed-out purple."""
    row_phase, _ = screen_of(x)
    bleed = np.stack([np.roll(x[..., 0], 4, 1), x[..., 1], np.roll(x[..., 2], -4, 1)], -1)
    bleed = cv2.blur(bleed, (5, 1)) * np.array([0.75, 0.62, 0.82], np.float32) + 0.12
    return (bleed * (0.70 + 0.42 * (row_phase < 0.5))[..., None]).astype(np.float32)


def anaglyph(x: Image) -> Image:
    """Red and cyan stereo print with a wide shift."""
    grey = luma(x)
    return np.stack([np.roll(grey, 6, 1), np.roll(grey, -6, 1), np.roll(grey, -6, 1)], -1)


def dreamy_glow(x: Image) -> Image:
    """Soft-focus glow (Orton effect)."""
    return saturate(1 - (1 - 0.85 * x) * (1 - 0.85 * blur(x, 5)), 1.25)


def hdr(x: Image) -> Image:
    """Exaggerated local contrast and colour."""
    return saturate(np.clip(0.55 + 1.9 * (x - blur(x, 7)) + 0.45 * (blur(x, 7) - 0.5), 0, 1), 1.9)


def out_of_focus(x: Image) -> Image:
    """A strongly defocused lens."""
    return blur(x, 4.5)


def tilt_shift(x: Image) -> Image:
    """Miniature look: only a band in the middle is sharp, toy colours."""
    rows, _ = frame_grid(x)
    return contrast(saturate(mix(x, blur(x, 4), smoothstep(np.abs(rows), 0.15, 0.5)), 1.9), 1.15)


def motion_blur(x: Image) -> Image:
    """Camera moved sideways."""
    return np.asarray(cv2.blur(x, (21, 1), borderType=cv2.BORDER_REFLECT), np.float32)


# --- drawing and print ---


def _lines(x: Image, sigma: float, gain: float) -> Image:
    """Dark lines on white, [H, W]: brightness over its blur (a dodge)."""
    grey = luma(x)
    return np.clip(1 - gain * (1 - np.clip((grey + 0.02) / (blur(grey, sigma) + 0.02), 0, 1)), 0, 1)


def pencil_sketch(x: Image) -> Image:
    """Grey pencil on white paper."""
    lines = _lines(x, 3, 1.7) * (0.82 + 0.18 * smoothstep(luma(x), 0.05, 0.5))
    return ramp(lines, (0.15, 0.15, 0.17), (0.97, 0.97, 0.95))


def charcoal(x: Image) -> Image:
    """Broad soft black strokes on grey paper."""
    tone = _lines(x, 6, 2.0) * (0.12 + 0.88 * contrast(blur(equalise(luma(x)), 1.5), 1.6, 0.45))
    return ramp(tone, (0.03, 0.03, 0.03), (0.80, 0.78, 0.74))


def ink_drawing(x: Image) -> Image:
    """Black ink lines and shadows on cream paper."""
    grey = luma(x)
    ink = smoothstep(blur(grey, 5) - blur(grey, 0.6), 0.02, 0.07) + smoothstep(0.22 - blur(grey, 1), 0.0, 0.08)
    return ramp(1 - np.clip(ink, 0, 1), (0.04, 0.04, 0.1), (0.99, 0.96, 0.86))


def blueprint(x: Image) -> Image:
    """White drafting lines on blue paper."""
    return ramp(np.clip(edges(x, 1.2) * 1.7, 0, 1), (0.05, 0.22, 0.62), (0.92, 0.96, 1.0))


def chalkboard(x: Image) -> Image:
    """Pale chalk lines on a dark green board."""
    chalk = np.clip(edges(x, 1.6) * 1.9 + 0.12 * luma(x), 0, 1)
    return ramp(chalk, (0.08, 0.17, 0.13), (0.95, 0.93, 0.82))


def newspaper_halftone(x: Image) -> Image:
    """Black dots of a 4-px screen on newsprint."""
    rows, columns = screen_of(x)
    dot = np.sqrt((rows - 0.5) ** 2 + (columns - 0.5) ** 2) / 0.55
    ink = smoothstep(1.05 - equalise(luma(x)) - dot, -0.12, 0.12)
    return ramp(ink, (0.88, 0.86, 0.80), (0.1, 0.1, 0.1))


def campaign_poster(x: Image) -> Image:
    """Flat navy, red, sand and cream: a stencilled poster."""
    grey = equalise(blur(luma(x), 1.5))
    out = np.broadcast_to(np.array([0.02, 0.16, 0.28], np.float32), x.shape)
    for level, colour in ((0.3, (0.84, 0.1, 0.13)), (0.55, (0.45, 0.64, 0.68)), (0.78, (0.99, 0.90, 0.68))):
        out = mix(out, colour, smoothstep(grey, level - 0.03, level + 0.03))
    return out


def risograph(x: Image) -> Image:
    """Two inks, pink and green-blue, on white."""
    pink = smoothstep(1 - blur(x[..., 1], 0.6), 0.25, 0.75)
    blue = smoothstep(1 - blur(x[..., 0], 0.6), 0.35, 0.85)
    paper = np.ones_like(x) * np.float32(0.97)
    return mix(paper, (1.0, 0.35, 0.55), 0.9 * pink) * mix(paper, (0.0, 0.52, 0.55), 0.85 * blue)


def linocut(x: Image) -> Image:
    """Black ink cut in two tones."""
    grey = luma(x)
    local = blur(grey, 0.9) - 0.6 * blur(grey, 9) - 0.18
    return ramp(smoothstep(local, -0.03, 0.05), (0.05, 0.04, 0.05), (0.97, 0.95, 0.91))


def engraving(x: Image) -> Image:
    """Brown horizontal lines that swell with darkness, as on a banknote."""
    rows, _ = screen_of(x)
    wave = np.abs(rows - 0.5) * 2
    ink = smoothstep(1.1 - 1.15 * equalise(luma(x)) - wave, -0.15, 0.15)
    return ramp(ink, (0.96, 0.91, 0.78), (0.24, 0.12, 0.05))


def _blocks(x: Image, size: int = 4) -> Image:
    """Every block of `size` x `size` px in its mean colour."""
    small = cv2.resize(x, (x.shape[1] // size, x.shape[0] // size), interpolation=cv2.INTER_AREA)
    big = small.repeat(size, 0).repeat(size, 1)
    out = np.empty_like(x)
    out[...] = cv2.resize(x, (x.shape[1], x.shape[0]))
    out[: big.shape[0], : big.shape[1]] = big
    return out


def pixel_art(x: Image) -> Image:
    """4-px blocks in few bright colours."""
    return np.round(np.clip(saturate(_blocks(x), 1.6), 0, 1) * 4) / 4


def cross_stitch(x: Image) -> Image:
    """Coloured X stitches on dark cloth."""
    rows, columns = screen_of(x)
    thread = np.maximum(1 - np.abs(rows - columns) * 2.6, 1 - np.abs(rows + columns - 1) * 2.6)
    return np.clip(saturate(_blocks(x), 1.4) * 1.15 + 0.08, 0, 1) * (0.25 + 0.85 * np.clip(thread, 0, 1))[..., None]


# --- material ---


def _relief(x: Image, sigma: float) -> Image:
    """Brightness seen as height, lit from the upper left, [H, W] around 0.5."""
    height = blur(luma(x), sigma)
    return (0.5 + 2.6 * (np.roll(height, -2, (0, 1)) - np.roll(height, 2, (0, 1)))).astype(np.float32)


def bronze_relief(x: Image) -> Image:
    """Cast bronze, lit from the upper left."""
    shade = np.clip(0.75 * _relief(x, 1.0) + 0.3 * luma(x) - 0.08, 0, 1)
    return ramp(shade, (0.08, 0.04, 0.02), (0.48, 0.29, 0.12), (0.80, 0.58, 0.28), (1.0, 0.93, 0.70))


def white_marble(x: Image) -> Image:
    """Carved in white marble."""
    shade = np.clip(0.55 * _relief(x, 0.9) + 0.3 * equalise(luma(x)) + 0.28, 0, 1)
    return ramp(shade, (0.30, 0.31, 0.34), (0.72, 0.72, 0.74), (0.99, 0.98, 0.96))


def pure_gold(x: Image) -> Image:
    """Polished gold."""
    grey = luma(x)
    shine = np.clip(equalise(grey) * 0.7 + 2.2 * (grey - blur(grey, 5)) + 0.15, 0, 1)
    stops = ((0.18, 0.07, 0.0), (0.62, 0.36, 0.02), (1.0, 0.76, 0.12), (1.0, 0.97, 0.62))
    return ramp(shine, *stops)


def carved_ice(x: Image) -> Image:
    """Pale turquoise ice with bright edges."""
    grey = luma(x)
    shade = np.clip(0.35 + 0.45 * equalise(grey) + 2.5 * (grey - blur(grey, 4)) + 0.4 * edges(x), 0, 1)
    return ramp(shade, (0.12, 0.42, 0.50), (0.42, 0.78, 0.82), (0.80, 0.97, 0.97), (1.0, 1.0, 1.0))
