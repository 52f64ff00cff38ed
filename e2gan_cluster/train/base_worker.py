"""The training of a base as one function: what every Ray Train worker runs, and what runs without Ray.

Example:
    train_base(BaseSpec(config, concepts, base_fingerprint(config, concepts), choice), store, events=Silent())
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.evaluate.lpips import Lpips
from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.nn.losses import Perceptual
from e2gan_cluster.pairs.shards import load_pairs
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.text.encoder import PromptEncoder
from e2gan_cluster.train.base_card import model_card
from e2gan_cluster.train.base_concepts import BaseChoice
from e2gan_cluster.train.base_eval import HeldoutEval
from e2gan_cluster.train.base_start import load_start
from e2gan_cluster.train.base_store import RANDOM, finished_base, publish_base, start_id
from e2gan_cluster.train.checkpoint import delete_checkpoints, load_best, load_newest, save_checkpoint
from e2gan_cluster.train.data import PairData, pair_data
from e2gan_cluster.train.events import Event, Events
from e2gan_cluster.train.loop import TrainResult, TrainState, Workers, create_state, train
from e2gan_cluster.train.nets import build_discriminator, build_generator


@dataclass(frozen=True)
class BaseSpec:
    """What to train.

    Attributes:
        config: Run config.
        concepts: Base concepts.
        fingerprint: `base_fingerprint` of both.
        choice: Why these concepts; published beside the base.
    """

    config: RunConfig
    concepts: tuple[Concept, ...]
    fingerprint: str
    choice: BaseChoice

    @property
    def work(self) -> str:
        """Folder of this training's checkpoints."""
        return keys.base_work_prefix(self.fingerprint)


def train_base(
    spec: BaseSpec,
    store: ObjectStore,
    events: Events,
    workers: Workers | None = None,
    device: torch.device | str = "cpu",
) -> str | None:
    """Trains and publishes a base; goes on from the newest whole checkpoint.

    Args:
        spec: What to train.
        store: Pairs, checkpoints and the published base.
        events: Progress; only the first worker says anything.
        workers: This worker among several.
        device: Where to train.

    Returns:
        ``base_id`` on the first worker, None on the others.

    Raises:
        TrainingError: No pairs, or a loss or gradient that is not finite.
        IntegrityError: A shard is missing or damaged.
        StoreError: Storage fails.
    """
    workers, device = workers or Workers(), torch.device(device)
    finished = finished_base(store, spec.fingerprint)
    if finished is not None:  # a worker lost between publishing and saying so
        events.emit(Event("published", text=finished))
        return finished if workers.rank == 0 else None
    config, cfg = spec.config, spec.config.base.train
    torch.set_num_threads(max(1, int(config.base.worker_cpus)))
    encoder = PromptEncoder(max_tokens=config.nets.text_tokens)
    data = pair_data([load_pairs(store, concept, "train", config) for concept in spec.concepts], encoder)
    state = _fresh_state(config, encoder.dim, device, store)
    judge = HeldoutEval(store, config, spec.concepts, encoder, device, events) if workers.rank == 0 else None
    if judge is not None:
        # Before a checkpoint replaces the weights: the grids' "step 0" column.
        judge.start = judge.measure(state.generator)[1]
    _restore(spec, store, state, events)
    session = _Session(spec, store, events, judge, encoder.dim)
    if judge is not None:
        session.begin(data, state)
    result = train(
        state, data, cfg, seed=config.seed, perceptual=_perceptual(config, device), workers=workers,
        on_report=session.report if judge else None,
        on_eval=session.evaluate if judge else None,
        on_checkpoint=session.save if judge else None,
        should_stop=session.check if judge else None,
    )  # fmt: skip
    return session.publish(state, result, encoder) if judge is not None else None


def _fresh_state(config: RunConfig, text_dim: int, device: torch.device, store: ObjectStore) -> TrainState:
    torch.manual_seed(config.seed)
    if config.base.start_from != RANDOM:
        start = load_start(config.base.start_from, config.nets, text_dim, store)
        generator, discriminator = start.generator, start.discriminator.train()
    else:
        generator, discriminator = build_generator(config.nets, text_dim), build_discriminator(config.nets, text_dim)
    return create_state(generator.to(device), discriminator.to(device), config.base.train)


def _restore(spec: BaseSpec, store: ObjectStore, state: TrainState, events: Events) -> None:
    checkpoint = load_newest(store, spec.work, _note(events))
    if checkpoint is not None:
        state.load_state_dict(checkpoint.tensors)
        events.emit(Event("note", text=f"resumed from the checkpoint at {state.images_seen} images"))


def _perceptual(config: RunConfig, device: torch.device) -> Perceptual | None:
    if not config.base.train.loss.lpips_weight:
        return None
    return Lpips("alex").to(device).requires_grad_(False)


def _note(events: Events):  # noqa: ANN202 - a local callback
    return lambda text: events.emit(Event("note", text=text))


class _Session:
    """Callbacks of the first worker."""

    def __init__(
        self, spec: BaseSpec, store: ObjectStore, events: Events, judge: HeldoutEval | None, text_dim: int
    ) -> None:
        self.spec, self.store, self.events, self.text_dim = spec, store, events, text_dim
        self._judge = judge
        self.metrics: dict[str, float] = {}
        self.samples: Mapping[str, bytes] = {}

    @property
    def judge(self) -> HeldoutEval:
        assert self._judge is not None
        return self._judge

    def begin(self, data: PairData, state: TrainState) -> None:
        cfg = self.spec.config.base.train
        values = {
            "images": cfg.images, "batch_size": cfg.batch_size, "pairs": len(data), "concepts": len(data.tokens_CTD),
            "width": self.spec.config.nets.width, "lr": cfg.lr, "l1_weight": cfg.loss.l1_weight,
            "lpips_weight": cfg.loss.lpips_weight, "gan": cfg.loss.gan, "gan_weight": cfg.loss.gan_weight,
            "generator_parameters": sum(p.numel() for p in state.generator.parameters()),
            "workers": self.spec.config.base.num_workers, "fingerprint": self.spec.fingerprint,
        }  # fmt: skip
        self.events.emit(Event("start", state.images_seen, values))

    def check(self, state: TrainState) -> bool:
        """False, or an error that ends the run: a report every few steps may be long in coming."""
        self.events.check()
        return False

    def report(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        self.events.emit(Event("progress", state.images_seen, metrics))

    def evaluate(self, state: TrainState) -> None:
        with state.averaged() as generator:
            self.metrics, outputs = self.judge.measure(generator)
        self.samples = self.judge.grid(outputs, f"{state.images_seen} images")
        files = {f"samples/{state.images_seen:010d}.png": data for data in self.samples.values()}
        self.events.emit(Event("evaluated", state.images_seen, self.metrics, files=files))

    def save(self, state: TrainState) -> None:
        save_checkpoint(
            self.store, self.spec.work, state.state_dict(), images=state.images_seen,
            metric=self.metrics.get(f"heldout/{self.judge.headline}"),
            keep=self.spec.config.base.keep_checkpoints, note=_note(self.events),
        )  # fmt: skip

    def publish(self, state: TrainState, result: TrainResult, encoder: PromptEncoder) -> str:
        """Publishes the averaged weights; after a collapse those of the best checkpoint."""
        if result.collapsed:
            best = load_best(self.store, self.spec.work, _note(self.events))
            if best is not None:
                state.load_state_dict(best.tensors)
                self.events.emit(Event("note", text=f"collapsed: publishing the best checkpoint, {best.images} images"))
        config, spec = self.spec.config, self.spec
        with state.averaged() as generator:
            self.metrics, outputs = self.judge.measure(generator)
            files = {f"{name}.png": data for name, data in self.judge.grid(outputs, "trained").items()}
            metrics = self.metrics | self.judge.identity()
            meta = _meta(spec, encoder, result, metrics)
            card = model_card(config, spec.concepts, meta)
            assert isinstance(generator, Generator)
            discriminator = state.discriminator
            if not isinstance(discriminator, Discriminator):  # trained without adversarial loss
                discriminator = build_discriminator(config.nets, self.text_dim)
            base_id = publish_base(
                self.store, generator, discriminator, config.nets, self.text_dim, meta,
                {**files, "README.md": card.encode(), "base_concepts.json": _json(spec.choice.to_json())},
            )  # fmt: skip
        # Not create-only: the pointer of a base that was damaged since must give way.
        self.store.put(keys.base_pointer(spec.fingerprint), _json({"base_id": base_id}))
        delete_checkpoints(self.store, spec.work, _note(self.events))
        summary = {f"final/{name.removeprefix('heldout/')}": v for name, v in metrics.items() if name.count("/") == 1}
        self.events.emit(Event("published", state.images_seen, summary, base_id, files))
        return base_id


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _meta(spec: BaseSpec, encoder: PromptEncoder, result: TrainResult, metrics: Mapping[str, float]) -> dict[str, Any]:
    return {
        "concepts": {
            c.name: {"prompt": c.prompt, "chosen": spec.choice.reasons.get(c.name, "")} for c in spec.concepts
        },
        "config_fingerprint": spec.fingerprint,
        "text_encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint, "tokens": encoder.max_tokens},
        "resolution": spec.config.pairs.resolution,
        "images": result.images,
        "start_from": start_id(spec.config.base.start_from),
        "losses": dict(result.losses),
        "collapsed": result.collapsed,
        "metrics": dict(metrics),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
