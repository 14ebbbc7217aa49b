"""How far apart two sets of feature vectors are."""

from __future__ import annotations

import math

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
    return (mean + a.square().sum() + b.square().sum() - 2 * cross).item()


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
