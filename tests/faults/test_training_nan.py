"""A NaN or infinity is caught before it reaches the weights."""

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
