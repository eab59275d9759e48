"""Explicit feature maps against scikit-learn's sampler and the kernels that they approximate."""

import numpy as np
import pytest
from sklearn.kernel_approximation import AdditiveChi2Sampler

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import feature_maps

RNG = np.random.default_rng(0)
X, Y = (RNG.dirichlet(np.full(20, 0.7), 12).astype(np.float32) for _ in range(2))
X[0, :5] = 0


@pytest.mark.parametrize("order, interval", [(1, 0.8), (2, 0.5), (2, 0.65)])
def test_is_scikit_learns_sampler(order, interval):
    want = AdditiveChi2Sampler(sample_steps=order + 1, sample_interval=interval).fit_transform(X)
    got = feature_maps.homogeneous(X, order=order, interval=interval)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
    "kernel, errors",
    [("chi2", (0.063, 0.027, 0.014)), ("intersection", (0.091, 0.065, 0.041)), ("js", (0.055, 0.014, 0.006))],
)
def test_inner_products_are_about_the_kernel(kernel, errors):
    """Root of the mean squared error over ratios from 1 to 1,000, relative to sqrt(x y)."""
    y = np.exp(-np.linspace(0, np.log(1000), 1000))[:, None]
    exact = {
        "chi2": 2 * y / (1 + y),
        "intersection": y,
        "js": (np.log2(1 + y) + y * np.log2((1 + y) / y)) / 2,
    }[kernel]
    for order, most in enumerate(errors, 1):
        got = (
            feature_maps.homogeneous(y, kernel, order=order)
            @ feature_maps.homogeneous(np.ones((1, 1)), kernel, order=order).T
        )
        assert np.sqrt(np.mean(((got - exact) / np.sqrt(y)) ** 2)) < most


def test_hellinger_and_numbers_below_zero():
    np.testing.assert_allclose(
        feature_maps.hellinger(X) @ feature_maps.hellinger(Y).T, np.sqrt(X) @ np.sqrt(Y).T, atol=1e-6
    )
    np.testing.assert_array_equal(feature_maps.hellinger(-X), -feature_maps.hellinger(X))
    np.testing.assert_array_equal(feature_maps.homogeneous(-X), -feature_maps.homogeneous(X))
    assert np.isfinite(np.asarray(feature_maps.homogeneous(np.zeros((2, 3))))).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kernel": "chi"}, "Did you mean 'chi2'"),
        ({"order": -1}, "order is -1"),
        ({"interval": 0.0}, "interval is 0.0"),
    ],
)
def test_bad_requests(change, message):
    with pytest.raises(BadRequest, match=message):
        feature_maps.homogeneous(X, **change)
