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

    columns: dict[str, np.ndarray] = {}
    for concept in batch.new:
        if concept.name not in results or len(columns) > 2 * MAX_CONCEPTS:
            continue
        outputs = _outputs(batch, results[concept.name])
        if outputs is None:
            continue
        heldout = load_pairs(batch.store, concept, "heldout", batch.config)
        columns.setdefault("photo", heldout.inputs_NHWC[:MAX_ROWS])
        columns[f"{concept.name}: teacher"] = heldout.edits_NHWC[:MAX_ROWS]
        columns[f"{concept.name}: adapter"] = outputs[:MAX_ROWS]
    if not columns:
        return False
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
