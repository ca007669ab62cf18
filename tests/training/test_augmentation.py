import numpy as np
import pytest

from anomaly_cli.training.augmentation import random_view, synthetic_defect


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 190, (48, 64, 3), np.uint8)


def test_a_free_view_is_a_square_of_another_part_in_another_light() -> None:
    ramp = np.linspace(60, 190, 64, dtype=np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (48, 64, 3)).copy()

    views = [random_view(image, 32, np.random.default_rng(seed)).astype(int) for seed in range(40)]

    assert {view.shape for view in views} == {(32, 32, 3)}
    slopes = [view[:, -1].mean() - view[:, 0].mean() for view in views]
    assert min(slopes) < 0 < max(slopes)  # some are mirrored
    assert np.std(np.abs(slopes)) > 5  # they show more of the image or less
    assert np.std([view.mean() for view in views]) > 10


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
