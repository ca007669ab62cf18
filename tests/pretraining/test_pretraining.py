"""Pretraining: widening a network keeps what it computes."""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly_cli.detector.backbones.compact_resnet import WIDTHS, CompactResNet
from pretraining.widen import widened


def network(widths: tuple[int, ...] = WIDTHS, stem_width: int = 32) -> CompactResNet:
    torch.manual_seed(0)
    made = CompactResNet(widths, stem_width=stem_width)
    for name, value in made.state_dict().items():  # as after training: no normalisation is the identity
        if ".norm." in name and value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5)
    return made.eval()


def weights(of: CompactResNet) -> dict[str, Tensor]:
    return {name: value for name, value in of.state_dict().items() if value.is_floating_point()}


@torch.inference_mode()
def test_a_widened_network_computes_the_same_and_only_noise_parts_the_copies() -> None:
    narrow, images = network((8, 24, 40, 320), stem_width=20), torch.rand(2, 3, 64, 96)
    same, noisy = CompactResNet().eval(), CompactResNet().eval()
    same.load_state_dict(widened(weights(narrow), seed=3, noise=0), strict=False)
    noisy.load_state_dict(widened(weights(narrow), seed=3), strict=False)

    for old, new, other in zip(narrow(images), same(images), noisy(images), strict=True):
        torch.testing.assert_close(new[:, : old.shape[1]], old, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(other[:, : old.shape[1]], old, rtol=1e-3, atol=1e-3)


def test_a_network_that_is_wide_enough_stays_as_it_is() -> None:
    before = weights(network())

    after = widened(before, seed=3)

    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
