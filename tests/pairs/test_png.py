"""The PNG writer of pair shards."""

import io

import numpy as np
import pytest
from PIL import Image

from e2gan_cluster.config import PhotosConfig
from e2gan_cluster.pairs.photos import list_photos, load_photo, square_crop
from e2gan_cluster.pairs.png import encode_png


def read(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (16, 17), (128, 128)])
def test_every_pixel_comes_back(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for image_HWC in (
        rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        np.zeros((*size, 3), np.uint8),
        np.full((*size, 3), 255, np.uint8),
    ):
        assert np.array_equal(read(encode_png(image_HWC)), image_HWC)


def test_the_same_picture_gives_the_same_bytes_however_it_lies_in_memory() -> None:
    image_HWC = np.random.default_rng(1).integers(0, 256, (48, 32, 3), dtype=np.uint8)
    other_HWC = np.ascontiguousarray(image_HWC.transpose(2, 1, 0)).transpose(2, 1, 0)
    assert encode_png(image_HWC) == encode_png(other_HWC) == encode_png(image_HWC.copy())


def test_photos_take_at_most_a_tenth_more_than_pillows_files() -> None:
    ours = theirs = 0
    for ref in list_photos(PhotosConfig(source="bundled"))[:6]:
        photo = load_photo(ref, 64)
        assert photo.image_HWC is not None
        image_HWC = square_crop(photo.image_HWC, 128, 0, photo.source_id)
        buffer = io.BytesIO()
        Image.fromarray(image_HWC).save(buffer, "PNG", compress_level=3)
        ours, theirs = ours + len(encode_png(image_HWC)), theirs + len(buffer.getvalue())
    assert ours <= 1.1 * theirs


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8)[..., None], np.zeros((4, 4, 3), np.float32)])
def test_other_pictures_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_png(image)
