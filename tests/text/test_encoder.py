"""The prompt encoder: MiniLM from its package, CLIP from a folder."""

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from e2gan_cluster.errors import UserError
from e2gan_cluster.text.encoder import PromptEncoder, pool_tokens


@pytest.fixture(scope="module")
def minilm() -> PromptEncoder:
    return PromptEncoder("minilm")


def _save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A random CLIP text model with a character vocabulary."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77).save_pretrained(folder)
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=len(tokens) - 1,
        bos_token_id=len(tokens) - 2,
    )
    CLIPTextModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


def test_tokens_have_unit_rms_and_padding_rows_are_exactly_zero(minilm: PromptEncoder) -> None:
    embedding = minilm.encode(["make it an oil painting", ""])
    rms_BT = embedding.tokens_BTD.square().mean(-1).sqrt()
    num_real = (rms_BT > 0).sum(1).tolist()
    assert embedding.tokens_BTD.shape == (2, 24, minilm.dim) == (2, 24, 384)
    assert num_real == [7, 2]
    assert torch.allclose(rms_BT[0, :7], torch.ones(7), atol=1e-4)
    assert torch.allclose(embedding.pooled_BD.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.equal(embedding.pooled_BD, pool_tokens(embedding.tokens_BTD))


def test_an_embedding_does_not_depend_on_the_other_prompts(minilm: PromptEncoder) -> None:
    together = minilm.encode(["make it snow", "turn it into a very long and detailed drawing"])
    alone = PromptEncoder("minilm").encode(["make it snow"])
    assert torch.equal(together.tokens_BTD[0], alone.tokens_BTD[0])


def test_nearby_prompts_are_nearer_than_unrelated_ones(minilm: PromptEncoder) -> None:
    pooled_BD = minilm.encode(["a pencil sketch", "a charcoal drawing", "a snowy winter day"]).pooled_BD
    assert pooled_BD[0] @ pooled_BD[1] > pooled_BD[0] @ pooled_BD[2]


def test_a_prompt_that_is_too_long_is_cut_with_a_warning() -> None:
    encoder = PromptEncoder("minilm", max_tokens=8)
    with pytest.warns(UserWarning, match="cut to 8"):
        embedding = encoder.encode(["an oil painting with a great many words in its description"])
    assert embedding.tokens_BTD.shape == (1, 8, 384)
    assert bool((embedding.tokens_BTD != 0).any(-1).all())


def test_no_prompts_give_empty_tensors(minilm: PromptEncoder) -> None:
    assert minilm.encode([]).tokens_BTD.shape == (0, 24, 384)


def test_a_clip_text_model_loads_from_a_folder(tmp_path: Path) -> None:
    encoder = PromptEncoder(str(_save_tiny_clip(tmp_path / "clip")), max_tokens=16)
    embedding = encoder.encode(["make it gold", "snow"])
    assert encoder.dim == 32
    assert embedding.tokens_BTD.shape == (2, 16, 32)
    assert not torch.equal(embedding.pooled_BD[0], embedding.pooled_BD[1])


def test_the_fingerprint_names_weights_and_settings(tmp_path: Path, minilm: PromptEncoder) -> None:
    first = PromptEncoder(str(_save_tiny_clip(tmp_path / "a", seed=0)))
    second = PromptEncoder(str(_save_tiny_clip(tmp_path / "b", seed=1)))
    fingerprints = {first.fingerprint, second.fingerprint, minilm.fingerprint, PromptEncoder("minilm", 16).fingerprint}
    assert len(fingerprints) == 4
    assert PromptEncoder("minilm").fingerprint == minilm.fingerprint


def test_a_folder_without_a_text_model_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Can't load the prompt encoder") as caught:
        PromptEncoder(str(tmp_path))
    assert "minilm" in caught.value.fix
