import numpy as np
import pytest
import torch

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import ConfigError
from e2gan_cluster.train.base_concepts import choose_base_concepts, representatives

THEMES = np.eye(4, 8, dtype=np.float32)
CATALOGUE = [Concept(f"{theme}-{i}", f"{theme} {i}") for theme in ("oil", "snow", "hair", "neon") for i in range(3)]


class _Encoder:
    """Prompts of one theme lie together; number 1 in the middle."""

    def encode(self, prompts):
        rows = []
        for prompt in prompts:
            theme, number = prompt.split()
            row = THEMES[("oil", "snow", "hair", "neon").index(theme)].copy()
            row[4:7] = 0.1 * (int(number) - 1)
            rows.append(row)
        self.pooled_BD = torch.from_numpy(np.stack(rows))
        self.tokens_BTD = self.pooled_BD[:, None]
        return self


def _config(**concepts) -> RunConfig:
    return RunConfig.model_validate({"concepts": concepts})


def test_one_concept_of_every_theme_is_chosen_and_says_whom_it_stands_for():
    choice = choose_base_concepts(_config(base_count=4), CATALOGUE, _Encoder())
    assert choice.names == ("oil-1", "snow-1", "hair-1", "neon-1")
    assert choice.reasons["oil-1"] == "nearest to the centre of 3 prompts; stands for oil-0, oil-2"


def test_same_seed_chooses_the_same_random_concepts():
    draws = [
        choose_base_concepts(_config(base_count=4, base_selection="random"), CATALOGUE, _Encoder()).names
        for _ in range(2)
    ]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 4


def test_named_concepts_are_taken_as_they_are():
    assert choose_base_concepts(_config(base=["snow-2"]), CATALOGUE, _Encoder()).names == ("snow-2",)


def test_new_concepts_are_not_chosen_for_the_base():
    choice = choose_base_concepts(_config(base_count=4, new=["oil-1"]), CATALOGUE, _Encoder())
    assert "oil-1" not in choice.names


def test_asking_for_more_than_there_are_names_the_option():
    with pytest.raises(ConfigError, match=r"concepts\.base_count = 20.*12"):
        choose_base_concepts(_config(base_count=20), CATALOGUE, _Encoder())


def test_equal_prompts_still_give_as_many_as_asked():
    assert len(representatives(np.ones((5, 3), np.float32), 4, seed=0)) == 4
