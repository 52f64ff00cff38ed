"""A base starts from another base's weights."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import e2gan_cluster
from e2gan_cluster.concepts import load_catalogue
from e2gan_cluster.config import BUNDLED_BASE_WIDTHS
from e2gan_cluster.config_io import load_config
from e2gan_cluster.errors import ConfigError, InputError, IntegrityError
from e2gan_cluster.evaluate.lpips import Lpips
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.storage import open_store
from e2gan_cluster.teacher.training import edits
from e2gan_cluster.teacher.training.triples import square_photo
from e2gan_cluster.text.encoder import PromptEncoder
from e2gan_cluster.train import base_start, base_store, bundle_base
from e2gan_cluster.train.base_driver import train_base_local
from e2gan_cluster.train.base_store import base_fingerprint, load_base, read_base_manifest, start_id
from tests.tiny_base import CONCEPTS, tiny_base_config, with_pairs

PHOTOS = Path(e2gan_cluster.__file__).parent / "assets" / "photos"


def test_a_base_that_starts_from_another_begins_with_its_weights(tmp_path):
    config, store = with_pairs(tmp_path, images=8)
    first = train_base_local(config, store, CONCEPTS, SilentReporter())
    still = {"images": 4, "lr": 1e-12, "lr_disc": 1e-12, "ema_images": 0}
    train = config.base.train.model_copy(update=still)
    base = config.base.model_copy(update={"start_from": first, "train": train})
    second = train_base_local(config.model_copy(update={"base": base}), store, CONCEPTS, SilentReporter())
    assert read_base_manifest(store, second).meta["start_from"] == first
    before, after = load_base(store, first), load_base(store, second)
    for name, weight in before.generator.state_dict().items():
        assert torch.allclose(weight, after.generator.state_dict()[name], atol=1e-6)


def test_where_a_base_starts_is_part_of_what_it_is(tmp_path):
    config = tiny_base_config(tmp_path, images=8)
    started = config.model_copy(update={"base": config.base.model_copy(update={"start_from": "bundled"})})
    assert base_fingerprint(config, CONCEPTS) != base_fingerprint(started, CONCEPTS)
    assert start_id("bundled") == base_start.load_bundled_base().base_id


def test_another_width_than_the_starts_names_the_option(tmp_path):
    config = load_config(None, ["nets.width=16", f"storage={tmp_path}"])
    with pytest.raises(ConfigError, match=r"nets\.width = 24"):
        base_start.load_start("bundled", config.nets, 384, open_store(config.storage))
    with pytest.raises(ConfigError, match=r"nets\.width = 24 .*base\.start_from to random"):
        load_config(None, ["nets.width=16", f"storage={tmp_path}", "base.start_from=bundled"])
    nets = base_start.load_bundled_base().nets
    assert (nets.width, nets.disc_width) == BUNDLED_BASE_WIDTHS


def test_a_start_that_is_not_there_is_named(tmp_path):
    config = load_config(None, [f"storage={tmp_path}"])
    with pytest.raises(InputError, match="0123456789ab"):
        base_start.load_start("0123456789ab", config.nets, 384, open_store(config.storage))
    with pytest.raises((ConfigError, ValidationError), match="start_from"):
        load_config(None, [f"storage={tmp_path}", "base.start_from=../x"])


def test_a_damaged_bundled_base_is_refused(tmp_path):
    shutil.copytree(base_store.BUNDLED_BASE_DIR, tmp_path / "base")
    path = tmp_path / "base" / "generator.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        base_start.load_bundled_base(tmp_path / "base")


def test_the_bundled_base_does_its_edits_on_photos_the_teacher_has_not_seen():
    base = base_start.load_bundled_base()
    prompts = {concept.name: concept.prompt for concept in load_catalogue("bundled")}
    names = base.meta["concepts"]
    photo = square_photo(PHOTOS / "windmill-12.jpg", base.meta["resolution"])
    references = np.stack([edits.reference_edit(name, photo) for name in names])
    tokens_BTD = PromptEncoder(max_tokens=base.nets.text_tokens).encode([prompts[name] for name in names]).tokens_BTD
    photo_BCHW, reference_BCHW = _tensor(photo[None]).expand(len(names), -1, -1, -1), _tensor(references)
    with torch.no_grad():
        output_BCHW = base.generator(photo_BCHW, tokens_BTD).clamp(-1, 1)
        lpips = Lpips("alex")
        ours, unchanged = lpips(output_BCHW, reference_BCHW), lpips(photo_BCHW, reference_BCHW)
    assert float(ours.mean() / unchanged.mean()) < 0.5


def _tensor(images_BHWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_a_finished_base_can_be_packed_as_a_start(tmp_path):
    config, store = with_pairs(tmp_path / "run", images=8)
    base = load_base(store, train_base_local(config, store, CONCEPTS, SilentReporter()))
    packed_id = bundle_base.bundle_base(base, tmp_path / "packed")
    packed = base_start.load_bundled_base(tmp_path / "packed")
    assert packed.base_id == packed_id != base.base_id
    assert packed.meta["concepts"] == [concept.name for concept in CONCEPTS]
    assert packed.meta["images"] == 8
    for mine, theirs in ((base.generator, packed.generator), (base.discriminator, packed.discriminator)):
        for name, weight in mine.state_dict().items():
            assert torch.allclose(weight, theirs.state_dict()[name], atol=1e-3)
