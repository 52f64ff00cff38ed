"""Command line of ``jobs/train_teacher.py``."""

import argparse
import logging
from pathlib import Path

from e2gan_cluster.teacher.training.bundled_job import train_bundled
from e2gan_cluster.teacher.training.bundled_loss import LossConfig
from e2gan_cluster.teacher.training.loop import LoopConfig

CATALOGUE = Path("configs/concepts/bundled.yaml")


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of training photos")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, log and weights; resumed if it exists")
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE, help="concepts with wordings")
    parser.add_argument("--cache", type=Path, help="folder of the reference edits (default: OUT/cache)")
    parser.add_argument("--images", type=int, default=90_000, help="images to train on")
    parser.add_argument("--minutes", type=float, default=0, help="stop after this training time; 0 = no limit")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--perceptual-weight", type=float, default=LossConfig.perceptual_weight)
    parser.add_argument("--perceptual-from", type=float, default=LossConfig.perceptual_from)
    parser.add_argument("--checkpoint-every-s", type=float, default=180)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs the job."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    loop = LoopConfig(
        images=args.images,
        minutes=args.minutes,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        checkpoint_every_s=args.checkpoint_every_s,
        seed=args.seed,
    )
    loss = LossConfig(perceptual_weight=args.perceptual_weight, perceptual_from=args.perceptual_from)
    train_bundled(args.photos, args.out, args.catalogue, loop, loss, cache=args.cache, device=args.device)
