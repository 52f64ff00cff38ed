"""One trial: train a concept's adapter at one rung, measure it, store it. Resumable by its record.

The result depends on the spec, the config and the store's base and pairs: on the same machine a repeated trial gives
the same bytes, whichever worker runs it and whatever ran there before.

Example:
    >>> record = run_trial(setting, concept, fingerprint, TrialSpec("oil", multiplier=2, data_size=100))
"""

import copy
import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from peft import PeftModel
from torch import nn

from e2gan_cluster.concepts import Concept
from e2gan_cluster.errors import TrainingError
from e2gan_cluster.nn.lora import add_lora, cap_ranks, check_base, lora_parameters, save_adapter, start_from
from e2gan_cluster.search.final import finish_concept
from e2gan_cluster.search.jobs import Job
from e2gan_cluster.search.records import Point, StoredFile, TrialRecord, TrialSpec
from e2gan_cluster.search.settings import SearchSetting, concept_from_json
from e2gan_cluster.search.worker import ConceptData, WarmWorker, warm_worker
from e2gan_cluster.storage import keys
from e2gan_cluster.train.loop import TrainState, create_state, train

SLICE_S = 5.0
"""Longest silence of a trial, seconds: progress is reported, and a stop is heard, this often."""


def search_runner(job: Job, setting: SearchSetting) -> Iterator[Mapping[str, Any]]:
    """Runs the jobs of a search: trials, and the final measurement of a concept (see `jobs.Runner`)."""
    spec = TrialSpec.from_dict(job.payload["spec"])
    concept = concept_from_json(job.payload["concept"])
    warm = warm_worker(setting)
    if spec.final:
        yield {"outcome": finish_concept(warm, concept, job.payload["fingerprint"], job.payload["pick"])}
        return
    yield from _trial_rows(warm, concept, job.payload["fingerprint"], spec)


def run_trial(setting: SearchSetting, concept: Concept, fingerprint: str, spec: TrialSpec) -> TrialRecord:
    """Run one trial to its end in this process, or read its record if it has been run.

    Raises:
        UserError: Pairs or base are missing or damaged; loss, gradient or metric is not finite.
    """
    outcome: Mapping[str, Any] = {}
    for row in _trial_rows(warm_worker(setting), concept, fingerprint, spec):
        outcome = row.get("outcome", outcome)
    return TrialRecord.parse(outcome["record"].encode())


def _trial_rows(warm: WarmWorker, concept: Concept, fingerprint: str, spec: TrialSpec) -> Iterator[Mapping[str, Any]]:
    key = keys.search_trial(concept.name, fingerprint, spec.trial_id)
    try:
        yield {"outcome": {"record": warm.store.get(key).decode()}}
        return
    except KeyError:
        started = time.monotonic()
    data = warm.concept(concept)
    training = _Training(warm, data, spec)
    for fraction in training.fractions:
        for images in training.until(fraction):
            yield {"images": images, "of": training.cfg.images}
        if training.hopeless(fraction, training.evaluate(fraction)):
            break
    record = training.record(fingerprint, time.monotonic() - started)
    if not warm.store.put_new(key, record.to_json()):
        record = TrialRecord.parse(warm.store.get(key))
    yield {"outcome": {"record": record.to_json().decode()}}


class _Training:
    """The training of one trial, in slices."""

    def __init__(self, warm: WarmWorker, data: ConceptData, spec: TrialSpec) -> None:
        self.warm, self.data, self.spec = warm, data, spec
        setting = warm.setting
        self.cfg = setting.train_config(spec)
        self.seed = setting.seed(data.concept.name, spec)
        self.pairs = data.pairs(spec.data_size)
        generator = warm.generator()
        wanted = {layer: rank * spec.multiplier for layer, rank in setting.start_ranks.items()}
        self.ranks = cap_ranks(generator, wanted)
        self.model: PeftModel = add_lora(generator, self.ranks, setting.base_id, seed=self.seed)
        if spec.init:
            start_from(self.model, _donor(warm, spec.init))
        self.model.to(warm.device)
        self.state: TrainState = create_state(self.model, self._discriminator(), self.cfg)
        stop = setting.config.search.early_stop_fraction
        self.fractions = sorted({fraction for fraction in (stop, 0.5, 1.0) if fraction > 0})
        self.curve: list[Point] = []
        self.stopped = False

    def until(self, fraction: float) -> Iterator[int]:
        """Train up to a share of the training; yields the images seen now and then."""
        end = math.ceil(fraction * self.cfg.images)
        perceptual = self.warm.lpips if self.cfg.loss.lpips_weight else None
        self.losses: Mapping[str, float] = {}
        while self.state.images_seen < end:
            deadline = time.monotonic() + SLICE_S
            result = train(
                self.state,
                self.pairs,
                self.cfg,
                seed=self.seed,
                until=end,
                should_stop=lambda _, deadline=deadline: time.monotonic() > deadline,
                perceptual=perceptual,
            )
            self.losses = result.losses
            yield result.images

    def evaluate(self, fraction: float) -> float:
        """Measure the averaged weights and note the point."""
        with self.state.averaged() as generator:
            metric = self.warm.measure(generator, self.data)
        losses = {k: v for k, v in self.losses.items() if k not in ("images_per_s", "collapsed") and math.isfinite(v)}
        self.curve.append(Point(fraction, self.state.images_seen, metric, losses))
        return metric

    def hopeless(self, fraction: float, metric: float) -> bool:
        """True if the spec says to stop here."""
        limits = [limit for at, limit in self.spec.stop_above if math.isclose(at, fraction, abs_tol=1e-6)]
        self.stopped = fraction < 1.0 and any(metric > limit for limit in limits)
        return self.stopped

    def record(self, fingerprint: str, seconds: float) -> TrialRecord:
        """Store the adapter of a trial that was trained to its end; returns the trial's record."""
        with self.state.averaged():
            files = {} if self.stopped else save_adapter(self.model, self.warm.setting.base_id)
        for name, content in files.items():
            key = keys.search_trial_adapter(self.data.concept.name, fingerprint, self.spec.trial_id, name)
            self.warm.store.put(key, content)
        return TrialRecord(
            spec=self.spec,
            state="hopeless" if self.stopped else "done",
            metric=self.curve[-1].metric,
            curve=tuple(self.curve),
            ranks=self.ranks,
            images=self.state.images_seen,
            seconds=seconds,
            trained_parameters=sum(p.numel() for _, p in lora_parameters(self.model)),
            files=tuple(StoredFile(n, len(c), hashlib.sha256(c).hexdigest()) for n, c in sorted(files.items())),
        )

    def _discriminator(self) -> nn.Module | None:
        kind = self.warm.config.search.discriminator
        if kind == "none":
            return None
        original = self.warm.base.discriminator
        if original is None:
            raise TrainingError(
                f"base {self.warm.setting.base_id} has no discriminator", "set search.discriminator to none"
            )
        discriminator = copy.deepcopy(original).requires_grad_(kind == "all")
        if kind == "last":
            for name, module in discriminator.named_modules():
                if name.endswith((".logits", ".text")):
                    module.requires_grad_(True)
        return discriminator.train()


def _donor(warm: WarmWorker, prefix: str) -> Mapping[str, Any]:
    """Tensors of the adapter to start from.

    Raises:
        TrainingError: It is gone.
        BaseMismatchError: It belongs to another base.
    """
    from safetensors.torch import load

    try:
        files = {name: warm.store.get(prefix + name) for name in ("adapter_model.safetensors", "adapter_config.json")}
    except KeyError as error:
        raise TrainingError(f"the adapter to start from is gone: {error}", "set search.warm_start to false") from error
    check_base(files, warm.setting.base_id)
    return load(files["adapter_model.safetensors"])
