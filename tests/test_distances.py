"""Distances between sets of features, against closed forms and a second way to compute them."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from layergraft.distances import centred_gram, frechet_distance, linear_cka


def features(n, c, seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(c, c, generator=generator, dtype=torch.float64)
    return torch.randn(n, c, generator=generator, dtype=torch.float64) @ mix * scale + shift


@pytest.mark.parametrize("n, m, c", [(200, 150, 6), (8, 9, 20), (30, 5, 12)])
def test_frechet_is_the_textbook_formula(n, m, c):
    x, y = features(n, c), features(m, c, seed=1, scale=0.5, shift=0.3)
    a, b = np.atleast_2d(np.cov(x.numpy().T)), np.atleast_2d(np.cov(y.numpy().T))
    root = sqrtm(a @ b).real
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(a + b - 2 * root)
    # sqrtm itself is good to about 1e-6 where the covariances have no full rank
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)


def test_frechet_in_closed_form():
    x = features(100, 5)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2.0) == pytest.approx(5 * 4.0)  # the means alone
    variance = x.var(0).sum().item()
    assert frechet_distance(x, x.mean(0) + 3 * (x - x.mean(0))) == pytest.approx(variance * (3 - 1) ** 2)
    assert math.isnan(frechet_distance(x, x * math.inf))


def test_linear_cka_is_the_definition_and_has_its_invariances():
    x, y = features(40, 6), features(40, 9, seed=2)
    xc, yc = x - x.mean(0), y - y.mean(0)
    expected = (yc.T @ xc).square().sum() / (
        (xc.T @ xc).norm() * (yc.T @ yc).norm()
    )  # Kornblith et al. 2019, equation 5
    assert linear_cka(centred_gram(x), centred_gram(y)) == pytest.approx(expected.item())
    turned = x @ torch.linalg.qr(features(6, 6, seed=3)).Q * 7 + 1
    assert linear_cka(centred_gram(x), centred_gram(turned)) == pytest.approx(1)
    assert math.isnan(linear_cka(centred_gram(x), centred_gram(torch.ones(40, 2))))
