"""Training of the bundled teacher and fine-tuning, on tiny networks and real photos."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix import (
    StableDiffusionInstructPix2PixPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import e2gan_cluster
from e2gan_cluster.concepts import load_catalogue, shipped_catalogue
from e2gan_cluster.errors import InputError, TeacherError, TrainingError
from e2gan_cluster.evaluate.lpips import Lpips
from e2gan_cluster.teacher.bundled import PromptPooledUNet, assemble_pipeline, build_unet
from e2gan_cluster.teacher.training import bundled_job, cli, edits
from e2gan_cluster.teacher.training.bundled_loss import draw_timesteps
from e2gan_cluster.teacher.training.finetune import FinetuneConfig, TripleShards, finetune, load_model
from e2gan_cluster.teacher.training.loop import LoopConfig, Trainer, train
from e2gan_cluster.teacher.training.measure import LpipsEmbedding, contact_sheet, measure, single_tasks
from e2gan_cluster.teacher.training.triples import (
    SETTING_PHRASES,
    TripleFeed,
    TripleSampler,
    build_cache,
    is_held_out,
    load_wordings,
    square_photo,
)
from e2gan_cluster.text.encoder import PromptEncoder

PHOTOS = Path(e2gan_cluster.__file__).parent / "assets" / "photos"
TINY = (16, 16, 32)


@pytest.fixture(scope="module")
def two_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("coffee.jpg", "chelsea.jpg"):
        shutil.copy(PHOTOS / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def cache(two_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    build_cache(two_photos, folder, crops=1)
    return folder


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return square_photo(PHOTOS / "chelsea.jpg", 128)


class Line(torch.nn.Module):
    """y = w x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1, 1))
        self.b = torch.nn.Parameter(torch.zeros(1))


def _fit(model: Line) -> Callable[[int, float], torch.Tensor]:
    def loss_of(_images_seen: int, _progress: float) -> torch.Tensor:
        x = torch.randn(8, 1)
        return (x @ model.w + model.b - (3 * x + 1)).square().mean()

    return loss_of


def _weights(trainer: Trainer) -> list[float]:
    return [float(p) for p in (*trainer.params.values(), *trainer.ema.values())]


# --- the loop ---


def test_a_killed_run_continues_to_the_same_weights_as_an_unbroken_one(tmp_path: Path) -> None:
    config = LoopConfig(images=320, batch_size=8, learning_rate=0.3, warmup_images=0, ema_every=2, checkpoint_every_s=0)
    whole = Trainer(Line(), config)
    train(whole, _fit(whole.model), tmp_path / "whole")  # pyright: ignore[reportArgumentType]

    broken = Trainer(Line(), config)
    loss_of = _fit(broken.model)  # pyright: ignore[reportArgumentType]

    def killed(images_seen: int, progress: float) -> torch.Tensor:
        if images_seen == 72:
            raise KeyboardInterrupt
        return loss_of(images_seen, progress)

    with pytest.raises(KeyboardInterrupt):
        train(broken, killed, tmp_path / "broken")
    again = Trainer(Line(), config)
    train(again, _fit(again.model), tmp_path / "broken")  # pyright: ignore[reportArgumentType]
    assert _weights(again) == _weights(whole)
    assert abs(_weights(whole)[0] - 3) < 1


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(tmp_path: Path) -> None:
    trainer = Trainer(Line(), LoopConfig(images=16, batch_size=8))
    with pytest.raises(TrainingError, match="The loss is nan after 0 images"):
        train(trainer, lambda _seen, _progress: trainer.params["w"].sum() * float("nan"), tmp_path)
    assert _weights(trainer) == [0.0] * 4


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    Trainer(Line(), LoopConfig(images=8)).save(tmp_path)
    with pytest.raises(TrainingError, match="another network"):
        Trainer(torch.nn.Conv2d(1, 1, 1), LoopConfig(images=8)).load(tmp_path)


def test_noise_levels_start_high_and_widen() -> None:
    torch.manual_seed(0)
    early, late = draw_timesteps(2000, 0.0), draw_timesteps(2000, 1.0)
    assert early.min() >= 600
    assert (early == 999).float().mean() > 0.6
    assert late.min() < 220
    assert 0.4 < (late == 999).float().mean() < 0.5


# --- reference edits and triples ---


def test_every_reference_edit_changes_the_photo_and_repeats_itself(photo: np.ndarray) -> None:
    for name in edits.EDIT_NAMES:
        edited = edits.reference_edit(name, photo)
        assert (edited.shape, edited.dtype) == (photo.shape, np.uint8), name
        assert np.abs(edited.astype(int) - photo.astype(int)).mean() > 5, name
        assert np.array_equal(edited, edits.reference_edit(name, photo)), name


def test_reference_edits_differ_from_each_other(photo: np.ndarray) -> None:
    flat = np.stack([edits.reference_edit(name, photo).reshape(-1).astype(np.float32) for name in edits.EDIT_NAMES])
    distances = torch.cdist(torch.from_numpy(flat), torch.from_numpy(flat), p=1) / flat.shape[1]
    assert float((distances + 1e9 * torch.eye(len(flat))).min()) > 4


def test_the_catalogue_has_every_reference_edit_with_at_least_three_wordings() -> None:
    concepts = load_wordings(shipped_catalogue("bundled"))
    assert {concept.name for concept in concepts} == set(edits.EDIT_NAMES)
    assert min(len(concept.prompts) for concept in concepts) >= 3
    prompts = [prompt for concept in concepts for prompt in concept.prompts]
    assert len(prompts) == len(set(prompts))


def test_draws_depend_on_images_seen_only_and_never_on_left_out_compositions(cache: Path) -> None:
    concepts = load_wordings(shipped_catalogue("bundled"))
    sampler = TripleSampler(cache, concepts, seed=3)
    first, again = sampler.draw(640, 8), TripleSampler(cache, concepts, seed=3).draw(640, 8)
    assert [t.prompt for t in first] == [t.prompt for t in again]
    assert all(np.array_equal(a.edited, b.edited) for a, b in zip(first, again, strict=True))
    drawn = {triple.edit for seen in range(0, 4000, 16) for triple in sampler.draw(seen, 2)}
    composed = [name.split("+") for name in drawn if "+" in name]
    assert len(composed) > 20
    assert not any(is_held_out(look, setting) for look, setting in composed)


def test_batches_drawn_ahead_by_other_processes_are_the_same_also_after_a_jump(cache: Path) -> None:
    sampler = TripleSampler(cache, load_wordings(shipped_catalogue("bundled")), seed=3)
    alone, ahead = TripleFeed(sampler, batch_size=2), TripleFeed(sampler, batch_size=2, workers=2)
    for images_seen in (640, 642, 644, 100, 102):
        expected, batch = alone(images_seen), ahead(images_seen)
        assert batch.prompts == expected.prompts
        assert torch.equal(batch.edits_BHWC, expected.edits_BHWC)
    assert [t.prompt for t in sampler.draw(100, 2)] == alone(100).prompts


def test_the_composed_catalogue_uses_the_phrases_of_training() -> None:
    settings = yaml.safe_load(shipped_catalogue("composed").read_text())["compose"]["settings"]
    assert {s["name"]: (s["prompt"], *s["wordings"]) for s in settings} == SETTING_PHRASES


def test_no_prompt_of_the_shipped_catalogues_is_cut() -> None:
    encoder = PromptEncoder("minilm")
    concepts = [concept for name in ("bundled", "composed") for concept in load_catalogue(name)]
    prompts = {prompt for concept in concepts for prompt in (concept.prompt, *concept.wordings)}
    lengths = {prompt: len(encoder.tokenizer(prompt)["input_ids"]) for prompt in prompts}
    assert [prompt for prompt, length in lengths.items() if length > encoder.max_tokens] == []


def test_an_unknown_concept_in_a_catalogue_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("- {name: moon-cheese, prompt: a, wordings: [b, c]}\n")
    with pytest.raises(InputError, match="moon-cheese"):
        load_wordings(tmp_path / "bad.yaml")


# --- the bundled teacher's job ---


def test_the_job_trains_and_exports_weights_that_load(two_photos: Path, cache: Path, tmp_path: Path) -> None:
    loop = LoopConfig(images=8, batch_size=4, warmup_images=4)
    state = bundled_job.train_bundled(
        two_photos, tmp_path, shipped_catalogue("bundled"), loop, cache=cache, channels=TINY, crops=1
    )
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert state.images_seen == 8
    assert np.isfinite(log[-1]["loss"])
    PromptPooledUNet.from_pretrained(tmp_path / "unet")
    # Subnormal numbers are back for the rest of the process.
    assert float(torch.tensor([1e-40]) * 0.5) > 0


def test_measuring_gives_figures_and_a_contact_sheet(two_photos: Path) -> None:
    pipe = assemble_pipeline(build_unet(TINY))
    tasks = single_tasks(load_wordings(shipped_catalogue("bundled")))[:3]
    paths = sorted(two_photos.iterdir())
    report = measure(pipe, paths, tasks)
    assert report.num_photos == 2
    assert report.num_tasks == 3
    # An untrained network returns the photo.
    assert report.perceptual_ratio == pytest.approx(1, abs=0.02)
    assert report.l1_teacher_reference == pytest.approx(report.l1_photo_reference, abs=0.01)
    assert contact_sheet(pipe, paths, tasks, cell_px=16).size == (150 + 2 * 16 * 2, 16 * 4)


def test_squared_distances_of_the_vectors_are_lpips(photo: np.ndarray) -> None:
    a_BCHW = torch.rand(2, 3, 64, 64) * 2 - 1
    vectors = LpipsEmbedding("alex")(a_BCHW)
    assert float((vectors[0] - vectors[1]).square().sum()) == pytest.approx(
        float(Lpips("alex")(a_BCHW[:1], a_BCHW[1:])), rel=1e-3
    )


# --- fine-tuning ---


def _save_tiny_pipeline(folder: Path, in_channels: int = 8) -> Path:
    characters = [chr(code) for code in range(33, 127)]
    tokens = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = folder.parent / "vocab"
    vocabulary.mkdir(parents=True)
    (vocabulary / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (vocabulary / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    unet = UNet2DConditionModel(
        in_channels=in_channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        norm_num_groups=8,
    )
    StableDiffusionInstructPix2PixPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt"), model_max_length=77),
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def _png(image: np.ndarray) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def triples(tmp_path: Path, photo: np.ndarray) -> Path:
    folder = tmp_path / "triples"
    folder.mkdir()
    rows = [
        {"input_image": _png(photo), "edited_image": _png(255 - photo), "edit_prompt": f"invert {i}", "status": status}
        for i, status in enumerate(["ok", "ok", "flat", "ok"])
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet")
    return folder


def test_finetuning_a_pipeline_from_a_folder_changes_only_its_unet(tmp_path: Path, triples: Path) -> None:
    model = _save_tiny_pipeline(tmp_path / "model")
    loop = LoopConfig(images=8, batch_size=2, learning_rate=1e-3, warmup_images=0, ema_every=1)
    state = finetune(triples, str(model), tmp_path / "out", loop, FinetuneConfig(resolution=32))
    before, after = load_model(str(model)), load_model(str(tmp_path / "out" / "pipeline"))
    assert state.images_seen == 8
    assert torch.equal(before.vae.encoder.conv_in.weight, after.vae.encoder.conv_in.weight)
    assert not torch.equal(before.unet.conv_in.weight, after.unet.conv_in.weight)
    image = Image.new("RGB", (32, 32), "red")
    after.set_progress_bar_config(disable=True)
    output: Any = after(prompt="invert", image=image, num_inference_steps=2)
    assert output.images[0].size == (32, 32)


def test_finetuning_the_bundled_teacher_learns_from_the_triples(tmp_path: Path) -> None:
    red = np.full((64, 64, 3), (220, 20, 20), np.uint8)
    rows = [{"input_image": _png(255 - red), "edited_image": _png(red), "edit_prompt": "zap it"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "part-0.parquet")
    loop = LoopConfig(images=80, batch_size=4, learning_rate=1e-3, warmup_images=0, log_every_s=0)
    finetune(tmp_path, "bundled", tmp_path / "out", loop, FinetuneConfig(resolution=32))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    PromptPooledUNet.from_pretrained(tmp_path / "out" / "unet")


def test_rows_that_failed_a_filter_are_left_out_and_all_others_come_once_an_epoch(triples: Path) -> None:
    shards = TripleShards(triples, seed=1)
    prompts = [shards.draw(seen, 1, 16)[2][0] for seen in range(3)]
    assert sorted(prompts) == ["invert 0", "invert 1", "invert 3"]


def test_shards_without_the_columns_are_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [1]}), tmp_path / "odd.parquet")
    with pytest.raises(InputError, match=r"odd\.parquet lacks the columns"):
        TripleShards(tmp_path)


def test_a_model_that_takes_no_photo_is_refused(tmp_path: Path) -> None:
    folder = _save_tiny_pipeline(tmp_path / "text-to-image", in_channels=4)
    with pytest.raises(TeacherError, match="no photo editor"):
        load_model(str(folder))


def test_the_command_reports_bad_input_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["--triples", str(tmp_path), "--out", str(tmp_path / "out")])
    assert code == 2
    assert "No .parquet files" in capsys.readouterr().err
