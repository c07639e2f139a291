"""A folder to a store: the same features as one by one, resumed, with masks, tiles, turned and broken images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from keyglue.base.errors import InputError, StoreError
from keyglue.images.read import load_pixels
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.executor import DeviceExecutor
from keyglue.reconstruction.extract import Masks, extract_images, find_images
from keyglue.reconstruction.record import ImageRecord
from keyglue.reconstruction.store import FeatureStore
from keyglue.reconstruction.tiling import SMALLEST_TILE, describe_tiled

MakeMatcher = Callable[..., Matcher]


def test_images_of_a_folder_are_found_below_it_too(names: list[str], photos: Path) -> None:
    (photos / "notes.txt").write_text("no image")
    (photos / ".hidden.jpg").write_text("no image either")
    assert find_images(photos) == sorted(names)
    with pytest.raises(InputError, match="is not a folder"):
        find_images(photos / "a1.png")
    (photos.parent / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        find_images(photos.parent / "empty")


def test_the_store_holds_what_the_matcher_finds(
    names: list[str], photos: Path, tmp_path: Path, matcher: Matcher
) -> None:
    seen: list[tuple[str, int, int]] = []
    report = extract_images(photos, names, tmp_path / "f.h5", matcher, progress=lambda *what: seen.append(what))
    assert (report.done, report.kept, report.failed) == (5, 0, {})
    assert seen == [("extract", done, 5) for done in range(6)]
    with FeatureStore(tmp_path / "f.h5") as store:
        for name in names:
            found, single = store.load(name), matcher.extract(photos / name)
            assert len(single) > 50
            assert (found.image_size, found.original_size) == (single.image_size, single.original_size)
            assert torch.allclose(found.keypoints, single.keypoints, atol=1e-4)
            assert torch.allclose(found.descriptors, single.descriptors, atol=1e-3)
            assert store.record(name).size == single.original_size
        assert store.header["weights"]


def test_only_what_is_missing_or_has_changed_is_done_again(
    names: list[str], photos: Path, tmp_path: Path, matcher: Matcher
) -> None:
    store = tmp_path / "f.h5"
    extract_images(photos, names[:3], store, matcher)
    with FeatureStore(store) as features:
        before = {name: features.digest(name) for name in names[:3]}
    os.utime(photos / "a2.png")  # newer, but the same
    shutil.copy(photos / "b1.png", photos / "a1.png")  # another picture
    report = extract_images(photos, names, store, matcher)
    assert (report.done, report.kept) == (3, 2)
    with FeatureStore(store) as features:
        after = {name: features.digest(name) for name in names}
    assert after["a1.png"] == after["b1.png"] != before["a1.png"]
    assert after["a2.png"] == before["a2.png"]
    assert extract_images(photos, names, store, matcher).kept == 5


def test_another_model_or_setting_is_noticed(
    names: list[str], make_matcher: MakeMatcher, photos: Path, tmp_path: Path, matcher: Matcher
) -> None:
    extract_images(photos, names[:1], tmp_path / "f.h5", matcher)
    with pytest.raises(StoreError, match=r"image .*longest_edge"):
        extract_images(photos, names, tmp_path / "f.h5", make_matcher(resize=200))
    with pytest.raises(StoreError, match=r"detector .*max_keypoints"):
        extract_images(photos, names, tmp_path / "f.h5", make_matcher(max_keypoints=90))
    with pytest.raises(StoreError, match="equalize"):
        extract_images(photos, names, tmp_path / "f.h5", make_matcher(equalize=False))
    other = make_matcher()
    with torch.no_grad():
        other.model.keypoint_detector.keypoint_decoder.conv_score_b.bias.add_(1e-3)  # type: ignore[union-attr]
    with pytest.raises(StoreError, match="weights"):
        extract_images(photos, names, tmp_path / "f.h5", other)
    with pytest.raises(StoreError, match="masks"):
        extract_images(photos, names, tmp_path / "f.h5", matcher, masks=Masks(colour=(0, 0, 0)))


def test_a_broken_image_is_left_out_and_named(names: list[str], photos: Path, tmp_path: Path, matcher: Matcher) -> None:
    store = tmp_path / "f.h5"
    extract_images(photos, names, store, matcher)
    data = (photos / "a2.png").read_bytes()
    (photos / "a2.png").write_bytes(data[: len(data) // 2])
    (photos / "b1.png").write_bytes(b"")
    (photos / "b2.png").unlink()
    report = extract_images(photos, names, store, matcher)
    assert set(report.failed) == {"a2.png", "b1.png", "b2.png"}
    assert "truncated" in report.failed["a2.png"]
    assert "0 bytes" in report.failed["b1.png"]
    assert "does not exist" in report.failed["b2.png"]
    with FeatureStore(store) as features:
        assert features.names() == ["a1.png", "sub/a3.png"]  # features of what is no longer there are no use
    (photos / "a2.png").write_bytes(data)
    assert extract_images(photos, names, store, matcher).done == 1


def test_masks_from_a_folder(names: list[str], photos: Path, tmp_path: Path, matcher: Matcher) -> None:
    masks = tmp_path / "masks"
    (masks / "sub").mkdir(parents=True)
    left = np.zeros((320, 420), dtype=np.uint8)
    left[:, :150] = 255
    Image.fromarray(left).save(masks / "a1.png.png")
    Image.fromarray(left).save(masks / "sub" / "a3.png")
    Image.fromarray(left[:50]).save(masks / "a2.png")
    chosen = Masks(folder=masks)
    report = extract_images(photos, names, tmp_path / "f.h5", matcher, masks=chosen)
    assert set(report.failed) == {"a2.png"}
    assert "the mask is of size (50, 420)" in report.failed["a2.png"]
    with FeatureStore(tmp_path / "f.h5") as store:
        for name in ("a1.png", "sub/a3.png"):
            points = store.keypoints(name)
            assert len(points) > 20
            assert points[:, 0].max() < 150 + 8  # a keypoint is refined by up to three pixels of the small image
        assert store.keypoints("b1.png")[:, 0].max() > 200
    Image.fromarray(255 - left).save(masks / "a1.png.png")
    assert extract_images(photos, names, tmp_path / "f.h5", matcher, masks=chosen).done == 1
    with FeatureStore(tmp_path / "f.h5") as store:
        assert store.keypoints("a1.png")[:, 0].min() > 150 - 8


def test_a_colour_that_is_left_out(photos: Path, tmp_path: Path, matcher: Matcher) -> None:
    pixels = np.asarray(Image.open(photos / "a1.png")).copy()
    pixels[:, 200:] = (3, 0, 5)  # nearly black, as JPEG would make it
    Image.fromarray(pixels).save(photos / "a1.png")
    extract_images(photos, ["a1.png"], tmp_path / "plain.h5", matcher)
    extract_images(photos, ["a1.png"], tmp_path / "masked.h5", matcher, masks=Masks(colour=(0, 0, 0)))
    with FeatureStore(tmp_path / "plain.h5") as plain, FeatureStore(tmp_path / "masked.h5") as masked:
        at_the_edge = plain.keypoints("a1.png")[:, 0] > 196
        assert at_the_edge.any()
        assert masked.keypoints("a1.png")[:, 0].max() < 200
        assert len(masked.keypoints("a1.png")) > 40


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """Return the picture as a camera stores it that is held another way."""
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    return picture if back is None else picture.transpose(back)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_has_upright_keypoints_and_keeps_its_orientation(
    photos: Path, tmp_path: Path, matcher: Matcher, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110] = orientation, "ACME", "One"
    exif.get_ifd(0x8769).update({0x920A: 4.5, 0xA405: 28})
    exif.get_ifd(0x8825).update({1: "S", 2: (10.0, 30.0, 0.0), 3: "E", 4: (20.0, 0.0, 36.0), 5: b"\0", 6: 12.5})
    with Image.open(photos / "a1.png") as picture:
        picture.load()
    turned(picture, orientation).save(photos / "turned.png", exif=exif)
    extract_images(photos, ["a1.png", "turned.png"], tmp_path / "f.h5", matcher)
    with FeatureStore(tmp_path / "f.h5") as store:
        assert np.array_equal(store.keypoints("turned.png"), store.keypoints("a1.png"))
        record = store.record("turned.png")
    assert record.orientation == orientation
    assert record.size == (320, 420)
    assert record.stored_size == ((420, 320) if orientation > 4 else (320, 420))
    assert record.camera == "ACME One 4.5 mm"
    assert record.focal_length == pytest.approx(28 * np.hypot(320, 420) / np.hypot(36, 24))
    assert record.gps == pytest.approx((-10.5, 20.01, 12.5))


def test_exif_that_says_nothing_useful(photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    exif.get_ifd(0x8769).update({0x920A: 10.0, 0xA20E: 2000.0, 0xA210: 3, 0xA002: 4200, 0xA003: 3200})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0)})
    with Image.open(photos / "a1.png") as picture:
        picture.convert("RGB").save(photos / "odd.jpg", exif=exif)
    record = ImageRecord.of(photos / "odd.jpg")
    assert (record.orientation, record.gps, record.camera) == (1, None, "")
    # 10 mm at 2000 pixels a centimetre of the full picture, of which this is a tenth.
    assert record.focal_length == pytest.approx(200)
    assert ImageRecord.of(photos / "a1.png").focal_length is None


@pytest.mark.parametrize("max_keypoints", [-1, 300])
def test_tiles_give_the_keypoints_of_the_whole_image(
    make_matcher: MakeMatcher, assets: Path, max_keypoints: int
) -> None:
    whole = make_matcher(resize=900, max_keypoints=max_keypoints)
    pixels = load_pixels(assets / "motorcycle_left.png", guess_range=False)
    assert max(pixels.shape) > SMALLEST_TILE
    mask = torch.ones(pixels.shape[1:], dtype=torch.bool)
    mask[100:150] = False
    expected = describe_tiled(whole, pixels, mask, 10_000)
    found = describe_tiled(whole, pixels, mask, SMALLEST_TILE)
    assert len(found) == len(expected) > 250
    assert found.image_size == expected.image_size == tuple(pixels.shape[1:])
    assert found.keypoint_scores is not None
    assert expected.keypoint_scores is not None
    distances = torch.cdist(found.keypoints.double(), expected.keypoints.double())
    nearest, partner = distances.min(dim=1)
    assert nearest.max() < 1e-3
    assert len(partner.unique()) == len(expected)
    likeness = (found.descriptors * expected.descriptors[partner]).sum(dim=1)
    assert likeness.min() > 0.95
    assert likeness.mean() > 0.99
    assert (found.keypoint_scores.diff() <= 0).all()
    with pytest.raises(InputError, match="tiles must be at least"):
        describe_tiled(whole, pixels, None, 100)


def test_processes_of_two_devices_give_the_same(
    names: list[str], make_matcher: MakeMatcher, photos: Path, tmp_path: Path, matcher: Matcher
) -> None:
    extract_images(photos, names, tmp_path / "one.h5", matcher)
    (photos / "broken.png").write_bytes(b"\x89PNG")
    report = extract_images(
        photos, [*names, "broken.png"], tmp_path / "two.h5", make_matcher(), executor=DeviceExecutor(["cpu", "cpu"])
    )
    assert report.done == 5
    assert set(report.failed) == {"broken.png"}
    with FeatureStore(tmp_path / "one.h5") as one, FeatureStore(tmp_path / "two.h5") as two:
        assert one.names() == two.names()
        assert all(one.digest(name) == two.digest(name) for name in names)
        assert one.header == two.header
