"""`evaluate_outputs` end to end on the real default networks, and FID and CLIP on tiny given ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from e2gan_cluster.errors import InputError, UserError
from e2gan_cluster.evaluate.clip import ClipScorer
from e2gan_cluster.evaluate.features import FeatureNet
from e2gan_cluster.evaluate.metrics import DEFAULT_METRICS, MetricNets, evaluate_outputs


def photos(count: int = 8, side: int = 48, seed: int = 0) -> np.ndarray:
    """Smooth colour fields: cheap stand-ins with low-frequency content."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, size=(count, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(s).resize((side, side), Image.Resampling.BICUBIC)) for s in small])


def darker(images: np.ndarray, factor: float) -> np.ndarray:
    return (images * factor).round().astype(np.uint8)


@pytest.fixture(scope="module")
def nets() -> MetricNets:
    return MetricNets.load(DEFAULT_METRICS)


def test_perfect_outputs_reach_the_end_of_every_scale_and_all_values_are_json(nets):
    source, reference = photos(), darker(photos(), 0.4)
    values = evaluate_outputs(source, reference, reference, nets=nets)
    assert values["l1"] == values["lpips"] == 0
    assert values["psnr"] == 100
    assert values["ssim"] == pytest.approx(1, abs=1e-5)
    assert values["kid"] == pytest.approx(0, abs=1e-9)
    assert values["fd"] == pytest.approx(0, abs=1e-3)
    assert values["direction"] == pytest.approx(1, abs=1e-4)
    json.dumps(values, allow_nan=False)


def test_every_metric_prefers_a_close_output_to_the_untouched_photo(nets):
    source, reference = photos(), darker(photos(), 0.4)
    close = evaluate_outputs(source, reference, darker(source, 0.45), nets=nets)
    identity = evaluate_outputs(source, reference, source, nets=nets)
    for name in ("l1", "lpips", "kid", "fd"):
        assert close[name] < identity[name], name
    for name in ("psnr", "ssim", "direction"):
        assert close[name] > identity[name], name
    assert identity["direction"] == 0


def test_features_of_an_image_do_not_depend_on_its_batch_and_repeat_from_memory():
    net, images = FeatureNet(), photos(5)
    whole = net.features(images)
    alone = FeatureNet(cache_images=0).features(images[3:4])
    np.testing.assert_allclose(whole[3:4], alone, rtol=1e-3, atol=1e-4)
    net._forward = lambda images_NHWC: pytest.fail("computed again")
    np.testing.assert_array_equal(net.features(images[::-1]), whole[::-1])


@pytest.mark.parametrize("metrics", [["fid"], ["clip_text"], ["kidd"]])
def test_metrics_without_their_weights_or_misspelt_say_what_to_give(metrics):
    with pytest.raises(InputError) as error:
        MetricNets.load(metrics)
    assert error.value.fix


def test_sets_of_different_size_and_single_photos_are_refused(nets):
    with pytest.raises(InputError, match="shape"):
        evaluate_outputs(photos(3), photos(3), photos(2), ["l1"], nets)
    with pytest.raises(InputError, match="too few"):
        evaluate_outputs(photos(1), photos(1), photos(1), ["kid"], nets)


class TinyInception(torch.nn.Module):
    """The interface of the usual TorchScript file, on 12 colour averages."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1)
        return pooled if return_features else pooled.softmax(1)


def test_fid_runs_on_a_given_torchscript_network(tmp_path):
    path = tmp_path / "inception.pt"
    torch.jit.script(TinyInception()).save(str(path))
    nets = MetricNets.load(["fid"], inception=path)
    source, reference = photos(), darker(photos(), 0.4)
    near = evaluate_outputs(source, reference, darker(source, 0.45), ["fid"], nets)["fid"]
    assert 0 < near < evaluate_outputs(source, reference, source, ["fid"], nets)["fid"]


def test_a_file_that_is_no_torchscript_is_named(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"x\.pt"):
        MetricNets.load(["fid"], inception=tmp_path / "x.pt")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny random CLIP, saved as any CLIP is."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({t: i for i, t in enumerate(tokens)}, [], model_max_length=16)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(tokens), "max_position_embeddings": 16, "eos_token_id": len(tokens) - 1}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_clip_scores_run_on_a_given_folder_and_equal_transformers_own(clip_folder):
    from transformers import AutoTokenizer, CLIPModel

    source, reference = photos(4, 32), darker(photos(4, 32), 0.4)
    names = ["clip_image", "clip_text", "clip_direction"]
    nets = MetricNets.load(names, clip=str(clip_folder))
    values = evaluate_outputs(source, reference, reference, names, nets, prompt="dark")
    assert values["clip_direction"] == pytest.approx(1, abs=1e-4)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy(((reference / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    tokens = AutoTokenizer.from_pretrained(clip_folder)(["dark"], return_tensors="pt")
    model = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens)
    expected = float((output.image_embeds @ output.text_embeds.T).mean())
    assert values["clip_text"] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match="prompt"):
        evaluate_outputs(source, reference, reference, ["clip_text"], nets)


def test_a_clip_model_that_is_not_there_is_an_error_for_people(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        ClipScorer(str(tmp_path / "none"))
