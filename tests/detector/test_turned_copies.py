"""The scale of turned copies: its embedding, its one prototype and its weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anomaly_cli.detector.anomaly_detector import AnomalyDetector, ScaleModel
from anomaly_cli.detector.anomaly_distance import TURNED_WEIGHT, component_weights
from anomaly_cli.detector.backbones.build import build_backbone, empty_backbone
from anomaly_cli.detector.features import scale_features, turned_embedding
from anomaly_cli.detector.scales import COARSE_SCALE, IMAGE_SCALE, TURNED_SCALE
from anomaly_cli.detector.whitening import Whitening
from anomaly_cli.training.cross_fitting import surest_scale


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (256, 256)])
@torch.inference_mode()
def test_the_squared_embedding_is_the_negative_log_likelihood_of_each_turn(height: int, width: int) -> None:
    backbone, images = build_backbone("scratch", seed=3), pictures(2, 3, height, width)

    embedding = scale_features(backbone, images, (TURNED_SCALE,))[TURNED_SCALE]

    copies = images if height < 256 else F.avg_pool2d(images, 4)
    assert embedding.shape == (2, 4, 1, 1)
    assert backbone.turn_head is not None
    for number, copy in enumerate(copies):
        for turns in range(4):
            turned = torch.rot90(copy, turns, (1, 2))
            logits = backbone.turn_head(backbone(turned[None])[-1].mean(dim=(2, 3)))[0]
            torch.testing.assert_close(embedding[number, turns, 0, 0] ** 2, -logits.log_softmax(0)[turns])


@torch.inference_mode()
def test_a_certain_turn_has_a_small_deviation_but_not_zero() -> None:
    backbone = build_backbone("scratch", seed=3)
    assert backbone.turn_head is not None
    backbone.turn_head.weight.zero_()
    backbone.turn_head.bias.copy_(torch.tensor([99.0, 0, 0, 0]))

    embedding = turned_embedding(backbone, pictures(1, 3, 64, 64))

    assert embedding.flatten().tolist() == pytest.approx([0.01, *[99**0.5] * 3])


def test_a_backbone_without_a_head_tells_no_turn() -> None:
    with pytest.raises(ValueError, match="backbone embedded has no turn head"):
        empty_backbone("embedded").turn_logits(torch.zeros(1, 320))


def test_the_prototype_of_turned_copies_is_the_surest_image() -> None:
    cells = torch.tensor([[1.0, 1, 1, 1], [0.1, 0.2, 0.1, 0.3], [0, 0, 0, 2]])

    scale = surest_scale(cells)

    distances, nearest = scale.compare(cells)
    assert scale.memory.chosen.tolist() == [1]
    assert nearest.tolist() == [0, 0, 0]
    torch.testing.assert_close(distances, (cells - cells[1]).norm(dim=1))


@pytest.mark.parametrize("information", [0.0, 0.5])
def test_turned_copies_weigh_what_can_be_told_about_turns(information: float) -> None:
    backbone = empty_backbone("scratch")
    backbone.turn_information.fill_(information)
    names = ("8", IMAGE_SCALE, TURNED_SCALE, COARSE_SCALE)
    scales = {name: ScaleModel(Whitening(torch.zeros(3), torch.eye(3))) for name in names}

    weights = component_weights(AnomalyDetector(backbone, scales), 64, 1000, (0.1, 0.1))

    assert weights.tolist()[1:4] == [0, 1, TURNED_WEIGHT * information]
