import numpy as np
import pytest

from jaxrec.models.text import whitening
from jaxrec.models.text.whitening import fit_whitening


def correlated(rows: int, rank: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    factors = generator.normal(size=(rows, rank)) * np.geomspace(1, 0.05, rank)
    return (factors @ generator.normal(size=(rank, width)) + 3).astype(np.float32)


def test_whitened_vectors_have_identity_covariance_over_the_known_rows():
    vectors = correlated(200, 10, 10)
    known = np.arange(200) % 4 != 0
    vectors[~known] = 1000
    whitened = fit_whitening(vectors, known, 6).apply(vectors, known)
    assert whitened.shape == (200, 6)
    np.testing.assert_allclose(np.cov(whitened[known], rowvar=False), np.eye(6), atol=1e-4)
    np.testing.assert_allclose(whitened[known].mean(0), np.zeros(6), atol=1e-4)
    assert not whitened[~known].any()


def test_whitening_keeps_the_directions_of_largest_variance():
    vectors = np.random.default_rng(0).normal(size=(500, 4)) * [0.1, 5.0, 1.0, 0.2]
    projection = fit_whitening(vectors, np.ones(500, bool), 2).projection
    np.testing.assert_array_equal(np.abs(projection).argmax(axis=0), [1, 2])


@pytest.mark.parametrize(("rows", "rank", "width"), [(200, 3, 3), (5, 8, 4)])
def test_width_is_at_most_the_rank(rows, rank, width):
    vectors = correlated(rows, rank, 8).astype(np.float64)
    known = np.ones(rows, bool)
    assert fit_whitening(vectors, known, 8).projection.shape == (8, width)


def test_directions_of_noise_are_not_amplified():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(500, 3)) * [1.0, 1e-1, 1e-6]
    whitened = fit_whitening(vectors, np.ones(500, bool), 3).apply(vectors, np.ones(500, bool))
    np.testing.assert_allclose(whitened.std(0), [1, 1, 1e-3], rtol=0.1)


@pytest.mark.parametrize("known", [[False] * 4, [True, False, False, False], [True] * 4])
def test_there_is_no_whitening_of_texts_that_do_not_differ(known):
    assert fit_whitening(np.ones((4, 3)), np.array(known), 2) is None


def test_whitening_takes_its_moments_by_blocks(monkeypatch):
    vectors, known = correlated(50, 6, 6) + 10, np.arange(50) % 5 != 0
    whole = fit_whitening(vectors, known, 4).apply(vectors, known)
    monkeypatch.setattr(whitening, "BLOCK_SIZE", 7)
    by_blocks = fit_whitening(vectors, known, 4).apply(vectors, known)
    np.testing.assert_allclose(np.abs(by_blocks), np.abs(whole), atol=1e-4)
