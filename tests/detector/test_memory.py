"""Prototype memories: search, whitening and coreset, each against a slow twin written out in loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage
from torch import Tensor

from anomaly_cli.detector import whitening
from anomaly_cli.detector.coreset import CORESET_POOL, PROJECTION_WIDTH, select_coreset
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.nearest_prototype import nearest_prototype, similarities
from anomaly_cli.detector.whitening import SHRINKAGE, Whitening

pytestmark = pytest.mark.usefixtures("float32_search")

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=40)
SEEDS = st.integers(0, 2**20)


def random_cells(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated_cells(M: int, D: int, seed: int = 0) -> Tensor:
    return random_cells(M, D, seed=seed) @ random_cells(D, D, seed=seed + 1) + 3


def slow_coreset(cells: Tensor, count: int, first: int) -> list[int]:
    chosen = [first]
    while len(chosen) < count:
        gaps = [min(float((cell - cells[c]).norm()) for c in chosen) for cell in cells]
        chosen.append(max(range(len(cells)), key=gaps.__getitem__))
    return chosen


def test_the_similarity_ranks_prototypes_as_the_euclidean_distance_does() -> None:
    prototypes, queries = random_cells(15, 5, seed=1) * 3, random_cells(20, 5, seed=2)

    order = similarities(queries, prototypes).argsort(dim=1, descending=True)

    assert torch.equal(order, torch.cdist(queries.double(), prototypes.double()).argsort(dim=1))


@given(SEEDS, st.integers(1, 40), st.integers(1, 30), st.integers(1, 12))
@REPEATABLE
def test_the_nearest_prototype_equals_brute_force(seed: int, M: int, K: int, D: int) -> None:
    queries, prototypes = random_cells(M, D, seed=seed), random_cells(K, D, seed=seed + 1)
    expected = torch.cdist(queries.double(), prototypes.double())

    distances, indices = PrototypeMemory(prototypes).nearest(queries)

    torch.testing.assert_close(distances.double(), expected.amin(dim=1), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(expected[torch.arange(M), indices], expected.amin(dim=1), rtol=1e-5, atol=1e-5)


def test_the_nearest_prototype_does_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = PrototypeMemory(random_cells(9, 5)), random_cells(50, 5, seed=1)
    whole = bank.nearest(queries)

    monkeypatch.setattr("anomaly_cli.detector.nearest_prototype.QUERY_CHUNK", 7)
    chunked = bank.nearest(queries)

    torch.testing.assert_close(chunked[0], whole[0])
    assert torch.equal(chunked[1], whole[1])


@pytest.mark.parametrize("D", [3, 64, 400])
def test_a_stored_prototype_is_at_distance_zero(D: int) -> None:
    prototypes = random_cells(30, D)

    distances, indices = PrototypeMemory(prototypes).nearest(prototypes)

    # The expanded square keeps 7 digits of ‖q‖², and the root doubles what is lost.
    torch.testing.assert_close(distances, torch.zeros(30), rtol=0, atol=2e-3 * D**0.5)
    assert torch.equal(indices, torch.arange(30))


def test_one_more_prototype_never_increases_a_distance() -> None:
    prototypes, queries = random_cells(12, 4), random_cells(60, 4, seed=1)

    fewer = PrototypeMemory(prototypes[:-1]).nearest(queries)[0]
    more = PrototypeMemory(prototypes).nearest(queries)[0]

    assert (more <= fewer + 1e-5).all()


def shrinkage_of(cells: torch.Tensor) -> float:
    """Estimate the share of the spherical target from the moments of (M, D) cells."""
    M, D = cells.shape
    centred = cells - cells.mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / M)
    fourth = centred.square().sum(1).square().mean() / D
    return whitening._ledoit_wolf_shrinkage(eigenvalues.mean(), eigenvalues.square().mean(), fourth, M)


@pytest.mark.parametrize(("M", "D"), [(40, 3), (500, 20), (15, 30), (2, 5)])
def test_the_ledoit_wolf_share_agrees_with_scikit_learn(M: int, D: int) -> None:
    cells = correlated_cells(M, D).double()

    assert shrinkage_of(cells) == pytest.approx(ledoit_wolf_shrinkage(cells.numpy()), rel=1e-6, abs=1e-9)


def test_a_spherical_covariance_needs_no_shrinkage_share() -> None:
    centred = torch.cat([torch.eye(3), -torch.eye(3)]).double()

    assert shrinkage_of(centred) == 0.0


def test_a_whitening_fitted_piece_by_piece_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = correlated_cells(103, 7)
    whole = Whitening.fit(cells)

    monkeypatch.setattr("anomaly_cli.detector.whitening.FIT_CHUNK", 50)  # seven cells at a time
    pieces = Whitening.fit(cells)

    shared = whole.matrix @ whole.matrix.T  # the sign of an eigenvector is arbitrary
    torch.testing.assert_close(pieces.matrix @ pieces.matrix.T, shared, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("M", "D"), [(400, 6), (31, 30), (30, 30), (20, 30), (2, 30)])
def test_whitening_inverts_the_shrunk_covariance_of_scikit_learn(M: int, D: int) -> None:
    cells = correlated_cells(M, D)
    shrunk, _ = ledoit_wolf(cells.double().numpy())
    covariance = torch.from_numpy(shrunk)
    covariance = covariance + SHRINKAGE * covariance.diagonal().mean() * torch.eye(D)

    matrix = Whitening.fit(cells).matrix.double()

    torch.testing.assert_close(matrix.T @ covariance @ matrix, torch.eye(D).double(), rtol=0, atol=1e-4)


def test_whitened_cells_have_zero_mean_and_unit_covariance() -> None:
    cells = random_cells(20_000, 5) @ torch.diag(torch.tensor([0.5, 0.8, 1.0, 1.5, 2.0])) + 7

    whitened = Whitening.fit(cells)(cells)

    torch.testing.assert_close(whitened.mean(0), torch.zeros(5), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(5), rtol=0, atol=0.02)


def test_whitening_keeps_the_leading_dimensions() -> None:
    cells = random_cells(2, 3, 4, 5)
    whitening = Whitening.fit(cells.view(-1, 5))

    torch.testing.assert_close(whitening(cells).view(-1, 5), whitening(cells.view(-1, 5)))


@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_whitening_undoes_a_change_of_unit(scale: float) -> None:
    cells = correlated_cells(200, 4)

    whitened, rescaled = Whitening.fit(cells)(cells), Whitening.fit(cells * scale)(cells * scale)

    torch.testing.assert_close(torch.cdist(whitened, whitened), torch.cdist(rescaled, rescaled), rtol=0, atol=5e-3)


def test_whitening_of_constant_cells_is_finite_and_zero_on_them() -> None:
    cells = torch.full((10, 4), 2.5)

    whitened = Whitening.fit(cells)(cells)

    assert torch.equal(whitened, torch.zeros(10, 4))


@given(SEEDS, st.integers(2, 40), st.integers(1, 8))
@REPEATABLE
def test_the_coreset_equals_the_slow_greedy_twin(seed: int, M: int, D: int) -> None:
    cells = random_cells(M, D, seed=seed)
    count = max(1, M // 2)
    first = int(torch.randint(0, M, (1,), generator=torch.Generator().manual_seed(seed)))

    chosen = select_coreset(cells, count, torch.Generator().manual_seed(seed))

    assert chosen.tolist() == slow_coreset(cells, count, first)


@given(SEEDS, st.integers(1, 60), st.integers(1, 60), st.sampled_from([2, PROJECTION_WIDTH + 6]))
@REPEATABLE
def test_a_coreset_has_the_size_asked_for_and_distinct_indices_in_bounds(seed: int, M: int, count: int, D: int) -> None:
    chosen = select_coreset(random_cells(M, D, seed=seed), count, torch.Generator().manual_seed(seed)).tolist()

    assert len(chosen) == len(set(chosen)) == min(count, M)
    assert set(chosen) <= set(range(M))


@pytest.mark.parametrize("D", [8, PROJECTION_WIDTH + 6])
def test_the_same_seed_gives_the_same_coreset_and_another_seed_another(D: int) -> None:
    cells = random_cells(200, D)

    first, again, other = (select_coreset(cells, 20, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_coreset_of_more_cells_than_the_pool_holds_equals_the_slow_greedy_twin() -> None:
    cells = random_cells(3 * CORESET_POOL, 5, seed=8) * random_cells(3 * CORESET_POOL, 1, seed=9).exp()
    first = int(torch.randint(0, len(cells), (1,), generator=torch.Generator().manual_seed(2)))

    chosen = select_coreset(cells, 25, torch.Generator().manual_seed(2))

    assert chosen.tolist() == slow_coreset(cells, 25, first)


def test_a_smaller_coreset_is_the_beginning_of_a_larger_one() -> None:
    cells = random_cells(100, 10)

    small, large = (select_coreset(cells, count, torch.Generator().manual_seed(5)) for count in (8, 30))

    assert torch.equal(small, large[:8])


@pytest.mark.parametrize("D", [8, 200])
def test_a_coreset_covers_all_cells_better_than_a_random_subset(D: int) -> None:
    cells = random_cells(600, 4) @ random_cells(4, D, seed=1)  # few real dimensions, as in feature maps
    chosen = select_coreset(cells, 40, torch.Generator().manual_seed(0))
    drawn = torch.randperm(600, generator=torch.Generator().manual_seed(0))[:40]

    radius, random_radius = (float(torch.cdist(cells, cells[subset]).amin(1).max()) for subset in (chosen, drawn))

    assert radius < 0.75 * random_radius


def test_a_coreset_of_coinciding_cells_has_distinct_indices() -> None:
    cells = random_cells(4, 8).repeat(10, 1)

    chosen = select_coreset(cells, 12, torch.Generator().manual_seed(0)).tolist()

    assert len(set(chosen)) == 12


@pytest.mark.parametrize("D", [48, 192])
def test_the_search_in_half_precision_finds_a_prototype_that_is_nearly_as_near(
    D: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(D)
    queries, prototypes = 3 * torch.randn(400, D, generator=generator), torch.randn(300, D, generator=generator)
    expected, _ = nearest_prototype(queries, prototypes)

    monkeypatch.setattr("anomaly_cli.detector.nearest_prototype.prefers_bfloat16", lambda: True)
    distances, indices = nearest_prototype(queries, prototypes)

    torch.testing.assert_close(distances, (queries - prototypes[indices]).norm(dim=1))
    assert (distances >= expected - 1e-4).all()
    assert (distances <= 1.004 * expected + 0.02 * D**0.5).all()


@pytest.mark.parametrize("halves", [True, False])
def test_a_memory_searches_the_prototypes_that_it_has_now(halves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly_cli.detector.nearest_prototype.prefers_bfloat16", lambda: halves)
    before, now, queries = random_cells(30, 8), random_cells(20, 8, seed=1), random_cells(50, 8, seed=2)
    bank = PrototypeMemory(before)

    first, again = bank.nearest(queries)[1], bank.nearest(queries)[1]
    bank.prototypes = now

    assert torch.equal(first, nearest_prototype(queries, before)[1])
    assert torch.equal(again, first)
    assert torch.equal(bank.nearest(queries)[1], nearest_prototype(queries, now)[1])
