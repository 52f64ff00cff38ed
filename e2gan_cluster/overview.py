"""One picture of a batch: held-out photos, and beside them each new concept as the teacher and as the adapter make it.

Example: ``e2gan run --config configs/demo.yaml --stage report`` writes ``overview.png``
"""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from e2gan_cluster.batch import Batch
from e2gan_cluster.publish import OUTPUTS
from e2gan_cluster.storage import keys

if TYPE_CHECKING:
    from e2gan_cluster.search.records import ConceptResult

MAX_CONCEPTS = 6
MAX_ROWS = 6


def write_overview(batch: Batch, results: Mapping[str, "ConceptResult"]) -> bool:
    """Draw the first published concepts of a batch.

    Args:
        batch: Config and storage.
        results: Finished searches by concept.

    Returns:
        False if there is nothing to draw yet.
    """
    from e2gan_cluster.evaluate.grids import grid_png
    from e2gan_cluster.pairs.shards import load_pairs

    drawn: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    photos: dict[str, np.ndarray] = {}
    for concept in batch.new:
        outputs = _outputs(batch, results[concept.name]) if concept.name in results else None
        if outputs is None or len(drawn) == MAX_CONCEPTS:
            continue
        heldout = load_pairs(batch.store, concept, "heldout", batch.config)
        ids = heldout.source_ids[: len(outputs)]
        photos |= dict(zip(ids, heldout.inputs_NHWC, strict=False))
        edits = dict(zip(ids, heldout.edits_NHWC, strict=False))
        drawn[concept.name] = (edits, dict(zip(ids, outputs, strict=True)))
    # Filters may have dropped a photo for one concept: rows are the photos that all have.
    rows = [name for name in photos if all(name in edits for edits, _ in drawn.values())][:MAX_ROWS]
    if not rows:
        return False
    columns = {"photo": np.stack([photos[name] for name in rows])}
    for concept_name, (edits, outputs_of) in drawn.items():
        columns[f"{concept_name}: teacher"] = np.stack([edits[name] for name in rows])
        columns[f"{concept_name}: adapter"] = np.stack([outputs_of[name] for name in rows])
    batch.store.put(keys.OVERVIEW, grid_png(columns, MAX_ROWS, cell=128))
    return True


def _outputs(batch: Batch, result: "ConceptResult") -> np.ndarray | None:
    """The adapter's outputs on the first held-out photos, uint8 [N,R,R,3], or None before it is published."""
    from PIL import Image

    try:
        data = batch.store.get(keys.search_file(result.concept, result.fingerprint, OUTPUTS))
    except KeyError:
        return None
    strip_HWC = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return np.stack(np.split(strip_HWC, strip_HWC.shape[1] // strip_HWC.shape[0], axis=1))
