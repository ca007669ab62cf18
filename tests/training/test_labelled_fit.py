"""What is learned from labelled anomalies: on held-out normal images, by the detector of each fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared_run import CONFIG, texture, with_defect

from anomaly_cli.detector.anomaly_detector import AnomalyDetector, ScaleModel
from anomaly_cli.detector.backbones.backbone import SCRATCH
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.checkpoint import Model
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.labelled_anomalies import fit_labelled
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.scales import LEARNED_SCALE, TURNED_SCALE
from anomaly_cli.detector.whitening import Whitening
from anomaly_cli.images.decode import load_image
from anomaly_cli.scoring.pixels import to_tensor
from anomaly_cli.training.cross_fitting import CrossFit, HeldOutImage
from anomaly_cli.training.labelled_fit import describe_anomalies, fit_labelled_classifier
from anomaly_cli.training.run import TrainingContext

RUN = TrainingContext(CONFIG, torch.device("cpu"), 1, lambda *_: None)
NORMALS, FOLDS = 12, 2


@pytest.fixture
def detector(loaded: Model) -> AnomalyDetector:
    return loaded.detector


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Twelve normal images and three anomalies."""
    draw = np.random.default_rng(5)
    paths = [tmp_path / f"{i:02}.png" for i in range(15)]
    for i, path in enumerate(paths):
        pixels = texture(draw, 64, 64)
        Image.fromarray(with_defect(draw, pixels) if i >= NORMALS else pixels).save(path)
    return paths


def copies(detector: AnomalyDetector) -> list[AnomalyDetector]:
    """Detectors as training has them: one in use, one a fold."""
    scales = {name: detector.scale(name) for name in detector.scale_names}
    return [AnomalyDetector(detector.backbone, scales).eval() for _ in range(1 + FOLDS)]


def held_out(files: list[Path]) -> list[HeldOutImage]:
    return [HeldOutImage(i % FOLDS, path) for i, path in enumerate(files[:NORMALS])]


def descriptors_in(detector: AnomalyDetector, paths: list[Path]) -> torch.Tensor:
    return torch.cat([detector.descriptors(to_tensor(load_image(path, 64))) for path in paths])


def descriptors_of(detector: AnomalyDetector, paths: list[Path]) -> torch.Tensor:
    """Look cell by cell, as slowly as it can be said."""
    rows = []
    for path in paths:
        features = scale_features(detector.backbone, to_tensor(load_image(path, 64)), detector.scale_names)
        maps = detector.distance_maps(to_tensor(load_image(path, 64)))
        coarsest = features[detector.local_names[-1]][0].flatten(1)
        row = [*coarsest.mean(1).tolist(), *coarsest.std(1, unbiased=False).tolist()]
        for name, distances in zip(detector.local_names, maps, strict=False):
            cells, order = features[name][0].flatten(1).T, distances.flatten().argsort(descending=True)
            row += cells[order[: max(1, round(0.02 * len(cells)))]].mean(0).tolist()
        row += features[LEARNED_SCALE].flatten().tolist() if LEARNED_SCALE in features else []
        rows.append(row)
    return torch.tensor(rows)


def test_a_descriptor_is_the_whole_coarse_map_and_the_top_cells(detector: AnomalyDetector, files: list[Path]) -> None:
    labelled = describe_anomalies(detector, files[NORMALS:], RUN)

    assert labelled.values is not None
    assert labelled.values.shape == (3, detector.descriptor_width)
    torch.testing.assert_close(labelled.values, descriptors_of(detector, files[NORMALS:]), atol=1e-5, rtol=1e-4)


def test_from_scratch_the_learned_embedding_is_a_part_of_the_descriptor(files: list[Path]) -> None:
    backbone = build_backbone(SCRATCH).prepare_for_inference()
    widths = {"8": 64, "16": 128, TURNED_SCALE: 4, LEARNED_SCALE: 1024}
    scales = {name: ScaleModel(Whitening(torch.zeros(width), torch.eye(width))) for name, width in widths.items()}
    for name, scale in scales.items():
        scale.memory = PrototypeMemory(torch.randn(5, widths[name], generator=torch.Generator().manual_seed(0)))
    detector = AnomalyDetector(backbone, scales).eval()

    described = descriptors_in(detector, files[NORMALS:])

    assert described.shape == (3, detector.descriptor_width) == (3, 3 * 128 + 64 + 1024)
    torch.testing.assert_close(described, descriptors_of(detector, files[NORMALS:]), atol=1e-5, rtol=1e-3)


def test_an_unreadable_labelled_file_is_named_and_passed_over(detector: AnomalyDetector, files: list[Path]) -> None:
    files[NORMALS + 1].write_bytes(b"no image")

    labelled = describe_anomalies(detector, files[NORMALS:], RUN)

    assert labelled.unreadable == [(files[NORMALS + 1], "not an image")]
    assert labelled.values is not None
    assert len(labelled.values) == 2


def test_each_fold_is_compared_by_a_fit_that_has_not_seen_it(detector: AnomalyDetector, files: list[Path]) -> None:
    detectors, descriptors = copies(detector), descriptors_in(detector, files)

    odds = fit_labelled_classifier(CrossFit(detectors, held_out(files), [], [3]), descriptors[NORMALS:], RUN)

    normal = [i for i in range(NORMALS) if i != 3]
    for fold in range(FOLDS):
        fitted = fit_labelled(descriptors[[i for i in normal if i % FOLDS != fold]], descriptors[NORMALS:])
        expected = fitted(descriptors[[i for i in range(NORMALS) if i % FOLDS == fold]])
        torch.testing.assert_close(odds[fold::FOLDS].log(), expected.log(), atol=1e-3, rtol=1e-3)
    assert detectors[0].known_anomalies is not None
    torch.testing.assert_close(detectors[0].known_anomalies.normal, descriptors[normal], atol=1e-5, rtol=1e-4)


def test_the_descriptors_of_before_are_kept_and_new_ones_appended(detector: AnomalyDetector, files: list[Path]) -> None:
    descriptors = descriptors_in(detector, files)
    before = fit_labelled(descriptors[:6], descriptors[NORMALS : NORMALS + 1])
    kept, joined = copies(detector), copies(detector)

    odds = fit_labelled_classifier(CrossFit(kept, held_out(files), []), None, RUN, before=before)
    fit_labelled_classifier(CrossFit(joined, held_out(files), []), descriptors[NORMALS + 1 :], RUN, before=before)

    assert all(each.known_anomalies is before for each in kept)
    torch.testing.assert_close(odds.log(), before(descriptors[:NORMALS]).log(), atol=1e-3, rtol=1e-3)
    assert joined[0].known_anomalies is not None
    assert (len(joined[0].known_anomalies.normal), len(joined[0].known_anomalies.looks)) == (6 + NORMALS, 1 + 2)


def test_without_labelled_anomalies_no_classifier_is_fitted(detector: AnomalyDetector, files: list[Path]) -> None:
    detectors = copies(detector)

    odds = fit_labelled_classifier(CrossFit(detectors, held_out(files), []), None, RUN)

    assert odds.shape == (NORMALS, 0)
    assert detectors[0].known_anomalies is None
