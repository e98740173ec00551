import numpy as np

from jaxrec.models.items.features import NUM_BINS, fit_features


def columns(count=400):
    random = np.random.default_rng(0)
    vectors = random.normal(size=(count, 3)).astype(np.float32)
    vectors[::4] = np.nan
    prices = random.exponential(size=count)
    prices[1::4] = np.nan
    return {"image": vectors, "price": prices}


def test_vectors_are_whitened_and_a_missing_one_is_the_mean_with_a_flag():
    given = columns()
    maps = fit_features(given, np.ones(400, bool), width=2)
    image = maps.apply(given)["image"]
    assert maps.widths == (("image", 3),) and image.dtype == np.float32
    missing = np.isnan(given["image"][:, 0])
    np.testing.assert_array_equal(image[missing], np.tile([0, 0, 1], (100, 1)))
    np.testing.assert_allclose(np.cov(image[~missing, :2].T), np.eye(2), atol=1e-4)
    assert not image[~missing, 2].any()


def test_bins_hold_equally_many_trained_items_and_a_missing_number_has_its_own():
    given, trained = columns(), np.arange(400) < 200
    bins = fit_features(given, trained, width=2).apply(given)["price"]
    assert set(bins[np.isnan(given["price"])]) == {0}
    counts = np.bincount(bins[trained], minlength=NUM_BINS + 1)[1:]
    assert len(counts) == NUM_BINS and counts.min() >= 4 and counts.max() <= 6
    order = np.argsort(given["price"][bins > 0])
    assert (np.diff(bins[bins > 0][order]) >= 0).all()


def test_few_different_numbers_have_a_bin_each():
    ratings = np.array([1.0, 2, 3, 4, 5] * 20)
    maps = fit_features({"rating": ratings}, np.ones(100, bool), width=1)
    assert len(set(maps.apply({"rating": ratings})["rating"])) == 5
    assert maps.apply({"rating": np.array([-9.0, 99])})["rating"].tolist() == [1, 6]


def test_equal_vectors_and_numbers_without_a_value_are_no_error():
    given = {"image": np.ones((5, 2), np.float32), "price": np.full(5, np.nan)}
    maps = fit_features(given, np.ones(5, bool), width=2)
    assert not maps.vectors
    assert maps.apply(given)["price"].tolist() == [0] * 5
