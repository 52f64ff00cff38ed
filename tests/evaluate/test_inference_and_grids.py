"""Running generators over photos, and the pictures made of the results."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from e2gan_cluster.evaluate.grids import grid_png, read_grid, side_by_side
from e2gan_cluster.evaluate.inference import run_generator, to_signed, to_uint8


def images(count: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, size=(count, side, side, 3), dtype=np.uint8)


class AddPrompt(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.drop = torch.nn.Dropout(0.9)

    def forward(self, x_BCHW: torch.Tensor, text_BTD: torch.Tensor) -> torch.Tensor:
        return self.drop(x_BCHW) * self.weight + text_BTD.mean((1, 2))[:, None, None, None]


def test_bytes_survive_the_way_to_the_network_and_back():
    photos = images(3)
    assert (to_uint8(to_signed(photos)) == photos).all()


def test_generator_runs_in_batches_in_evaluation_mode_and_is_left_as_it_was():
    generator = AddPrompt().train()
    photos = images(5)
    edits = run_generator(generator, photos, torch.zeros(4, 8), batch_size=2)
    assert (edits == photos).all()
    assert generator.training
    assert (run_generator(generator, photos, np.full((4, 8), 5.0, np.float32)) == 255).all()
    assert run_generator(generator, photos[:0], torch.zeros(4, 8)).shape == (0, 16, 16, 3)


def test_grid_has_a_column_per_label_and_short_columns_end_earlier():
    picture = Image.open(io.BytesIO(grid_png({"photo": images(3), "a long label that is cut": images(2)}, max_rows=2)))
    assert picture.size == (2 * 20 + 4, 20 + 2 * 20 + 4)
    first = np.asarray(picture)[20:36, 4:20]
    assert (first == images(3)[0]).all()
    with pytest.raises(ValueError, match="at least one"):
        grid_png({})


def test_hostile_labels_cost_no_pixel_of_the_pictures_and_come_back_as_they_were():
    columns = {"\x00\n<script> \u202e 雪": images(1, 32), "": images(2, 32)[:1], "x" * 10_000: images(3, 32)[:1]}
    png = side_by_side({label: pictures[0] for label, pictures in columns.items()}, cell=32)
    assert Image.open(io.BytesIO(png)).size == (3 * 36 + 4, 20 + 36 + 4)
    back = read_grid(png)
    assert list(back) == list(columns)
    assert all((back[label] == columns[label]).all() for label in columns)


def test_a_grid_is_cut_up_into_the_pictures_it_was_made_of():
    columns = {"photo": images(3), 'teacher "x" ü': images(2), "none": images(0)}
    back = read_grid(grid_png(columns))
    assert list(back) == list(columns)
    assert all((back[label] == columns[label]).all() for label in columns)


def test_pictures_that_are_no_grids_or_damaged_ones_are_read_as_nothing():
    png = grid_png({"photo": images(3)})
    for data in (b"", png[: len(png) // 2], png.replace(b'"photo": 3', b'"photo": 9'), b"\x89PNG"):
        assert read_grid(data) == {}
