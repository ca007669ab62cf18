"""Overlays: an image tinted by its anomaly map, with a legend below; writes no file.

All overlays share one colour scale, in multiples of the limit of normal, so that two can be compared by eye. A scale
fitted to each picture would paint every normal image red somewhere.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from anomaly_cli.scoring.regions import region_mask

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

STEPS = 256  # of the colour scale
LIMIT, FULL_SCALE = 1.0, 3.0  # map values: the limit of normal, the last colour
_BELOW = LIMIT - FULL_SCALE / (STEPS - 1)  # the last step below the limit

MAP16_UNITS = 1000  # grey levels of a 16-bit map per limit of normal


# Opacity by map value: none below half the limit, then a hint, and a step at the limit. What reaches it is seen from
# across the room on black, white, grey, red and blue (CIEDE2000 of 20 and more), and the image still shows through.
_VALUES = (LIMIT / 2, _BELOW, LIMIT, FULL_SCALE)
_OPACITIES = (0.0, 0.12, 0.60, 0.75)
_MIN_WIDTH = 220  # pixels; narrower pictures are padded to fit the legend
_MIN_EM = 12  # pixels, smallest font size
_FINER = 3  # supersampling of the legend
_BACKGROUND, _TEXT, _FAINT = (24, 24, 28), (236, 236, 240), (156, 156, 166)
_FLAGGED, _NORMAL, _ABOVE = (255, 122, 69), (126, 200, 140), (255, 196, 87)
_GAP = 8  # pixels between the image and its overlay, side by side
_LINE, _OUTLINE = (255, 255, 255), (0, 0, 0)
_MAX_LINE = 8  # pixels; a wider box blur of one pixel would round to black
_KNOTS = (0.0, LIMIT / FULL_SCALE, 1 / 2, 2 / 3, 1.0)  # of the scale
_HUES = (
    290.0,
    215.0,
    182.0,
    150.0,
    106.0,
)  # degrees: above the limit no red, orange or blue, which such parts would hide
_CHROMAS = (0.08, 0.125, 0.128, 0.175, 0.16)
_LAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)

_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def colour_table() -> NDArray[np.uint8]:
    """Tabulate the tint of map values from 0 to `FULL_SCALE` in equal steps: (256, 4) RGBA.

    The colours run from lavender over cyan (at the limit) and green to light yellow; their lightness rises linearly.
    """
    return np.concatenate([_colours(), _opacity()[:, None]], axis=1)


def draw_overlay(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.floating[Any]],
    *,
    caption: str,
    score: float,
    flagged: bool,
    side_by_side: bool = False,
) -> Image.Image:
    """Tint an image where it is anomalous, outline the regions above the limit and add a legend below.

    Below half the limit the pixels are unchanged; from the limit on the tint is plain to see on any picture. What is
    tinted so and outlined are the regions of the table of `score --regions`, cell by cell.

    Args:
        image: (H, W, 3) RGB; keeps its resolution.
        anomaly_map: (h, w), >= 0, 1.0 = the limit of normal; resized to the image.
        caption: path of the image, any text; characters outside ASCII are replaced by question marks.
        score: of the image, 1.0 = the limit of normal.
        flagged: whether the ranking flags it.
        side_by_side: whether the image itself stands to the left of the overlay.

    Returns:
        RGB picture, the overlay at its upper left corner, or the image and, beyond a gap, the overlay.
    """
    H, W, _ = image.shape
    original = Image.fromarray(image)
    tinted = _tinted(original, anomaly_map)
    left = W + _GAP if side_by_side else 0
    legend = _legend(left + W, H, caption, score, flagged)
    picture = Image.new("RGB", (legend.width, H + legend.height), _BACKGROUND)
    if side_by_side:
        picture.paste(original)
    picture.paste(tinted, (left, 0))
    picture.paste(legend, (0, H))
    return picture


def _tinted(image: Image.Image, anomaly_map: NDArray[np.floating[Any]]) -> Image.Image:
    """Tint an image and outline its regions."""
    heat = np.asarray(Image.fromarray(anomaly_map.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR))
    inside = region_mask(anomaly_map >= LIMIT, image.height, image.width)
    # Interpolation would lower a small region below the limit and widen one of high peak.
    heat_at = np.where(inside, np.maximum(heat, LIMIT), np.minimum(heat, _BELOW))  # (H, W)
    level = np.rint(np.clip(heat_at / FULL_SCALE, 0, 1) * (STEPS - 1)).astype(np.uint8)
    tinted = Image.composite(Image.fromarray(_colours()[level]), image, Image.fromarray(_opacity()[level]))
    _outline(tinted, Image.fromarray(inside.astype(np.uint8) * 255))
    return tinted


def encode_map16(anomaly_map: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """Encode an anomaly map for a 16-bit grey PNG, in thousandths of its unit on every image.

    Args:
        anomaly_map: (h, w), >= 0, 1.0 = the limit of normal.

    Returns:
        (h, w); 1000 = the limit of normal, 65535 = 65.535 or more.
    """
    encoded: NDArray[np.uint16] = np.rint(np.clip(anomaly_map * MAP16_UNITS, 0, 65535)).astype(np.uint16)
    return encoded


@cache
def _colours() -> NDArray[np.uint8]:
    """Build the colour scale in OKLab (Ottosson 2020), a perceptually uniform space.

    Lightness rises linearly while the hue turns from lavender over cyan and green to yellow. The chroma, chosen by
    hand, is close to the largest in sRGB: no channel clips, which would distort the lightness.

    Returns:
        (256, 3) RGB.
    """
    at = np.linspace(0, 1, STEPS)
    lightness = 0.68 + 0.27 * at
    hue = np.radians(np.interp(at, _KNOTS, _HUES))
    chroma = np.interp(at, _KNOTS, _CHROMAS)
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)  # (256, 3)
    linear = np.clip((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colours: NDArray[np.uint8] = np.rint(encoded * 255).astype(np.uint8)
    return colours


@cache
def _opacity() -> NDArray[np.uint8]:
    """(256,) opacity of each colour, linear between the values given."""
    opacities = np.interp(np.linspace(0, FULL_SCALE, STEPS), _VALUES, _OPACITIES)
    opacity: NDArray[np.uint8] = np.rint(255 * opacities).astype(np.uint8)
    return opacity


def _outline(picture: Image.Image, inside: Image.Image) -> None:
    """Draw a bright outline with a dark edge around a region, visible on any background; the region stays as it is."""
    if inside.getbbox() is None:
        return
    width = min(_MAX_LINE, max(1, round(min(picture.size) / 500)))
    line = ImageChops.subtract(_dilate(inside, width), inside)
    soft = ImageFilter.GaussianBlur(0.6)
    edge = ImageChops.subtract(_dilate(line, width), inside)
    outside = ImageChops.invert(inside)
    for colour, strength, where in ((_OUTLINE, 0.55, edge), (_LINE, 1.0, line)):
        mask = where.filter(soft).point(lambda value, strength=strength: value * strength)
        picture.paste(colour, mask=ImageChops.multiply(mask, outside))


def _dilate(mask: Image.Image, pixels: int) -> Image.Image:
    """Dilate the white part of a mask by a box blur: any pixel with white within the radius becomes non-zero."""
    return mask.filter(ImageFilter.BoxBlur(pixels)).point(lambda value: 255 if value else 0)


def _legend(W: int, H: int, caption: str, score: float, flagged: bool) -> Image.Image:
    """Draw the legend of an H × W picture: path, score, and the colour bar beside or, if narrow, below them."""
    # Supersampled: with glyphs at whole pixels, small text would run together.
    width = _FINER * max(W, _MIN_WIDTH)
    em = _FINER * max(_MIN_EM, round(min(W, 2 * H) / 60))
    wide = width >= 40 * em
    line = 3 * em // 2
    bar_width = 16 * em if wide else width - 2 * em
    strip = Image.new("RGB", (width, 2 * em + line * (2 if wide else 4)), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(em)
    text_width = width - 2 * em - (bar_width + 2 * em if wide else 0)
    draw.text((em, em + line // 2), _truncate_middle(printable(caption), font, text_width), _TEXT, font, "lm")
    _draw_verdict(draw, (em, em + line + line // 2), score, flagged, em, text_width)
    _draw_bar(strip, (width - em - bar_width, em if wide else em + 2 * line), bar_width, em)
    return strip.reduce(_FINER)


def _draw_verdict(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], score: float, flagged: bool, em: int, width: float
) -> None:
    """Draw the score and what follows from it, in words that fit the width."""
    x, y = at
    font = ImageFont.load_default(em)
    text = f"score {score:.2f} x limit"
    draw.text(at, text, _TEXT, font, "lm")
    left = x + font.getlength(text) + em
    if flagged:
        right = left + font.getlength("FLAGGED") + 0.8 * em
        draw.rounded_rectangle((left, y - 0.62 * em, right, y + 0.62 * em), round(0.25 * em), _FLAGGED)
        draw.text((left + 0.4 * em, y), "FLAGGED", _BACKGROUND, font, "lm")
    elif score >= LIMIT:
        words = "above the limit, not flagged"
        if left + font.getlength(words) > x + width:
            words = "not flagged"
        draw.text((left, y), words, _ABOVE, font, "lm")
    else:
        draw.text((left, y), "normal", _NORMAL, font, "lm")


def _draw_bar(strip: Image.Image, at: tuple[int, int], width: int, em: int) -> None:
    """Draw the colour bar over middle grey at the opacity of an overlay, with its values below."""
    x, y = at
    steps = np.rint(np.linspace(0, STEPS - 1, width)).astype(np.uint8)[None]  # (1, width)
    grey = Image.new("RGB", (width, 1), (128, 128, 128))
    row = Image.composite(Image.fromarray(_colours()[steps]), grey, Image.fromarray(_opacity()[steps]))
    strip.paste(row.resize((width, 3 * em // 4)), (x, y + 3 * em // 8))
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(0.85 * em)
    tick, middle = x + round(width * LIMIT / FULL_SCALE), y + 2.2 * em
    draw.line((tick, y + 3 * em // 8, tick, y + 3 * em // 2), _TEXT, em // 12)
    draw.text((x, middle), "0", _FAINT, font, "lm")
    draw.text((tick, middle), f"{LIMIT:g} = limit of normal", _FAINT, font, "mm")
    draw.text((x + width, middle), f"{FULL_SCALE:g}+", _FAINT, font, "rm")


def printable(text: str) -> str:
    """Reduce text to ASCII, all that Pillow's default font has: accents are dropped, the rest become question marks."""
    characters = [each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each)]
    return "".join(each if " " <= each <= "~" else "?" for each in characters)


def _truncate_middle(text: str, font: Font, width: int) -> str:
    """Shorten a text in its middle to a width in pixels."""

    def keep(count: int) -> str:
        return text[: count // 2] + "…" + text[len(text) - (count + 1) // 2 :]

    def overhang(count: int) -> float:
        return font.getlength(keep(count)) - width

    if font.getlength(text) <= width:
        return text
    return keep(max(bisect_right(range(len(text)), 0.0, key=overhang) - 1, 0))
