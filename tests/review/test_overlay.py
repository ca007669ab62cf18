"""The pictures of `heatmap`: unchanged normal images, one colour scale, an outline where the limit is crossed."""

from __future__ import annotations

import io
import itertools
import math
import time
from typing import Any

import numpy as np
import pytest
from colour_difference import ciede2000, lab_of
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFont

from anomaly_cli.review import overlay
from anomaly_cli.review.overlay import colour_table, draw_overlay, encode_map16

Pixels = NDArray[np.uint8]
GROUNDS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
}
# CIELAB of two colours and their difference: table 1 of Sharma, Wu and Dalal (2005).
SHARMA_PAIRS = """\
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.02 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1
50 -1.1848 -84.8006 50 0 -82.7485 1
50 -0.9009 -85.5211 50 0 -82.7485 1
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.49 -0.001 50 -2.49 0.0009 7.1792
50 2.49 -0.001 50 -2.49 0.001 7.1792
50 2.49 -0.001 50 -2.49 0.0011 7.2195
50 2.49 -0.001 50 -2.49 0.0012 7.2195
50 -0.001 2.49 50 0.0009 -2.49 4.8045
50 -0.001 2.49 50 0.001 -2.49 4.8045
50 -0.001 2.49 50 0.0011 -2.49 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.903
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1
50 2.5 0 50 3.2972 0 1
50 2.5 0 50 1.8634 0.5757 1
50 2.5 0 50 3.2592 0.335 1
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.263
61.2901 3.7196 -5.3901 61.4292 2.248 -4.962 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.694 23.0331 14.973 -42.5619 2.0373
36.4612 47.858 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.441 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.135 0.9033 -0.0636 -0.5514 0.9082"""


def picture(image: Pixels, anomaly_map: NDArray[np.floating[Any]], **changed: Any) -> Pixels:
    options: dict[str, Any] = {"caption": "a/b.png", "score": 1.0, "flagged": False, **changed}
    return np.asarray(draw_overlay(image, anomaly_map, **options))


def tinted(image: Pixels, anomaly_map: NDArray[np.floating[Any]], **changed: Any) -> Pixels:
    return picture(image, anomaly_map, **changed)[: image.shape[0], : image.shape[1]]


def noise(H: int, W: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def oklab_lightness(colour: Pixels) -> float:
    """Ottosson's own formulas, sRGB to OKLab, for one colour."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (colour / 255).tolist())
    long = 0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b
    medium = 0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b
    short = 0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b
    return 0.2104542553 * math.cbrt(long) + 0.7936177850 * math.cbrt(medium) - 0.0040720468 * math.cbrt(short)


def test_the_lightness_of_the_colours_rises_in_even_steps() -> None:
    lightness = [oklab_lightness(colour) for colour in colour_table()[:, :3]]

    assert np.diff(lightness[::3]).min() > 0  # one step is less than 8 bits hold
    np.testing.assert_allclose(lightness, np.linspace(0.68, 0.95, 256), atol=0.003)


def test_no_channel_of_the_colours_clips() -> None:
    colours = colour_table()[:, :3]

    assert colours.min() > 0
    assert colours.max() < 255


@given(seed=st.integers(0, 99), H=st.integers(1, 40), W=st.integers(1, 40))
def test_a_map_below_half_the_limit_leaves_every_pixel_as_it_was(seed: int, H: int, W: int) -> None:
    anomaly_map = np.random.default_rng(seed).uniform(0, 0.5, (5, 7))

    np.testing.assert_array_equal(tinted(noise(H, W, seed), anomaly_map), noise(H, W, seed))


def test_the_tint_equals_a_blend_computed_pixel_by_pixel() -> None:
    image, anomaly_map = noise(6, 8), np.linspace(0, 0.98, 48).reshape(6, 8)

    result = tinted(image, anomaly_map)

    colours = colour_table()[:, :3]
    for y, x in itertools.product(range(6), range(8)):
        value = anomaly_map[y, x]
        opacity = 0.12 * max(0.0, (value - 0.5) / (1 - 3 / 255 - 0.5))
        expected = (1 - opacity) * image[y, x] + opacity * colours[round(255 * value / 3.0)]
        np.testing.assert_allclose(result[y, x], expected, atol=2)


def test_the_map_is_resized_by_interpolating_between_the_centres_of_its_cells() -> None:
    anomaly_map = np.array([[0.0, 0.9], [0.6, 0.3]])
    at = [min(max((pixel + 0.5) / 8 - 0.5, 0.0), 1.0) for pixel in range(16)]
    large = np.array(
        [
            [
                (1 - v) * ((1 - u) * anomaly_map[0, 0] + u * anomaly_map[0, 1])
                + v * ((1 - u) * anomaly_map[1, 0] + u * anomaly_map[1, 1])
                for u in at
            ]
            for v in at
        ]
    )

    difference = tinted(noise(16, 16), anomaly_map).astype(int) - tinted(noise(16, 16), large)

    assert abs(difference).max() <= 2


@given(value=st.floats(0, 0.99), peak=st.floats(1, 100))
def test_a_map_value_has_the_same_colour_whatever_else_is_in_the_picture(value: float, peak: float) -> None:
    grey = np.full((40, 40, 3), 128, np.uint8)
    alone, beside = np.full((40, 40), value), np.full((40, 40), value)
    beside[30:, 30:] = peak

    np.testing.assert_array_equal(tinted(grey, alone)[:20, :20], tinted(grey, beside)[:20, :20])


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_the_outline_runs_around_what_reaches_the_limit_and_shows_on_any_grey(grey: int) -> None:
    image, anomaly_map = np.full((60, 80, 3), grey, np.uint8), np.full((60, 80), 0.4)
    anomaly_map[20:40, 30:50] = 1.0

    changed = tinted(image, anomaly_map).astype(int)

    row = changed[30, 25:35].sum(axis=1) / 3  # crosses the left side, between columns 29 and 30
    assert np.ptp(row) > 80
    assert (changed[:15] == grey).all()
    assert (changed[:, 60:] == grey).all()
    inner = changed[24:36, 34:46].reshape(-1, 3)
    assert len(np.unique(inner, axis=0)) == 1


def test_a_map_just_below_the_limit_has_no_outline() -> None:
    image, anomaly_map = np.full((60, 80, 3), 128, np.uint8), np.full((60, 80), 0.4)
    anomaly_map[20:40, 30:50] = 0.999

    colours = np.unique(tinted(image, anomaly_map).reshape(-1, 3), axis=0)

    assert len(colours) == 2


def test_a_region_of_one_pixel_is_outlined_too() -> None:
    image, anomaly_map = np.full((32, 32, 3), 128, np.uint8), np.zeros((32, 32))
    anomaly_map[16, 16] = 1.0

    assert tinted(image, anomaly_map).max() > 200


def test_the_image_is_at_the_upper_left_of_a_canvas_wide_enough_for_the_legend() -> None:
    result = picture(noise(32, 32), np.zeros((4, 4)))

    assert result.shape[0] > 32
    assert result.shape[1] == 220
    np.testing.assert_array_equal(result[:32, :32], noise(32, 32))
    assert len(np.unique(result[:32, 32:].reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(("H", "W"), [(1, 1), (32, 32), (3000, 40), (30, 2500), (480, 640), (1500, 2000)])
def test_the_legend_fits_below_a_picture_of_any_shape(H: int, W: int) -> None:
    result = draw_overlay(noise(H, W), np.zeros((4, 4)), caption="folder/" * 50 + "a.png", score=1234.5, flagged=True)

    legend = np.asarray(result)[H:]
    assert result.width == max(W, 220)
    assert 50 <= len(legend) <= max(100, 0.2 * H)
    for edge in (legend[:4], legend[-4:], legend[:, :4], legend[:, -4:]):
        assert len(np.unique(edge.reshape(-1, 3), axis=0)) == 1


def test_the_legend_grows_with_the_picture() -> None:
    heights = [len(picture(np.zeros((n, n, 3), np.uint8), np.zeros((2, 2)))) - n for n in (640, 1280, 2560)]

    assert heights == sorted(set(heights))


@pytest.mark.parametrize("value", [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 50.0])
@pytest.mark.parametrize("name", GROUNDS)
def test_a_region_is_seen_from_across_the_room_on_any_ground(name: str, value: float) -> None:
    image, anomaly_map = np.full((96, 96, 3), GROUNDS[name], np.uint8), np.full((12, 12), 0.6)
    anomaly_map[3:6, 3:7] = value
    anomaly_map[9, 9] = value  # a single cell, as the smallest defects have

    changed = tinted(image, anomaly_map)

    for rows, columns in ((slice(24, 48), slice(24, 56)), (slice(72, 80), slice(72, 80))):
        difference = ciede2000(lab_of(changed[rows, columns]), lab_of(image[rows, columns]))
        assert difference.mean() >= 20
    far = np.s_[:16, 64:]
    assert ciede2000(lab_of(changed[far]), lab_of(image[far])).max() < 5


def test_the_colour_difference_is_that_of_the_pairs_published_by_sharma_and_others() -> None:
    pairs = np.array([line.split() for line in SHARMA_PAIRS.splitlines()], float)

    differences = ciede2000(pairs[:, :3], pairs[:, 3:6])

    np.testing.assert_allclose(differences, pairs[:, 6], atol=5.1e-5)
    np.testing.assert_allclose(ciede2000(pairs[:, 3:6], pairs[:, :3]), pairs[:, 6], atol=5.1e-5)


def test_side_by_side_the_image_is_unchanged_to_the_left_of_its_overlay() -> None:
    image, anomaly_map = noise(100, 300), np.eye(8) * 3.0

    both = picture(image, anomaly_map, side_by_side=True)

    np.testing.assert_array_equal(both[:100, :300], image)
    np.testing.assert_array_equal(both[:100, -300:], tinted(image, anomaly_map))
    assert both.shape[1] == 608


@pytest.mark.parametrize("width", [64, 600])
def test_an_image_above_the_limit_that_is_not_flagged_is_not_called_normal(width: int) -> None:
    image, anomaly_map = noise(64, width), np.zeros((4, 4))

    above, normal = (picture(image, anomaly_map, score=score)[64:] for score in (1.16, 0.99))

    green, amber = (126, 200, 140), (255, 196, 87)
    assert (above == amber).all(axis=-1).any()
    assert not (above == green).all(axis=-1).any()
    assert (normal == green).all(axis=-1).any()
    assert len(np.unique(above[:, -4:].reshape(-1, 3), axis=0)) == 1  # the words fit


def test_flagged_and_normal_images_have_legends_of_different_colour() -> None:
    image, anomaly_map = noise(64, 256), np.zeros((4, 4))

    flagged, normal = (picture(image, anomaly_map, score=0.9, flagged=flagged)[64:] for flagged in (True, False))

    assert (flagged == (255, 122, 69)).all(axis=-1).any()
    assert not (normal == (255, 122, 69)).all(axis=-1).any()


@pytest.mark.parametrize(
    ("caption", "shown"),
    [
        ("a b/c~.png", "a b/c~.png"),
        ("a\nb\t\x1b[31m.png", "a?b??[31m.png"),
        ("caf\udce9.png", "caf?.png"),
        ("\u00e9t\u00e9.png", "ete.png"),
        ("\u4e2d\u202e\U0001f600.png", "???.png"),
    ],
)
def test_a_caption_is_made_printable(caption: str, shown: str) -> None:
    same = (
        picture(noise(40, 300), np.zeros((2, 2)), caption=caption),
        picture(noise(40, 300), np.zeros((2, 2)), caption=shown),
    )

    np.testing.assert_array_equal(*same)


@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80), width=st.integers(20, 300))
def test_a_long_caption_loses_as_little_of_its_middle_as_possible(text: str, width: int) -> None:
    font = ImageFont.load_default(12)

    shown = overlay._truncate_middle(text, font, width)

    if font.getlength(text) <= width:
        assert shown == text
    else:
        head, tail = shown.split("…")
        assert font.getlength(shown) <= width
        assert text.startswith(head)
        assert text.endswith(tail)
        assert 0 <= len(tail) - len(head) <= 1
        one_more = len(head) + len(tail) + 1
        assert font.getlength(text[: one_more // 2] + "…" + text[-((one_more + 1) // 2) :]) > width - 2


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (picture(noise(64, 64), np.eye(8) * 3.0, flagged=True).tobytes() for _ in range(2))

    assert first == second


def test_a_large_picture_takes_less_than_half_a_second_of_processor_time() -> None:
    image, anomaly_map = noise(1500, 2000), np.eye(64) * 4.0

    def seconds() -> float:
        start = time.process_time()
        picture(image, anomaly_map)
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_a_16_bit_map_holds_thousandths_of_the_limit_and_clips_beyond_65() -> None:
    encoded = encode_map16(np.array([[0.0, 0.0004, 0.0006], [1.0, 65.535, 1000.0]]))

    assert encoded.dtype == np.uint16
    assert encoded.tolist() == [[0, 0, 1], [1000, 65535, 65535]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_16_bit_map_survives_a_png_to_within_half_a_thousandth(dtype: type[np.floating[Any]]) -> None:
    anomaly_map = np.random.default_rng(0).uniform(0, 20, (16, 24)).astype(dtype)
    file = io.BytesIO()

    Image.fromarray(encode_map16(anomaly_map)).save(file, "PNG")

    read = np.asarray(Image.open(file)).astype(float) / 1000
    np.testing.assert_allclose(read, anomaly_map, atol=0.000501)
