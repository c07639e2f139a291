"""Every kind of image is read right or refused with keyglue's own error."""

from __future__ import annotations

import base64
import io
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from keyglue.base.errors import ImageError, InputError, MissingDependencyError
from keyglue.images.read import image_size, load_pixels, read_image

GRADIENT = np.add.outer(np.arange(20, dtype=np.uint8) * 3, np.arange(30, dtype=np.uint8) * 6)
COLOUR = np.stack([GRADIENT, GRADIENT[::-1], 255 - GRADIENT], axis=2)


def colour_picture() -> Image.Image:
    return Image.fromarray(COLOUR)


def test_colour_and_gray_files(assets, tmp_path):
    image = read_image(assets / "chelsea.png")
    assert image.shape == (3, 300, 451)
    assert image.dtype == torch.float32
    expected = np.asarray(Image.open(assets / "chelsea.png")).transpose(2, 0, 1)
    assert np.array_equal(image.numpy(), expected)
    assert read_image(str(assets / "brick.png")).shape == (1, 512, 512)
    assert image_size(assets / "chelsea.png") == (300, 451)


def test_file_url(assets):
    url = (assets / "brick.png").resolve().as_uri()
    assert torch.equal(read_image(url), read_image(assets / "brick.png"))
    assert image_size(url) == (512, 512)


def test_data_url():
    stream = io.BytesIO()
    colour_picture().save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    assert np.array_equal(read_image(url).numpy(), COLOUR.transpose(2, 0, 1))
    assert image_size(url) == (20, 30)
    with pytest.raises(ImageError, match="base64"):
        read_image("data:image/png;base64,@@@")
    with pytest.raises(ImageError, match="comma"):
        read_image("data:image/png")
    with pytest.raises(ImageError, match="not an image"):
        read_image("data:,hello")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_every_mode_of_pillow_is_close_to_its_colours(mode):
    source = colour_picture()
    if mode in ("LA", "La", "PA"):
        source = source.convert("L").convert("LA")
    picture = source.convert("RGBA") if mode == "RGBa" else source
    picture = picture.convert("LA").convert(mode) if mode in ("La", "PA") else picture.convert(mode)
    image = read_image(picture)
    gray = mode in ("1", "L", "LA", "La")
    assert image.shape == ((1 if gray else 3), 20, 30)
    assert image.min() >= 0
    assert image.max() <= 255
    if mode == "1":
        assert set(image.unique().tolist()) == {0.0, 255.0}
    elif mode not in ("P", "PA"):
        expected = np.asarray(source.convert("L" if gray else "RGB")).reshape(20, 30, -1).transpose(2, 0, 1)
        tolerance = {"LAB": 4, "HSV": 4, "YCbCr": 2}.get(mode, 0)
        assert np.abs(image.numpy() - expected).mean() <= tolerance


def test_palette_with_transparency_gets_black_there(tmp_path):
    picture = Image.new("P", (4, 2))
    picture.putpalette([250, 10, 20, 30, 240, 50] + [0] * 762)
    picture.putpixel((1, 0), 1)
    assert read_image(picture)[:, 0, :2].T.tolist() == [[250, 10, 20], [30, 240, 50]]
    picture.save(tmp_path / "p.png", transparency=0)
    image = read_image(tmp_path / "p.png")
    assert image[:, 0, :2].T.tolist() == [[0, 0, 0], [30, 240, 50]]
    picture.save(tmp_path / "q.png", transparency=bytes([128, 255]))
    assert read_image(tmp_path / "q.png")[:, 0, 0].tolist() == [125, 5, 10]


def test_transparency_is_black_and_opaque_images_are_untouched():
    rgba = np.dstack([COLOUR, np.full((20, 30), 255, np.uint8)])
    assert np.array_equal(read_image(Image.fromarray(rgba)).numpy(), COLOUR.transpose(2, 0, 1))
    rgba[:, :10, 3] = 0
    rgba[:, 10:20, 3] = 128
    image = read_image(Image.fromarray(rgba))
    assert (image[:, :, :10] == 0).all()
    half = COLOUR.transpose(2, 0, 1)[:, :, 10:20] * (128 / 255)
    assert np.abs(image[:, :, 10:20].numpy() - half).max() <= 0.51
    assert torch.equal(read_image(rgba), image)
    floats = read_image(rgba.astype(np.float32) / 255)
    assert (floats - image).abs().max() <= 0.51
    gray = np.dstack([GRADIENT, rgba[:, :, 3]])
    gray_image = read_image(Image.fromarray(gray))
    assert gray_image.shape == (1, 20, 30)
    assert (gray_image[:, :, :10] == 0).all()


def test_colour_key_transparency(tmp_path):
    colour_picture().save(tmp_path / "key.png", transparency=tuple(int(v) for v in COLOUR[0, 0]))
    image = read_image(tmp_path / "key.png")
    assert image[:, 0, 0].tolist() == [0, 0, 0]
    assert image[:, 5, 5].tolist() == COLOUR[5, 5].tolist()


@pytest.mark.parametrize(("name", "mode"), [("a.png", "I;16"), ("a.tif", "I;16"), ("a.pgm", "I")])
def test_16_bit_files_keep_their_precision(tmp_path, name, mode):
    values = (np.arange(600, dtype=np.uint16) * 109).reshape(20, 30)
    Image.fromarray(values).save(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        assert opened.mode == mode
    image = read_image(tmp_path / name)
    assert image.shape == (1, 20, 30)
    np.testing.assert_allclose(image[0].numpy(), values / 257, rtol=1e-6)
    assert len(image.unique()) == 600


def test_16_bit_big_endian():
    values = np.array([[0, 257, 65535]], dtype=">u2")
    picture = Image.frombytes("I;16B", (3, 1), values.tobytes())
    assert read_image(picture).tolist() == [[[0.0, 1.0, 255.0]]]
    assert read_image(values).tolist() == [[[0.0, 1.0, 255.0]]]


def test_32_bit_pillow_images():
    assert read_image(Image.fromarray(np.array([[0, 200]], dtype=np.int32))).tolist() == [[[0, 200]]]
    assert read_image(Image.fromarray(np.array([[0, 65535]], dtype=np.int32))).tolist() == [[[0, 255]]]
    with pytest.raises(ImageError, match="up to 70000"):
        read_image(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))
    with pytest.raises(ImageError, match="negative"):
        read_image(Image.fromarray(np.array([[-1, 7]], dtype=np.int32)))
    assert read_image(Image.fromarray(np.array([[0, 0.5]], dtype=np.float32))).tolist() == [[[0, 127.5]]]
    assert read_image(Image.fromarray(np.array([[0, 200.5]], dtype=np.float32))).tolist() == [[[0, 200.5]]]
    with pytest.raises(ImageError, match="NaN"):
        read_image(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)))


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    for name in ("a.gif", "a.png"):
        assert read_image(tmp_path / name)[:, 3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    from PIL import ImageOps

    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    colour_picture().save(path, exif=exif, quality=95)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(read_image(opened).numpy(), expected)
        assert image_size(opened) == expected.shape[1:]
    assert np.array_equal(read_image(path).numpy(), expected)
    assert image_size(path) == expected.shape[1:]
    assert expected.shape[1:] == ((30, 20) if orientation > 4 else (20, 30))


def test_nonsense_orientation_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 77
    colour_picture().save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (20, 30)


def test_lossless_and_lossy_formats(tmp_path):
    for suffix in ("bmp", "ppm", "webp", "jp2", "tga"):
        path = tmp_path / f"a.{suffix}"
        colour_picture().save(path, **({"lossless": True} if suffix == "webp" else {}))
        assert np.array_equal(read_image(path).numpy(), COLOUR.transpose(2, 0, 1)), suffix


# ------------------------------------------------------------------------------------------------ bad files


def test_truncated_files_are_refused(tmp_path, assets):
    for name in ("rocket.jpg", "chelsea.png"):
        content = (assets / name).read_bytes()
        for share in (0.02, 0.5, 0.9):
            path = tmp_path / name
            path.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(ImageError, match=name):
                read_image(path)


def test_files_that_are_no_images_are_refused(tmp_path):
    cases = {
        "empty.jpg": (b"", "empty"),
        "text.png": (b"this is a text, not an image", "not an image"),
        "noise.jpg": (np.random.default_rng(0).bytes(1000), "not an image"),
        "magic.png": (b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, "magic.png"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        for read in (read_image, image_size):
            with pytest.raises(ImageError, match=message) as caught:
                read(tmp_path / name)
            assert name in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match=r"nothing.jpg does not exist"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="empty text"):
        read_image("")
    with pytest.raises(InputError, match="NoneType"):
        read_image(None)
    with pytest.raises(InputError, match="list"):
        read_image([1, 2])


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_decompression_bombs_are_refused_before_decoding(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(png_header(50000, 50000))
    with pytest.raises(ImageError, match=r"bomb.png is refused as a possible decompression bomb"):
        read_image(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="decompression bomb"):
        image_size(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match="50000 x 50000 pixels, more than the 200000000"):
        read_image(tmp_path / "bomb.png")
    colour_picture().save(tmp_path / "small.png")
    with pytest.raises(ImageError, match="max_pixels"):
        read_image(tmp_path / "small.png", max_pixels=599)
    with pytest.raises(ImageError, match="max_pixels"):
        read_image(colour_picture(), max_pixels=599)
    assert read_image(tmp_path / "small.png", max_pixels=600).shape == (3, 20, 30)


def test_between_pillows_warning_and_error_the_warning_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    colour_picture().save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="decompression bomb"):  # warnings are errors here
        read_image(tmp_path / "a.png")


def test_50_megapixels_are_read(tmp_path):
    path = tmp_path / "large.png"
    Image.new("L", (8400, 6000), 7).save(path)
    assert image_size(path) == (6000, 8400)
    pixels = load_pixels(path, guess_range=True)
    assert pixels.shape == (1, 6000, 8400)
    assert pixels.dtype == torch.uint8
    assert pixels[0, -1, -1] == 7


def test_postscript_is_refused_and_not_run(tmp_path):
    colour_picture().save(tmp_path / "a.eps")
    with pytest.raises(ImageError, match="PostScript"):
        read_image(tmp_path / "a.eps")


def test_damaged_pillow_image(tmp_path, assets):
    content = (assets / "rocket.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "a.jpg") as picture, pytest.raises(ImageError, match="truncated"):
        read_image(picture)
    with pytest.raises(ImageError, match="Pillow image of mode RGB is empty"):
        read_image(Image.new("RGB", (0, 5)))


# ------------------------------------------------------------------------------------------------ HEIC


HEIC_HEAD = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"


def test_heic_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(HEIC_HEAD)
    with pytest.raises(MissingDependencyError, match=r"a\.heic.*pip install 'keyglue\[heif\]'"):
        read_image(tmp_path / "a.heic")


def test_heic_goes_through_its_library(tmp_path, monkeypatch):
    class Container:
        size = (30, 20)

        def __init__(self, file):
            assert Path(file).read_bytes() == HEIC_HEAD

        def to_pillow(self):
            return colour_picture()

    stub = types.ModuleType("pillow_heif")
    stub.open_heif = Container
    monkeypatch.setitem(sys.modules, "pillow_heif", stub)
    (tmp_path / "a.heic").write_bytes(HEIC_HEAD)
    assert np.array_equal(read_image(tmp_path / "a.heic").numpy(), COLOUR.transpose(2, 0, 1))
    assert image_size(tmp_path / "a.heic") == (20, 30)
    with pytest.raises(ImageError, match="max_pixels"):
        read_image(tmp_path / "a.heic", max_pixels=10)
