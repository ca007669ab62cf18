"""TIFF in every layout: the right pixels to one grey level, or a reason that names the kind."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiff_files
from numpy.typing import NDArray
from PIL import Image
from tiff_files import (
    ASSOCIATED,
    BLACK_IS_ZERO,
    CMYK,
    DEFLATE,
    FLOAT,
    LZW,
    NONE,
    PACKBITS,
    PALETTE,
    RGB,
    SIGNED,
    UNASSOCIATED,
    WHITE_IS_ZERO,
    YCBCR,
    Layout,
    tiff_bytes,
    tiff_of_pages,
)

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.decode import load_image, read_pixels

H, W = 19, 35  # so that strips, tiles and bytes of 1-bit samples are left incomplete
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
UNSIGNED_BITS = (1, 2, 4, 8, 10, 12, 14, 16, 24, 32, 48, 64)
NOT_SUPPORTED = "sound file of a kind that is not supported: "
Fractions = NDArray[np.float64]


def fractions(samples: int) -> Fractions:
    y, x = np.mgrid[:H, :W] / 40
    checks = (np.mgrid[:H, :W] // 5).sum(axis=0) % 2
    bands = [0.2 + x * 0.6 + 0.2 * checks, y + 0.1, 1 - x, (x + y) / 1.4, 0.9 - y]
    return np.stack([bands[s % 5] for s in range(samples)], axis=-1).clip(0, 1)


def numbers(values: Fractions, layout: Layout) -> NDArray[Any]:
    """Turn fractions into samples; of signed ones, dark pixels become negative."""
    if layout.sample_format == FLOAT:
        return values.astype(f"f{layout.bits // 8}")
    if layout.sample_format == SIGNED:
        top = 2 ** (layout.bits - 1) - 1
        whole = [min(int(value * top), top) if value > 0.3 else -int(value * top) - 1 for value in values.ravel()]
    else:
        top = 2**layout.bits - 1
        whole = [min(round(value * top), top) for value in values.ravel()]
    return np.array(whole, object).reshape(values.shape)


def picture(layout: Layout) -> tuple[NDArray[Any], Layout, Fractions]:
    """Make samples, the layout with the tags they need, and the colours, (H, W, 1 or 3), that they mean."""
    colours = COLOURS[layout.photometric]
    values = fractions(colours + len(layout.extra))
    if layout.extra[:1] == (ASSOCIATED,):
        values[:, :, :colours] *= values[:, :, colours : colours + 1]
    samples = numbers(values, layout)
    if layout.sample_format == FLOAT:
        values = samples.astype(float)
    elif layout.sample_format == SIGNED:
        values = samples.astype(float).clip(0, 2.0 ** (8 if layout.bits == 8 else 16) - 1)
        values /= 2.0 ** (8 if layout.bits == 8 else 16) - 1
    else:
        values = samples.astype(float) / (2.0**layout.bits - 1)
    shown = values[:, :, :colours]
    if layout.photometric == WHITE_IS_ZERO:
        shown = 1 - shown
    elif layout.photometric == CMYK:
        shown = (1 - shown[:, :, :3]) * (1 - shown[:, :, 3:])
    elif layout.photometric == PALETTE:
        table = np.random.default_rng(1).integers(0, 65536, (2**layout.bits, 3))
        layout = dataclasses.replace(layout, tags={320: tuple(table.T.ravel().tolist())})
        shown = table[samples[:, :, 0].astype(int)] / 65535
    elif layout.photometric == YCBCR:
        layout = dataclasses.replace(layout, tags={530: (1, 1)})
        Y, blue, red = (255 * shown - (0, 128, 128)).transpose(2, 0, 1)
        shown = np.stack([Y + 1.402 * red, Y - 0.344136 * blue - 0.714136 * red, Y + 1.772 * blue], -1) / 255
    if layout.extra[:1] in ((ASSOCIATED,), (UNASSOCIATED,)):
        cover = values[:, :, colours : colours + 1]
        shown = (shown if layout.extra[0] == ASSOCIATED else shown * cover) + 1 - cover
    return samples, layout, shown


def levels(shown: Fractions) -> NDArray[np.int64]:
    in_range = np.round(255 * shown.clip(0, 1)).astype(int)
    return np.broadcast_to(in_range, (*in_range.shape[:2], 3))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def difference(path: Path, shown: Fractions) -> int:
    pixels, expected = read_pixels(path).astype(int), levels(shown)
    assert pixels.shape == expected.shape
    return int(np.abs(pixels - expected).max())


def reason(path: Path) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        read_pixels(path)
    return caught.value.reason


def storages(layout: Layout) -> Iterator[Layout]:
    """Vary how the same samples are stored: every compression and predictor, the rest in turns."""
    predictors = [1]
    if layout.bits in (8, 16, 32, 64) and layout.photometric != PALETTE:
        predictors += [3] if layout.sample_format == FLOAT else [2]
    turns = itertools.count(layout.bits + len(layout.extra))
    kinds = [(code, 1) for code in (NONE, LZW, PACKBITS)] + [(DEFLATE, predictor) for predictor in predictors]
    samples = COLOURS[layout.photometric] + len(layout.extra)
    for (compression, predictor), planar in itertools.product(kinds, (False, True) if samples > 1 else (False,)):
        turn = next(turns)
        yield dataclasses.replace(
            layout,
            compression=compression,
            predictor=predictor,
            planar=planar,
            big_endian=bool(turn % 2),
            tile=(16, 32) if turn // 2 % 2 else None,
            rows_per_strip=(1, 7, H)[turn % 3],
            big_tiff=turn % 10 == 0,
            fill_order=2 if turn % 7 == 0 else 1,
        )


@pytest.mark.parametrize("bits", UNSIGNED_BITS)
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK])
def test_unsigned_samples_of_any_layout_are_read(tmp_path: Path, photometric: int, bits: int) -> None:
    extras: tuple[tuple[int, ...], ...] = ((), (0,), (ASSOCIATED,), (UNASSOCIATED,), (UNASSOCIATED, 0))
    for extra in extras:
        if bits > 12 and photometric == PALETTE:  # a table of 2^16 colours takes longer than all the others
            continue
        if photometric == PALETTE and extra[:1] == (ASSOCIATED,):  # a number of a colour cannot be multiplied
            continue
        if photometric == WHITE_IS_ZERO and extra[:1] == (ASSOCIATED,):
            continue
        for layout in storages(Layout(bits=bits, photometric=photometric, extra=extra)):
            samples, complete, shown = picture(layout)
            path = written(tmp_path / "a.tif", tiff_bytes(samples, complete))

            assert difference(path, shown) <= 1, layout


@pytest.mark.parametrize("bits", [8, 10, 16, 24, 32, 64])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB])
def test_signed_samples_are_read_as_unsigned_ones_with_black_below_zero(
    tmp_path: Path, photometric: int, bits: int
) -> None:
    for layout in storages(Layout(bits=bits, photometric=photometric, sample_format=SIGNED)):
        samples, complete, shown = picture(layout)
        path = written(tmp_path / "a.tif", tiff_bytes(samples, complete))

        assert difference(path, shown) <= 1, layout


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("extra", [(), (0,), (UNASSOCIATED,)])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK])
def test_floats_are_read(tmp_path: Path, photometric: int, extra: tuple[int, ...], bits: int) -> None:
    for layout in storages(Layout(bits=bits, photometric=photometric, sample_format=FLOAT, extra=extra)):
        samples, complete, shown = picture(layout)
        path = written(tmp_path / "a.tif", tiff_bytes(samples, complete))

        assert difference(path, shown) <= 1, layout


@pytest.mark.parametrize("scale", [255.0, -3.0, 4000.0])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB])
def test_floats_beyond_one_have_the_range_of_bytes_or_their_own(tmp_path: Path, photometric: int, scale: float) -> None:
    layout = Layout(bits=32, photometric=photometric, sample_format=FLOAT, planar=photometric == RGB)
    values = fractions(COLOURS[photometric])
    values[0, 0], values[0, 1] = 0, 1
    path = written(tmp_path / "a.tif", tiff_bytes((values * scale).astype("f4"), layout))
    shown = values if scale > 0 else 1 - values

    assert difference(path, 1 - shown if photometric == WHITE_IS_ZERO else shown) <= 1


@pytest.mark.parametrize("compression", [NONE, LZW])
@pytest.mark.parametrize("big_endian", [False, True])
def test_ycbcr_without_halved_colours_is_read(tmp_path: Path, compression: int, big_endian: bool) -> None:
    layout = Layout(bits=8, photometric=YCBCR, compression=compression, big_endian=big_endian)
    samples, complete, shown = picture(layout)

    assert difference(written(tmp_path / "a.tif", tiff_bytes(samples, complete)), shown) <= 2


def jpeg_tiff(pixels: NDArray[np.uint8], layout: Layout, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Write pixels in JPEG compression, each strip a file of its own as the format has it."""

    def compressed(chunk: NDArray[np.uint8], layout: Layout) -> bytes:
        stream = io.BytesIO()
        if layout.photometric == CMYK:  # Pillow turns CMYK round where it writes a JPEG
            Image.fromarray(255 - chunk, "CMYK").save(stream, "JPEG", quality=100)
        elif layout.photometric == RGB:
            Image.fromarray(chunk).save(stream, "JPEG", quality=100, subsampling=0, keep_rgb=True)
        else:
            single = chunk.shape[2] == 1
            Image.fromarray(chunk[:, :, 0] if single else chunk).save(stream, "JPEG", quality=100, subsampling=0)
        return stream.getvalue()

    monkeypatch.setattr(tiff_files, "compressed", compressed)
    return tiff_bytes(pixels, layout)


@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK, YCBCR])
def test_jpeg_compression_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photometric: int) -> None:
    values = fractions(COLOURS[photometric]) * 0 + np.linspace(0.2, 0.8, W)[:, None]
    pixels = (255 * values).astype(np.uint8)
    shown = values if photometric != WHITE_IS_ZERO else 1 - values
    if photometric == CMYK:
        shown = (1 - values[:, :, :3]) * (1 - values[:, :, 3:])

    content = jpeg_tiff(pixels, Layout(bits=8, photometric=photometric, compression=7, tags={530: (1, 1)}), monkeypatch)

    assert difference(written(tmp_path / "a.tif", content), shown) <= 3


@pytest.mark.parametrize("bits", [8, 16])
def test_one_sample_in_planes_is_read_as_one_sample(tmp_path: Path, bits: int) -> None:
    samples, layout, shown = picture(Layout(bits=bits, photometric=BLACK_IS_ZERO, planar=True))

    assert difference(written(tmp_path / "a.tif", tiff_bytes(samples, layout)), shown) <= 1


def test_a_palette_of_8_bit_numbers_is_not_black(tmp_path: Path) -> None:
    samples, layout, _ = picture(Layout(bits=4, photometric=PALETTE))
    table = np.random.default_rng(1).integers(0, 256, (16, 3))
    layout = dataclasses.replace(layout, tags={320: tuple(table.T.ravel().tolist())})
    path = written(tmp_path / "a.tif", tiff_bytes(samples, layout))

    np.testing.assert_array_equal(read_pixels(path), table[samples[:, :, 0].astype(int)])


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        (Layout(bits=16, photometric=WHITE_IS_ZERO, extra=(ASSOCIATED,)), "16-bit grey TIFF with alpha"),
        (Layout(bits=8, photometric=YCBCR, planar=True), "8-bit YCbCr TIFF with planes"),
        (Layout(bits=16, photometric=YCBCR), "16-bit YCbCr TIFF"),
        (Layout(bits=32, photometric=RGB, sample_format=6), "32-bit complex RGB TIFF"),
        (Layout(bits=12, photometric=RGB, compression=7), "12-bit RGB TIFF with compression jpeg"),
        (Layout(bits=8, photometric=RGB, compression=34712), "8-bit RGB TIFF with compression number 34712"),
        (Layout(bits=8, photometric=RGB, big_endian=True, big_tiff=True), "big-endian BigTIFF"),
        (Layout(bits=10, photometric=RGB, compression=DEFLATE, predictor=2), "10-bit RGB TIFF"),
    ],
)
def test_other_sound_files_are_refused_by_name(tmp_path: Path, layout: Layout, kind: str) -> None:
    values = (fractions(COLOURS[layout.photometric] + len(layout.extra)) * 99).astype(np.uint8)

    assert reason(written(tmp_path / "a.tif", tiff_bytes(values, layout))) == NOT_SUPPORTED + kind


@pytest.mark.parametrize(
    ("photometric", "samples", "kind"),
    [(32803, 1, "camera raw"), (BLACK_IS_ZERO, 3, "grey"), (RGB, 5, "RGB"), (8, 3, "Lab")],
)
def test_samples_without_a_meaning_are_refused_by_name(
    tmp_path: Path, photometric: int, samples: int, kind: str
) -> None:
    layout = Layout(bits=16, photometric=photometric)
    path = written(tmp_path / "a.tif", tiff_bytes((fractions(samples) * 999).astype(int), layout))
    many = f" with {samples} samples a pixel" if photometric in (BLACK_IS_ZERO, RGB) else ""

    assert reason(path) == f"{NOT_SUPPORTED}16-bit {kind} TIFF{many}"


@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_cut_file_says_how_much_is_missing(tmp_path: Path, bits: int, compression: int) -> None:
    layout = Layout(bits=bits, photometric=RGB, planar=bits > 8, compression=compression, rows_per_strip=H)
    values = fractions(3)
    path = written(tmp_path / "a.tif", tiff_bytes(numbers(values, layout), layout)[:-12])

    assert reason(path) == "truncated: 12 bytes missing"


@pytest.mark.parametrize(("big_endian", "big_tiff"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("bits", [8, 16])
def test_of_pages_the_first_that_is_no_reduced_copy_is_read(
    tmp_path: Path, bits: int, big_endian: bool, big_tiff: bool
) -> None:
    samples, layout, shown = picture(Layout(bits=bits, photometric=RGB, big_endian=big_endian, big_tiff=big_tiff))
    small = dataclasses.replace(layout, tags={254: (1,)})
    other = np.zeros_like(samples)

    both = written(tmp_path / "a.tif", tiff_of_pages([(samples[::4, ::4], small), (samples, layout), (other, layout)]))
    alone = written(tmp_path / "b.tif", tiff_of_pages([(samples[::4, ::4], small)]))

    assert difference(both, shown) <= 1
    assert difference(alone, shown[::4, ::4]) <= 1
    assert (load_image(both, 64).height, load_image(both, 64).width) == (H, W)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once(tmp_path: Path, orientation: int, bits: int) -> None:
    samples, layout, shown = picture(Layout(bits=bits, photometric=RGB, tags={274: (orientation,)}))
    image = Image.fromarray(levels(shown).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "twin.png", exif=exif)
    path = written(tmp_path / "a.tif", tiff_bytes(samples, layout))

    turned = read_pixels(path).astype(int)

    assert np.abs(turned - read_pixels(tmp_path / "twin.png")).max() <= 1
    assert (load_image(path, 64).height, load_image(path, 64).width) == turned.shape[:2]
