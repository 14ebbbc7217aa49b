"""What makes up for classes of different sizes in training: weights in the loss, or a sampler that draws all of them alike."""

from __future__ import annotations

import torch
from torch import Tensor

from layergraft.data.image_data import ImageData


def class_weights(data: ImageData) -> Tensor | None:
    """What images of each class count in the training loss, or having each label, (C,) float32, by the labels of the training
    split; None where all count the same.

    With N training images, N_k of class k, and K classes: N / (K N_k), as scikit-learn has it, so that the mean over the images
    is 1. Of a label of a multi-label set: the images without it over those with it; 1 where all have it or none.
    """
    if data.class_weights == "none":
        return None
    y_N = torch.from_numpy(data.train.y_N)
    if y_N.ndim == 2:
        with_C = y_N.sum(0)
        weight_C = (len(y_N) - with_C) / with_C
        return weight_C.where((with_C > 0) & (with_C < len(y_N)), 1.0).float()
    return _inverse_frequency(y_N, data.num_classes).float()


def image_weights(data: ImageData) -> Tensor | None:
    """How often each training image is to be drawn, (N,) float64 with a mean of 1, so that classes are drawn alike; None where
    an epoch has each image once."""
    if data.sampler == "uniform":
        return None
    y_N = torch.from_numpy(data.train.y_N)
    return _inverse_frequency(y_N, data.num_classes)[y_N]


def _inverse_frequency(y_N: Tensor, num_classes: int) -> Tensor:
    """N / (K N_k) of each class, (C,) float64; K are the classes that occur, which wrong labels (`corrupt.labels`) may reduce."""
    number_C = y_N.bincount(minlength=num_classes).double()
    return len(y_N) / ((number_C > 0).sum() * number_C.clamp_min(1))
