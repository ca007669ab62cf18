import numpy as np
import pytest
from PIL import Image

from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.training.augmentation import random_view, synthetic_defect, synthetic_defect_of


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 190, (48, 64, 3), np.uint8)


def test_a_view_is_a_square_of_another_part_in_another_light() -> None:
    ramp = np.linspace(60, 190, 64, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(ramp, ramp[:48, None], ramp[::-1]), axis=2)

    views = [random_view(image, 32, np.random.default_rng(seed)).astype(int) for seed in range(60)]

    assert {view.shape for view in views} == {(32, 32, 3)}
    slopes = [view[:, -1, 0].mean() - view[:, 0, 0].mean() for view in views]
    assert min(slopes) < 0 < max(slopes)  # some are mirrored
    assert all(view[-1, :, 1].mean() > view[0, :, 1].mean() + 1 for view in views)  # none is upside down
    assert np.std(np.abs(slopes)) > 5  # they show more of the image or less
    assert np.std([view.mean() for view in views]) > 10
    colours = [np.corrcoef(view[..., 0].flat, view[..., 2].flat)[0, 1] for view in views]
    assert 5 < np.sum(np.array(colours) > 0.9) < 25  # without colour


@pytest.mark.parametrize("shape", [(1, 1), (8, 400), (300, 20), (64, 64), (189, 251)])
def test_a_view_of_any_form_shows_one_part_hardly_stretched(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    h, w = shape
    boxes: list[tuple[float, float, float, float]] = []
    resize = Image.Image.resize

    def noted(
        image: Image.Image, size: tuple[int, int], resample: Image.Resampling, box: tuple[float, float, float, float]
    ) -> Image.Image:
        boxes.append(box)
        return resize(image, size, resample, box)

    monkeypatch.setattr(Image.Image, "resize", noted)

    for seed in range(300):
        random_view(np.zeros((h, w, 3), np.uint8), 16, np.random.default_rng(seed))

    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= w
        assert 0 <= top < bottom <= h
        assert 0.74 < (right - left) / (bottom - top) < 1.34
    shares = [(right - left) * (bottom - top) / min(h, w) ** 2 for left, top, right, bottom in boxes]
    assert max(shares) <= 4 / 3 + 1e-9
    if h == w:
        assert 0.35 <= min(shares) < 0.45
        assert max(shares) > 0.9


@pytest.mark.parametrize("seed", range(30))
def test_a_planted_defect_changes_a_small_part_of_the_image(seed: int) -> None:
    image = picture()

    changed = synthetic_defect(image, picture(1), np.random.default_rng(seed))

    difference = np.abs(changed.astype(int) - image).max(axis=2)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert difference.max() > 0
    assert 0.5 < (difference == 0).mean() < 1


def test_planted_defects_are_of_several_kinds_and_places() -> None:
    image = np.full((64, 64, 3), 120, np.uint8)
    image[::2] = 130
    other = np.full((64, 64, 3), 200, np.uint8)

    changes = [synthetic_defect(image, other, np.random.default_rng(seed)).astype(int) - image for seed in range(60)]

    places = [np.argwhere(np.abs(change).sum(axis=2) > 0).mean(axis=0) for change in changes if change.any()]
    assert np.std(places, axis=0).min() > 8
    means = np.array([change[change != 0].mean() for change in changes if change.any()])
    assert means.min() < -5 < 5 < means.max()  # stains are darker or lighter, the other image is lighter
    assert (np.abs(means) < 3).any()  # blur and noise keep the brightness


def test_the_same_seed_plants_the_same_defect() -> None:
    first, second = (synthetic_defect(picture(), picture(1), np.random.default_rng(7)) for _ in range(2))

    np.testing.assert_array_equal(first, second)


def enlarged(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def test_a_defect_in_an_enlarged_file_is_no_sharper_than_its_pixels() -> None:
    pixels, other = (enlarged(np.random.default_rng(i).integers(60, 190, (32, 32, 3), np.uint8), 128) for i in (0, 1))
    image = LoadedImage(pixels, 32, 32)

    changed = [synthetic_defect_of(image, other, np.random.default_rng(seed)) for seed in range(20)]

    visible = [difference for each in changed if np.abs(difference := each.astype(float) - pixels).max() > 10]
    assert len(visible) > 12
    for difference in visible:
        steps = [np.abs(np.diff(difference, axis=axis)).max() for axis in (0, 1)]
        # From one pixel of the file to the next the defect is there or not; at network size that takes four pixels.
        assert max(steps) <= 0.45 * np.ptp(difference)


def test_a_defect_in_an_enlarged_file_stays_in_the_region_of_interest() -> None:
    pixels = enlarged(picture()[:, :48], 128)
    inspected = np.zeros((128, 128), bool)
    inspected[40:90, 30:101] = True
    image = LoadedImage(pixels, 48, 48, inspected=inspected)

    changed = [synthetic_defect_of(image, pixels[::-1], np.random.default_rng(seed)) for seed in range(12)]

    for each in changed:
        assert (each != pixels).any()
        assert not (each != pixels)[~inspected].any()


def test_a_defect_in_a_file_that_was_not_enlarged_is_pasted_as_it_is() -> None:
    image = LoadedImage(picture(), 480, 640)

    pasted = synthetic_defect_of(image, picture(1), np.random.default_rng(3))

    np.testing.assert_array_equal(pasted, synthetic_defect(picture(), picture(1), np.random.default_rng(3)))
