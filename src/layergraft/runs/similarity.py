"""How alike source and target are: on fixed features of the images, and at the site, where what the donor saw in training
meets what the host feeds it.

Each measure is taken on several resamples (half of the images at hand, without replacement) and given as mean and
deviation over them. Features are first turned onto the principal components of both sets together, 32 at most, which
keeps the distances that matter and the bias of small samples low.
"""

from __future__ import annotations

import copy
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layergraft.config.schema import RESULT_VERSION, Config
from layergraft.data.duplicates import near_duplicates
from layergraft.data.gabor import gabor_features
from layergraft.data.image_data import ImageData, Split
from layergraft.data.normalization import Normalization, Normalize
from layergraft.metrics.distances import frechet_distance, leep, linear_classifier, logme, proxy_a_distance
from layergraft.metrics.tasks import Task
from layergraft.runs.build import BuiltRun
from layergraft.seeds import derive_seed
from layergraft.store.files import digest, write_json
from layergraft.store.records import read_json
from layergraft.training.evaluation import BATCH, evaluating, measuring

COMPONENTS = 32
MEASURES = ("frechet", "a_distance", "leep", "logme")
NOT_OF_THE_SITE = ("strategy", "optim", "schedule", "regularizer", "precision")


def similarity(run: BuiltRun) -> dict[str, Any] | None:
    """Of a run whose donors are at hand: `fixed` and, by the site's path, `site`; None where no donor learnt from images.
    What was measured before is read: the site's is the same for every strategy."""
    config, plan = run.config, run.plan
    if not plan.grafts or not config.exec.similarity.resamples:
        return None
    donor = plan.donor
    source = donor.images(plan.grafts[0].slot)
    if source is None or donor.data is None:
        return None
    settings = vars(config.exec.similarity)
    of_data: list[Any] = [RESULT_VERSION, donor.data.identity(), config.data.identity()]
    of_data += [part for data in (source, run.images) for part in _content(data)]
    known = _kept(plan.outputs, ["fixed", of_data, settings], lambda: _fixed(source, run.images, config))
    body = {name: part for name, part in plan.identity["config"].items() if name not in NOT_OF_THE_SITE}
    at_site = _kept(plan.outputs, ["site", body, of_data, settings], lambda: _at_sites(run, source))
    return {**known, "site": at_site}


def _content(data: ImageData) -> list[str]:
    splits = (data.train, data.test)
    return [data.fingerprint, str(data.shape)] + [digest(s.rows.tobytes() + s.y_N.tobytes()) for s in splits]


def _kept(outputs: Path, identity: Any, measure: Any) -> Any:
    path = outputs / "similarity" / f"{digest(identity)}.json"
    if not path.exists():
        write_json(path, measure())
    return read_json(path)


def _fixed(source: ImageData, target: ImageData, config: Config) -> dict[str, Any]:
    parts = [_some(data.train, config) for data in (source, target)]
    features = [gabor_features(part.images()) for part in parts]
    return {
        "fixed": _measured(features, [part.y_N for part in parts], (source.task, target.task), config, features),
        "images": [len(part) for part in parts],
        "target test images in source train": near_duplicates(source.original("train"), target.original("test")),
    }


def _some(split: Split, config: Config) -> Split:
    """Training images, as many as are to be looked at."""
    rng = np.random.default_rng(derive_seed(0, "similarity", "images"))
    number = min(len(split), config.exec.similarity.images)
    return split.take(np.sort(rng.choice(len(split), number, replace=False)))


def _at_sites(run: BuiltRun, source: ImageData) -> dict[str, Any]:
    config, plan, device = run.config, run.plan, torch.device(run.plan.backend.device)
    found = {}
    for planned, graft, made in zip(plan.grafts, run.grafted.grafts, run.donors, strict=True):
        learned_in = plan.donor.saw(planned.slot, made, plan.backend, plan.outputs)
        if learned_in is None:
            continue  # this kind of donor does not say what it was given in training
        at = run.network.get_submodule(next(iter(graft.donor_paths.values())))
        # Both with the donor's own weights: what a control has lost counts in what it gives, not in what it saw.
        given = [
            _inputs(*learned_in, made.layer, source, plan.donor.normalization(source), config, device, evaluating),
            _inputs(run.network, at, made.layer, run.images, run.normalization, config, device, measuring),
        ]
        if given[0][0].shape[1] != given[1][0].shape[1]:  # its channels were sliced, tiled or summed
            continue
        inputs, outputs = ([side[which] for side in given] for which in (0, 1))
        labels = [_some(data.train, config).y_N for data in (source, run.images)]
        found[graft.site.path] = _measured(inputs, labels, (source.task, run.images.task), config, outputs)
    return found


@torch.no_grad()
def _inputs(network: nn.Module, at: nn.Module, layer: nn.Module, data: ImageData, by: Normalization, config: Config,
            device: torch.device, mode: Any) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Of some training images of `data`: what reaches the module `at` in `network`, and what `layer` makes of it (the
    same again where it cannot take so many channels), both pooled over the image."""
    reaches: list[Tensor] = []
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    normalize, images = Normalize(by, device), torch.from_numpy(_some(data.train, config).images())
    before = next(network.parameters()).device
    network.to(device)
    alone = copy.deepcopy(layer).to(device)  # it may stand in the network, with the hook
    takes = next(part.in_channels for part in alone.modules() if isinstance(part, nn.Conv2d))
    handle = at.register_forward_pre_hook(lambda module, args: reaches.append(args[0].float()))
    with mode(network), evaluating(alone):
        for batch in images.split(BATCH):  # pooled a batch at a time: feature maps are large
            network(normalize(batch.to(device)))
            x_NCHW = reaches.pop()
            inputs.append(pooled_statistics(x_NCHW))
            if x_NCHW.shape[1] == takes:
                outputs.append(pooled_statistics(alone(x_NCHW)))
    handle.remove()
    network.to(before)
    return torch.cat(inputs), torch.cat(outputs or inputs)


def pooled_statistics(x_NCHW: Tensor) -> Tensor:
    """(N, 4 C) float64 on the CPU: of each channel over the image the mean, the deviation, and the mean distance between
    neighbours down and across, which tells fine from coarse."""
    x = x_NCHW.double()
    parts = [x.mean((2, 3)), x.flatten(2).std(2, correction=0)]
    for dim in (2, 3):
        parts.append(x.diff(dim=dim).abs().mean((2, 3)) if x.shape[dim] > 1 else torch.zeros_like(parts[0]))
    return torch.cat(parts, 1).cpu()


def _measured(
    compared: list[Tensor], labels: list[np.ndarray], tasks: tuple[Task, Task], config: Config, evidence: list[Tensor]
) -> dict[str, Any]:
    """Each of MEASURES with mean, deviation and number of resamples. Distances are between the features `compared`; what
    the source knows of the target's labels is read off the features `evidence`."""
    compared, evidence = principal(compared), principal(evidence)
    count = min(map(len, compared)) // 2
    if count < 4:
        return {}  # too few to measure anything
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for resample in range(config.exec.similarity.resamples):
        rng = np.random.default_rng(derive_seed(0, "similarity", resample))
        s, t = (rng.choice(len(x), count, replace=False) for x in compared)
        x_s, x_t, halves = compared[0][s], compared[1][t], derive_seed(0, "similarity", "halves", resample)
        values["frechet"].append(frechet_distance(x_s, x_t))
        values["a_distance"].append(proxy_a_distance(x_s, x_t, halves))
        y_s, y_t = labels[0][s], labels[1][t]
        if tasks[0] is Task.multi_label or len(np.unique(y_s)) < 2:
            continue  # no classes, no classifier
        classifier = linear_classifier(evidence[0][s].numpy(), y_s)
        logits = torch.from_numpy(classifier.decision_function(evidence[1][t].numpy()).reshape(count, -1))
        one_hot = torch.from_numpy(y_t) if y_t.ndim == 2 else F.one_hot(torch.from_numpy(y_t))
        told = one_hot[:, one_hot.amin(0) != one_hot.amax(0)]  # what all of the images have, or none, tells nothing
        if told.shape[1]:
            values["logme"].append(logme(torch.cat([logits, torch.ones(count, 1)], 1), told))
        if tasks[1] is not Task.multi_label:
            theta = torch.from_numpy(classifier.predict_proba(evidence[1][t].numpy()))
            values["leep"].append(leep(theta, torch.from_numpy(y_t)))
    return {
        name: {"mean": statistics.fmean(v), "deviation": statistics.pstdev(v), "resamples": len(v)}
        for name, v in values.items()
        if v and np.isfinite(v).all()
    }


def principal(sets: list[Tensor]) -> list[Tensor]:
    """Both sets about their common mean, on the first principal components of the two together."""
    both = torch.cat(sets)
    both = both - both.mean(0)
    directions = torch.linalg.svd(both, full_matrices=False).Vh[:COMPONENTS]
    return list((both @ directions.T).split([len(x) for x in sets]))
