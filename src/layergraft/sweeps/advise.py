"""`layergraft advise`: which site and strategy to take, by successive halving on short runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layergraft.sweeps.grid import GridSweeper, finish, key_of
from layergraft.sweeps.launchers import LocalLauncher

if TYPE_CHECKING:
    from layergraft.runs.plan import RunPlan

STRATEGIES = "freeze,low_lr,hybrid,full,gradual,l2_sp"
SITES = "early,middle,late"
ADVICE = "advice.json"


class AdviseSweeper(GridSweeper):
    """Rounds of runs of many arms, each longer and with fewer of them."""

    kind = "advice"

    def __init__(
        self,
        params: dict[str, Any] | None,
        controls: list[list[str]],
        contrasts: dict[str, Any],
        epochs: int | None,
        seeds: int,
        finalists: int,
    ) -> None:
        super().__init__(params=params)
        self.epochs, self.seeds, self.finalists = epochs, seeds, finalists

    def sweep(self, arguments: list[str]) -> Any:
        from layergraft.sweeps import pool

        self._require()
        pool.warm()
        from layergraft.config.compose import Composer
        from layergraft.errors import counted
        from layergraft.report import advice

        self.composer = Composer(self.hydra_context.config_loader, self.config)
        arms, left_out, own = self._arms(arguments)
        config = self.composer(own)
        whole = config.schedule.epochs
        shortest = self._shortest(list(arms.values()), self.epochs or whole)
        epochs = self.epochs or max(shortest, -(-whole // 2))
        planned = advice.rounds(len(arms), self.finalists, epochs, self.seeds, config.seed, shortest)
        without = [o for o in own if key_of(o) not in ("site", "strategy")] + ["strategy=scratch"]
        for at in planned:  # all that can be wrong is told before anything is trained
            for cell in [*arms.values(), without]:
                self._plans([cell], at)
        for why, names in left_out.items():
            print(f"left out: {', '.join(names)}: {why}", file=sys.stderr)
        rounds = ", ".join(
            f"{r.num_arms} x {counted(len(r.seeds), 'seed')} of {counted(r.epochs, 'epoch')}" for r in planned
        )
        cost = advice.cost(planned, whole)
        print(
            f"{counted(len(arms), 'arm')}: {rounds}: as much as {cost:.{1 if cost < 10 else 0}f} runs of {whole}",
            file=sys.stderr,
        )

        folder = self.folder(arguments)
        told: list[dict[str, Any]] = []
        for at in planned[:-1]:
            val_AS, _, rows = self._measured(list(arms), list(arms.values()), at, folder)
            kept = advice.best(val_AS, planned[len(told) + 1].num_arms)
            told.append({"epochs": at.epochs, "seeds": list(at.seeds), "arms": rows})
            arms = {list(arms)[arm]: list(arms.values())[arm] for arm in kept}
            print(f"after {counted(at.epochs, 'epoch')} there are left: {'; '.join(arms)}", file=sys.stderr)
        return self._conclude(arguments, own, arms, without, planned[-1], told, left_out, folder)

    def _arms(self, arguments: list[str]) -> tuple[dict[str, list[str]], dict[str, list[str]], list[str]]:
        """Name -> overrides of each arm that can be run; why others cannot -> their names; what is the same for all.

        Raises UserError where there is none.
        """
        from layergraft.config.compose import spelled
        from layergraft.errors import UserError, require

        given = {key_of(a) for a in map(spelled, arguments)}
        own = [str(o.input_line) for o in self.asked(arguments) if not o.is_sweep_override()]
        asked = [*arguments, *([] if "strategy" in given else [f"strategy={STRATEGIES}"])]
        sites = [SITES] if "site" not in given else []
        arms, left_out = self._fitting([*asked, *(f"site={names}" for names in sites)], own)
        if not arms and sites:  # a layer from a file fits where it fits
            every = ",".join(self._every_site(own))
            there = list(self._fitting([*own, "strategy=full", f"site={every}"], [*own, "strategy=full"])[0])
            if there:
                chosen = dict.fromkeys([there[0], there[len(there) // 2], there[-1]])
                arms, more = self._fitting([*asked, f"site={','.join(o.partition('=')[2] for o in chosen)}"], own)
                left_out |= more
        if not arms:
            why, names = next(iter(left_out.items()))
            hint = (
                "; `layergraft sites` lists sites, surgery.fit=project adapts channels" if "does not fit" in why else ""
            )
            raise UserError(f"{why} [{names[0]}]{hint}")
        swept = {key_of(o) for cell in arms.values() for o in cell if o not in own}
        require(not {"seed", "schedule.epochs"} & swept,
                "advise has seeds and lengths of its own (--seeds, --epochs); neither can be swept")  # fmt: skip
        return arms, left_out, own

    def _fitting(self, arguments: list[str], own: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """As `_arms`, of what `arguments` ask for; an arm's name is what it has beside `own`."""
        from layergraft.errors import UserError

        (product,) = self.split_arguments(self.asked(arguments), None)
        arms: dict[str, list[str]] = {}
        left_out: dict[str, list[str]] = {}
        for cell in self.composer.without_foreign([list(cell) for cell in product]):
            name = " ".join(o for o in cell if o not in own) or "as given"
            try:
                self.plan(self.composer, [cell])
                arms[name] = cell
            except UserError as error:
                left_out.setdefault(str(error).partition(" [in the run")[0], []).append(name)
        return arms, left_out

    def _every_site(self, overrides: list[str]) -> list[str]:
        """The sites of the host that are of the donor's kind."""
        from layergraft.hosts import sites
        from layergraft.hosts.skeletons import sites_of

        config = self.composer(overrides)
        data = config.data.load(config.seed).with_channels(config.host.in_channels)
        kind = sites.BLOCK if config.donor.kind == "block" else sites.CONV
        there = sites_of(config.host, data.shape, data.num_classes)
        return [site.path for site in there.values() if site.kind == kind]

    def _require(self) -> None:
        from layergraft.errors import require

        require(isinstance(self.launcher, LocalLauncher), "advise runs with hydra/launcher=layergraft, ray or slurm")
        require(self.seeds > 1, f"--seeds is {self.seeds}; one seed tells nothing, it must be 2 or more")
        require(self.finalists > 0, f"--finalists is {self.finalists}; it must be 1 or more")
        require(self.epochs is None or self.epochs > 0, f"--epochs is {self.epochs}; it must be 1 or more")
        require(not self.config.exec.rerun, "advise takes what the store has; exec.rerun=true is of train")

    def _shortest(self, cells: Sequence[Sequence[str]], epochs: int) -> int:
        """How many epochs each of `cells` can do with, up to `epochs`: a strategy that thaws halfway takes two."""
        from layergraft.errors import UserError
        from layergraft.report.advice import Round

        for length in range(1, epochs):
            with suppress(UserError):  # of `epochs` itself it is raised later
                self._plans(cells, Round(length, (0,), len(cells)))
                return length
        return epochs

    def _plans(self, cells: Sequence[Sequence[str]], at: Any) -> list[RunPlan]:
        """The runs of `cells` in a round, cell by cell, one for each seed."""
        kept = [[o for o in cell if key_of(o) not in ("seed", "schedule.epochs")] for cell in cells]
        asked = [[*cell, f"schedule.epochs={at.epochs}", f"seed={seed}"] for cell in kept for seed in at.seeds]
        return [plan for cell in asked for plan in self.plan(self.composer, [cell])]

    def _measured(
        self, names: Sequence[str], cells: Sequence[Sequence[str]], at: Any, folder: Path
    ) -> tuple[Any, Any, list[dict[str, Any]]]:
        """Do the runs of a round: validation and test accuracies, (A, S), nan for what failed, and all of it as plain data."""
        import numpy as np

        from layergraft.store.records import read_record
        from layergraft.sweeps import sweep
        from layergraft.sweeps.manifest import write_plan

        plans = self._plans(cells, at)
        different = sweep.distinct(plans)
        command = shlex.join(["layergraft", *sys.argv[1:]])
        write_plan(
            folder, [plan.key for plan in different], command, "", (plan.config for plan in different), False, {}
        )
        self.launcher.newer_than = 0.0
        self.launcher.work(different)
        metrics = [record.metrics if (record := read_record(plan.folder)) else {} for plan in plans]
        val, test = (
            np.array([m.get(name, np.nan) for m in metrics], float).reshape(len(cells), -1)
            for name in ("val/acc", "test/acc")
        )
        keys = np.array([plan.key for plan in plans]).reshape(len(cells), -1)

        def plain(row: Any) -> list[float | None]:
            return [None if np.isnan(value) else float(value) for value in row]

        rows = [
            {"arm": name, "val/acc": plain(val[number]), "runs": keys[number].tolist()}
            for number, name in enumerate(names)
        ]
        return val, test, rows

    def _conclude(
        self,
        arguments: list[str],
        own: list[str],
        arms: dict[str, list[str]],
        without: list[str],
        last: Any,
        told: list[dict[str, Any]],
        left_out: dict[str, list[str]],
        folder: Path,
    ) -> list[str]:
        """The last round, what it shows, and the command for the run as a whole; the overrides that are advised."""
        import numpy as np

        from layergraft.config.compose import as_typed
        from layergraft.errors import RunFailed
        from layergraft.report import advice
        from layergraft.store.files import write_json

        names = list(arms)
        val, test, rows = self._measured([*names, "strategy=scratch"], [*arms.values(), without], last, folder)
        if np.isnan(val[:-1]).any(1).all():
            raise RunFailed(f"no finalist was completed; {folder} has the runs")
        found = advice.advise(val[:-1], test[:-1], test[-1])
        chosen = [o for o in arms[names[found.arm]] if o not in own]
        one = [*(as_typed(a) for a in arguments if key_of(a) not in {key_of(o) for o in chosen}), *chosen]
        strategy = next(o for o in reversed(arms[names[found.arm]]) if key_of(o) == "strategy")
        beside = [*(o for o in one if key_of(o) not in ("strategy", "seed")), f"{strategy},scratch", "seed=range(5)"]
        commands = [
            shlex.join(["layergraft", "train", *one]),
            shlex.join(["layergraft", "train", "-m", *beside]),
        ]
        lines = advice.in_lines(found, names, len(last.seeds), last.epochs)
        finish(folder, list(dict.fromkeys(key for row in rows for key in row["runs"])), 0.0)
        print(*lines, "", *commands, sep="\n")
        told = [*told, {"epochs": last.epochs, "seeds": list(last.seeds), "arms": rows}]
        write_json(
            folder / ADVICE,
            {"advice": lines, "commands": commands, "take": chosen, "rounds": told, "left out": left_out},
        )
        return chosen
