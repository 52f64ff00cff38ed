"""A NaN, an infinity or a failed allocation is caught before it reaches the weights, and explained."""

import copy

import pytest
import torch

from e2gan_cluster.errors import TrainingError
from e2gan_cluster.train import step as step_module
from e2gan_cluster.train.loop import train
from tests.tiny_training import tiny_config, tiny_data, tiny_state


def _train_until_error(state, data, cfg) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        train(state, data, cfg, seed=0)
    return caught.value


def _snapshot(state) -> dict[str, torch.Tensor]:
    return copy.deepcopy(state.state_dict())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_loss_raises_before_the_update_and_names_metric_step_and_concept(monkeypatch, bad):
    cfg, data = tiny_config(), tiny_data(concepts=1)
    state = tiny_state(cfg)
    train(state, data, cfg, seed=0, until=12)
    before = _snapshot(state)
    monkeypatch.setattr(step_module, "l1_loss", lambda a, b: (a - b).abs().mean() * bad)
    error = _train_until_error(state, data, cfg)
    assert "l1 is" in str(error)
    assert "step 3 (12 images), concept invert" in str(error)
    after = state.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_bad_gradient_of_either_network_raises_before_the_update():
    for name in ("g_params", "d_params"):
        cfg, data = tiny_config(), tiny_data()
        state = tiny_state(cfg)
        before = _snapshot(state)
        next(iter(getattr(state, name).values())).register_hook(lambda grad: grad * float("nan"))
        error = _train_until_error(state, data, cfg)
        assert f"grad_{name[0]} is nan at step 0" in str(error)
        after = state.state_dict()
        assert all(torch.equal(before[n], after[n]) for n in before)


def test_concept_whose_rows_are_bad_is_named_among_others(monkeypatch):
    cfg, data = tiny_config(batch_size=12), tiny_data()
    original = step_module.train_step.__globals__["_accumulate"]

    def poison(state, batch, *rest):
        for row, concept in enumerate(batch.concepts):
            if concept == "swap":
                batch.target_BCHW[row] = float("nan")
        return original(state, batch, *rest)

    monkeypatch.setattr(step_module, "_accumulate", poison)
    error = _train_until_error(tiny_state(cfg), data, cfg)
    assert "concept swap." in str(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_answered_with_advice(monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    cfg = tiny_config(accumulate=2)
    monkeypatch.setattr(step_module, "l1_loss", fail)
    message = str(_train_until_error(tiny_state(cfg), tiny_data(), cfg))
    assert "Out of memory at step 0 with 2 images at once" in message
    assert "accumulate to 4" in message


def test_other_runtime_errors_are_not_taken_for_memory(monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(step_module, "l1_loss", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(tiny_state(tiny_config()), tiny_data(), tiny_config(), seed=0)
