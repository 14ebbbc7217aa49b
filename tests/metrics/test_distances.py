"""Distances between sets of features, against closed forms and a second way to compute them."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from scipy.linalg import sqrtm
from sklearn.linear_model import BayesianRidge

from layergraft.metrics.distances import centred_gram, frechet_distance, leep, linear_cka, logme, proxy_a_distance


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


def test_frechet_is_torchmetrics_and_pots():
    import ot
    from torchmetrics.image.fid import _compute_fid

    torch.manual_seed(0)
    x, y = (
        torch.randn(400, 5, dtype=torch.float64),
        torch.randn(300, 5, dtype=torch.float64) @ torch.randn(5, 5).double() + 1,
    )
    ours = frechet_distance(x, y)
    assert ours == pytest.approx(_compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()).item(), rel=1e-5)
    pot = ot.gaussian.bures_wasserstein_distance(
        *(np.asarray(part) for part in (x.mean(0), y.mean(0), x.T.cov(), y.T.cov()))
    )
    assert ours == pytest.approx(pot**2, rel=1e-5)


def test_a_distance_of_sets_that_are_apart_the_same_and_between():
    generator = torch.Generator().manual_seed(0)
    draw = lambda shift, n=2000: torch.randn(n, 1, generator=generator).double() + shift  # noqa: E731
    assert proxy_a_distance(draw(0), draw(50), 0) == 2
    assert abs(proxy_a_distance(draw(0), draw(0), 0)) < 0.15
    # The best threshold between N(0, 1) and N(d, 1) errs with probability Phi(-d / 2).
    for distance in (0.5, 1.0, 2.0):
        expected = 2 * (1 - 2 * scipy.stats.norm.cdf(-distance / 2))
        assert proxy_a_distance(draw(0, 20_000), draw(distance, 20_000), 0) == pytest.approx(expected, abs=0.05)


def test_a_distance_is_judged_on_what_the_classifier_has_not_seen():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 200, generator=generator).double() for _ in range(2))  # more features than vectors
    values = [proxy_a_distance(x, y, seed) for seed in range(20)]
    assert abs(np.mean(values)) < 0.4


def test_leep_in_closed_form():
    # A source that tells the target's labels for certain, one that knows nothing, and one worked out by hand.
    y = torch.tensor([0, 0, 1, 1])
    assert leep(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), y) == pytest.approx(0)
    assert leep(torch.full((4, 3), 1 / 3), y) == pytest.approx(math.log(1 / 2))
    theta = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]], dtype=torch.float64)
    # P(z) = (2.2, 1.8) / 4; P(y = 0 | z) = (1.6 / 2.2, 0.4 / 1.8)
    of_zero = [0.9 * 1.6 / 2.2 + 0.1 * 0.4 / 1.8, 0.7 * 1.6 / 2.2 + 0.3 * 0.4 / 1.8]
    of_one = [0.2 * 0.6 / 2.2 + 0.8 * 1.4 / 1.8, 0.4 * 0.6 / 2.2 + 0.6 * 1.4 / 1.8]
    assert leep(theta, y) == pytest.approx(np.mean(np.log([*of_zero, *of_one])))
    assert leep(theta, y * 7 + 3) == pytest.approx(leep(theta, y))  # whatever the labels are called


@pytest.mark.parametrize("n, d", [(60, 5), (30, 50)])
def test_logme_is_the_largest_evidence(n, d):
    """Against the evidence of the linear model written out with dense matrices, maximised by scipy."""
    rng = np.random.default_rng(0)
    f = rng.normal(size=(n, d))
    y = np.stack([(f[:, 0] + rng.normal(size=n) > 0), rng.random(n) > 0.5], 1).astype(float)

    def evidence(logs, t):
        alpha, beta = np.exp(logs)
        covariance = np.eye(n) / beta + f @ f.T / alpha
        return scipy.stats.multivariate_normal(np.zeros(n), covariance).logpdf(t) / n

    best = [
        max(-scipy.optimize.minimize(lambda logs, t=t: -evidence(logs, t), start, method="Nelder-Mead").fun
            for start in ([0, 0], [3, 1]))
        for t in y.T
    ]  # fmt: skip
    assert logme(torch.from_numpy(f), torch.from_numpy(y), rounds=5000) == pytest.approx(np.mean(best), abs=2e-3)


def test_logme_is_that_of_scikit_learns_bayesian_ridge():
    rng = np.random.default_rng(1)
    f = rng.normal(size=(80, 4))
    t = f @ rng.normal(size=4) + rng.normal(size=80)
    theirs = BayesianRidge(
        compute_score=True, fit_intercept=False, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, max_iter=1000, tol=1e-9
    ).fit(f, t)
    assert logme(torch.from_numpy(f), torch.from_numpy(t)[:, None]) == pytest.approx(theirs.scores_[-1] / 80, abs=1e-4)
