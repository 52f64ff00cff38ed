"""LoRA by PEFT on the convolutions and linear layers of chosen parts (E2GAN 3.3; Hu et al. 2021).

Ranks are given layer by layer. The scale is alpha / r = 1 for every layer, so that a learning rate means the same
on every rung and an adapter of a small rank is, padded with zeros, an adapter of a larger one. What is trained is what
is saved: stock PEFT loads the two files onto the bare generator. Bytes in, bytes out; no files are touched here.

Example:
    >>> model = add_lora(generator, {"downsample.conv": 2, "us.conv": 1})
    >>> files = save_adapter(model, base_id)        # adapter_model.safetensors, adapter_config.json
    >>> PeftModel.from_pretrained(generator, folder)  # anywhere, with stock PEFT
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from e2gan_cluster.errors import BaseMismatchError, IntegrityError

MODEL_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"


def adaptable_layers(generator: nn.Module, parts: Iterable[str]) -> list[str]:
    """Names of the layers of ``parts`` that LoRA can adapt, in module order.

    Args:
        generator: The bare generator.
        parts: Names of its direct submodules.

    Raises:
        ValueError: A part does not exist, or has no Conv2d or Linear layer.
    """
    children = dict(generator.named_children())
    names: list[str] = []
    for part in parts:
        if part not in children:
            raise ValueError(f"the generator has no part {part!r}; it has {', '.join(children)}")
        found = [
            f"{part}.{name}" if name else part
            for name, module in children[part].named_modules()
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        ]
        if not found:
            raise ValueError(f"part {part!r} has no Conv2d or Linear layer")
        names += found
    return names


def cap_ranks(generator: nn.Module, ranks: Mapping[str, int]) -> dict[str, int]:
    """Lower ranks to what a layer's weight matrix can have at all (an output layer has 3 rows)."""
    modules = dict(generator.named_modules())

    def full(name: str) -> int:
        weight = getattr(modules.get(name), "weight", None)
        return min(weight.flatten(1).shape) if isinstance(weight, torch.Tensor) else 1

    return {name: max(1, min(rank, full(name))) for name, rank in ranks.items()}


def lora_size(generator: nn.Module, ranks: Mapping[str, int]) -> int:
    """LoRA weights that these ranks need."""
    modules, total = dict(generator.named_modules()), 0
    for name, rank in cap_ranks(generator, ranks).items():
        weight = modules[name].weight
        assert isinstance(weight, torch.Tensor)
        total += rank * sum(weight.flatten(1).shape)
    return total


def lora_config(ranks: Mapping[str, int]) -> LoraConfig:
    """PEFT config with one rank per layer.

    Args:
        ranks: Full layer name -> rank, above 0.

    Raises:
        ValueError: No layer, or a rank below 1.
    """
    if not ranks or min(ranks.values()) < 1:
        raise ValueError("LoRA needs at least one layer, and ranks of at least 1")
    pattern = {name: int(rank) for name, rank in sorted(ranks.items())}
    least = min(pattern.values())
    return LoraConfig(
        r=least,
        lora_alpha=least,
        target_modules=list(pattern),
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        lora_dropout=0.0,
        bias="none",
    )


def add_lora(generator: nn.Module, ranks: Mapping[str, int], *, seed: int = 0) -> PeftModel:
    """Freeze ``generator`` and put LoRA on it, in place; its output is unchanged until trained.

    Args:
        generator: The bare generator. It is changed: pass a copy to keep it.
        ranks: Full layer name -> rank.
        seed: Of the random A matrices; the global random state is left as it was.

    Raises:
        ValueError: A layer does not exist or cannot be adapted.
    """
    modules = dict(generator.named_modules())
    missing = [name for name in ranks if name not in modules]
    if missing:
        raise ValueError(f"the generator has no layer {', '.join(missing)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(generator, lora_config(ranks))
    adapted = {name.removeprefix(_PREFIX).split(".lora_")[0] for name, _ in lora_parameters(model)}
    if adapted != set(ranks):
        raise ValueError(f"PEFT adapted other layers than asked: {sorted(adapted ^ set(ranks))}")
    return model


def lora_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The trainable tensors, with their names: all that an adapter consists of."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """LoRA tensors under the names they are saved with, on the CPU."""
    state = get_peft_model_state_dict(model)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}


def save_adapter(model: PeftModel, base_id: str, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, bytes]:
    """The adapter as the files stock PEFT loads; equal weights give equal bytes.

    Args:
        model: Generator with LoRA.
        base_id: Base it belongs to.
        state: Tensors to save instead of the model's own.

    Returns:
        File name -> content.
    """
    tensors = dict(state) if state is not None else adapter_state(model)
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    # PEFT shortens long lists of layers to common suffixes; the full names say what is adapted.
    config.update(base_model_name_or_path=base_id, inference_mode=True, target_modules=sorted(config["rank_pattern"]))
    listed = {key: sorted(value) if isinstance(value, set | list | tuple) else value for key, value in config.items()}
    text = json.dumps(listed, indent=2, sort_keys=True, default=str)
    return {MODEL_FILE: save_tensors(tensors, metadata={"format": "pt"}), CONFIG_FILE: text.encode()}


def adapter_ranks(files: Mapping[str, bytes]) -> dict[str, int]:
    """Layer -> rank of saved adapter files.

    Raises:
        IntegrityError: The config is not ours or does not match the tensors.
    """
    try:
        config = json.loads(files[CONFIG_FILE])
        ranks = {name: int(config["rank_pattern"].get(name, config["r"])) for name in config["target_modules"]}
        shapes = {name: tuple(tensor.shape) for name, tensor in load_tensors(files[MODEL_FILE]).items()}
    except Exception as error:
        raise IntegrityError(
            f"these adapter files cannot be read: {error}", "train or pull the adapter again"
        ) from error
    held = {
        name.removeprefix(_PREFIX).removesuffix(_A): shape[0] for name, shape in shapes.items() if name.endswith(_A)
    }
    if held != ranks or len(shapes) != 2 * len(ranks):
        wrong = sorted(set(held.items()) ^ set(ranks.items()))
        raise IntegrityError(f"adapter config and weights differ: {wrong or 'missing or extra tensors'}")
    return ranks


def load_adapter(generator: nn.Module, files: Mapping[str, bytes], base_id: str) -> PeftModel:
    """Put a saved adapter on the bare generator, in place, frozen and in evaluation mode.

    Args:
        generator: The bare generator. It is changed: pass a copy to keep it.
        files: `save_adapter`'s.
        base_id: Base at hand.

    Raises:
        BaseMismatchError: The adapter belongs to another base; names both.
        IntegrityError: Files are damaged, or do not fit this generator.
    """
    ranks = adapter_ranks(files)
    check_base(files, base_id)
    try:
        model = add_lora(generator, ranks)
        set_lora(model, load_tensors(files[MODEL_FILE]))
    except (ValueError, RuntimeError) as error:
        raise IntegrityError(
            f"this adapter does not fit base {base_id}: {error}", "pull the base it was made for"
        ) from error
    return model.requires_grad_(False).eval()


def check_base(files: Mapping[str, bytes], base_id: str) -> None:
    """Refuse an adapter of another base.

    Raises:
        BaseMismatchError: Names both ids.
    """
    theirs = json.loads(files[CONFIG_FILE]).get("base_model_name_or_path")
    if theirs != base_id:
        raise BaseMismatchError(
            f"the adapter belongs to base {theirs}, the base at hand is {base_id}",
            "use the base the adapter was trained on, or adapt the concept again on this one",
        )


def set_lora(model: PeftModel, state: Mapping[str, torch.Tensor]) -> None:
    """Load tensors under their saved names into a model that has exactly these layers and ranks.

    Raises:
        ValueError: Missing, extra, or wrongly shaped tensors.
    """
    own = adapter_state(model)
    if set(own) != set(state):
        raise ValueError(f"missing or extra tensors: {', '.join(sorted(set(own) ^ set(state))[:4])}")
    bad = [name for name in own if own[name].shape != state[name].shape]
    if bad:
        raise ValueError(f"tensor {bad[0]} is {tuple(state[bad[0]].shape)}, not {tuple(own[bad[0]].shape)}")
    set_peft_model_state_dict(model, dict(state))


def start_from(model: PeftModel, donor: Mapping[str, torch.Tensor]) -> int:
    """Start the LoRA of ``model`` from another adapter of the same base (Gong et al. 2024, 2407.11966: starts matter).

    Ranks need not be equal: of a larger donor the directions with the largest product of norms are kept; of a
    smaller one, the remaining rows of A keep their random start and the columns of B stay 0: they can still learn.

    Args:
        model: Generator with fresh LoRA.
        donor: Tensors under their saved names.

    Returns:
        Number of layers that were found in the donor.
    """
    state = adapter_state(model)
    found = 0
    for name in [name for name in state if name.endswith(_A)]:
        other = name.removesuffix(_A) + _B
        if name not in donor or donor[name].shape[1:] != state[name].shape[1:]:
            continue
        down, up = donor[name], donor[other]
        keep = min(len(down), len(state[name]))
        weight_R = down.flatten(1).norm(dim=1) * up.transpose(0, 1).flatten(1).norm(dim=1)
        order = weight_R.argsort(descending=True, stable=True)[:keep].sort().values
        state[name] = torch.cat([down[order], state[name][keep:]])
        state[other] = torch.cat([up[:, order], torch.zeros_like(state[other][:, keep:])], dim=1)
        found += 1
    set_peft_model_state_dict(model, state)
    return found
