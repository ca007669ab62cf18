"""The scales of turned copies: what is unsure about the turns, the learned embedding, prototypes and weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anomaly_cli.detector.anomaly_detector import AnomalyDetector, ScaleModel
from anomaly_cli.detector.anomaly_distance import TURNED_WEIGHT, component_weights
from anomaly_cli.detector.backbones.build import build_backbone, empty_backbone
from anomaly_cli.detector.features import scale_features, turn_losses, turned_means
from anomaly_cli.detector.scales import COARSE_SCALE, IMAGE_SCALE, LEARNED_SCALE, TURNED_SCALE
from anomaly_cli.detector.whitening import Whitening
from anomaly_cli.training.cross_fitting import surest_memory, unwhitened


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def views_one_by_one(image: torch.Tensor) -> list[torch.Tensor]:
    """Cut the four views of a (3, h, w) copy."""
    part = F.interpolate(image[None, :, 6:-6, 6:-6], image.shape[1:], mode="bilinear")[0]
    return [image, part, image.flip(2), part.flip(2)]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (256, 256)])
@torch.inference_mode()
def test_scales_of_turned_copies_are_those_of_each_turn_of_each_view(height: int, width: int) -> None:
    backbone, images = build_backbone("scratch", seed=3), pictures(2, 3, height, width)

    features = scale_features(backbone, images, (TURNED_SCALE, LEARNED_SCALE))

    copies = images if height < 256 else F.avg_pool2d(images, 4)
    assert features[TURNED_SCALE].shape == (2, 4, 1, 1)
    for number, copy in enumerate(copies):
        directions = []
        for turns in range(4):
            turned = [torch.rot90(view, turns, (1, 2)) for view in views_one_by_one(copy)]
            means = torch.cat([backbone(each[None])[-1].mean(dim=(2, 3)) for each in turned])
            losses = -backbone.turn_logits(means).log_softmax(dim=1)[:, turns]
            torch.testing.assert_close(features[TURNED_SCALE][number, turns, 0, 0] ** 2, losses.mean())
            directions.append(sum(each / each.norm() for each in means) / len(means))
        joined = torch.cat(directions)
        torch.testing.assert_close(features[LEARNED_SCALE][number, :, 0, 0], joined / joined.norm())


@torch.inference_mode()
def test_a_certain_turn_has_a_small_deviation_but_not_zero() -> None:
    backbone = build_backbone("scratch", seed=3)
    assert backbone.turn_head is not None
    backbone.turn_head.weight.zero_()
    backbone.turn_head.bias.copy_(torch.tensor([99.0, 0, 0, 0]))

    embedding = turn_losses(backbone, turned_means(backbone, pictures(1, 3, 64, 64)))

    assert embedding.flatten().tolist() == pytest.approx([0.01, *[99**0.5] * 3])


def test_a_backbone_without_a_head_tells_no_turn() -> None:
    with pytest.raises(ValueError, match="backbone embedded has no turn head"):
        empty_backbone("embedded").turn_logits(torch.zeros(1, 320))


def test_the_prototype_of_turned_copies_is_the_surest_image() -> None:
    cells = torch.tensor([[1.0, 1, 1, 1], [0.1, 0.2, 0.1, 0.3], [0, 0, 0, 2]])

    memory = surest_memory(cells)

    distances, nearest = memory.nearest(cells)
    assert memory.chosen.tolist() == [1]
    assert nearest.tolist() == [0, 0, 0]
    torch.testing.assert_close(distances, (cells - cells[1]).norm(dim=1))


def test_the_learned_embedding_is_not_whitened() -> None:
    cells = pictures(5, 4)

    assert torch.equal(unwhitened(cells)(cells), cells)


@pytest.mark.parametrize("information", [0.0, 0.5])
def test_turned_copies_weigh_what_can_be_told_about_turns(information: float) -> None:
    backbone = empty_backbone("scratch")
    backbone.turn_information.fill_(information)
    names = ("8", IMAGE_SCALE, TURNED_SCALE, LEARNED_SCALE, COARSE_SCALE)
    scales = {name: ScaleModel(Whitening(torch.zeros(3), torch.eye(3))) for name in names}

    weights = component_weights(AnomalyDetector(backbone, scales), 64, 1000, (0.1, 0.1))

    assert weights.tolist()[1:5] == [0, 1, TURNED_WEIGHT * information, TURNED_WEIGHT * information]
