"""Adapters that lie: pickles, abused headers, NaN, wrong ranks, layers and bases."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save

from e2gan_cluster.errors import BaseMismatchError, IntegrityError
from e2gan_cluster.storage.adapter_check import check_adapter, check_against_base
from e2gan_cluster.storage.safetensors_check import read_header
from tests.storage.registry_parts import BASE_ID, LAYERS, adapter_config, adapter_files, adapter_tensors

FIRST = "base_model.model.downsample.conv"


def test_a_good_adapter_tells_its_base_and_ranks():
    adapter = check_adapter(adapter_files())
    assert adapter.base_id == BASE_ID
    assert adapter.ranks == dict.fromkeys(LAYERS, 2)


def header(content, body=b""):
    """A safetensors file with this header."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(begin, end, shape, dtype="F32"):
    """A header entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ABUSED = {
    "empty": b"",
    "short": b"\1\0",
    "huge header length": (1 << 40).to_bytes(8, "little") + b"{}",
    "header beyond the end": (100).to_bytes(8, "little") + b"{}",
    "not json": header(b"{nope"),
    "deep json": header(b"[" * 200_000),
    "a list": header([]),
    "twin names": header(b'{"a": %(t)s, "a": %(t)s}' % {b"t": json.dumps(tensor(0, 1, [1], "U8")).encode()}, b"x"),
    "shared buffer": header({f"t{i}": tensor(0, 4, [1]) for i in range(5)}, bytes(4)),
    "gap": header({"a": tensor(4, 8, [1])}, bytes(8)),
    "trailing junk": header({"a": tensor(0, 4, [1])}, bytes(5)),
    "cut": header({"a": tensor(0, 8, [2])}, bytes(4)),
    "shape that does not fit": header({"a": tensor(0, 4, [2])}, bytes(4)),
    "overflowing shape": header({"a": tensor(0, 4, [1 << 47, 1 << 47, 1 << 47])}, bytes(4)),
    "negative": header({"a": tensor(0, -4, [-1])}),
    "fractions": header({"a": tensor(0, 4.0, [1.0])}, bytes(4)),
    "unknown dtype": header({"a": tensor(0, 4, [1], "F128")}, bytes(4)),
    "extra field": header({"a": {**tensor(0, 4, [1]), "x": 1}}, bytes(4)),
    "bad metadata": header({"__metadata__": {"a": 1}}),
    "pickle": b"\x80\x04cos\nsystem\n(S'touch marker'\ntR.",
}  # fmt: skip


@pytest.mark.parametrize("name", ABUSED)
def test_abused_safetensors_headers_are_refused(name):
    with pytest.raises(IntegrityError):
        read_header(ABUSED[name], name)


MANY = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from e2gan_cluster.errors import IntegrityError
from e2gan_cluster.storage.safetensors_check import read_header
entry = '"t%d":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
text = ("{" + ",".join(entry % i for i in range(1_000_000)) + "}").encode()
bomb = ("{" + ",".join(entry % i for i in range(60_000)) + "}").encode()
for content in (text, bomb):
    begin = time.process_time()
    try:
        read_header(len(content).to_bytes(8, "little") + content + bytes(4), "bomb")
    except IntegrityError:
        assert time.process_time() - begin < 10
    else:
        raise SystemExit("read")
"""


def test_a_million_tensors_on_one_buffer_cost_bounded_memory_and_time():
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def pickle_in_disguise(marker):
    """What torch.save writes: a zip with a pickle that runs code."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", f"cos\nsystem\n(S'touch {marker}'\ntR.")
    return buffer.getvalue()


def test_a_pickle_renamed_to_safetensors_is_refused_and_not_run(tmp_path):
    files = {**adapter_files(), "adapter_model.safetensors": pickle_in_disguise(tmp_path / "marker")}
    with pytest.raises(IntegrityError, match="pickle"):
        check_adapter(files)
    assert not (tmp_path / "marker").exists()


def _without(name):
    return {key: value for key, value in adapter_tensors().items() if key != name}


BROKEN = {
    "a layer without its other half": (_without(f"{FIRST}.lora_B.weight"), adapter_config(), "only one of"),
    "a layer missing from the weights": (
        {k: v for k, v in adapter_tensors().items() if not k.startswith(FIRST)}, adapter_config(), "no tensors for it",
    ),
    "a layer the config does not adapt": (
        adapter_tensors(), adapter_config(target_modules=["downsample.conv"], rank_pattern={}), "does not adapt",
    ),
    "another rank": (adapter_tensors(rank=3), adapter_config(rank=2), "has rank 3"),
    "a tensor of something else": (
        {**adapter_tensors(), "fc.weight": np.ones(2, "f4")}, adapter_config(), "not a tensor of a LoRA",
    ),
    "no tensors": ({}, adapter_config(target_modules=[], rank_pattern={}), "no LoRA tensors"),
    "whole numbers": (
        {k: v.astype("i4") for k, v in adapter_tensors().items()}, adapter_config(), "not a tensor of a LoRA",
    ),
    "a config without base": (adapter_tensors(), adapter_config(base_model_name_or_path=None), "not a LoRA config"),
    "a config that is not json": (adapter_tensors(), b"{", "not a PEFT config"),
    "a config with rank 0": (adapter_tensors(), adapter_config(r=0), "not a LoRA config"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_do_not_fit_their_config_are_refused(name):
    tensors, config, message = BROKEN[name]
    with pytest.raises(IntegrityError, match=message):
        check_adapter({"adapter_model.safetensors": save(tensors), "adapter_config.json": config})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_nan_and_infinity_are_refused(value, dtype):
    tensors = {name: array.astype(dtype) for name, array in adapter_tensors().items()}
    tensors[f"{FIRST}.lora_B.weight"].flat[3] = value
    with pytest.raises(IntegrityError, match=r"downsample\.conv\.lora_B.*NaN or infinity"):
        check_adapter(adapter_files(tensors=tensors))


def test_bfloat16_nan_is_refused():
    name = "x"
    good, bad = np.uint16(0x3F80).tobytes(), np.uint16(0x7FC0).tobytes()
    from e2gan_cluster.storage.safetensors_check import check_finite

    for body, finite in ((good, True), (bad, False)):
        data = header({name: tensor(0, 2, [1], "BF16")}, body)
        if finite:
            check_finite(data, read_header(data, name), name)
        else:
            with pytest.raises(IntegrityError):
                check_finite(data, read_header(data, name), name)


def test_adapters_that_do_not_fit_the_base_are_refused():
    adapter = check_adapter(adapter_files())
    shapes = {f"{layer}.weight": np.zeros((outputs, *inputs), "f4") for layer, (inputs, outputs) in LAYERS.items()}
    fitting = save(shapes)
    check_against_base(adapter, read_header(fitting, "base"), "adapter")
    missing = save({"downsample.conv.weight": shapes["downsample.conv.weight"]})
    with pytest.raises(BaseMismatchError, match="no layer"):
        check_against_base(adapter, read_header(missing, "base"), "adapter")
    wider = save({**shapes, "downsample.conv.weight": np.zeros((32, 8, 3, 3), "f4")})
    with pytest.raises(BaseMismatchError, match=r"\[32, 8, 3, 3\] in the base"):
        check_against_base(adapter, read_header(wider, "base"), "adapter")
