"""The contrast with memories that ablation puts beside stage 1, each part against a slow twin."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.turn_prediction import StageOne
from benchmarks.accuracy.memory_contrast import (
    FIRST_CONTRASTED,
    TEMPERATURE,
    Contrast,
    ContrastedStageOne,
    hopfield_retrieve,
    memory_contrast,
    nt_xent,
    variance_penalty,
)

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=40)
SEEDS = st.integers(0, 2**20)


def random_cells(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_retrieval(queries: Tensor, prototypes: Tensor, beta: float) -> Tensor:
    rows = []
    for query in queries.double():
        energies = [-0.5 * beta * float((query - prototype).square().sum()) for prototype in prototypes.double()]
        shares = [math.exp(energy - max(energies)) for energy in energies]
        total = sum(share * prototype for share, prototype in zip(shares, prototypes.double(), strict=True))
        rows.append(total / sum(shares))
    return torch.stack([torch.as_tensor(row) for row in rows])


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.5])
@pytest.mark.parametrize(("M", "K", "D"), [(1, 1, 1), (5, 3, 2), (9, 12, 6)])
def test_retrieval_equals_the_slow_twin(M: int, K: int, D: int, beta: float) -> None:
    queries, prototypes = random_cells(M, D, seed=1), random_cells(K, D, seed=2)

    retrieved = hopfield_retrieve(queries, prototypes, beta)

    torch.testing.assert_close(retrieved.double(), slow_retrieval(queries, prototypes, beta), rtol=1e-4, atol=1e-5)


def test_retrieval_tends_to_the_nearest_prototype_as_beta_grows() -> None:
    prototypes, queries = random_cells(20, 6, seed=3), random_cells(50, 6, seed=4)
    nearest = prototypes[PrototypeMemory(prototypes).nearest(queries)[1]]

    gaps = [
        float((hopfield_retrieve(queries, prototypes, beta) - nearest).norm(dim=1).mean())
        for beta in (0.1, 1, 10, 100, 1e4)
    ]

    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 1
    assert gaps[-1] < 1e-3


def test_retrieval_of_beta_zero_is_the_mean_of_the_prototypes() -> None:
    prototypes = random_cells(7, 4)

    retrieved = hopfield_retrieve(random_cells(3, 4, seed=1), prototypes, 0.0)

    torch.testing.assert_close(retrieved, prototypes.mean(0).expand(3, 4))


@given(SEEDS, st.floats(0.1, 100))
@REPEATABLE
def test_a_retrieved_pattern_lies_within_the_box_around_the_prototypes(seed: int, beta: float) -> None:
    prototypes = random_cells(5, 3, seed=seed)

    retrieved = hopfield_retrieve(random_cells(4, 3, seed=seed + 1), prototypes, beta)

    assert (retrieved >= prototypes.amin(0) - 1e-5).all()
    assert (retrieved <= prototypes.amax(0) + 1e-5).all()


def test_retrieval_is_differentiable_in_queries_and_prototypes() -> None:
    queries = random_cells(3, 4, seed=1).double().requires_grad_()
    prototypes = random_cells(5, 4, seed=2).double().requires_grad_()

    assert torch.autograd.gradcheck(partial(hopfield_retrieve, beta=0.8), (queries, prototypes))


def test_nt_xent_equals_its_definition() -> None:
    z, positive = random_cells(5, 3), random_cells(5, 3, seed=1)

    loss = nt_xent(z, positive)

    expected = 0.0
    for i in range(5):
        cosines = [float(torch.cosine_similarity(z[i], positive[j], dim=0)) for j in range(5)]
        expected -= math.log(math.exp(cosines[i] / TEMPERATURE) / sum(math.exp(c / TEMPERATURE) for c in cosines)) / 5
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_collapsed_channels_are_penalised_and_spread_ones_are_not() -> None:
    assert float(variance_penalty(torch.ones(8, 4))) == 1.0
    assert float(variance_penalty(random_cells(1000, 4) * 3)) == 0.0


def test_a_labelled_anomaly_never_reaches_the_memory() -> None:
    prototypes = random_cells(6, 4, seed=2).requires_grad_()
    anomalous = torch.zeros(5, dtype=torch.bool)

    memory_contrast(random_cells(5, 4), random_cells(5, 4, seed=1), anomalous, prototypes, Contrast()).backward()

    assert prototypes.grad is None or not prototypes.grad.any()


def test_a_normal_image_moves_the_memory() -> None:
    prototypes = random_cells(6, 4, seed=2).requires_grad_()

    memory_contrast(
        random_cells(5, 4), random_cells(5, 4, seed=1), torch.ones(5, dtype=torch.bool), prototypes, Contrast()
    ).backward()

    assert prototypes.grad is not None
    assert prototypes.grad.any()


@pytest.mark.parametrize("memory", [True, False])
@torch.no_grad()
def test_the_contrast_joins_the_loss_of_the_product(memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_FLOAT32", "1")
    normal, contrast = torch.tensor([True, False, True]), Contrast(weight=0.3, memory=memory)
    backbone = build_backbone("scratch", seed=1)
    learner = ContrastedStageOne(contrast, backbone).eval()
    views = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(2))  # 3 images, two of each

    loss = learner(views, normal)

    expected = 0.0
    of_memory = torch.tensor([bool(normal[image]) and turns == 0 for image in range(3) for turns in range(4)])
    for scale, prototypes in enumerate(learner.memories, start=FIRST_CONTRASTED):
        rows = []
        for view in views:
            for turns in range(4):
                maps = backbone(torch.rot90(view, turns, (1, 2))[None])
                rows.append(maps[scale].mean(dim=(2, 3))[0])
        first, second = torch.stack(rows).chunk(2)
        expected += float(memory_contrast(first, second, of_memory, prototypes, contrast)) / len(learner.memories)
    plain = float(StageOne(backbone).eval()(views, normal))
    assert float(loss) == pytest.approx(plain + 0.3 * expected, rel=1e-4)
