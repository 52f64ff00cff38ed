"""Command line of ``jobs/train_teacher.py``.

With ``--photos`` the bundled teacher is trained from scratch on reference edits of those photos; with ``--triples``
and ``--model`` an InstructPix2Pix-type teacher is fine-tuned on your own (photo, prompt, edit) rows.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from e2gan_cluster.concepts import shipped_catalogue
from e2gan_cluster.errors import UserError
from e2gan_cluster.teacher.training.finetune import FinetuneConfig, finetune
from e2gan_cluster.teacher.training.loop import LoopConfig

DEFAULT_IMAGES = {"photos": 120_000, "triples": 20_000}
UNLIMITED = 10**12
WARMUP_STEPS = 200
DEFAULT_RATE = {"photos": 1e-3, "triples": 5e-5}


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="train_teacher.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--photos", type=Path, help="train the bundled teacher on this folder of photos")
    source.add_argument("--triples", type=Path, help="fine-tune --model on the Parquet shards of this folder")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, log and weights; continued if it exists")
    parser.add_argument(
        "--images", type=int, help="images to train on (without --minutes 120,000 with --photos, 20,000 with --triples)"
    )
    parser.add_argument("--minutes", type=float, default=0, help="end after this training time; 0 = no limit")
    parser.add_argument("--batch-size", type=int, default=16, help="images a step (16)")
    parser.add_argument("--learning-rate", type=float, help="peak (1e-3 with --photos, 5e-5 with --triples)")
    parser.add_argument("--checkpoint-every-s", type=float, default=180, help="seconds between checkpoints (180)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of data order and noise")
    bundled = parser.add_argument_group("with --photos")
    bundled.add_argument("--catalogue", type=Path, default=shipped_catalogue("bundled"), help="concepts with wordings")
    bundled.add_argument("--cache", type=Path, help="folder of the reference edits (OUT/cache)")
    bundled.add_argument("--workers", type=int, default=0, help="processes that make edits beside this one (0)")
    bundled.add_argument("--float32", action="store_true", help="compute the network in float32, not bf16")
    tuning = parser.add_argument_group("with --triples")
    tuning.add_argument("--model", default="bundled", help="hub id or folder of the teacher, or bundled")
    tuning.add_argument("--resolution", type=int, default=256, help="side in pixels (256)")
    tuning.add_argument("--gradient-checkpointing", action="store_true", help="slower, much less memory")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns the exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    kind = "photos" if args.photos else "triples"
    loop = LoopConfig(
        images=args.images or (UNLIMITED if args.minutes else DEFAULT_IMAGES[kind]),
        minutes=args.minutes,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate or DEFAULT_RATE[kind],
        warmup_images=WARMUP_STEPS * args.batch_size,
        checkpoint_every_s=args.checkpoint_every_s,
        seed=args.seed,
    )
    try:
        if args.triples:
            config = FinetuneConfig(args.resolution, gradient_checkpointing=args.gradient_checkpointing)
            finetune(args.triples, args.model, args.out, loop, config, args.device)
        else:
            # Imports the extras of teacher training, which fine-tuning does without.
            from e2gan_cluster.teacher.training.bundled_job import train_bundled

            train_bundled(
                args.photos,
                args.out,
                args.catalogue,
                loop,
                cache=args.cache,
                workers=args.workers,
                device=args.device,
                bf16=not args.float32,
            )
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0
