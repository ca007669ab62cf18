"""What is read from image files: size, orientation, modes and formats."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pictures import Pixels, noise, saved, smooth
from PIL import Image, PngImagePlugin

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.decode import load_image, read_pixels
from anomaly_cli.images.gray_levels import flattened
from anomaly_cli.images.network_size import network_size

ORIENTED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


# --- Size ---


@given(st.integers(1, 40), st.integers(1, 40), st.integers(4, 32))
def test_network_size_keeps_aspect_and_area(height: int, width: int, steps: int) -> None:
    rows, columns = network_size(height, width, 32 * steps)

    aspect = float(np.clip(width / height, 1 / 8, 8))
    stretch = columns / rows / aspect
    assert rows % 32 == columns % 32 == 0
    assert min(rows, columns) >= 32
    assert max(rows, columns) <= 8 * min(rows, columns)
    assert max(stretch, 1 / stretch) < (1.21 if steps >= 8 else 1.36 if steps > 4 else 1.78)
    assert abs(rows * columns / (32 * steps) ** 2 - 1) <= 0.125
    assert network_size(width, height, 32 * steps) == (columns, rows)


@given(st.integers(1, 5000), st.integers(1, 40))
def test_a_square_keeps_its_side(side: int, steps: int) -> None:
    assert network_size(side, side, 32 * steps) == (32 * steps, 32 * steps)


@pytest.mark.parametrize("image_size", [0, -32, 250])
def test_an_image_size_off_the_grid_is_refused(tmp_path: Path, image_size: int) -> None:
    path = saved(tmp_path / "a.png", noise())

    with pytest.raises(ValueError, match=f"^image_size must be a positive multiple of 32, got {image_size}$"):
        load_image(path, image_size)


@pytest.mark.parametrize("size", [(1500, 1100), (700, 900), (90, 150), (1, 1), (1, 3000)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_reduction_is_close_to_plain_bicubic(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", smooth(*size), **({"quality": 95} if suffix == "jpg" else {}))
    rows, columns = network_size(*size, 128)
    expected = Image.fromarray(read_pixels(path)).resize((columns, rows), Image.Resampling.BICUBIC)

    loaded = load_image(path, 128)

    assert (loaded.height, loaded.width) == size
    assert loaded.pixels.shape == (rows, columns, 3)
    assert loaded.pixels.dtype == np.uint8
    assert np.abs(loaded.pixels.astype(int) - np.asarray(expected)).max() <= 4
    assert loaded.pixels.flags.writeable


# --- Orientation ---


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize(
    ("suffix", "options"), [("png", {}), ("tif", {}), ("webp", {"lossless": True}), ("jpg", {"quality": 95})]
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str, options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", smooth(300, 450), exif=exif, **options)
    plain = saved(tmp_path / f"plain.{suffix}", smooth(300, 450), **options)
    turn = ORIENTED[orientation]

    loaded = load_image(path, 128)

    np.testing.assert_array_equal(read_pixels(path), turn(read_pixels(plain)))
    assert (loaded.height, loaded.width) == turn(smooth(300, 450)).shape[:2]
    difference = loaded.pixels.astype(int) - turn(load_image(plain, 128).pixels)
    assert np.abs(difference).max() <= 2  # a TIFF is turned before it is resized


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"\0"])
def test_damaged_exif_costs_neither_the_image_nor_a_warning(
    tmp_path: Path, exif: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "a.jpg", noise(), exif=exif)

    assert load_image(path, 64).width == 60
    assert capfd.readouterr() == ("", "")


def test_an_orientation_that_is_no_number_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", noise())
    monkeypatch.setattr(Image.Image, "getexif", lambda self: {0x0112: (6, 1)})

    assert read_pixels(path).shape == (40, 60, 3)


# --- Modes ---


def gray_levels(values: list[Any], dtype: str) -> NDArray[Any]:
    return np.array([values], dtype=dtype)


@pytest.mark.parametrize(
    ("name", "values", "dtype", "expected"),
    [
        ("16-bit.png", [0, 128, 129, 32768, 65535], "<u2", [0, 0, 1, 128, 255]),
        ("16-bit.tif", [0, 100, 4095, 65535], "<u2", [0, 0, 16, 255]),
        ("16-bit.pgm", [0, 257, 65535], "<u2", [0, 1, 255]),
        ("32-bit.tif", [-5, 0, 257, 65535, 2**31 - 1], "<i4", [0, 0, 1, 255, 255]),
        ("unit.tif", [0, 0.5, 1], "<f4", [0, 128, 255]),
        ("byte.tif", [0, 100.4, 255], "<f4", [0, 100, 255]),
        ("dim.tif", [0.0, 3.0], "<f4", [0, 3]),
        ("stretched.tif", [-100, 0, 100, np.nan, np.inf, -np.inf], "<f4", [0, 128, 255, 0, 255, 0]),
        ("extreme.tif", [-3e38, 0, 3e38], "<f4", [0, 128, 255]),
        ("constant.tif", [700.0, 700.0], "<f4", [0, 0]),
        ("nothing.tif", [np.nan, np.inf], "<f4", [0, 255]),
    ],
)
def test_deep_gray_becomes_8_bit(
    tmp_path: Path, name: str, values: list[float], dtype: str, expected: list[int]
) -> None:
    path = saved(tmp_path / name, gray_levels(values, dtype))

    np.testing.assert_array_equal(read_pixels(path), np.repeat(np.array(expected)[None, :, None], 3, axis=2))


def test_big_endian_16_bit_tiff_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.frombytes("I;16B", (2, 1), b"\xff\xff\x01\x01"))

    assert read_pixels(path)[0, :, 0].tolist() == [255, 1]


def test_colour_modes_become_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(smooth(40, 60))
    for mode in ("1", "L", "P", "CMYK", "YCbCr", "LAB"):
        converted = picture.convert(mode)

        pixels = read_pixels(saved(tmp_path / f"{mode}.tif", converted))

        np.testing.assert_array_equal(pixels, np.asarray(converted.convert("RGB")))


@pytest.mark.parametrize("mode", ["HSV", "PA", "La", "RGBa", "RGBX"])
def test_modes_that_few_formats_hold_become_rgb_on_white(mode: str) -> None:
    via = {"HSV": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}[mode]
    colour = {"RGB": (255, 0, 0), "LA": (0, 0), "RGBA": (255, 0, 0, 0)}[via]

    flat = flattened(Image.new(via, (2, 2), colour).convert(mode))

    assert flat.getpixel((0, 0)) == ((255, 0, 0) if via == "RGB" else (255, 255, 255))


def test_alpha_is_composited_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    path = saved(tmp_path / "a.png", rgba)
    gray = saved(tmp_path / "gray.png", Image.fromarray(rgba).convert("LA"))

    assert read_pixels(path).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]
    assert read_pixels(gray)[0, 1:, 0].tolist() == [255, 127]


@pytest.mark.parametrize(
    ("mode", "transparency", "colour"),
    [("P", 1, 1), ("P", b"\xff\0", 1), ("L", 7, 7), ("RGB", (1, 2, 3), (1, 2, 3)), ("I;16", 777, 777)],
)
def test_a_transparent_colour_is_white(tmp_path: Path, mode: str, transparency: Any, colour: Any) -> None:
    image = Image.new(mode, (2, 1))
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    image.putpixel((1, 0), colour)
    path = saved(tmp_path / "a.png", image, transparency=transparency)

    assert read_pixels(path).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_the_first_of_several_frames_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)

    assert read_pixels(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["jp2", "tga", "ppm", "pcx", "qoi", "bmp", "ico", "mpo", "avif"])
def test_less_common_formats_are_read(tmp_path: Path, suffix: str) -> None:
    loaded = load_image(saved(tmp_path / f"a.{suffix}", smooth(48, 64)), 64)

    assert (loaded.height, loaded.width) == ((36, 48) if suffix == "ico" else (48, 64))


# --- Orientation that only XMP tells ---


@pytest.mark.parametrize(("suffix", "tag"), [("png", "XML:com.adobe.xmp"), ("tif", ""), ("avif", ""), ("webp", "")])
def test_an_orientation_that_only_xmp_tells_is_ignored_as_in_browsers(tmp_path: Path, suffix: str, tag: str) -> None:
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    options: dict[str, Any] = {"xmp": xmp.encode()} if suffix in ("avif", "webp") else {}
    if suffix == "png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt(tag, xmp)
    if suffix == "tif":
        options["tiffinfo"] = {700: xmp.encode()}
    path = saved(tmp_path / f"a.{suffix}", smooth(40, 60), **options)
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6  # Pillow looks into XMP

    assert read_pixels(path).shape == (40, 60, 3)
    assert (load_image(path, 64).height, load_image(path, 64).width) == (40, 60)


# --- HEIC ---


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_heic_is_read_at_full_size_and_turned_as_its_own_boxes_say(tmp_path: Path, mode: str) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    picture = Image.fromarray(smooth(80, 120)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    heif = pillow_heif.from_pillow(picture)
    heif.save(tmp_path / "a.heic", quality=-1, chroma=444, exif=exif.tobytes(), save_all=False)

    loaded = load_image(tmp_path / "a.heic", 64)

    turned = np.rot90(np.asarray(picture.convert("RGB")), -1)
    assert (loaded.height, loaded.width) == (120, 80)
    assert np.abs(read_pixels(tmp_path / "a.heic").astype(int) - turned).max() <= 4
    assert "HEIF" not in Image.OPEN or Image.OPEN["HEIF"][0].__module__ != "pillow_heif.as_plugin"


def test_heic_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)

    with pytest.raises(UnreadableImageError) as caught:
        read_pixels(path)

    assert caught.value.reason == "HEIC needs the extra heif: pip install 'anomaly-cli[heif]'"
