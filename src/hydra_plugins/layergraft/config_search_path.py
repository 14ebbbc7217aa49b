"""Hydra searches the folders of choices of the packages that add to layergraft."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class InstalledPlugins(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from layergraft.config.compose import conf_dir

        paths = [(item.path or "").removeprefix("file://") for item in search_path.get_path()]
        if str(conf_dir()) not in paths:
            return  # another program of Hydra's
        from layergraft.config.plugins import installed

        for name, folder in installed().items():
            if folder:
                search_path.append(name, f"file://{folder}")
