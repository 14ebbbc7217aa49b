"""One network trained by several processes that share each batch (DistributedDataParallel).

Parameters are frozen and thawed after the network was wrapped, so that all are registered with it from the start: what
is thawed in mid-run is synchronised like the rest.
"""

from __future__ import annotations

import copy
import hashlib
import multiprocessing
import os
import socket
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.spawn import start_processes

from layergraft.strategies.phases import TrainingPlan
from layergraft.training import fit as single
from layergraft.training.backend import Backend
from layergraft.training.lightning_module import Diverged
from layergraft.training.recipe import Recipe

RESULT = "rank0.pt"


def fit(
    network: nn.Module, plan: TrainingPlan, batches: Any, recipe: Recipe, backend: Backend, **options: Any
) -> single.Fitted:
    """`training.fit.fit` by `backend.devices` processes; `network`, and `probe.points`, come back from the first.
    `options` are those of `fit`, and a `seed` for torch.

    Raises Diverged as a single process does; whatever else a process raises comes up as torch's ProcessRaisedException.
    """
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        threads = max(1, torch.get_num_threads() // backend.devices)
        task = (Path(folder), port, threads, (network.cpu(), plan, batches, recipe, backend), options)
        multiprocessing.set_forkserver_preload([__name__])  # one process imports; the others are forked from it
        ranks = start_processes(_rank, task, backend.devices, False, start_method="forkserver")
        try:
            while not ranks.join():
                pass
        finally:  # Ctrl-C, or one that failed: none may train on
            for process in ranks.processes:
                process.kill()  # Lightning would take a SIGTERM as a wish; what is written is written whole
                process.join()
        result = torch.load(Path(folder) / RESULT, weights_only=True)
        if result["diverged"] is not None:
            raise Diverged(result["diverged"])
        require_agreement(Path(folder), backend.devices)
    network.load_state_dict(result["state"])
    if options.get("probe") is not None:
        options["probe"].points = result["points"]
    return single.Fitted(**result["fitted"])


def require_agreement(folder: Path, num_ranks: int) -> None:
    """Raise RuntimeError where the processes ended with different weights: they would have trained apart in silence."""
    digests = [(folder / f"{rank}.digest").read_text() for rank in range(num_ranks)]
    if len(set(digests)) > 1:
        raise RuntimeError(f"the weights of the {num_ranks} processes differ after training: {', '.join(digests)}")


def digest_of(network: nn.Module) -> str:
    """Of all parameters and buffers, bit for bit."""
    content = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        content.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:12]


def _rank(rank: int, folder: Path, port: int, threads: int, what: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Train `what`, the network, plan, batches, recipe and backend of `fit`, as one of the processes."""
    # What Lightning reads where something else has started its processes.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(threads)
    network, plan, batches, recipe, backend = what
    network = copy.deepcopy(network)  # what comes here from another process lies in memory that all of them share
    if backend.device == "cuda":
        torch.cuda.set_device(rank)
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        batches = batches.to(f"cuda:{rank}")
    batches.train.share_out(rank, backend.devices)
    if rank:
        options |= {"probe": None, "folder": None}
    torch.manual_seed(options.pop("seed", 0))
    result: dict[str, Any] = {"diverged": None}
    try:
        result["fitted"] = asdict(single.fit(network, plan, batches, recipe, backend, **options))
    except Diverged as error:
        result["diverged"] = str(error)
    (folder / f"{rank}.digest").write_text(digest_of(network))
    if rank == 0:
        result["state"] = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
        probe = options.get("probe")
        result["points"] = [] if probe is None else probe.points
        torch.save(result, folder / RESULT)
