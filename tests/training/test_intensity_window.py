"""The intensity window: chosen at training, kept in the model, applied to every image by all commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import anomaly
from PIL import Image

from anomaly_cli.config import DetectorConfig, parse_window
from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.errors import ConfigError, InputError
from anomaly_cli.images.decode import load_image, read_pixels
from anomaly_cli.training.training_set import choose_window


def write_deep(path: Path, seed: int, *, low: int = 1000, high: int = 1255) -> Path:
    """Write a 16-bit grey picture that uses a small part of the range."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.random((6, 6)).astype(np.float32)).resize((64, 64), Image.Resampling.BICUBIC)
    values = low + np.asarray(small).clip(0, 1) * (high - low)
    Image.fromarray(values.round().astype(np.uint16)).save(path)
    return path


def test_a_window_says_which_values_are_black_and_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 1000, 1051, 1255, 65535]], np.uint16)).save(path)

    assert read_pixels(path, (1000, 1255))[0, :, 0].tolist() == [0, 0, 51, 255, 255]
    assert load_image(path, 64, window=(1000, 1255)).pixels.max() == 255
    assert read_pixels(path).max(axis=-1)[0].tolist() == [0, 4, 4, 5, 255]


def test_8_bit_and_colour_images_have_no_window(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(path)

    np.testing.assert_array_equal(read_pixels(path, (0, 50)), read_pixels(path))


def test_auto_takes_the_percentiles_of_the_normal_images(tmp_path: Path) -> None:
    paths = [write_deep(tmp_path / f"{i}.png", i) for i in range(4)]
    values = np.concatenate([np.asarray(Image.open(path)).ravel() for path in paths])

    config = choose_window(DetectorConfig(intensity_window="auto"), paths, 1)

    assert config.window == pytest.approx(np.percentile(values, (0.1, 99.9)), abs=2)


def test_auto_without_deep_grey_is_an_error(tmp_path: Path) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    Image.new("I;16", (40, 40), 700).save(tmp_path / "b.png")
    config = DetectorConfig(intensity_window="auto")

    with pytest.raises(InputError, match=r"^--intensity-window auto: no normal image is grey of more than 8 bit$"):
        choose_window(config, [tmp_path / "a.png"], 1)
    with pytest.raises(InputError, match=r"^--intensity-window auto: the normal images have one value only$"):
        choose_window(config, [tmp_path / "b.png"], 1)


@pytest.mark.parametrize("text", ["", "5", "1,2,3", "low,high"])
def test_a_window_that_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--intensity-window must be LOW,HIGH or auto, got {text}$"):
        parse_window(text)


@pytest.mark.parametrize("window", [(5.0, 5.0), (9.0, 1.0), (0.0, float("inf"))])
def test_a_window_must_rise(window: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"^intensity window must be LOW,HIGH with LOW below HIGH, got "):
        DetectorConfig(intensity_window=window)


def test_a_model_keeps_its_window_and_scores_deep_images_as_their_8_bit_twins(tmp_path: Path) -> None:
    deep, flat = tmp_path / "deep", tmp_path / "flat"
    deep.mkdir()
    flat.mkdir()
    for i in range(10):
        path = write_deep(deep / f"{i}.png", i)
        Image.fromarray(read_pixels(path, (1000, 1255))).save(flat / path.name)
    common = ("--image-size", "64", "--prototypes", "20", "--effort", "quick", "--quiet")

    for folder, window in ((deep, ("--intensity-window", "1000,1255")), (flat, ())):
        model = tmp_path / f"{folder.name}.safetensors"
        assert anomaly("train", folder, "--model", model, *common, *window).exit_code == 0
        result = anomaly("score", folder, "--model", model, "--out", tmp_path / f"{folder.name}.csv", "--quiet")
        assert result.exit_code == 0

    def scores(name: str) -> dict[str, str]:
        lines = (tmp_path / f"{name}.csv").read_text().splitlines()
        place = lines[0].split(",").index("score")
        return {Path(line.split(",")[1]).name: line.split(",")[place] for line in lines[1:]}

    assert load_model(tmp_path / "deep.safetensors").config.window == (1000.0, 1255.0)
    assert load_model(tmp_path / "flat.safetensors").config.window is None
    assert scores("deep") == scores("flat")
