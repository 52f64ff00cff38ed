"""What a trial worker keeps warm between trials: base, discriminator, text encoder, metric nets, pairs.

Trials of one process share it; nothing here is changed by a trial.

Example:
    >>> warm = warm_worker(setting)         # loads on first use, kept for the process
    >>> data = warm.concept(concept)
    >>> warm.measure(generator, data)
    0.214
"""

import copy
import importlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import nn

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import TrainingError
from e2gan_cluster.evaluate.features import FeatureNet, stored_features
from e2gan_cluster.evaluate.inference import run_generator
from e2gan_cluster.evaluate.lpips import Lpips
from e2gan_cluster.evaluate.metrics import MetricNets, evaluate_outputs
from e2gan_cluster.pairs.shards import PairSet, load_pairs
from e2gan_cluster.search.settings import SearchSetting
from e2gan_cluster.storage import open_store
from e2gan_cluster.text.encoder import PromptEncoder
from e2gan_cluster.train.base_store import Base, load_base
from e2gan_cluster.train.data import PairData

KEPT_CONCEPTS = 2
MIN_HELDOUT = 2


@dataclass(frozen=True)
class ConceptData:
    """One concept's pairs, ready to train on.

    Attributes:
        concept: The edit.
        train: Training pairs, those that some data rung uses.
        rungs: Data rung -> rows of `train`; a smaller rung is part of a larger one.
        heldout: Held-out pairs.
        tokens_TD: Prompt tokens.
        pooled_D: Pooled prompt.
    """

    concept: Concept
    train: PairSet
    rungs: Mapping[int, Sequence[int]]
    heldout: PairSet
    tokens_TD: torch.Tensor
    pooled_D: torch.Tensor

    def pairs(self, size: int) -> PairData:
        """Training data of one rung."""
        part = self.train.take(self.rungs[size])
        return PairData(
            torch.from_numpy(part.inputs_NHWC),
            torch.from_numpy(part.edits_NHWC),
            torch.zeros(len(part), dtype=torch.int64),
            self.tokens_TD[None],
            self.pooled_D[None],
            (self.concept.name,),
        )


class WarmWorker:
    """Everything that trials on one base share.

    Args:
        setting: The search.
    """

    def __init__(self, setting: SearchSetting) -> None:
        self.setting = setting
        self.config = setting.config
        self.store = open_store(setting.storage)
        self.device = _device(self.config)
        self._concepts: OrderedDict[str, ConceptData] = OrderedDict()

    @cached_property
    def base(self) -> Base:
        """The verified base."""
        return load_base(self.store, self.setting.base_id, device=str(self.device))

    @cached_property
    def encoder(self) -> PromptEncoder:
        """The text encoder the base was trained with."""
        return _encoder(self.base.nets.text_tokens)

    @cached_property
    def lpips(self) -> Lpips:
        """LPIPS, as metric and as loss."""
        return _lpips(self.device)

    @cached_property
    def features(self) -> FeatureNet:
        """The feature network."""
        return _features(self.device)

    def nets(self, metrics: Sequence[str]) -> MetricNets:
        """Networks for some metrics."""
        featured = {"kid", "fd", "direction"} & set(metrics)
        return MetricNets(
            features=self.features if featured else None, lpips=self.lpips if "lpips" in metrics else None
        )

    def generator(self) -> nn.Module:
        """A fresh copy of the base's generator."""
        return copy.deepcopy(self.base.generator).requires_grad_(False).eval()

    def concept(self, concept: Concept) -> ConceptData:
        """A concept's data; the last few concepts stay in memory.

        Raises:
            UserError: Its pairs are missing, damaged, or too few.
        """
        if concept.name not in self._concepts:
            self._concepts[concept.name] = self._load(concept)
            while len(self._concepts) > KEPT_CONCEPTS:
                self._concepts.popitem(last=False)
        self._concepts.move_to_end(concept.name)
        return self._concepts[concept.name]

    def _load(self, concept: Concept) -> ConceptData:
        train = load_pairs(self.store, concept, "train", self.config)
        heldout = load_pairs(self.store, concept, "heldout", self.config)
        if not len(train) or len(heldout) < MIN_HELDOUT:
            raise TrainingError(
                f"concept {concept.name} has {len(train)} training and {len(heldout)} held-out pairs",
                "see pairs/<concept>/status.json for why pairs were dropped; add photos or loosen pairs.filters",
            )
        rungs = self._rungs(train)
        used = sorted({row for rows in rungs.values() for row in rows})
        place = {row: i for i, row in enumerate(used)}
        embedding = self.encoder.encode([concept.prompt])
        return ConceptData(
            concept=concept,
            train=train.take(used),
            rungs={size: [place[row] for row in rows] for size, rows in rungs.items()},
            heldout=heldout,
            tokens_TD=embedding.tokens_BTD[0],
            pooled_D=embedding.pooled_BD[0],
        )

    def _rungs(self, train: PairSet) -> dict[int, list[int]]:
        """Rows of every data rung (E2GAN 3.4: nearest to the centres of feature clusters), or a random draw."""
        search, count, seed = self.config.search, len(train), self.config.seed
        sizes = sorted({min(size, count) for size in search.data_sizes})
        partial = [size for size in sizes if size < count]
        rungs = {count: list(range(count))} if count in sizes else {}
        if not partial:
            return rungs
        if search.subset == "random":
            order = np.random.default_rng(seed).permutation(count).tolist()
            return rungs | {size: order[:size] for size in partial}
        from e2gan_cluster.pairs.subset import nested_subset

        # All pairs of a concept show the same photos: the features are shared by every concept of the run.
        features_ND = stored_features(self.features, train.inputs_NHWC, self.store)
        return rungs | {size: list(rows) for size, rows in nested_subset(features_ND, partial, seed).items()}

    def photos(self, data: ConceptData) -> PairSet:
        """The held-out pairs that trials are measured on."""
        return data.heldout.take(range(min(len(data.heldout), self.config.search.eval_photos)))

    def measure(self, generator: nn.Module, data: ConceptData) -> float:
        """The search's metric of a generator on held-out photos.

        Raises:
            TrainingError: It is not finite.
        """
        metric, photos = self.config.search.metric, self.photos(data)
        output_NHWC = run_generator(generator, photos.inputs_NHWC, data.tokens_TD)
        value = evaluate_outputs(photos.inputs_NHWC, photos.edits_NHWC, output_NHWC, [metric], self.nets([metric]))[
            metric
        ]
        if not np.isfinite(value):
            raise TrainingError(f"{metric} is {value} for concept {data.concept.name}", "lower search.train.lr")
        return value


def prepare_worker(config: RunConfig, storage: str, concept: Concept) -> None:
    """Loads what jobs of any base need: networks, and the features of the photos that pair subsets are chosen by.

    Args:
        config: Run config.
        storage: Root of the store.
        concept: One whose pairs are finished; every concept's show the same photos.
    """
    importlib.import_module("torchmetrics")
    device, store = _device(config), open_store(storage)
    _encoder(config.nets.text_tokens).encode([concept.prompt])
    _lpips(device)
    train = load_pairs(store, concept, "train", config)
    if config.search.subset == "cluster" and min(config.search.data_sizes) < len(train):
        importlib.import_module("sklearn.cluster")
        stored_features(_features(device), train.inputs_NHWC, store)


def _device(config: RunConfig) -> torch.device:
    return torch.device("cuda" if config.search.worker_gpus > 0 and torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=1)
def _encoder(max_tokens: int) -> PromptEncoder:
    return PromptEncoder(max_tokens=max_tokens)


@lru_cache(maxsize=1)
def _lpips(device: torch.device) -> Lpips:
    return Lpips("alex").to(device)


@lru_cache(maxsize=1)
def _features(device: torch.device) -> FeatureNet:
    return FeatureNet(device)


_WARM: list[WarmWorker] = []


def warm_worker(setting: SearchSetting) -> WarmWorker:
    """The worker of this process for a setting; one is kept, also when only the start ranks change."""
    if not _WARM or replace(_WARM[0].setting, start_ranks=setting.start_ranks) != setting:
        _WARM[:] = [WarmWorker(setting)]
    _WARM[0].setting = setting
    return _WARM[0]
