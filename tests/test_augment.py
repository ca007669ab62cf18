import numpy as np
import pytest

from anomaly_cli.augment import free_view, synthetic_anomaly


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 190, (48, 64, 3), np.uint8)


def test_a_free_view_is_a_square_of_another_part_in_another_light() -> None:
    ramp = np.linspace(60, 190, 64, dtype=np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (48, 64, 3)).copy()

    views = [free_view(image, 32, np.random.default_rng(seed)).astype(int) for seed in range(40)]

    assert {view.shape for view in views} == {(32, 32, 3)}
    slopes = [view[:, -1].mean() - view[:, 0].mean() for view in views]
    assert min(slopes) < 0 < max(slopes)  # some are mirrored
    assert np.std(np.abs(slopes)) > 5  # they show more of the image or less
    assert np.std([view.mean() for view in views]) > 10


@pytest.mark.parametrize("seed", range(30))
def test_a_synthetic_anomaly_changes_the_masked_pixels_most(seed: int) -> None:
    image = picture()

    changed = synthetic_anomaly(image, picture(1), np.random.default_rng(seed))

    difference = np.abs(changed.pixels.astype(int) - image).mean(axis=2)
    assert changed.pixels.shape == image.shape
    assert changed.mask.shape == image.shape[:2]
    assert changed.mask.any()
    assert difference[changed.mask].mean() > 0
    if not changed.mask.all():
        assert difference[changed.mask].mean() > 4 * difference[~changed.mask].mean()


def test_every_kind_is_drawn_and_covers_object_style_and_local_scale() -> None:
    kinds = {synthetic_anomaly(picture(), picture(1), np.random.default_rng(seed)).kind for seed in range(200)}

    assert {"object", "style blur", "style light", "cut-paste", "stain", "blur", "noise"} <= kinds


def test_the_same_seed_makes_the_same_anomaly() -> None:
    first, second = (synthetic_anomaly(picture(), picture(1), np.random.default_rng(7)) for _ in range(2))

    np.testing.assert_array_equal(first.pixels, second.pixels)
