"""`hydra/launcher=layergraft`: the runs of a batch on all cores or GPUs of this machine, in warm workers."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from layergraft.sweeps.launchers import LocalLauncher


@dataclass
class LauncherConf:
    _target_: str = "hydra_plugins.layergraft.launcher.LayergraftLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="layergraft", node=LauncherConf, provider="layergraft")


class LayergraftLauncher(LocalLauncher):
    """Where Hydra looks for it."""
