import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxrec.ranking.shard import top_k


@pytest.mark.parametrize("num_items", [100, 256, 4096, 4100])
@pytest.mark.parametrize("spread", [3, 1000, 10**6])
def test_top_k_is_a_stable_sort(num_items, spread):
    scores = np.random.default_rng(0).integers(0, spread, (9, num_items)).astype(np.float32)
    scores[0] = -np.inf

    values, columns = top_k(jnp.asarray(scores), 10)

    expected = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(columns, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))


def test_wide_rows_are_searched_in_chunks(monkeypatch):
    """At 4096 columns the stable-sort test takes the chunked path."""
    widths = []

    def recorded(scores, k, plain=lax.top_k):
        widths.append(scores.shape[-1])
        return plain(scores, k)

    monkeypatch.setattr(lax, "top_k", recorded)
    top_k(jnp.zeros((2, 4096)), 10)

    assert widths == [128, 320]
