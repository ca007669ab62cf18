"""Maps that explain the score: attribution of pooled distances, and raising of maps that show too little."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from shared_run import Trained
from torch import Tensor, nn

from anomaly_cli.detector.anomaly_detector import AnomalyDetector, ScaleModel
from anomaly_cli.detector.attribution import pooled_attribution
from anomaly_cli.detector.calibration import SOFTNESS, Calibration
from anomaly_cli.detector.checkpoint import Model, load_model
from anomaly_cli.detector.features import pooled_embedding
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.scales import IMAGE_SCALE
from anomaly_cli.detector.whitening import Whitening
from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.scoring.explained_map import explain_map
from anomaly_cli.scoring.measure import Measured, Scorer


@pytest.fixture(scope="module")
def loaded(trained: Trained) -> Model:
    return load_model(trained.model)


def pooled_scale(maps: list[dict[str, Tensor]]) -> ScaleModel:
    """Fit a pooled scale on the maps of some images; its prototypes are their embeddings."""
    cells = torch.cat([pooled_embedding(each).flatten(1) for each in maps])
    scale = ScaleModel(Whitening.fit(cells))
    scale.memory = PrototypeMemory(scale.whitening(cells))
    return scale


def random_maps(seed: int, side: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "16": torch.randn(1, 3, 2 * side, 2 * side, generator=generator),
        "32": torch.randn(1, 5, side, side, generator=generator),
    }


def test_the_shares_of_cells_of_two_grids_average_nearly_to_the_pooled_distance() -> None:
    scale = pooled_scale([random_maps(seed) for seed in range(20)])
    odd = random_maps(99)
    odd["16"][:, :, 1:3, 5:7] += 4

    shares = pooled_attribution(odd, scale)

    distance, _ = scale.compare(pooled_embedding(odd).flatten(1))
    # Bilinear enlargement by two changes the mean of the coarser map a little: the cells at the border count more.
    assert float(shares.mean()) == pytest.approx(float(distance), rel=0.05)


def test_the_shares_of_cells_of_one_grid_average_exactly_to_the_pooled_distance() -> None:
    scale = pooled_scale([{"16": random_maps(seed)["16"]} for seed in range(20)])
    odd = {"16": random_maps(99)["16"]}

    shares = pooled_attribution(odd, scale)

    distance, _ = scale.compare(pooled_embedding(odd).flatten(1))
    assert float(shares.mean()) == pytest.approx(float(distance), rel=1e-4)


def test_the_share_of_a_class_token_is_the_same_everywhere() -> None:
    with_token = [
        {"block_4": random_maps(seed)["16"], "class": random_maps(seed + 50)["32"][:, :, :1, :1]} for seed in range(20)
    ]
    scale = pooled_scale(with_token)
    odd = {**with_token[3], "class": with_token[3]["class"] + 5}

    shares = pooled_attribution(odd, scale)

    distance, _ = scale.compare(pooled_embedding(odd).flatten(1))
    assert float(shares.mean()) == pytest.approx(float(distance), rel=1e-4)
    assert float(shares.std()) < 0.2 * float(shares.mean())


def test_a_changed_part_of_the_image_has_the_largest_shares() -> None:
    scale = pooled_scale([random_maps(seed) for seed in range(20)])
    odd = random_maps(3)  # one of the images the memory knows
    odd["16"] = odd["16"].clone()
    odd["16"][:, :, 6, 2] += 9

    shares = pooled_attribution(odd, scale)

    assert divmod(int(shares.argmax()), shares.shape[1]) == (6, 2)


def test_an_image_has_a_map_at_least_as_high_as_its_score(loaded: Model, trained: Trained) -> None:
    paths = sorted((trained.folder / "incoming").glob("*.png"))
    for result in Scorer(loaded, [torch.device("cpu")]).measure(paths):
        assert isinstance(result, Measured)
        score = loaded.calibration.scores(result.deviations[None])[0][0]
        assert result.anomaly_map.max() >= score - 1e-5


NOTHING = LoadedImage(np.zeros((0, 0, 3), np.uint8), 0, 0)  # of which no pixel may be read


class NoBackbone(nn.Module):
    """Stands for a detector that must not look at the image again."""

    deviation_names = ("map", IMAGE_SCALE)


def calibration_of(weights: tuple[float, float]) -> Calibration:
    deviations = np.exp(np.random.default_rng(0).normal(size=(100, 2)))
    return Calibration.fit(deviations, np.array(weights))


def test_a_map_that_shows_the_score_is_left_alone() -> None:
    calm = np.array([[0.4, 0.6], [0.5, 0.9]], np.float32)
    detector = cast(AnomalyDetector, NoBackbone())

    explained, pooled = explain_map(detector, calibration_of((1, 1)), NOTHING, calm, np.array([1.0, 1.0]))

    assert explained is calm
    assert pooled is None


def test_the_highest_cells_are_raised_to_the_score_where_the_map_contributes_most() -> None:
    low = np.array([[0.2, 0.4], [0.4, 0.8]], np.float32)
    calibration = calibration_of((1, 0))
    deviations = np.array([np.exp(6.0), 1.0])
    detector = cast(AnomalyDetector, NoBackbone())

    explained, pooled = explain_map(detector, calibration, NOTHING, low, deviations)

    score = calibration.scores(deviations[None])[0][0]
    assert explained.max() == pytest.approx(score)
    assert pooled is None
    assert explained[0, 1] == pytest.approx(0.4 + (score - 0.8) / 2**16)


def test_the_attribution_places_the_region_where_a_pooled_scale_contributes_most(
    loaded: Model, trained: Trained
) -> None:
    path = next((trained.folder / "incoming").glob("*.png"))
    result = next(iter(Scorer(loaded, [torch.device("cpu")]).measure([path])))
    assert isinstance(result, Measured)
    deviations = result.deviations.copy()
    deviations[loaded.detector.deviation_names.index(IMAGE_SCALE)] *= 1e3
    image = LoadedImage(result.pixels, result.height, result.width)
    calm = np.full_like(result.anomaly_map, 0.3)

    explained, pooled = explain_map(loaded.detector, loaded.calibration, image, calm, deviations)

    assert pooled == IMAGE_SCALE
    assert explained.max() == pytest.approx(loaded.calibration.scores(deviations[None])[0][0], rel=1e-5)
    assert explained.min() < explained.max() / 2


def test_the_largest_component_is_the_largest_term_of_the_soft_maximum() -> None:
    calibration = calibration_of((3, 1))
    generator = np.random.default_rng(1)
    for deviations in np.exp(2 * generator.normal(size=(50, 2))):
        standard = (np.log(deviations) - calibration.location) / calibration.spread
        terms = calibration.weights * np.exp(standard / SOFTNESS)
        assert calibration.largest_component(deviations) == int(terms.argmax())
