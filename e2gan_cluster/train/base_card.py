"""The model card of a published base (README.md beside its weights)."""

from collections.abc import Mapping, Sequence
from typing import Any

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig


def model_card(config: RunConfig, concepts: Sequence[Concept], meta: Mapping[str, Any]) -> str:
    """Markdown with a metadata block as the Hugging Face hub reads it.

    Args:
        config: Run config.
        concepts: Base concepts.
        meta: Facts of the manifest; see `base_worker`.
    """
    cfg, nets, metrics = config.base.train, config.nets, meta["metrics"]
    rows = [
        f"| {c.name} | {c.prompt} | {_number(metrics, f'heldout/l1/{c.name}')} |"
        f" {_number(metrics, f'heldout/lpips/{c.name}')} |"
        for c in concepts
    ]
    return "\n".join(
        [
            "---",
            "library_name: e2gan-cluster",
            "pipeline_tag: image-to-image",
            f"license: {config.publish.licence}",
            "---",
            f"# Base generator for {len(concepts)} edits",
            "",
            "One text-conditioned image-to-image GAN distilled from a diffusion editor (E2GAN, arXiv 2401.06127).",
            "New edits are LoRA adapters of it; by itself it does the edits below.",
            "",
            f"* generator: width {nets.width}, up-sampling {nets.upsample}, output {nets.output},"
            f" prompt modulation {'on' if nets.modulate else 'off'}",
            f"* trained on {meta['images']} images at {meta['resolution']} px; runs at any multiples of 16",
            f"* loss: {cfg.loss.gan} GAN x {cfg.loss.gan_weight:g}, L1 x {cfg.loss.l1_weight:g},"
            f" LPIPS x {cfg.loss.lpips_weight:g}; learning rate {cfg.lr:g}",
            f"* teacher: {config.teacher.backend}, {config.teacher.model}",
            f"* prompt encoder: {meta['text_encoder']['name']}, {meta['text_encoder']['tokens']} tokens",
            f"* weights: moving average, half-life {cfg.ema_images} images",
            "",
            "Measured on held-out photos that no training saw, against the teacher's edits (lower is better):",
            "",
            "| concept | prompt | L1 | LPIPS |",
            "|---|---|---|---|",
            *rows,
            f"| **mean** | | {_number(metrics, 'heldout/l1')} | {_number(metrics, 'heldout/lpips')} |",
            f"| the photo itself | | {_number(metrics, 'identity/l1')} | {_number(metrics, 'identity/lpips')} |",
            "",
            "L1 is the mean absolute difference of values in [0, 1].",
            "`samples.png`: photo, teacher, untrained network, this base.",
            "`base_concepts.json` says how the concepts were chosen.",
            "",
        ]
    )


def _number(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.4f}" if name in metrics else "-"
