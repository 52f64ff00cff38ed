"""Every kind of photo becomes upright RGB; every bad one a reason."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from e2gan_cluster.pairs.photos import STATUS_HELP, decode_photo, source_id, split_of, square_crop


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    photo = decode_photo(data, 64)
    assert photo.status == "ok"
    assert photo.image_HWC is not None
    assert photo.image_HWC.dtype == np.uint8
    assert photo.image_HWC.shape[2] == 3
    return photo.image_HWC


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (40, 20), left)
    image.paste(right, (20, 0, 40, 20))
    return image


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_common_formats_keep_their_colours(form):
    pixels = decoded(encoded(halves((200, 30, 30), (30, 30, 200)), form)).astype(int)
    assert abs(pixels[10, 5] - [200, 30, 30]).max() < 12
    assert abs(pixels[10, 35] - [30, 30, 200]).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_by_its_orientation(orientation):
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {
        1: lambda i: i,
        2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda i: i.transpose(Image.Transpose.ROTATE_180),
        4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
        6: lambda i: i.transpose(Image.Transpose.ROTATE_90),
        7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
        8: lambda i: i.transpose(Image.Transpose.ROTATE_270),
    }
    stored = undo[orientation](upright)
    np.testing.assert_array_equal(decoded(encoded(stored, "PNG", exif=exif)), np.asarray(upright))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode):
    image = halves((255, 0, 0, 255), (0, 0, 255, 0), "RGBA")
    data = encoded(image.convert(mode) if mode == "LA" else image.quantize(4) if mode == "P" else image)
    pixels = decoded(data)
    assert (pixels[10, 35] == 255).all()
    assert (pixels[10, 5] != 255).any()


def test_a_transparent_colour_key_becomes_white():
    data = encoded(halves((255, 0, 0), (0, 0, 255)), "PNG", transparency=(0, 0, 255))
    assert decoded(data)[10, 35].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    ramp_HW = np.linspace(0, 65535, 40 * 20).reshape(20, 40).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        pixels = decoded(encoded(Image.fromarray(ramp_HW), form))[..., 0].astype(int)
        assert abs(pixels - ramp_HW / 257).max() <= 1


def test_float_tiff_in_unit_range_is_scaled_and_nan_is_refused():
    ramp_HW = np.linspace(0, 1, 40 * 20, dtype=np.float32).reshape(20, 40)
    assert decoded(encoded(Image.fromarray(ramp_HW), "TIFF")).max() == 255
    ramp_HW[3, 3] = np.nan
    assert decode_photo(encoded(Image.fromarray(ramp_HW), "TIFF"), 64).status == "unsupported-pixels"


def test_cmyk_jpeg_is_converted():
    pixels = decoded(encoded(halves((200, 30, 30), (30, 30, 200)).convert("CMYK"), "JPEG")).astype(int)
    assert pixels[10, 5, 0] > 150 > 100 > pixels[10, 5, 2]


def test_one_bit_and_grey_images_become_rgb():
    for mode in ("1", "L"):
        assert decoded(encoded(halves((255, 255, 255), (0, 0, 0)).convert(mode)))[10, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(form):
    first, second = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))
    pixels = decoded(encoded(first, form, save_all=True, append_images=[second]))
    assert pixels[16, 16, 0] > 200 > 50 > pixels[16, 16, 2]


def test_a_photo_from_a_list_is_judged_by_content_not_by_name(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (32, 32), "red").save(path, "JPEG")
    assert decode_photo(path.read_bytes(), 64).status == "ok"


def test_an_embedded_colour_profile_is_no_obstacle():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decoded(encoded(Image.new("RGB", (32, 32), "red"), "JPEG", icc_profile=profile)).shape == (32, 32, 3)


def test_damaged_metadata_does_not_cost_the_photo():
    data = encoded(Image.new("RGB", (32, 32), "red"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\xff\xff")
    assert decode_photo(data, 64).status == "ok"


def test_the_pixel_limit_is_the_configured_one():
    data = encoded(Image.new("RGB", (1000, 1000)))
    assert decode_photo(data, 1.0).status == "ok"
    assert decode_photo(data, 0.99).status == "too-many-pixels"


def test_any_cut_of_a_photo_is_a_reason_and_never_an_exception():
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 255, (24, 24, 3), dtype=np.uint8)), form)
        for end in range(0, len(data) - 8, max(1, len(data) // 40)):
            photo = decode_photo(data[:end], 64)
            assert photo.status in STATUS_HELP
            assert (photo.image_HWC is None) == (photo.status != "ok")


def test_any_flipped_byte_is_a_status_and_never_an_exception():
    rng = np.random.default_rng(2)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = bytearray(encoded(Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)), form))
        for _ in range(60):
            place = int(rng.integers(0, min(len(data), 400)))
            old, data[place] = data[place], int(rng.integers(0, 256))
            assert decode_photo(bytes(data), 1).status in STATUS_HELP
            data[place] = old


def test_a_split_depends_on_content_alone_and_has_the_asked_share():
    ids = [source_id(str(i).encode()) for i in range(2000)]
    heldout = [i for i in ids if split_of(i, 0.25) == "heldout"]
    assert 400 < len(heldout) < 600
    assert set(heldout) <= {i for i in ids if split_of(i, 0.4) == "heldout"}


def test_the_first_photos_in_hash_order_are_not_of_one_split():
    ids = sorted(source_id(str(i).encode()) for i in range(2000))[:400]
    assert 60 < sum(split_of(i, 0.25) == "heldout" for i in ids) < 140


def test_crop_zero_is_the_centre_and_others_repeat_by_photo_and_number():
    image_HWC = np.random.default_rng(3).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    name = source_id(b"photo")
    centre = np.asarray(Image.fromarray(image_HWC[:, 15:75]).resize((32, 32), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(square_crop(image_HWC, 32, 0, name), centre)
    crops = [square_crop(image_HWC, 32, crop, name) for crop in range(4)]
    assert all(crop.shape == (32, 32, 3) and crop.dtype == np.uint8 for crop in crops)
    assert len({crop.tobytes() for crop in crops}) == 4
    np.testing.assert_array_equal(crops[2], square_crop(image_HWC.copy(), 32, 2, name))
    assert not np.array_equal(crops[2], square_crop(image_HWC, 32, 2, source_id(b"other")))
