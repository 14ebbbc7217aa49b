"""Workers on a Ray cluster: one actor each, so that what is warm stays warm and a GPU stays the worker's own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import ray

from layergraft.errors import UserError, require
from layergraft.sweeps.worker_pool import WORKER_DIED, Failed, Worker, call


class RayCrew:
    """Actors with `cpus` cores and `gpus` (a share, such as 0.5; None: 1 / `jobs_per_gpu` where there are GPUs) each.
    Ray runs at `address` (null: RAY_ADDRESS), or is started on this machine. Raises UserError where none runs there."""

    def __init__(
        self, address: str | None, cpus: float, gpus: float | None, jobs_per_gpu: int, options: dict[str, Any]
    ) -> None:
        takes = "a run takes a part of a core, or of a GPU"
        require(cpus > 0 or bool(gpus), f"hydra.launcher.cpus_per_run is {cpus}; {takes}")
        try:
            _require_somebody_at(address)
            ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
        except (OSError, ValueError) as error:
            raise UserError(f"hydra.launcher.address is {address}: {str(error).splitlines()[0]}") from None
        if gpus is None:
            gpus = 1 / jobs_per_gpu if ray.cluster_resources().get("GPU", 0) else 0.0
        # The paths of a config are relative to where the sweep was started: a disk that all nodes share.
        self.new = ray.remote(_Hand).options(num_cpus=cpus, num_gpus=gpus).remote
        self.cpus, self.gpus = cpus, gpus

    def devices(self) -> list[str]:
        """One for each worker that the cluster has room for; Ray says which is where once it has started it. Raises
        UserError where it has room for none: it would be waited for in silence."""
        room = 0
        for node in (node["Resources"] for node in ray.nodes() if node["Alive"]):
            asked = (("CPU", self.cpus), ("GPU", self.gpus))
            room += min(int(node.get(what, 0) / share + 1e-9) for what, share in asked if share)
        asks = f"hydra.launcher.cpus_per_run={self.cpus:g} with gpus_per_run={self.gpus:g}"
        require(room > 0, f"no node of the Ray cluster has room for {asks}")
        return [f"worker {index}" for index in range(room)]

    def start(self, device: str) -> _Actor:
        return _Actor(device, lambda: self.new(os.getcwd()))

    def wait(self, workers: Sequence[_Actor]) -> list[_Actor]:
        by_result = {worker.result: worker for worker in workers}
        ended, _ = ray.wait(list(by_result), num_returns=1)
        return [by_result[result] for result in ended]


def _require_somebody_at(address: str | None) -> None:
    """Raise OSError where nobody listens: Ray itself would go on trying for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


class _Actor(Worker):
    def __init__(self, device: str, new: Callable[[], Any]) -> None:
        self.device, self.new = device, new
        self.actor: Any = None
        self.result: Any = None

    def send(self, function: Callable[[Any], Any], argument: Any) -> None:
        self.actor = self.actor or self.new()
        self.result = self.actor.work.remote(function, argument)

    def outcome(self) -> Any:
        try:
            self.device, outcome = ray.get(self.result)
        except ray.exceptions.RayError as error:
            line = f"its worker died: {str(error).splitlines()[0]}"
            return Failed(WORKER_DIED, line, str(error))
        return outcome

    def rest(self) -> None:
        """Give its cores back: another may wait for them where a node was lost."""
        if self.actor is not None:
            ray.kill(self.actor)
            self.actor = None

    def stop(self, interrupt: bool) -> None:
        self.rest()


class _Hand:
    def __init__(self, folder: str) -> None:
        os.chdir(folder)

    def work(self, function: Callable[[Any], Any], argument: Any) -> tuple[str, Any]:
        """The GPU, or the node, that this is on, and what the function gives."""
        node = ray.get_runtime_context().get_node_id()
        device = f"{node} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}"
        return device, call(function, argument)
