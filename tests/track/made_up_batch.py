"""A made-up but realistic batch in a store: all that report and compare read, without training anything."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from e2gan_cluster.batch import run_fingerprint
from e2gan_cluster.config import RunConfig
from e2gan_cluster.config_io import load_config
from e2gan_cluster.evaluate.grids import grid_png
from e2gan_cluster.search.records import ConceptResult
from e2gan_cluster.storage import keys, open_store
from e2gan_cluster.storage.base import ObjectStore

BASE_ID = "5f2c0c1de1ab"
SEARCH = "3f0c9a5e1b2d4c6f"
Edit = Callable[[Image.Image], Image.Image]

EDITS: dict[str, Edit] = {
    "sepia": lambda im: ImageOps.colorize(ImageOps.grayscale(im), (40, 20, 5), (255, 240, 200)),
    "poster": lambda im: ImageOps.posterize(im, 2),
    "negative": ImageOps.invert,
    "night": lambda im: Image.blend(im, Image.new("RGB", im.size, (5, 10, 60)), 0.65),
}


def made_up_config(folder: Path, names: list[str] | None = None, prompts: dict[str, str] | None = None) -> RunConfig:
    """A config whose catalogue has two base concepts and the new ones."""
    names = names or [*EDITS, "fog", "broken"]
    prompts = prompts or {}
    catalogue = folder / "concepts.yaml"
    concepts = [{"name": n, "prompt": prompts.get(n, f"make it {n}")} for n in ["oil", "ink", *names]]
    catalogue.write_text(json.dumps(concepts))
    return load_config(
        None,
        [f"storage={folder / 'run'}", f"concepts.catalogue={catalogue}", 'concepts.base=["oil", "ink"]', "name=demo"],
    )


def photos(count: int, side: int) -> list[Image.Image]:
    """Bundled photos, square."""
    from importlib import resources

    folder = resources.files("e2gan_cluster") / "assets" / "photos"
    files = sorted(Path(str(folder)).glob("*.jpg"))[:count]
    return [ImageOps.fit(Image.open(file).convert("RGB"), (side, side)) for file in files]


def fill(config: RunConfig, *, count: int = 6, side: int = 96) -> ObjectStore:
    """Write the records of a batch in which one concept is under way and one has failed."""
    store = open_store(config.storage)
    digest = run_fingerprint(config)
    pictures = photos(count, side)
    listed = config.concepts.base or []
    put = lambda key, **record: store.put(key, json.dumps(record).encode())  # noqa: E731
    put(keys.run_status(digest, "stages.json"),
        pairs={"state": "done", "seconds": 64.0, "work_s": 64.0}, base={"state": "done", "seconds": 210.0},
        layers={"state": "done", "seconds": 31.5}, adapt={"state": "running"})  # fmt: skip
    put(keys.run_status(digest, "failures.json"), broken="pairs: more than 50% of 45 pairs were dropped (31 black)")
    put(keys.run_status(digest, "heartbeat.json"),
        at="2026-11-26T12:00:00+00:00", host="m", pid=1, tasks={}, ended="done")  # fmt: skip
    put(keys.base_file(BASE_ID, "manifest.json"),
        meta={"teacher_fingerprint": "ab" * 32, "code_version": "0.1.0", "created_at": "2026-11-26T11:00:00+00:00"},
    )  # fmt: skip
    store.put(keys.layers_file(BASE_ID, "layers.png"), grid_png({"layers": np.full((1, 64, 64, 3), 200, np.uint8)}))
    names = [*listed, *EDITS, "fog", "broken"]
    for k, name in enumerate(names):
        counts = {"ok": 14, "black": 31} if name == "broken" else {"ok": 45 - k, "no-change": k}
        splits = {"train": {"counts": counts}, "heldout": {"counts": {"ok": 15}}}
        put(keys.pairs_status(name), concept=name, splits=splits, counts=counts, seconds=9.5,
            train_ok=counts["ok"], heldout_ok=15, failure=None)  # fmt: skip
    for k, (name, edit) in enumerate(EDITS.items()):
        finish(store, name, edit, pictures, k)
    fog = grid_png({"photo": stack(pictures), "fog": stack([edit_fog(p) for p in pictures])})
    store.put(keys.pairs_grid("fog", "heldout"), fog)
    floor = {"lpips": 0.031, "l1": 0.02}
    put(keys.evaluation("sepia", digest[:16]), floor=floor, rows={"adapter": {"kid": 0.012}, "base": {"kid": 0.11}})
    return store


def finish(store: ObjectStore, name: str, edit: Edit, pictures: list[Image.Image], k: int) -> ConceptResult:
    """The records and pictures of one finished search."""
    edited = [edit(p) for p in pictures]
    part = lambda share: stack([Image.blend(p, e, share) for p, e in zip(pictures, edited, strict=True)])  # noqa: E731
    columns = {"photo": stack(pictures), "teacher": stack(edited), "base": part(0.45)}
    table, rungs = [], [(1, 20), (2, 20), (2, 45), (4, 45)]
    for i, (multiplier, size) in enumerate(rungs):
        columns[f"x{multiplier} n{size}"] = part(0.7 + 0.08 * i)
        table.append({
            "trial": f"r{multiplier}-n{size}-s0", "multiplier": multiplier, "data_size": size, "seed": 0,
            "state": "hopeless" if i == 3 and k == 1 else "done", "metric": 0.16 - 0.02 * i + 0.013 * k,
            "images": 800, "seconds": 21.0 + i, "adapter_bytes": 18_000 * multiplier, "parameters": 4_500 * multiplier,
        })  # fmt: skip
    result = ConceptResult(
        concept=name, state="done", prompt=f"make it {name}", base_id=BASE_ID, fingerprint=SEARCH, pick="r2-n45-s0",
        rank_multiplier=2, ranks={"us": 2}, data_size=45, metric_name="lpips", metric=0.12 + 0.013 * k,
        metrics={"lpips": 0.12 + 0.013 * k, "l1": 0.06, "psnr": 21.3, "ssim": 0.7},
        base_metrics={"lpips": 0.27, "l1": 0.14, "psnr": 15.0, "ssim": 0.5},
        identity_metrics={"lpips": 0.41 + 0.03 * k, "l1": 0.21, "psnr": 11.0, "ssim": 0.41},
        table=tuple(table), trials=4, seconds=90.0 + 7 * k, images=3200, adapter_bytes=36_000,
        adapter_key_prefix="x/", heldout=15,
    )  # fmt: skip
    store.put(keys.search_file(name, SEARCH, "samples.png"), grid_png(columns))
    for row in table:
        store.put(keys.search_trial(name, SEARCH, row["trial"]), b"{}")
    store.put(keys.search_result(name, SEARCH), result.to_json())
    if k < 2:
        store.put(keys.search_file(name, SEARCH, "published.json"), b'{"version": "0badcafe0001"}')
    return result


def edit_fog(picture: Image.Image) -> Image.Image:
    """Half white."""
    return Image.blend(picture, Image.new("RGB", picture.size, (235, 235, 240)), 0.6)


def stack(pictures: list[Image.Image]) -> np.ndarray:
    """uint8 [N,H,W,3]."""
    return np.stack([np.asarray(p) for p in pictures])
