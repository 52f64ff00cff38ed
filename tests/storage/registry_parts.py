"""Tiny but real adapters and registries."""

import json

import numpy as np
from safetensors.numpy import save

from e2gan_cluster.storage.bundle import publish_bundle
from e2gan_cluster.storage.registry import publish_adapter

BASE_ID = "0123456789ab"
LAYERS = {"downsample.conv": ((8, 3, 3), 16), "transformer.attention.q": ((12,), 12)}


def adapter_tensors(seed=0, rank=2):
    """LoRA tensors under PEFT's names."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer, (inputs, outputs) in LAYERS.items():
        ones = (1,) * (len(inputs) - 1)
        tensors[f"base_model.model.{layer}.lora_A.weight"] = random.normal(size=(rank, *inputs)).astype("f4")
        tensors[f"base_model.model.{layer}.lora_B.weight"] = random.normal(size=(outputs, rank, *ones)).astype("f4")
    return tensors


def adapter_config(rank=2, base_id=BASE_ID, **changes):
    """An adapter_config.json."""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_id,
        "r": rank,
        "target_modules": sorted(LAYERS),
        "rank_pattern": dict.fromkeys(LAYERS, rank),
    }
    return json.dumps(config | changes).encode()


def adapter_files(seed=0, rank=2, base_id=BASE_ID, tensors=None):
    """A PEFT folder with the files of two export formats."""
    random = np.random.default_rng(seed + 1000)
    factors = {f"{layer}.lora_A": np.zeros((rank, 4), "f4") for layer in LAYERS}
    return {
        "adapter_model.safetensors": save(adapter_tensors(seed, rank) if tensors is None else tensors),
        "adapter_config.json": adapter_config(rank, base_id),
        "prompt.safetensors": save({"tokens": np.ones((3, 4), "f4"), "pooled": np.ones(4, "f4")}),
        "README.md": b"# an effect\n",
        "adapter.onnx_adapter": random.bytes(300),
        "lora_inputs.safetensors": save(factors),
        "merged.onnx": random.bytes(500),
    }


def facts(base_id=BASE_ID, **changes):
    """Facts that every manifest needs."""
    needed = {
        "base_id": base_id,
        "config_fingerprint": "c" * 64,
        "code_version": "0.1.0",
        "teacher_fingerprint": "t" * 64,
        "metrics": {"lpips": 0.125},
    }
    return needed | changes


def publish(store, concept="oil", seed=0, base_id=BASE_ID, **options):
    """Publish one adapter; gives its version."""
    return publish_adapter(store, concept, adapter_files(seed, base_id=base_id), facts(base_id), **options)


def publish_mobile_base(store, base_id=BASE_ID):
    """Publish the base's files for devices."""
    random = np.random.default_rng(7)
    files = {"base.onnx": random.bytes(3000), "base-inputs.onnx": random.bytes(3100)}
    publish_bundle(store, f"mobile/{base_id}/", files, {"base_id": base_id})


def flip(data, position, bit=0):
    """``data`` with one bit changed."""
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)
