"""PNG, BMP and TGA in every layout: the right pixels to one grey level, or a reason that names the kind."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from png_bmp_tga_files import bmp_bytes, bmp_runs, png_bytes, tga_bytes

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.decode import read_pixels

H, W = 11, 21
NOT_SUPPORTED = "sound file of a kind that is not supported: "
MASKS_555 = (0x7C00, 0x3E0, 0x1F)
MASKS_888 = (0xFF0000, 0xFF00, 0xFF)
MASKS_8888 = (*MASKS_888, 0xFF000000)
Values = NDArray[Any]


def fractions(samples: int) -> NDArray[np.float64]:
    y, x = np.mgrid[:H, :W] / 24
    checks = (np.mgrid[:H, :W] // 3).sum(axis=0) % 2
    return np.stack([0.1 + x * 0.6 + 0.3 * checks, y + 0.1, 1 - x, (x + y) / 1.3], -1).clip(0, 1)[:, :, :samples]


def numbers(values: Values, bits: int) -> Values:
    whole: Values = np.round(values * (2**bits - 1)).astype(int)
    return whole


def packed(values: Values, masks: tuple[int, ...]) -> tuple[Values, Values]:
    """Put fractions into the bits of the masks, and say what they are rounded to, in grey levels."""
    pixels, rounded = np.zeros((H, W), np.int64), []
    for s, mask in enumerate(masks):
        shift = (mask & -mask).bit_length() - 1
        top = mask >> shift
        part = np.round(values[:, :, s] * top).astype(np.int64)
        pixels |= part << shift
        rounded.append(part / top * 255)
    return pixels, np.stack(rounded, -1)


def on_white(colours: Values, alpha: Values) -> Values:
    flat: Values = colours * alpha / 255 + 255 - alpha
    return flat


def difference(path: Path, content: bytes, expected: Values) -> float:
    path.write_bytes(content)
    pixels = read_pixels(path)
    whole = np.broadcast_to(np.round(expected), (H, W, 3))
    assert pixels.shape == whole.shape
    return float(np.abs(pixels - whole).max())


def reason(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError) as caught:
        read_pixels(path)
    return caught.value.reason


# --- PNG ---


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "samples", "bits"),
    [*((0, 1, bits) for bits in (1, 2, 4, 8, 16)), (2, 3, 8), (2, 3, 16), (4, 2, 8), (4, 2, 16), (6, 4, 8), (6, 4, 16)],
)
def test_png_samples_are_read(tmp_path: Path, colour: int, samples: int, bits: int, interlaced: bool) -> None:
    values = numbers(fractions(samples), bits)
    expected = values / (2**bits - 1) * 255
    if samples in (2, 4):
        expected = on_white(expected[:, :, :-1], expected[:, :, -1:])

    content = png_bytes(values, colour, bits, interlaced=interlaced)

    assert difference(tmp_path / "a.png", content, expected) <= 1


@pytest.mark.parametrize(("samples", "bits"), [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (3, 8)])
def test_the_transparent_colour_of_a_png_is_white(tmp_path: Path, samples: int, bits: int) -> None:
    values = numbers(fractions(samples), bits)
    expected = np.where((values == values[5, 7]).all(-1, keepdims=True), 255, values / (2**bits - 1) * 255)
    chunks = ((b"tRNS", struct.pack(f">{samples}H", *values[5, 7])),)

    content = png_bytes(values, 0 if samples == 1 else 2, bits, chunks=chunks)

    assert difference(tmp_path / "a.png", content, expected) <= 1


def test_a_transparent_colour_of_16_bit_is_refused_since_pillow_has_8(tmp_path: Path) -> None:
    content = png_bytes(numbers(fractions(3), 16), 2, 16, chunks=((b"tRNS", bytes(6)),))

    assert reason(tmp_path / "a.png", content) == f"{NOT_SUPPORTED}16-bit RGB PNG with a transparent colour"


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_png_palette_with_transparency_is_laid_on_white(tmp_path: Path, bits: int) -> None:
    values = numbers(fractions(1), bits)
    table = np.random.default_rng(0).integers(0, 256, (2**bits, 4), dtype=np.uint8)
    table[-1, 3] = 255  # the last one is not listed
    expected = on_white(*np.split(table[values[:, :, 0]].astype(float), [3], axis=-1))
    chunks = ((b"PLTE", table[:, :3].tobytes()), (b"tRNS", table[:-1, 3].tobytes()))

    assert difference(tmp_path / "a.png", png_bytes(values, 3, bits, chunks=chunks), expected) <= 1


# --- BMP ---


def palettes(colours: int) -> list[NDArray[np.uint8]]:
    ramp = np.arange(colours) * 255 // (colours - 1)
    grays = [ramp, 255 - ramp, np.arange(colours), np.arange(colours) % 2 * 255]
    tables = [np.repeat(gray[:, None], 3, axis=1) for gray in grays]
    return [table.astype(np.uint8) for table in (np.random.default_rng(0).integers(0, 256, (colours, 3)), *tables)]


@pytest.mark.parametrize("header", [40, 64, 108, 124])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_bmp_palette_may_have_any_grays_or_colours(tmp_path: Path, bits: int, header: int) -> None:
    for colours, top_down in itertools.product(sorted({2, 2**bits - 1, 2**bits} - {1}), (False, True)):
        values = (fractions(1)[:, :, 0] * (colours - 1)).round().astype(int)
        for palette in palettes(colours):
            content = bmp_bytes(values, bits, palette=palette, header=header, top_down=top_down)

            assert difference(tmp_path / "a.bmp", content, palette[values]) == 0, (colours, palette[1])


@pytest.mark.parametrize(("bits", "compression"), [(8, 1), (4, 2)])
def test_a_bmp_in_run_length_code_is_read(tmp_path: Path, bits: int, compression: int) -> None:
    values = numbers(fractions(1)[:, :, 0], bits)
    for palette in palettes(2**bits):
        data = bmp_runs(values, bits)
        content = bmp_bytes(values, bits, palette=palette, data=data, compression=compression)

        assert difference(tmp_path / "a.bmp", content, palette[values]) == 0, palette[1]


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize(
    ("bits", "masks", "header"),
    [
        *((16, masks, header) for masks in (MASKS_555, (0xF800, 0x7E0, 0x1F)) for header in (40, 56, 108, 124)),
        *((32, MASKS_888, header) for header in (40, 56, 108, 124)),
        *((32, masks, 124) for masks in (MASKS_8888, (0xFF, 0xFF00, 0xFF0000, 0xFF000000))),
    ],
)
def test_a_bmp_with_bit_fields_is_read(
    tmp_path: Path, bits: int, masks: tuple[int, ...], header: int, top_down: bool
) -> None:
    pixels, expected = packed(fractions(4), masks)
    if len(masks) == 4:
        expected = on_white(expected[:, :, :3], expected[:, :, 3:])

    content = bmp_bytes(pixels, bits, masks=masks, header=header, top_down=top_down)

    assert difference(tmp_path / "a.bmp", content, expected) <= 1


@pytest.mark.parametrize(("bits", "masks"), [(16, MASKS_555), (24, MASKS_888), (32, MASKS_888), (32, MASKS_8888)])
def test_a_bmp_without_bit_fields_has_no_alpha(tmp_path: Path, bits: int, masks: tuple[int, ...]) -> None:
    pixels, expected = packed(fractions(4), masks)

    assert difference(tmp_path / "a.bmp", bmp_bytes(pixels, bits), expected[:, :, :3]) <= 1


def test_a_bmp_whose_alpha_is_all_zero_is_not_white(tmp_path: Path) -> None:
    pixels, expected = packed(fractions(3), MASKS_888)
    content = bmp_bytes(pixels, 32, masks=MASKS_8888, header=124)

    assert difference(tmp_path / "a.bmp", content, expected) == 0


@pytest.mark.parametrize(
    ("bits", "masks", "kind"),
    [
        (16, (*MASKS_555, 0x8000), "16-bit BMP with alpha"),
        (16, (0xF00, 0xF0, 0xF), "BMP bitfields layout"),
        (32, (0x3FF00000, 0xFFC00, 0x3FF), "BMP bitfields layout"),
        (2, (), "BMP pixel depth (2)"),
    ],
)
def test_other_bmp_files_are_refused_by_name(tmp_path: Path, bits: int, masks: tuple[int, ...], kind: str) -> None:
    pixels = packed(fractions(4), masks)[0] if masks else numbers(fractions(1)[:, :, 0], bits)
    header = 56 if masks else 40

    assert reason(tmp_path / "a.bmp", bmp_bytes(pixels, bits, masks=masks, header=header)) == NOT_SUPPORTED + kind


# --- TGA ---


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("rle", [False, True])
def test_tga_pixels_are_read_from_every_corner(tmp_path: Path, rle: bool, top: bool, right: bool) -> None:
    turned: dict[str, Any] = {"rle": rle, "top": top, "right": right}
    gray = numbers(fractions(1)[:, :, 0], 8)
    alpha = numbers(fractions(4)[:, :, 3], 8)
    deep, deep_colours = packed(fractions(4), MASKS_8888)
    flat, flat_colours = packed(fractions(3), MASKS_555)
    files = {
        "gray": (tga_bytes(gray, 3, 8, name=b"a name", **turned), gray[:, :, None]),
        "gray and alpha": (
            tga_bytes(gray | alpha << 8, 3, 16, alpha_bits=8, **turned),
            on_white(gray[:, :, None], alpha[:, :, None]),
        ),
        "24 bit": (tga_bytes(deep & 0xFFFFFF, 2, 24, **turned), deep_colours[:, :, :3]),
        "alpha": (
            tga_bytes(deep, 2, 32, alpha_bits=8, **turned),
            on_white(deep_colours[:, :, :3], deep_colours[:, :, 3:]),
        ),
        "alpha that the header denies": (tga_bytes(deep, 2, 32, **turned), deep_colours[:, :, :3]),
        "alpha all zero": (tga_bytes(deep & 0xFFFFFF, 2, 32, alpha_bits=8, **turned), deep_colours[:, :, :3]),
        "16 bit": (tga_bytes(flat, 2, 16, **turned), flat_colours),
        "16 bit, flags set": (tga_bytes(flat | 0x8000, 2, 16, **turned), flat_colours),
        "16 bit, flags called alpha": (tga_bytes(flat | 0x8000, 2, 16, alpha_bits=1, **turned), flat_colours),
    }

    for name, (content, expected) in files.items():
        assert difference(tmp_path / "a.tga", content, expected) <= 1, name


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize(
    ("depth", "masks", "set_bits"),
    [(16, MASKS_555, 0), (16, MASKS_555, 0x8000), (24, MASKS_888, 0), (32, MASKS_888, 0), (32, MASKS_888, 0xFF000000)],
)
def test_a_tga_palette_is_read(tmp_path: Path, depth: int, masks: tuple[int, ...], set_bits: int, first: int) -> None:
    colours, levels = packed(fractions(3), masks)
    table, indices = (colours | set_bits).ravel().tolist(), np.arange(H * W).reshape(H, W)

    content = tga_bytes(indices + first, 1, 8, palette=(first, depth, table))

    assert difference(tmp_path / "a.tga", content, levels) <= 1


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"kind": 2, "depth": 16, "alpha_bits": 1}, "16-bit TGA with alpha"),
        ({"kind": 3, "depth": 16}, "16-bit grey TGA"),
        ({"kind": 1, "depth": 16, "palette": (0, 24, [0, 1])}, "16-bit TGA"),
        ({"kind": 2, "depth": 15, "footer": bytes(8) + b"TRUEVISION-XFILE.\0"}, "TGA of an odd depth"),
    ],
)
def test_other_tga_files_are_refused_by_name(tmp_path: Path, options: dict[str, Any], kind: str) -> None:
    pixels = np.tile([0, 0x8001 if options["depth"] == 16 else 1], (H, W))

    assert reason(tmp_path / "a.tga", tga_bytes(pixels, **options)) == NOT_SUPPORTED + kind
