import json

import pytest
import torch

from e2gan_cluster.errors import InputError, IntegrityError, TrainingError
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.storage import keys, open_store
from e2gan_cluster.train.base_driver import base_done, pretrain_base, train_base_local
from e2gan_cluster.train.base_store import base_fingerprint, load_base
from tests.tiny_base import CONCEPTS, with_pairs


class _Notes(SilentReporter):
    def __init__(self):
        self.lines = []

    def note(self, message, **facts):
        self.lines.append(message)


class _Tracker:
    def __init__(self):
        self.metrics, self.params, self.files, self.ended = {}, {}, [], None

    def stage_run(self, stage):
        return stage

    def log(self, run_id, params, metrics, step=None):
        self.params.update(params)
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append((step, value))

    def log_file(self, run_id, path_name, data):
        self.files.append(path_name)

    def finish(self, run_id, ok):
        self.ended = ok


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An unbroken run without Ray: config, store, base_id, tracker."""
    config, store = with_pairs(tmp_path_factory.mktemp("base"))
    tracker = _Tracker()
    return config, store, train_base_local(config, store, CONCEPTS, SilentReporter(), tracker), tracker


def test_published_base_loads_verified_with_its_facts(trained):
    config, store, base_id, _ = trained
    base = load_base(store, base_id)
    assert base.base_id == base_id == base_done(config, store, CONCEPTS)
    assert base.nets == config.nets
    assert set(base.meta["concepts"]) == {"invert", "other"}
    assert base.meta["metrics"]["heldout/l1"] < base.meta["metrics"]["identity/l1"]
    x, text = torch.rand(1, 3, 48, 32), torch.randn(1, 12, base.text_dim)
    assert base.generator(x, text).shape == x.shape


def test_model_card_and_pictures_lie_beside_the_weights(trained):
    _, store, base_id, _ = trained
    card = store.get(keys.base_file(base_id, "README.md")).decode()
    assert "| invert | invert the colours |" in card
    assert store.get(keys.base_file(base_id, "samples.png")).startswith(b"\x89PNG")
    assert json.loads(store.get(keys.base_file(base_id, "base_concepts.json")))["selection"] == "named"


def test_curves_metrics_and_grids_reach_the_tracker(trained):
    *_, tracker = trained
    assert tracker.params["batch_size"] == 4
    assert [step for step, _ in tracker.metrics["heldout/lpips"]] == [0, 48, 96]
    assert tracker.metrics["l1"]
    assert "samples/0000000000.png" in tracker.files
    assert tracker.ended is True


def test_finished_training_is_not_repeated_and_leaves_no_checkpoints(trained):
    config, store, base_id, _ = trained
    assert train_base_local(config, store, CONCEPTS, SilentReporter()) == base_id
    assert not list(store.list(keys.base_work_prefix(base_fingerprint(config, CONCEPTS))))


def test_fingerprint_follows_what_is_learned_and_not_how_it_is_computed(trained):
    config, *_ = trained

    def changed(**train):
        base = config.base.model_copy(update={"train": config.base.train.model_copy(update=train)})
        return base_fingerprint(config.model_copy(update={"base": base}), CONCEPTS)

    same = base_fingerprint(config, CONCEPTS)
    assert changed(eval_images=7) == same
    assert changed(lr=0.5) != same
    assert base_fingerprint(config, CONCEPTS[:1]) != same


@pytest.mark.parametrize("name", ["generator.safetensors", "discriminator.safetensors", "config.json"])
def test_flipped_bit_in_a_base_is_refused(trained, name, tmp_path):
    _, store, base_id, _ = trained
    copy = open_store(tmp_path)
    for info in store.list(keys.base_prefix(base_id)):
        copy.put(info.key, store.get(info.key))
    key = keys.base_file(base_id, name)
    data = bytearray(copy.get(key))
    data[len(data) // 2] ^= 4
    copy.put(key, bytes(data))
    with pytest.raises(IntegrityError, match=name):
        load_base(copy, base_id)


def test_missing_base_says_how_to_make_one(trained):
    _, store, *_ = trained
    with pytest.raises(InputError, match="e2gan base"):
        load_base(store, "0123456789ab")


def test_damaged_checkpoint_is_passed_over_and_training_ends_the_same(trained, tmp_path):
    _, _, expected, _ = trained
    config, store = with_pairs(tmp_path)
    _stop_after(config, store, 72)
    newest = [i.key for i in store.list(keys.base_work_prefix(base_fingerprint(config, CONCEPTS)))][-1]
    data = store.get(newest)
    store.put(newest, data[: len(data) // 2])
    notes = _Notes()
    assert train_base_local(config, store, CONCEPTS, notes) == expected
    assert any("passed over" in line for line in notes.lines)
    assert any("resumed from the checkpoint at 48 images" in line for line in notes.lines)


def _stop_after(config, store, images):
    class Stopper(SilentReporter):
        def update(self, task, done, **facts):
            if done > images:
                raise KeyboardInterrupt

    from e2gan_cluster.train import loop

    before, loop.REPORT_STEPS = loop.REPORT_STEPS, 1
    try:
        with pytest.raises(KeyboardInterrupt):
            train_base_local(config, store, CONCEPTS, Stopper())
    finally:
        loop.REPORT_STEPS = before


def test_vanished_shard_is_named(tmp_path):
    config, store = with_pairs(tmp_path)
    shard = next(i.key for i in store.list("pairs/invert/") if i.key.endswith(".parquet"))
    store.delete(shard)
    with pytest.raises(IntegrityError, match=shard):
        train_base_local(config, store, CONCEPTS, SilentReporter())


def test_no_concepts_is_an_error(trained):
    config, store, *_ = trained
    with pytest.raises(InputError, match="base concepts"):
        train_base_local(config, store, [], SilentReporter())


def test_two_ray_workers_learn_the_same_as_one(trained, tmp_path, ray_cluster):
    _, alone_store, alone_id, _ = trained
    config, store = with_pairs(tmp_path, num_workers=2)
    tracker = _Tracker()
    base_id = pretrain_base(config, store, CONCEPTS, SilentReporter(), tracker)
    metrics = load_base(store, base_id).meta["metrics"]
    alone = load_base(alone_store, alone_id).meta["metrics"]
    assert metrics["heldout/l1"] == pytest.approx(alone["heldout/l1"], rel=0.1)
    assert tracker.params["workers"] == 2
    assert "samples/0000000096.png" in tracker.files


def test_bad_loss_in_a_worker_ends_the_run_without_useless_restarts(tmp_path, ray_cluster):
    # In float32 this weight is infinite.
    config, store = with_pairs(tmp_path, loss={"l1_weight": 1e39}, max_failures=3)
    with pytest.raises(TrainingError, match=r"at step .*concept"):
        pretrain_base(config, store, CONCEPTS, SilentReporter())
