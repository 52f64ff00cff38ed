"""A whole search in one process: results, resume, isolation of failures, budget, warm starts."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import BaseMismatchError, TrainingError
from e2gan_cluster.evaluate.inference import run_generator
from e2gan_cluster.evaluate.metrics import evaluate_outputs
from e2gan_cluster.pairs.shards import load_pairs
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.search import trial
from e2gan_cluster.search.adapt import adapt_concepts, adapt_pending
from e2gan_cluster.search.jobs import serve_here
from e2gan_cluster.search.lookup import find_result, open_setting, open_tasks
from e2gan_cluster.search.records import ConceptResult, TrialSpec
from e2gan_cluster.search.trial import run_trial
from e2gan_cluster.search.warm import Start, assign_donors, read_start
from e2gan_cluster.storage import keys
from e2gan_cluster.text.encoder import PromptEncoder
from e2gan_cluster.track.mlflow_tracker import NullTracker
from e2gan_cluster.train.base_store import load_base
from tests import search_world
from tests.search_world import World


def search(
    world: World, concepts: list[Concept] | None = None, config: RunConfig | None = None
) -> dict[str, ConceptResult]:
    chosen = world.concepts if concepts is None else concepts
    return adapt_concepts(
        config or world.config, world.store, world.base_id, chosen, SilentReporter(), NullTracker(), serve_here
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return search_world.make_world(tmp_path_factory.mktemp("world"), ("invert", "warm"), train={"lr": 0.025})


@pytest.fixture(scope="module")
def results(world: World) -> dict[str, ConceptResult]:
    return search(world)


def etags(world: World, prefix: str) -> dict[str, str]:
    return {info.key: info.etag for info in world.store.list(prefix)}


def test_picked_adapter_is_loaded_by_stock_peft_and_scores_as_recorded(
    world: World, results: dict[str, ConceptResult], tmp_path: Path
) -> None:
    result = results["invert"]
    for file in result.files:
        (tmp_path / file.name).write_bytes(world.store.get(result.adapter_key_prefix + file.name, sha256=file.sha256))
    base = load_base(world.store, world.base_id)
    stock = PeftModel.from_pretrained(copy.deepcopy(base.generator), tmp_path)
    heldout = load_pairs(world.store, world.concepts[0], "heldout", world.config)
    tokens = PromptEncoder(max_tokens=8).encode([result.prompt]).tokens_BTD[0]
    output = run_generator(stock, heldout.inputs_NHWC, tokens)
    measured = evaluate_outputs(heldout.inputs_NHWC, heldout.edits_NHWC, output, ["l1"])["l1"]
    assert measured == pytest.approx(result.metric, abs=1e-6)
    assert measured < 0.8 * result.base_metrics["l1"], "the adapter learned the edit"


def test_result_holds_ladder_metrics_and_pictures(world: World, results: dict[str, ConceptResult]) -> None:
    result = results["warm"]
    assert result.state == "done"
    assert {row["trial"] for row in result.table} >= {"r2-n6-s0-p500", "r2-n12-s0-p500", result.pick}
    assert not [key for key in etags(world, f"search/warm/{result.fingerprint}/") if "state" in key], "tidied up"
    assert [row["trial"] for row in result.table if row["state"] == "done"] == [result.pick]
    assert (result.training_images, result.images) == (32, sum(row["images"] for row in result.table))
    assert result.images <= 3 * result.training_images
    assert (
        set(result.metrics)
        == set(result.base_metrics)
        == set(result.identity_metrics)
        == {"lpips", "l1", "psnr", "ssim"}
    )
    assert result.trials == len(result.table)
    assert result.images == sum(row["images"] for row in result.table)
    for name in ("samples.png", "curve.png"):
        picture = world.store.get(keys.search_file("warm", result.fingerprint, name))
        assert picture.startswith(b"\x89PNG")


def test_same_command_again_trains_nothing_and_a_new_concept_leaves_others_untouched(
    world: World, results: dict[str, ConceptResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = etags(world, "search/")
    assert adapt_pending(world.config, world.store, world.base_id, world.concepts) == []
    monkeypatch.setattr(trial, "_open_training", None)
    assert search(world) == results
    monkeypatch.undo()
    extra = Concept("dark", search_world.EDITS["dark"][0])
    search_world.add_pairs(world.store, world.config, extra)
    more = search(world, [*world.concepts, extra])
    assert more["dark"].state == "done"
    assert {key: etag for key, etag in etags(world, "search/").items() if "/dark/" not in key} == before
    assert find_result(world.config, world.store, world.base_id, world.concepts[0]) == results["invert"]


def test_trial_that_continues_another_ends_as_one_from_the_start(world: World) -> None:
    setting = open_setting(world.config, world.store, world.base_id)
    whole = TrialSpec("invert", multiplier=2, data_size=6)
    part, rest = dataclasses.replace(whole, until=0.5), dataclasses.replace(whole, after=0.5)
    unbroken = run_trial(setting, world.concepts[0], "unbroken", whole)
    half = run_trial(setting, world.concepts[0], "continued", part)
    continued = run_trial(setting, world.concepts[0], "continued", rest)
    assert (half.state, half.images, continued.images, unbroken.images) == ("screened", 16, 16, 32)
    assert (continued.files, continued.metric) == (unbroken.files, unbroken.metric)
    key = keys.search_trial_adapter("invert", "damaged", half.spec.trial_id, "state.safetensors")
    run_trial(setting, world.concepts[0], "damaged", part)
    world.store.put(key, b"damaged")
    again = run_trial(setting, world.concepts[0], "damaged", rest)
    assert (again.files, again.images) == (unbroken.files, 32), "trained from the start"


def test_repeated_trial_gives_the_same_bytes(world: World) -> None:
    setting = open_setting(world.config, world.store, world.base_id)
    spec = TrialSpec("invert", multiplier=2, data_size=6)
    first = run_trial(setting, world.concepts[0], "repeat-a", spec)
    run_trial(setting, world.concepts[0], "repeat-c", dataclasses.replace(spec, multiplier=1))
    second = run_trial(setting, world.concepts[0], "repeat-b", spec)
    assert first.files == second.files
    assert first.curve == second.curve


def test_smaller_data_rung_is_part_of_the_larger(tmp_path: Path) -> None:
    world = search_world.make_world(tmp_path, ("invert",), data_sizes=[4, 8, 16], subset="cluster")
    setting = open_setting_after_layers(world)
    data = trial.warm_worker(setting).concept(world.concepts[0])
    rungs = {size: set(rows) for size, rows in data.rungs.items()}
    assert {size: len(rows) for size, rows in rungs.items()} == {4: 4, 8: 8, 16: 16}
    assert rungs[4] < rungs[8] < rungs[16]


def open_setting_after_layers(world: World):
    from e2gan_cluster.search.layers import ensure_layers

    ensure_layers(world.config, world.store, world.base_id, world.concepts, SilentReporter(), NullTracker(), serve_here)
    return open_setting(world.config, world.store, world.base_id)


def test_failing_concepts_are_reported_with_reasons_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("invert", "warm", "dark", "grey", "cold")
    world = search_world.make_world(tmp_path, names, rank_multipliers=[1], data_sizes=[6], train={"images": 8})
    real = trial._open_training

    def sabotaged(warm, concept, spec):
        if concept.name == "warm":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if concept.name == "dark":
            raise TrainingError("l1 is nan at step 3 (12 images), concept dark.", "Lower the learning rate")
        return real(warm, concept, spec)

    monkeypatch.setattr(trial, "_open_training", sabotaged)
    shard = keys.pair_shard("grey", "train-0")
    data = world.store.get(shard)
    world.store.delete(shard)
    world.store.put(shard, data[:300] + bytes([data[300] ^ 1]) + data[301:])
    results = search(world, [*world.concepts, Concept("nothing", "an edit without pairs")])
    states = {name: result.state for name, result in results.items()}
    assert states == dict(
        zip((*names, "nothing"), ("done", "failed", "failed", "failed", "done", "failed"), strict=True)
    )
    assert "lower search.train.batch_size" in str(results["warm"].failure)
    assert "l1 is nan at step 3" in str(results["dark"].failure)
    assert "pairs/grey/train-0.parquet" in str(results["grey"].failure)
    assert "no finished pairs" in str(results["nothing"].failure)
    monkeypatch.undo()
    assert search(world)["dark"].state == "done", "a failed concept is tried again"


def test_diverging_training_fails_its_concept_before_an_adapter_is_stored(tmp_path: Path) -> None:
    world = search_world.make_world(
        tmp_path, ("invert",), rank_screen=1, data_screen=1, train={"images": 16, "lr": 1e30}
    )
    result = search(world)["invert"]
    assert result.state == "failed"
    assert "inf" in str(result.failure) or "nan" in str(result.failure)
    assert not [key for key in etags(world, "search/") if key.endswith(".safetensors")]


def test_used_up_budget_stops_cleanly_and_the_next_run_goes_on(tmp_path: Path) -> None:
    world = search_world.make_world(tmp_path, ("invert",), max_hours=1e-9)
    stopped = search(world)["invert"]
    assert (stopped.state, stopped.trials) == ("stopped", 0)
    assert "the same command goes on" in str(stopped.failure)
    longer = world.config.model_copy(update={"search": world.config.search.model_copy(update={"max_hours": None})})
    assert search(world, config=longer)["invert"].state == "done"


def test_base_of_another_search_is_refused_with_both_ids(world: World, results: dict[str, ConceptResult]) -> None:
    other = search_world.add_base(world.store, world.config, seed=7)
    setting = dataclasses.replace(open_setting(world.config, world.store, world.base_id), base_id=other)
    spec = TrialSpec("warm", 1, 6, init=results["invert"].adapter_key_prefix)
    with pytest.raises(BaseMismatchError, match=f"(?s){world.base_id}.*{other}"):
        run_trial(setting, world.concepts[1], "other-base", spec)


def test_warm_start_begins_with_the_nearest_finished_adapter_and_its_rungs(tmp_path: Path) -> None:
    world = search_world.make_world(tmp_path, ("warm", "cold", "dark"), warm_start=True, rank_multipliers=[1, 2, 4])
    results = search(world)
    assert all(result.state == "done" for result in results.values())
    setting = open_setting(world.config, world.store, world.base_id)
    tasks = open_tasks(world.config, world.store, setting, world.concepts)
    starts = {t.concept.name: read_start(world.store, t.concept.name, t.fingerprint) for t in tasks}
    cold_ones = [name for name, start in starts.items() if start is None or start.donor is None]
    assert len(cold_ones) >= 1, "the first concepts of a batch have no donor"
    warm_ones = [name for name in results if name not in cold_ones]
    assert warm_ones
    for name in warm_ones:
        assert results[name].init == results[str(starts[name] and starts[name].donor)].adapter_key_prefix  # pyright: ignore[reportOptionalMemberAccess]


def test_donors_are_settled_by_prompts_alone() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(9, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = [f"c{i}" for i in range(9)]
    starts = assign_donors(names, rows, {})
    pioneers = [name for name, donor in starts.items() if donor is None]
    assert len(pioneers) == 3
    assert {donor for donor in starts.values() if donor} <= set(pioneers)
    assert assign_donors(["x"], rows[:1], {"c0": rows[0], "c1": rows[1]}) == {"x": "c0"}
    assert Start() == Start(donor=None, prefix="", rank_rung=0, data_rung=0)


def test_pairs_added_to_a_concept_make_a_new_search(world: World) -> None:
    setting = open_setting(world.config, world.store, world.base_id)
    concept = world.concepts[0]
    assert setting.fingerprint(concept, "a") != setting.fingerprint(concept, "b")
    workers = world.config.search.model_copy(update={"num_workers": 9, "max_hours": 1.0})
    elsewhere = dataclasses.replace(setting, config=world.config.model_copy(update={"search": workers}))
    assert elsewhere.fingerprint(concept, "a") == setting.fingerprint(concept, "a")
