"""How far apart two sets of feature vectors are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def frechet_distance(x_NC: Tensor, y_MC: Tensor) -> float:
    """Frechet distance of the Gaussians with the means and covariances of two sets of vectors, squared as in the FID.

    ||m_x - m_y||^2 + tr(C_x) + tr(C_y) - 2 tr((C_x C_y)^(1/2)), the last term as the nuclear norm of the product of the
    centred sets, which needs no square root of a C x C matrix. Source: Dowson & Landau 1982; Heusel et al. 2017, equation
    6. Needs two vectors or more in each.
    """
    x, y = x_NC.double(), y_MC.double()
    mean = (x.mean(0) - y.mean(0)).square().sum()
    a, b = ((z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y))
    if not (a.isfinite().all() and b.isfinite().all()):
        return math.nan
    a, b = (torch.linalg.qr(z, mode="r").R if len(z) > z.shape[1] else z for z in (a, b))  # the same C x C matrix
    cross = torch.linalg.matrix_norm(a @ b.T, ord="nuc")
    return float(mean + a.square().sum() + b.square().sum() - 2 * cross)


def centred_gram(x_ND: Tensor) -> Tensor:
    """Inner products of the vectors about their mean, (N, N) float64."""
    x = x_ND.double()
    x = x - x.mean(0)
    return x @ x.T


def linear_cka(gram_x_NN: Tensor, gram_y_NN: Tensor) -> float:
    """Linear centred kernel alignment of two centred Gram matrices over the same N inputs: 1 for features that are the
    same up to rotation and scale, nan where either does not vary. Source: Kornblith et al. 2019, equation 5."""
    scale = (gram_x_NN.square().sum() * gram_y_NN.square().sum()).sqrt()
    return ((gram_x_NN * gram_y_NN).sum() / scale).item()


def proxy_a_distance(x_NC: Tensor, y_MC: Tensor, seed: int) -> float:
    """2 (1 - 2 e), e the error of a linear classifier that tells the two sets apart, on the half of each that it was not
    fitted to: 0 where it cannot, 2 where it always can. Source: Ben-David et al. 2007, section 4.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    x_halves, y_halves = (np.split(z[rng.permutation(len(z))], [len(z) // 2]) for z in (x_NC.numpy(), y_MC.numpy()))
    (fitted, fitted_is), (held, held_is) = (
        (np.concatenate(pair), np.repeat([0, 1], [len(part) for part in pair]))
        for pair in zip(x_halves, y_halves, strict=True)
    )
    error = float((linear_classifier(fitted, fitted_is).predict(held) != held_is).mean())
    return 2 * (1 - 2 * error)


def linear_classifier(x_NC: Any, y_N: Any) -> Any:
    """scikit-learn's logistic regression on standardised features, fitted; it gives `predict_proba` and the logits."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():  # what separates perfectly has no end to converge to
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=100)).fit(x_NC, y_N)


def leep(theta_NZ: Tensor, y_N: Tensor) -> float:
    """Log expected empirical prediction of target labels from a source classifier's class probabilities on the target's
    images; 0 at most, higher is more alike.

    The mean of log sum_z P(y_i | z) theta_iz, with P(y | z) from the joint mean of theta over images of class y.
    Source: Nguyen et al., LEEP, 2020, section 3.
    """
    theta = theta_NZ.double()
    classes, own_N = y_N.unique(return_inverse=True)
    joint_YZ = torch.stack([theta[y_N == label].sum(0) for label in classes]) / len(theta)
    given_z = joint_YZ / joint_YZ.sum(0).clamp_min(1e-300)
    of_own = (theta @ given_z.T).gather(1, own_N[:, None])
    return of_own.clamp_min(1e-300).log().mean().item()


def logme(f_ND: Tensor, y_NK: Tensor, rounds: int = 100) -> float:
    """Log evidence, per image and label column, of a linear model of the labels on features, at the best precisions of
    weights (alpha) and noise (beta); higher is better.

    Source: You et al., LogME, 2021, section 4 and algorithm 1; the fixed point of their `alpha` and `beta` in the basis
    of the features' singular vectors, iterated until it rests.
    """
    f, y = f_ND.double(), y_NK.double()
    n, d = f.shape
    u, s, _ = torch.linalg.svd(f, full_matrices=False)
    s2, total = s.square(), 0.0
    for t in y.T:
        z2 = (u.T @ t).square()
        beyond = (t @ t - z2.sum()).clamp_min(0)
        alpha, beta = torch.ones(2, dtype=torch.float64)
        moved = math.inf
        for done in range(rounds + 1):
            shrink = alpha + beta * s2
            length = (beta**2 * s2 * z2 / shrink.square()).sum()
            residual = (z2 * (alpha / shrink).square()).sum() + beyond
            if moved < 1e-6 or done == rounds:
                break
            gamma = (beta * s2 / shrink).sum()
            before = torch.stack([alpha, beta]).log()
            alpha = (gamma / length.clamp_min(1e-12)).clamp(1e-9, 1e9)
            beta = ((n - gamma) / residual.clamp_min(1e-12)).clamp(1e-9, 1e9)
            moved = (torch.stack([alpha, beta]).log() - before).abs().max().item()
        log_det = shrink.log().sum() + (d - len(s2)) * alpha.log()
        likelihood = d * alpha.log() + n * beta.log() - log_det - beta * residual - alpha * length
        total += (likelihood - n * math.log(2 * math.pi)).item() / 2 / n
    return total / y.shape[1]
