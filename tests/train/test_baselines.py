import pytest
import torch

from e2gan_cluster.config import NetsConfig
from e2gan_cluster.errors import InputError
from e2gan_cluster.train.base_store import Base
from e2gan_cluster.train.baselines import BASELINES, train_baseline
from e2gan_cluster.train.nets import build_discriminator, build_generator
from tests.tiny_training import TEXT_DIM, tiny_config, tiny_data

NETS = NetsConfig(width=4, disc_width=4)


def _base() -> Base:
    return Base(build_generator(NETS, TEXT_DIM), build_discriminator(NETS, TEXT_DIM), NETS, "0" * 12, {}, TEXT_DIM)


@pytest.mark.parametrize("kind", BASELINES)
def test_every_baseline_trains_in_the_same_loop(kind):
    data = tiny_data(concepts=1)
    net = train_baseline(kind, data, tiny_config(images=8), NETS, seed=0, base=_base())
    x = torch.rand(1, 3, 32, 32)
    output = net(x, data.tokens_CTD[:1])
    assert output.shape == x.shape
    assert torch.equal(output, x) == (kind == "identity")


def test_fine_tune_leaves_the_base_as_it_was():
    base = _base()
    before = {name: t.clone() for name, t in base.generator.state_dict().items()}
    train_baseline("finetune", tiny_data(concepts=1), tiny_config(images=8), NETS, seed=0, base=base)
    assert all(torch.equal(t, before[name]) for name, t in base.generator.state_dict().items())


def test_fine_tune_without_a_base_is_an_error():
    with pytest.raises(InputError, match="base"):
        train_baseline("finetune", tiny_data(), tiny_config(images=8), NETS, seed=0)
