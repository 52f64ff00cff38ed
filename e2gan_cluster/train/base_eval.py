"""Held-out quality and sample grids of a base in training, on fixed photos."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import UserError
from e2gan_cluster.evaluate.grids import grid_png
from e2gan_cluster.evaluate.inference import run_generator
from e2gan_cluster.evaluate.metrics import MetricNets, evaluate_outputs
from e2gan_cluster.pairs.shards import PairSet, load_pairs
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.train.data import Encoder
from e2gan_cluster.train.events import Event, Events

MAX_IMAGES = 96
"""Held-out pairs of one evaluation over all concepts; spread evenly, the same ones each time."""
MAX_PER_CONCEPT = 16
GRID_ROWS = 8


class HeldoutEval:
    """Measures a generator on held-out photos and draws it beside the teacher.

    Args:
        store: Where the pairs are.
        config: Run config.
        concepts: Base concepts.
        encoder: Prompt encoder.
        device: Where networks run.
        events: Told when a metric is not available.
    """

    def __init__(
        self,
        store: ObjectStore,
        config: RunConfig,
        concepts: Sequence[Concept],
        encoder: Encoder,
        device: torch.device,
        events: Events,
    ) -> None:
        per_concept = max(1, min(MAX_PER_CONCEPT, MAX_IMAGES // len(concepts)))
        loaded = [load_pairs(store, concept, "heldout", config) for concept in concepts]
        self.sets: list[PairSet] = [_evenly(pairs, per_concept) for pairs in loaded if len(pairs)]
        prompts = [pairs.prompt for pairs in self.sets]
        self.tokens_CTD = encoder.encode(prompts).tokens_BTD if prompts else torch.zeros(0)
        self.metrics = ["l1", "lpips"]
        try:
            self.nets = MetricNets.load(self.metrics, device)
        except UserError as error:
            events.emit(Event("note", text=f"held-out LPIPS is left out: {error.message}"))
            self.metrics, self.nets = ["l1"], MetricNets()
        self.start: list[np.ndarray] | None = None

    @property
    def headline(self) -> str:
        """The metric that ranks checkpoints."""
        return self.metrics[-1]

    def measure(self, generator: nn.Module) -> tuple[dict[str, float], list[np.ndarray]]:
        """Metrics, averaged (``heldout/lpips``) and per concept (``heldout/lpips/<concept>``), and the outputs."""
        values: dict[str, list[float]] = {name: [] for name in self.metrics}
        result: dict[str, float] = {}
        outputs = []
        for pairs, tokens_TD in zip(self.sets, self.tokens_CTD, strict=True):
            output = run_generator(generator, pairs.inputs_NHWC, tokens_TD)
            outputs.append(output)
            for name, value in self._metrics(pairs, output).items():
                values[name].append(value)
                result[f"heldout/{name}/{pairs.concept}"] = value
        means = {f"heldout/{name}": float(np.mean(v)) for name, v in values.items() if v}
        return means | result, outputs

    def identity(self) -> dict[str, float]:
        """The same averages for a network that returns the photo: what doing nothing scores."""
        rows = [self._metrics(pairs, pairs.inputs_NHWC) for pairs in self.sets]
        return {f"identity/{name}": float(np.mean([row[name] for row in rows])) for name in self.metrics if rows}

    def grid(self, outputs: Sequence[np.ndarray], label: str) -> Mapping[str, bytes]:
        """One photo per concept: photo, teacher, untrained network, now."""
        if not self.sets:
            return {}
        rows = [(pairs, i % len(pairs), i) for i, pairs in enumerate(self.sets)][:GRID_ROWS]
        columns = {
            "photo": np.stack([pairs.inputs_NHWC[r] for pairs, r, _ in rows]),
            "teacher": np.stack([pairs.edits_NHWC[r] for pairs, r, _ in rows]),
        }
        if self.start is not None:
            columns["step 0"] = np.stack([self.start[i][r] for _, r, i in rows])
        columns[label] = np.stack([outputs[i][r] for _, r, i in rows])
        return {"samples": grid_png(columns, max_rows=GRID_ROWS)}

    def _metrics(self, pairs: PairSet, output_NHWC: np.ndarray) -> dict[str, float]:
        return evaluate_outputs(pairs.inputs_NHWC, pairs.edits_NHWC, output_NHWC, self.metrics, self.nets)


def _evenly(pairs: PairSet, count: int) -> PairSet:
    rows = np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int))
    return pairs.take(rows.tolist())
