"""Quality of a base on photos it has not seen: KID and LPIPS to the teacher, against the unchanged photo.

The teacher is the bundled one; the base is the bundled one or a folder with its two files. KID of few photos is biased
alike for both, so their ratio is what counts.

python -m benchmarks.bundled_base --photos HELDOUT
python -m benchmarks.bundled_base --photos HELDOUT --folder runs/base128 --crops 2
"""

import argparse
from pathlib import Path

import numpy as np

from e2gan_cluster.concepts import load_catalogue
from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.evaluate.inference import run_generator
from e2gan_cluster.evaluate.metrics import MetricNets, evaluate_outputs
from e2gan_cluster.teacher.instruct import InstructTeacher
from e2gan_cluster.teacher.training.triples import list_photos, square_photo
from e2gan_cluster.text.encoder import PromptEncoder
from e2gan_cluster.train.base_start import load_bundled_base
from e2gan_cluster.train.base_store import BUNDLED_BASE_DIR

METRICS = ("kid", "lpips", "l1")


def main() -> None:
    """Reads the command line, measures concept by concept, prints means and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos that neither network has seen")
    parser.add_argument("--folder", type=Path, default=BUNDLED_BASE_DIR, help="folder of the base")
    parser.add_argument("--crops", type=int, default=2, help="crops of each photo")
    parser.add_argument("--concepts", type=int, default=1000, help="the first so many of the base's concepts")
    options = parser.parse_args()
    base = load_bundled_base(options.folder)
    side = int(base.meta["resolution"])
    paths = list_photos(options.photos)
    photos_NHWC = np.stack([square_photo(path, side, crop) for crop in range(options.crops) for path in paths])
    prompts = {concept.name: concept.prompt for concept in load_catalogue("bundled")}
    teacher, nets = InstructTeacher(TeacherConfig()), MetricNets.load(METRICS)
    encoder = PromptEncoder(max_tokens=base.nets.text_tokens)
    rows: list[list[float]] = []
    print(f"{len(photos_NHWC)} photos at {side} px; base {base.base_id}, unchanged photo")
    for name in base.meta["concepts"][: options.concepts]:
        seeds = list(range(len(photos_NHWC)))
        edits_NHWC = teacher.edit(photos_NHWC, [prompts[name]] * len(photos_NHWC), seeds)
        output_NHWC = run_generator(base.generator, photos_NHWC, encoder.encode([prompts[name]]).tokens_BTD[0])
        values = [
            evaluate_outputs(photos_NHWC, edits_NHWC, images_NHWC, METRICS, nets)[metric]
            for metric in METRICS
            for images_NHWC in (output_NHWC, photos_NHWC)
        ]
        rows.append(values)
        print(f"{name:<22}" + "".join(f"{m:>7}{a:9.4f}{b:9.4f}" for m, a, b in _columns(values)), flush=True)
    means = np.mean(rows, axis=0)
    print(f"{'mean':<22}" + "".join(f"{m:>7}{a:9.4f}{b:9.4f}" for m, a, b in _columns(list(means))))
    print(", ".join(f"{m}: photo / base = {b / a:.1f}x" for m, a, b in _columns(list(means))))


def _columns(values: list[float]) -> list[tuple[str, float, float]]:
    return [(metric, values[2 * i], values[2 * i + 1]) for i, metric in enumerate(METRICS)]


if __name__ == "__main__":
    main()
