"""What Hydra is not to do, whoever's config asks for it.

Hydra makes an object of any class that a `_target_` below its own keys names, logging of any that its settings name,
and both write where a key says: a config of others, in a folder given by `--config-dir`, could run code and write
anywhere. Here every config is checked before Hydra acts on it; the keys of a run make nothing of names.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from layergraft.errors import UserError, require

SILENT = {"version": 1, "root": {"level": "ERROR"}, "disable_existing_loggers": True}
# Keys that stay as conf/config.yaml and Hydra have them -> what they are then, and what to do instead.
OUTPUTS = "a run goes below exec.outputs"
PINNED: dict[str, tuple[Any, str]] = {
    "run.dir": (".", OUTPUTS),
    "sweep.dir": ("${exec.outputs}/sweeps", OUTPUTS),
    "sweep.subdir": (".", OUTPUTS),
    "output_subdir": (None, OUTPUTS),
    "job.chdir": (None, OUTPUTS),
    "job.env_set": ({}, "set variables in the shell"),
    "job.env_copy": ([], "set variables in the shell"),
    "callbacks": ({}, "it would run other code"),
    "job_logging": (SILENT, "it can run other code, and write elsewhere"),
    "hydra_logging": (SILENT, "it can run other code, and write elsewhere"),
    "verbose": (False, "HYDRA_FULL_ERROR=1 in the environment shows where an error arose"),
    "searchpath": ([], "--config-dir=FOLDER adds choices"),
}
PLUGINS = {"launcher": Launcher, "sweeper": Sweeper}
FOREIGN = "command-line"  # what Hydra says a config comes from, where it is a folder given by --config-dir
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
WRITTEN = ("exec.outputs", "exec.data", "data.cache", "data.root", "donor.data.cache", "donor.data.root")
DOWNLOADED = ("food101", "flowers102")  # whose path is where they are downloaded to


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        where = "; options stand before all KEY=VALUE or after them" if message.startswith("unrecognized") else ""
        raise UserError(f"cannot read the command line: {message}{where}")


def require_readable(arguments: Sequence[str]) -> None:
    """Raise UserError for arguments that Hydra cannot read, or would read another root config or a pickle by."""
    parser = get_args_parser()
    parser.__class__ = _Parser
    given = parser.parse_args(list(arguments))
    for name in ("config_path", "config_name", "experimental_rerun"):
        option = name.replace("_", "-")
        require(getattr(given, name) is None, f"--{option} is not for layergraft; --config-dir=FOLDER adds choices")
    actions = (given.run, given.multirun, given.cfg, given.info, given.shell_completion)
    require(sum(map(bool, actions)) <= 1, "--run, --multirun, --cfg, --info and --shell-completion exclude each other")
    require(bool(given.cfg) or not (given.resolve or given.package), "--resolve and --package go with --cfg")
    require(given.info is None or given.info in INFO, f"--info is {given.info}; there are: {', '.join(INFO)}")
    if given.shell_completion:
        asked = re.fullmatch(r"(install|uninstall|query)=\w+", " ".join(given.overrides))
        require(asked is not None, "--shell-completion takes install=SHELL, uninstall=SHELL or query=SHELL")
    for override in given.overrides:
        key = re.match(r"[+~]*hydra\.(mode|searchpath)\b", override)
        instead = {"mode": "-m is what asks for a sweep", "searchpath": PINNED["searchpath"][1]}
        require(key is None, f"{override}: {instead[key[1]] if key else ''}")


@contextmanager
def configs_checked() -> Iterator[None]:
    """Within, whatever Hydra composes is checked, each run of a sweep too. Raises UserError for what it is not to do."""
    load = ConfigLoaderImpl.load_configuration

    def checked(self: ConfigLoaderImpl, *args: Any, **options: Any) -> DictConfig:
        composed = load(self, *args, **options)
        plain = _plain(composed.hydra)
        _require_pinned(plain)
        _require_plugins(composed.hydra)
        own = [override for override in plain["overrides"]["hydra"] if not override.startswith("hydra.mode=")]
        asks = len(own) < len(plain["overrides"]["hydra"])
        require(asks or plain["mode"] is None, "hydra.mode is set by a config; -m is what asks for a sweep")
        if any(source["provider"] == FOREIGN for source in plain["runtime"]["config_sources"]):
            require_below(composed, plain["overrides"]["task"])
            if plain["launcher"] != {"_target_": "hydra_plugins.layergraft.launcher.LayergraftLauncher"}:
                asked = load(self, "config", own, RunMode.RUN).hydra.launcher
                says = "is for the command line to say: hydra/launcher=NAME, hydra.launcher.KEY=VALUE"
                is_asked = _plain(asked) == plain["launcher"]
                require(is_asked, f"hydra.launcher is set by a config; which jobs are started {says}")
        return composed

    setattr(ConfigLoaderImpl, "load_configuration", checked)  # noqa: B010  mypy takes no method to be set
    try:
        yield
    finally:
        setattr(ConfigLoaderImpl, "load_configuration", load)  # noqa: B010


def _plain(node: DictConfig, resolve: bool = False) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(node, resolve=resolve)
    return dict(plain)


def _require_pinned(plain: dict[str, Any]) -> None:
    for key, (kept, instead) in PINNED.items():
        value: Any = plain
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        require(value == kept or not (value or kept), f"hydra.{key} is {value}; it stays as it is: {instead}")


def _require_plugins(hydra: DictConfig) -> None:
    """Launcher and sweeper are installed plugins, and none of their values is an object to be made."""
    for name, kind in PLUGINS.items():
        plain = _plain(hydra[name], resolve=True) if OmegaConf.is_dict(hydra[name]) else {}
        target = plain.pop("_target_", None)
        known = Plugins.instance().class_name_to_class.get(target) if isinstance(target, str) else None
        require(known is not None and issubclass(known, kind), f"hydra.{name} is no installed {name}: {target}")
        require(not _has_target(plain), f"hydra.{name} has a value with the key _target_, which would run other code")


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def require_below(composed: DictConfig, overrides: Sequence[str]) -> None:
    """What is written goes below this folder, or one that the command line names: another's config cannot say where."""
    parts = [override.lstrip("+").partition("=") for override in overrides]
    named = [folder.strip("'\"") for key, _, folder in parts if key in WRITTEN]
    allowed = [Path(os.path.abspath(folder)) for folder in ("", *named)]
    downloads = [at for at in ("data", "donor.data") if OmegaConf.select(composed, f"{at}.name") in DOWNLOADED]
    for key in (*WRITTEN, *(f"{at}.path" for at in downloads)):
        value = OmegaConf.select(composed, key, throw_on_missing=False)
        inside = not isinstance(value, str) or any(Path(os.path.abspath(value)).is_relative_to(at) for at in allowed)
        why = "by a config in a folder that was given; to write outside of this folder the command line has to name it"
        require(inside, f"{key} is {value}, {why}: {key}=FOLDER")
