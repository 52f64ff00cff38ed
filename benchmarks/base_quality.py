"""Trains a small base on reference edits and prints held-out L1 and LPIPS over time, against doing nothing.

python -m benchmarks.base_quality --quick
python -m benchmarks.base_quality --images 6000 --set nets.output=residual --set base.train.lr=5e-4 --out /tmp/grid.png
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.reference_edits import EDITS, reference_pairs, save_picture
from e2gan_cluster.config import RunConfig
from e2gan_cluster.config_io import load_config
from e2gan_cluster.evaluate.grids import grid_png
from e2gan_cluster.evaluate.inference import run_generator
from e2gan_cluster.evaluate.lpips import Lpips
from e2gan_cluster.evaluate.metrics import MetricNets, evaluate_outputs
from e2gan_cluster.pairs.shards import PairSet
from e2gan_cluster.text.encoder import PromptEncoder
from e2gan_cluster.train.data import pair_data
from e2gan_cluster.train.loop import TrainState, create_state, train
from e2gan_cluster.train.nets import build_discriminator, build_generator


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 edits, 400 images: only shows that it runs")
    parser.add_argument("--edits", nargs="*", default=list(EDITS)[::2])
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--crops", type=int, default=4)
    parser.add_argument("--photos", default="bundled")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. nets.width=24")
    parser.add_argument("--out", type=Path, help="PNG grid of held-out photos")
    options = parser.parse_args()
    if options.quick:
        options.edits, options.images, options.crops = options.edits[:4], 400, 1
    config = load_config(None, [f"base.train.images={options.images}", *options.set])
    run(config, options)


def run(config: RunConfig, options: argparse.Namespace) -> None:
    """Trains and prints."""
    sets = reference_pairs(options.edits, options.resolution, options.crops, options.photos)
    encoder = PromptEncoder(max_tokens=config.nets.text_tokens)
    data = pair_data([pairs for pairs, _ in sets.values()], encoder)
    heldout = [pairs for _, pairs in sets.values()]
    torch.manual_seed(0)
    cfg = config.base.train
    state = create_state(build_generator(config.nets, encoder.dim), build_discriminator(config.nets, encoder.dim), cfg)
    nets = MetricNets.load(["lpips"])
    measure = {name: _score(nets, heldout, [p.inputs_NHWC for p in heldout], name) for name in ("l1", "lpips")}
    print(f"{len(data)} pairs, identity: L1 {measure['l1']:.4f} LPIPS {measure['lpips']:.4f}", flush=True)
    started = time.perf_counter()

    def on_eval(now: TrainState) -> None:
        with now.averaged() as generator:
            outputs = _outputs(generator, heldout, encoder)
        l1, lpips = (_score(nets, heldout, outputs, name) for name in ("l1", "lpips"))
        print(
            f"{now.images_seen:6d} images {time.perf_counter() - started:6.0f} s  L1 {l1:.4f}  LPIPS {lpips:.4f}",
            flush=True,
        )
        if options.out and now.images_seen >= cfg.images:
            save_picture(options.out, _grid(heldout, outputs))

    result = train(
        state, data, cfg, seed=0, on_eval=on_eval,
        perceptual=Lpips("alex").requires_grad_(False) if cfg.loss.lpips_weight else None,
    )  # fmt: skip
    losses = ", ".join(f"{name} {value:.3f}" for name, value in result.losses.items())
    print(f"{result.images / result.seconds:.1f} images/s in training steps; last losses: {losses}")


def _outputs(generator: torch.nn.Module, heldout: list[PairSet], encoder: PromptEncoder) -> list[np.ndarray]:
    return [run_generator(generator, p.inputs_NHWC, encoder.encode([p.prompt]).tokens_BTD[0]) for p in heldout]


def _score(nets: MetricNets, heldout: list[PairSet], outputs: list[np.ndarray], name: str) -> float:
    rows = zip(heldout, outputs, strict=True)
    return float(np.mean([evaluate_outputs(p.inputs_NHWC, p.edits_NHWC, o, [name], nets)[name] for p, o in rows]))


def _grid(heldout: list[PairSet], outputs: list[np.ndarray]) -> bytes:
    rows = [(i, (3 * i) % len(p.source_ids)) for i, p in enumerate(heldout)]
    columns = {
        "photo": np.stack([heldout[i].inputs_NHWC[r] for i, r in rows]),
        "reference": np.stack([heldout[i].edits_NHWC[r] for i, r in rows]),
        "base": np.stack([outputs[i][r] for i, r in rows]),
    }
    return grid_png(columns, max_rows=len(rows), cell=96)


if __name__ == "__main__":
    main()
