"""One trial: train a concept's adapter at one rung, measure it, store it. Resumable by its record.

The result depends on the spec, the config and the store's base and pairs: on the same machine a repeated trial gives
the same bytes, whichever worker runs it and whatever ran there before.

Example:
    >>> record = run_trial(setting, concept, fingerprint, TrialSpec("oil", multiplier=2, data_size=100))
"""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load as load_tensors

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import SearchConfig
from e2gan_cluster.errors import IntegrityError, TrainingError
from e2gan_cluster.nn.lora import CONFIG_FILE, MODEL_FILE, check_base
from e2gan_cluster.search.final import finish_concept
from e2gan_cluster.search.jobs import Job
from e2gan_cluster.search.records import StoredFile, TrialRecord, TrialSpec
from e2gan_cluster.search.settings import SearchSetting, concept_from_json
from e2gan_cluster.search.training import AdapterTraining
from e2gan_cluster.search.worker import WarmWorker, warm_worker
from e2gan_cluster.storage import keys

SNAPSHOT = "state.safetensors"


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
    training = _open_training(warm, concept, spec)
    if spec.continued_id is not None:
        _continue(warm, training, concept.name, fingerprint, spec.continued_id)
    before, hopeless = training.state.images_seen, False
    for fraction in _fractions(warm.config.search, spec):
        for images in training.until(fraction):
            yield {"images": images, "of": training.cfg.images}
        hopeless = _is_hopeless(spec, fraction, training.evaluate(fraction))
        if hopeless:
            break
    files = {} if hopeless else training.files()
    for name, content in files.items():
        warm.store.put(keys.search_trial_adapter(concept.name, fingerprint, spec.trial_id, name), content)
    resume = None
    if spec.until < 1 and not hopeless:
        snapshot = training.snapshot()
        resume = _stored(SNAPSHOT, snapshot)
        warm.store.put(keys.search_trial_adapter(concept.name, fingerprint, spec.trial_id, SNAPSHOT), snapshot)
    record = TrialRecord(
        spec=spec,
        state="hopeless" if hopeless else "done" if spec.until >= 1 else "screened",
        metric=training.curve[-1].metric,
        curve=tuple(training.curve),
        ranks=training.ranks,
        images=training.state.images_seen - before,
        seconds=time.monotonic() - started,
        trained_parameters=training.trained_parameters,
        files=tuple(_stored(name, content) for name, content in sorted(files.items())),
        resume=resume,
    )
    if not warm.store.put_new(key, record.to_json()):
        record = TrialRecord.parse(warm.store.get(key))
    yield {"outcome": {"record": record.to_json().decode()}}


def _open_training(warm: WarmWorker, concept: Concept, spec: TrialSpec) -> AdapterTraining:
    setting = warm.setting
    return AdapterTraining(
        warm,
        warm.concept(concept),
        size=spec.data_size,
        ranks={layer: rank * spec.multiplier for layer, rank in setting.start_ranks.items()},
        cfg=setting.train_config(spec),
        seed=setting.seed(concept.name, spec),
        donor=_donor(warm, spec.init) if spec.init else None,
    )


def _stored(name: str, content: bytes) -> StoredFile:
    return StoredFile(name, len(content), hashlib.sha256(content).hexdigest())


def _continue(warm: WarmWorker, training: AdapterTraining, concept: str, fingerprint: str, trial_id: str) -> None:
    """Go on where an earlier trial ended; from the start, to the same end, if its state is gone or damaged."""
    try:
        resume = TrialRecord.parse(warm.store.get(keys.search_trial(concept, fingerprint, trial_id))).resume
        if resume is not None:
            key = keys.search_trial_adapter(concept, fingerprint, trial_id, resume.name)
            training.restore(warm.store.get(key, sha256=resume.sha256, size=resume.size))
    except (KeyError, IntegrityError):
        return


def _fractions(search: SearchConfig, spec: TrialSpec) -> list[float]:
    """Shares of a training at which a trial is measured: all that some other trial may be compared at."""
    shares = (search.early_stop_fraction, search.rank_screen, search.data_screen, 0.5, spec.until)
    return sorted({share for share in shares if spec.after < share <= spec.until})


def _is_hopeless(spec: TrialSpec, fraction: float, metric: float) -> bool:
    limits = [limit for at, limit in spec.stop_above if math.isclose(at, fraction, abs_tol=1e-6)]
    return fraction < 1.0 and any(metric > limit for limit in limits)


def _donor(warm: WarmWorker, prefix: str) -> Mapping[str, torch.Tensor]:
    """Tensors of the adapter to start from.

    Raises:
        TrainingError: It is gone.
        BaseMismatchError: It belongs to another base.
    """
    try:
        files = {name: warm.store.get(prefix + name) for name in (MODEL_FILE, CONFIG_FILE)}
    except KeyError as error:
        raise TrainingError(f"the adapter to start from is gone: {error}", "set search.warm_start to false") from error
    check_base(files, warm.setting.base_id)
    return load_tensors(files[MODEL_FILE])
