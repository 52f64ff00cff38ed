"""PEFT files become plain matrices, or an error that says what is wrong."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from e2gan_cluster.errors import IntegrityError
from e2gan_cluster.export.factors import Factors, effect_tensors, read_factors
from tests.export.tiny import Adapter


def changed(adapter: Adapter, tensors: dict[str, np.ndarray] | None = None, **config: object) -> dict[str, bytes]:
    files = dict(adapter.files)
    if tensors is not None:
        files["adapter_model.safetensors"] = save(tensors)
    files["adapter_config.json"] = json.dumps({**json.loads(files["adapter_config.json"]), **config}).encode()
    return files


def test_deltas_equal_what_peft_merges(adapters: list[Adapter]):
    factors = read_factors(adapters[0].files)
    for layer, pair in factors.items():
        module = adapters[0].model.get_submodule(f"base_model.model.{layer}")
        delta = module.get_delta_weight("default").detach().numpy()  # pyright: ignore[reportCallIssue]
        np.testing.assert_allclose(pair.delta().reshape(delta.shape), delta, atol=1e-6)
    assert {pair.rank for pair in factors.values()} == {1, 2, 3}


def test_alpha_is_multiplied_in(adapters: list[Adapter]):
    plain = read_factors(changed(adapters[0], alpha_pattern={}, lora_alpha=1))
    double = read_factors(changed(adapters[0], alpha_pattern={}, lora_alpha=2))
    layer = next(iter(plain))
    np.testing.assert_allclose(double[layer].delta(), 2 * plain[layer].delta(), rtol=1e-6)


@pytest.mark.parametrize("damage", ["nan", "partner", "bias", "rank", "cut"])
def test_damaged_adapters_are_refused(adapters: list[Adapter], damage: str):
    tensors = {name: value.copy() for name, value in load(adapters[0].files["adapter_model.safetensors"]).items()}
    first = next(name for name in tensors if "lora_A" in name)
    config: dict[str, object] = {}
    if damage == "nan":
        tensors[first].flat[0] = np.nan
    elif damage == "partner":
        del tensors[first]
    elif damage == "bias":
        tensors["base_model.model.us.conv.0.1.bias"] = np.zeros(3, np.float32)
    elif damage == "rank":
        config = {"rank_pattern": {}, "r": 7}
    files = changed(adapters[0], tensors, **config)
    if damage == "cut":
        files["adapter_model.safetensors"] = files["adapter_model.safetensors"][:-8]
    with pytest.raises(IntegrityError):
        read_factors(files)


def test_padding_tokens_do_not_travel():
    tokens_TD = np.zeros((24, 4), np.float32)
    tokens_TD[:3] = 1
    tensors = effect_tensors({"a": Factors(np.ones((2, 5), np.float32), np.ones((3, 2), np.float32))}, tokens_TD)
    assert {name: value.shape for name, value in tensors.items()} == {
        "text": (1, 3, 4),
        "a.lora_A": (2, 5),
        "a.lora_B": (3, 2),
    }
