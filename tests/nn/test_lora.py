"""Adapters: what is trained is what is saved, and stock PEFT loads it."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from e2gan_cluster.errors import BaseMismatchError, IntegrityError
from e2gan_cluster.nn import lora
from e2gan_cluster.nn.generator import PARTS, Generator

BASE_ID = "0123456789ab"


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    net = Generator(width=8, text_dim=12, heads=2)
    for p in net.parameters():  # zero-initialised heads would hide what the layers before them do
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return net.eval()


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 5, 12)


def trained(generator: Generator, inputs: tuple[torch.Tensor, torch.Tensor], ranks: dict[str, int]) -> PeftModel:
    model = lora.add_lora(copy.deepcopy(generator), ranks)
    optimizer = torch.optim.Adam([p for _, p in lora.lora_parameters(model)], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (model(*inputs) - torch.ones_like(inputs[0])).square().mean().backward()
        optimizer.step()
    return model.eval()


def write(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def all_ranks(generator: Generator) -> dict[str, int]:
    names = lora.adaptable_layers(generator, PARTS)
    return {name: 1 + i % 3 for i, name in enumerate(names)}


def test_every_trained_layer_is_saved_and_stock_peft_gives_equal_outputs(
    generator: Generator, inputs: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    ranks = all_ranks(generator)
    model = trained(generator, inputs, ranks)
    moved = {name for name, p in lora.lora_parameters(model) if "lora_B" in name and p.any()}
    assert len(moved) == len(ranks), "every adapted layer was trained"
    folder = write(lora.save_adapter(model, BASE_ID), tmp_path)
    stock = PeftModel.from_pretrained(copy.deepcopy(generator), folder)
    with torch.no_grad():
        want = model(*inputs)
        assert torch.equal(stock.eval()(*inputs), want)
        merged = stock.merge_and_unload()
        assert torch.allclose(merged(*inputs), want, atol=1e-4)
        assert not torch.allclose(generator(*inputs), want, atol=1e-2)
    assert list(merged.state_dict()) == list(generator.state_dict())


def test_fresh_adapter_changes_nothing_and_the_base_stays_frozen(
    generator: Generator, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    before = copy.deepcopy(generator.state_dict())
    model = lora.add_lora(copy.deepcopy(generator), {"ds.conv.1": 2})
    with torch.no_grad():
        assert torch.equal(model(*inputs), generator(*inputs))
    frozen = trained(generator, inputs, {"ds.conv.1": 2}).get_base_model().state_dict()
    for name, tensor in before.items():
        saved = frozen.get(name, frozen.get(name.replace(".weight", ".base_layer.weight")))
        assert saved is not None
        assert torch.equal(saved, tensor)


def test_equal_weights_give_equal_bytes_and_config_names_base_and_ranks(generator: Generator) -> None:
    ranks = all_ranks(generator)
    first = lora.save_adapter(lora.add_lora(copy.deepcopy(generator), ranks, seed=3), BASE_ID)
    second = lora.save_adapter(lora.add_lora(copy.deepcopy(generator), ranks, seed=3), BASE_ID)
    assert first == second
    config = json.loads(first[lora.CONFIG_FILE])
    assert config["base_model_name_or_path"] == BASE_ID
    assert lora.adapter_ranks(first) == ranks


def test_adapter_of_another_base_is_refused_with_both_ids(generator: Generator) -> None:
    files = lora.save_adapter(lora.add_lora(copy.deepcopy(generator), {"ds.conv.1": 1}), "aaaaaaaaaaaa")
    with pytest.raises(BaseMismatchError, match=f"aaaaaaaaaaaa.*{BASE_ID}"):
        lora.load_adapter(copy.deepcopy(generator), files, BASE_ID)


def test_adapter_whose_config_and_weights_differ_is_refused(generator: Generator) -> None:
    files = lora.save_adapter(lora.add_lora(copy.deepcopy(generator), {"ds.conv.1": 2}), BASE_ID)
    config = json.loads(files[lora.CONFIG_FILE])
    config["rank_pattern"] = {"ds.conv.1": 4}
    with pytest.raises(IntegrityError, match="differ"):
        lora.adapter_ranks({**files, lora.CONFIG_FILE: json.dumps(config).encode()})
    with pytest.raises(IntegrityError, match="cannot be read"):
        lora.adapter_ranks({**files, lora.MODEL_FILE: files[lora.MODEL_FILE][:40]})
    narrow = Generator(width=4, text_dim=12, heads=2)
    with pytest.raises(IntegrityError, match="does not fit"):
        lora.load_adapter(narrow, files, BASE_ID)


def test_unknown_part_or_layer_is_named(generator: Generator) -> None:
    with pytest.raises(ValueError, match="no part 'up'"):
        lora.adaptable_layers(generator, ["up"])
    with pytest.raises(ValueError, match=r"no layer ds\.x"):
        lora.add_lora(copy.deepcopy(generator), {"ds.x": 1})


@pytest.mark.parametrize(("donor_rank", "rank"), [(1, 3), (2, 2)])
def test_warm_start_from_an_equal_or_smaller_rank_gives_the_donors_output(
    generator: Generator, inputs: tuple[torch.Tensor, torch.Tensor], donor_rank: int, rank: int
) -> None:
    names = lora.adaptable_layers(generator, ["ds", "upsample"])
    donor = trained(generator, inputs, dict.fromkeys(names, donor_rank))
    model = lora.add_lora(copy.deepcopy(generator), dict.fromkeys(names, rank))
    assert lora.start_from(model, lora.adapter_state(donor)) == len(names)
    with torch.no_grad():
        assert torch.allclose(model.eval()(*inputs), donor(*inputs), atol=1e-5)
    model.train()
    model(*inputs).square().mean().backward()
    grads = [p.grad for _, p in lora.lora_parameters(model) if p.grad is not None]
    assert all(g.flatten(1).any() for g in grads), "no part of a padded adapter is dead"


def test_warm_start_from_a_larger_rank_keeps_the_strongest_directions(generator: Generator) -> None:
    donor = lora.add_lora(copy.deepcopy(generator), {"ds.conv.1": 3})
    state = lora.adapter_state(donor)
    up = next(name for name in state if ".lora_B" in name)
    state[up] = torch.zeros_like(state[up])
    state[up][:, 1] = 1.0
    model = lora.add_lora(copy.deepcopy(generator), {"ds.conv.1": 1}, seed=9)
    lora.start_from(model, state)
    assert torch.equal(lora.adapter_state(model)[up], state[up][:, 1:2])
