"""Measures a bundled-type teacher on held-out photos, and draws its contact sheet.

Command: ``python -m e2gan_cluster.teacher.training.measure --photos DIR [--weights DIR] [--sheet sheet.jpg]``

Retrieval: for each photo and concept, the teacher's edit is compared with the reference edits of the same photo for
all concepts; a hit is when its own reference is the nearest. The distance is the mean absolute pixel difference, and,
as a second figure, LPIPS (AlexNet). Perceptual ratio: mean LPIPS (teacher, reference) over mean LPIPS (photo,
reference).
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix import (
    StableDiffusionInstructPix2PixPipeline,
)
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from e2gan_cluster.evaluate.lpips import Lpips
from e2gan_cluster.teacher.bundled import (
    BUNDLED_DEFAULTS,
    BUNDLED_DIR,
    BundledDefaults,
    PromptPooledUNet,
    assemble_pipeline,
)
from e2gan_cluster.teacher.training import edits
from e2gan_cluster.teacher.training.finetune import encode_prompts
from e2gan_cluster.teacher.training.triples import (
    SETTING_PHRASES,
    Wordings,
    composed_prompt,
    is_held_out,
    list_photos,
    load_wordings,
    square_photo,
)
from e2gan_cluster.text.encoder import PromptEncoder

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Task:
    """One edit to judge: its catalogue name, prompt, and how its reference is made."""

    name: str
    prompt: str
    look: str
    setting: str = ""

    def reference(self, photo: Images) -> Images:
        """The reference edit of a photo."""
        return edits.compose(self.look, self.setting, photo)


@dataclass(frozen=True)
class Report:
    """Figures over all photos and tasks; distances of images in [-1, 1]."""

    num_photos: int
    num_tasks: int
    steps: int
    guidance_scale: float
    retrieval_top1_l1: float
    retrieval_top1_lpips: float
    l1_teacher_reference: float
    l1_photo_reference: float
    perceptual_ratio: float
    two_seeds_mean_abs_255: float
    s_per_image: float
    worst_tasks: dict[str, float]


class LpipsEmbedding(Lpips):
    """Vectors whose squared Euclidean distance is LPIPS, so that all pairs cost one matrix product."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Images in [-1, 1] to vectors [B, D]."""
        parts = []
        for head, taps_BCHW in zip(self.heads, self._taps(images_BCHW), strict=True):
            unit = torch.nn.functional.normalize(taps_BCHW, dim=1, eps=1e-10)
            weight = head.weight.clamp_min(0).sqrt().reshape(1, -1, 1, 1)  # pyright: ignore[reportCallIssue]
            area = taps_BCHW.shape[-1] * taps_BCHW.shape[-2]
            parts.append((unit * weight / area**0.5).flatten(1))
        return torch.cat(parts, dim=1)


def single_tasks(concepts: Sequence[Wordings]) -> list[Task]:
    """The catalogue's own prompts."""
    return [Task(concept.name, concept.prompts[0], concept.name) for concept in concepts]


def composed_tasks(concepts: Sequence[Wordings], unseen_only: bool) -> list[Task]:
    """Looks with settings: those never trained on, or all."""
    first = {concept.name: concept.prompts[0] for concept in concepts}
    return [
        Task(f"{look}-{setting}", composed_prompt(first[look], SETTING_PHRASES[setting][0]), look, setting)
        for look in edits.LOOKS
        if look in first
        for setting in edits.SETTINGS
        if is_held_out(look, setting) or not unseen_only
    ]


def run_teacher(
    pipe: StableDiffusionInstructPix2PixPipeline,
    photo: Images,
    tokens_BTD: torch.Tensor,
    settings: BundledDefaults,
    seed: int,
) -> Images:
    """Edits one photo with many encoded prompts; row i draws its noise from (seed, i)."""
    generators = [torch.Generator("cpu").manual_seed(seed * 100_003 + row) for row in range(len(tokens_BTD))]
    output = pipe(
        prompt_embeds=tokens_BTD,
        negative_prompt_embeds=torch.zeros_like(tokens_BTD),
        image=[Image.fromarray(photo)] * len(tokens_BTD),
        generator=generators,
        output_type="np",
        **settings.call_options(),
    ).images  # pyright: ignore[reportAttributeAccessIssue]
    return (np.asarray(output) * 255 + 0.5).astype(np.uint8)


@torch.no_grad()
def measure(
    pipe: StableDiffusionInstructPix2PixPipeline,
    photos: Sequence[Path],
    tasks: Sequence[Task],
    settings: BundledDefaults = BUNDLED_DEFAULTS,
) -> Report:
    """Judges a teacher against the reference edits.

    Args:
        pipe: The teacher.
        photos: Held-out photos; the largest square in the middle of each is used.
        tasks: The edits; retrieval is among all of them.
        settings: Steps, guidance and size.

    Returns:
        The figures.
    """
    embed = LpipsEmbedding("alex")
    tokens_BTD = encode_prompts(pipe, [task.prompt for task in tasks])
    hits_l1, hits_lpips = np.zeros(len(tasks)), np.zeros(len(tasks))
    sums = np.zeros(6)
    for path in photos:
        photo = square_photo(path, settings.resolution)
        references = np.stack([task.reference(photo) for task in tasks])
        started = time.perf_counter()
        edited = run_teacher(pipe, photo, tokens_BTD, settings, seed=0)
        elapsed_s = time.perf_counter() - started
        other_seed = run_teacher(pipe, photo, tokens_BTD[:4], settings, seed=1)
        e_BCHW, r_BCHW, p_BCHW = _tensor(edited), _tensor(references), _tensor(photo[None])
        l1_NN = torch.cdist(e_BCHW.flatten(1), r_BCHW.flatten(1), p=1) / e_BCHW[0].numel()
        e_vectors, r_vectors, p_vector = embed(e_BCHW), embed(r_BCHW), embed(p_BCHW)
        lpips_NN = torch.cdist(e_vectors, r_vectors).square()
        own = torch.arange(len(tasks))
        hits_l1 += (l1_NN.argmin(1) == own).numpy()
        hits_lpips += (lpips_NN.argmin(1) == own).numpy()
        seeds = np.abs(other_seed.astype(np.int16) - edited[:4].astype(np.int16)).mean()
        sums += (
            float(l1_NN.diagonal().mean()),
            float((p_BCHW - r_BCHW).abs().mean()),
            float(lpips_NN.diagonal().mean()),
            float((r_vectors - p_vector).square().sum(1).mean()),
            float(seeds),
            elapsed_s / len(tasks),
        )
    means = sums / len(photos)
    order = np.argsort(hits_l1)[:12]
    return Report(
        num_photos=len(photos),
        num_tasks=len(tasks),
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        retrieval_top1_l1=round(float(hits_l1.mean() / len(photos)), 4),
        retrieval_top1_lpips=round(float(hits_lpips.mean() / len(photos)), 4),
        l1_teacher_reference=round(means[0], 4),
        l1_photo_reference=round(means[1], 4),
        perceptual_ratio=round(means[2] / means[3], 4),
        two_seeds_mean_abs_255=round(means[4], 3),
        s_per_image=round(means[5], 4),
        worst_tasks={tasks[i].name: round(float(hits_l1[i] / len(photos)), 3) for i in order},
    )


@torch.no_grad()
def contact_sheet(
    pipe: StableDiffusionInstructPix2PixPipeline,
    photos: Sequence[Path],
    tasks: Sequence[Task],
    settings: BundledDefaults = BUNDLED_DEFAULTS,
    cell_px: int = 72,
) -> Image.Image:
    """All tasks (rows) by photos (pairs of columns: teacher, reference), the photos themselves on top."""
    label_px = 150
    tokens_BTD = encode_prompts(pipe, [task.prompt for task in tasks])
    sheet = Image.new("RGB", (label_px + 2 * cell_px * len(photos), cell_px * (len(tasks) + 1)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, path in enumerate(photos):
        photo = square_photo(path, settings.resolution)
        left = label_px + 2 * cell_px * column
        sheet.paste(Image.fromarray(photo).resize((cell_px, cell_px)), (left, 0))
        edited = run_teacher(pipe, photo, tokens_BTD, settings, seed=0)
        for row, task in enumerate(tasks):
            pair = (edited[row], task.reference(photo))
            for offset, image in enumerate(pair):
                cell = Image.fromarray(image).resize((cell_px, cell_px), Image.Resampling.LANCZOS)
                sheet.paste(cell, (left + offset * cell_px, (row + 1) * cell_px))
    draw.text((4, 4), "photo, then\nteacher | reference", fill="black")
    for row, task in enumerate(tasks):
        draw.text((4, (row + 1) * cell_px + cell_px // 2 - 6), task.name[:26], fill="black")
    return sheet


def _tensor(images: Images) -> torch.Tensor:
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def main(argv: list[str] | None = None) -> None:
    """Prints a report as JSON; optionally writes the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of held-out photos")
    parser.add_argument("--weights", type=Path, default=BUNDLED_DIR, help="folder of the network (default: bundled)")
    parser.add_argument("--catalogue", type=Path, default=Path("configs/concepts/bundled.yaml"))
    parser.add_argument("--tasks", choices=("single", "unseen", "composed"), default="single")
    parser.add_argument("--start", type=int, default=0, help="index of the first photo")
    parser.add_argument("--every", type=int, default=1, help="use every n-th photo from there")
    parser.add_argument("--steps", type=int, default=BUNDLED_DEFAULTS.steps)
    parser.add_argument("--guidance-scale", type=float, default=BUNDLED_DEFAULTS.guidance_scale)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of 8 photos (.jpg or .png)")
    parser.add_argument("--no-report", action="store_true", help="only draw the sheet")
    args = parser.parse_args(argv)
    concepts = load_wordings(args.catalogue)
    tasks = single_tasks(concepts) if args.tasks == "single" else composed_tasks(concepts, args.tasks == "unseen")
    settings = BundledDefaults(steps=args.steps, guidance_scale=args.guidance_scale)
    unet = PromptPooledUNet.from_pretrained(args.weights, torch_dtype=torch.float32, use_safetensors=True)
    pipe = assemble_pipeline(unet, PromptEncoder("minilm"))
    photos = list_photos(args.photos)
    if not args.no_report:
        report = measure(pipe, photos[args.start :: args.every], tasks, settings)
        sys.stdout.write(json.dumps(asdict(report), indent=1) + "\n")
    if args.sheet:
        sheet = contact_sheet(pipe, photos[:: max(1, len(photos) // 8)][:8], tasks, settings)
        sheet.save(args.sheet, quality=80)


if __name__ == "__main__":
    main()
