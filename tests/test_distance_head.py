import torch

from anomaly_cli.distance_head import HeadData, _hypersphere_losses, learn_head


def deviations(count: int, width: int, seed: int) -> torch.Tensor:
    """Squared normal noise, as the deviations of whitened channels are."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).square() + 0.01


def head_data(anomalies: int, strength: float) -> HeadData:
    """Two scales of 8 channels; anomalies deviate in the first channel of the first scale only."""
    scales = [deviations(60 + anomalies, 8, seed) for seed in (0, 1)]
    scales[0][60:, 0] += strength
    return HeadData(scales, torch.tensor([0.5, 0.5]), torch.arange(60 + anomalies) >= 60)


def test_a_channel_in_which_anomalies_deviate_gains_weight() -> None:
    learned = learn_head(head_data(20, strength=4.0), seed=0)

    assert learned.gain > 0
    assert learned.channels[0].argmax() == 0
    assert learned.scales[0] > learned.scales[1]


def test_weights_are_never_negative() -> None:
    learned = learn_head(head_data(20, strength=4.0), seed=0)

    assert all((channels > 0).all() for channels in learned.channels)
    assert (learned.scales > 0).all()


def test_anomalies_that_look_normal_leave_the_plain_distance() -> None:
    learned = learn_head(head_data(20, strength=0.0), seed=0)

    assert learned.gain == 0.0
    assert all((channels == 1).all() for channels in learned.channels)
    assert (learned.scales == 1).all()


def test_too_few_anomalies_leave_the_plain_distance() -> None:
    assert learn_head(head_data(3, strength=50.0), seed=0).gain == 0.0


def test_the_same_seed_learns_the_same_weights() -> None:
    first, second = (learn_head(head_data(12, strength=3.0), seed=5) for _ in range(2))

    torch.testing.assert_close(first.channels, second.channels)
    assert first.gain == second.gain


def test_the_hypersphere_loss_falls_when_classes_part() -> None:
    anomalous = torch.tensor([False, False, True, True])

    near = _hypersphere_losses(torch.tensor([0.0, 0.0, 0.0, 0.0]), anomalous).mean()
    apart = _hypersphere_losses(torch.tensor([-1.0, -1.0, 3.0, 3.0]), anomalous).mean()

    assert apart < near
