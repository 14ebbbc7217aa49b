"""`layergraft advise`: which site and strategy to take, by successive halving on short runs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from layergraft.config.overrides import from_hydra, key_of, to_hydra, within
from layergraft.errors import RunFailed, UserError, counted, require
from layergraft.stats.successive_halving import ranked
from layergraft.store.files import digest, write_json
from layergraft.store.records import read_record, run_folder
from layergraft.sweeps import worker_pool
from layergraft.sweeps.grid import GridSweeper, finish, say
from layergraft.sweeps.launchers import LocalLauncher
from layergraft.sweeps.manifest import write_plan

if TYPE_CHECKING:
    from layergraft.report.recommendation import Advice, Round
    from layergraft.runs.plan import RunPlan

STRATEGIES = "freeze,low_lr,hybrid,full,gradual,l2_sp"
SITES = "early,middle,late"
ADVICE = "advice.json"
OF_A_PLACE = ("host", "donor", "site", "surgery", "data")  # what of a run decides its network before the first step
CONTROL = ["donor=none", "strategy=full"]  # the host without a graft


class AdviseSweeper(GridSweeper):
    """Rounds of runs of many arms, each longer and with fewer of them."""

    kind = "advice"

    def __init__(self, params: Any, *, epochs: int | None, seeds: int, finalists: int, **_: Any) -> None:
        super().__init__(params=params)  # an experiment's controls and contrasts are none of advice
        self.epochs, self.seeds, self.finalists = epochs, seeds, finalists

    def sweep(self, arguments: list[str]) -> Any:
        from layergraft.report import recommendation

        self._require()
        worker_pool.warm()

        self.own = [str(o.input_line) for o in self.asked(arguments) if not o.is_sweep_override()]
        self.sweep_folder = self.folder(arguments)
        arms, left_out = self._arms(arguments)
        config = self.composer(self.own)
        require(config.donor.is_layer, "donor=none puts nothing in; advise is about where and how to load a donor")
        whole = config.schedule.epochs
        shortest = self._shortest(list(arms.values()), self.epochs or whole)
        epochs = self.epochs or max(shortest, -(-whole // 2))
        planned = recommendation.rounds(len(arms), self.finalists, epochs, self.seeds, config.seed, shortest)
        void = ("site", "strategy", "donor")  # what was said of these does not apply to the control
        without = [o for o in self.own if not any(within(key_of(o), key) for key in void)] + CONTROL
        for at in planned:  # all that can be wrong is told before anything is trained
            for combination in [*arms.values(), without]:
                self._plans([combination], at)
        for why, names in left_out.items():
            say(f"left out: {', '.join(names)}: {why}")
        self.told: list[dict[str, Any]] = []
        arms = self._with_least_shock(arms, planned[0])
        planned = recommendation.rounds(len(arms), self.finalists, epochs, self.seeds, config.seed, shortest)
        lengths = [f"{counted(len(at.seeds), 'seed')} of {counted(at.epochs, 'epoch')}" for at in planned]
        rounds = ", ".join(f"{at.num_arms} x {length}" for at, length in zip(planned, lengths, strict=True))
        cost = recommendation.cost(planned, whole)
        say(f"{counted(len(arms), 'arm')}: {rounds}: as much as {cost:.{1 if cost < 10 else 0}f} runs of {whole}")

        for at, after in pairwise(planned):
            val_AS, _ = self._measured(list(arms), list(arms.values()), at)
            names = [list(arms)[arm] for arm in ranked(val_AS)[: after.num_arms]]
            arms = {name: arms[name] for name in names}
            say(f"after {counted(at.epochs, 'epoch')} there are left: {'; '.join(arms)}")

        last = planned[-1]
        val_AS, test_AS = self._measured([*arms, " ".join(CONTROL)], [*arms.values(), without], last)
        found, chosen, commands = self._conclude(arguments, arms, val_AS, test_AS)
        lines = recommendation.in_lines(found, list(arms), len(last.seeds), last.epochs)
        finish(self.sweep_folder, list(dict.fromkeys(key for row in self.told[-1]["arms"] for key in row["runs"])), 0.0)
        print(*lines, "", *commands, sep="\n")
        kept = {"advice": lines, "commands": commands, "take": chosen, "rounds": self.told, "left out": left_out}
        write_json(self.sweep_folder / ADVICE, kept)
        return chosen

    def _with_least_shock(self, arms: dict[str, list[str]], at: Round) -> dict[str, list[str]]:
        """Return the arms that are left when the better half of the places, by the validation loss before the first step, go on.

        What is lost there is the same for every strategy, so one run for each place tells it; a place is a site with a surgery.
        In a host with initial weights, or with a new classifier, it tells nothing, and all arms go on.
        """
        at = replace(at, seeds=at.seeds[:1])
        first = {name: self._plans([combination], at)[0] for name, combination in arms.items()}
        place_of = {
            name: digest({part: plan.identity["config"][part] for part in OF_A_PLACE}) for name, plan in first.items()
        }
        places = {place: name for name, place in reversed(place_of.items())}  # the first arm of each
        told = all(plan.keeps_head and 0 in plan.config.exec.probe.epochs for plan in first.values())
        if len(places) < 2 or not told:
            return arms
        (loss_AS,) = self._measured(list(places.values()), [arms[name] for name in places.values()], at, ["step0/loss"])
        order = ranked(-loss_AS)[: -(-len(places) // 2)]
        kept = {list(places)[number] for number in order}
        left = {name: combination for name, combination in arms.items() if place_of[name] in kept}
        out = [name for place, name in places.items() if place not in kept]
        say(
            f"by the loss before any training, {len(kept)} of {len(places)} sites and surgeries go on; left out: that of {'; '.join(out)}"
        )
        return left

    def _arms(self, arguments: list[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Return name -> overrides of each arm that can be run, and why others cannot -> their names.

        Raises UserError where there is none.
        """
        given = {key_of(a) for a in map(to_hydra, arguments)}
        asked = [*arguments, *([] if "strategy" in given else [f"strategy={STRATEGIES}"])]
        anywhere = "site" not in given
        arms, left_out = self._fitting([*asked, f"site={SITES}"] if anywhere else asked, self.own)
        if not arms and anywhere:  # a layer from a file fits where it fits
            full = [*self.own, "strategy=full"]
            there = list(self._fitting([*full, f"site={','.join(self._every_site())}"], full)[0])
            if there:
                chosen = dict.fromkeys([there[0], there[len(there) // 2], there[-1]])
                sites = ",".join(site.partition("=")[2] for site in chosen)
                arms, more = self._fitting([*asked, f"site={sites}"], self.own)
                left_out |= more
        if not arms:
            why, names = next(iter(left_out.items()))
            hint = "; `layergraft sites` lists sites, surgery.channel_matching=project adapts channels"
            raise UserError(f"{why} [{names[0]}]{hint if 'does not fit' in why else ''}")
        swept = {key_of(o) for combination in arms.values() for o in combination if o not in self.own}
        alone = "advise has seeds and lengths of its own (--seeds, --epochs); neither can be swept"
        require(not {"seed", "schedule.epochs"} & swept, alone)
        return arms, left_out

    def _fitting(self, arguments: list[str], own: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Return the same as `_arms`, of what `arguments` ask for; an arm's name is what it has beside `own`."""
        (product,) = self.split_arguments(self.asked(arguments), None)
        arms: dict[str, list[str]] = {}
        left_out: dict[str, list[str]] = {}
        for combination in self.composer.without_foreign([list(combination) for combination in product]):
            name = " ".join(o for o in combination if o not in own) or "as given"
            try:
                self.plan([combination])
                arms[name] = combination
            except UserError as error:
                left_out.setdefault(str(error).partition(" [in the run")[0], []).append(name)
        return arms, left_out

    def _every_site(self) -> list[str]:
        """List the sites of the host that are of the donor's kind."""
        from layergraft.hosts import sites
        from layergraft.hosts.meta_device import sites_of

        config = self.composer(self.own)
        images = config.images()
        kind = sites.BLOCK if config.donor.kind == "block" else sites.CONV
        there = sites_of(config.host, images.shape, images.num_classes)
        return [site.path for site in there.values() if site.kind == kind]

    def _require(self) -> None:
        require(isinstance(self.launcher, LocalLauncher), "advise runs with hydra/launcher=layergraft, ray or slurm")
        require(self.seeds > 1, f"--seeds is {self.seeds}; one seed tells nothing, it must be 2 or more")
        require(self.finalists > 0, f"--finalists is {self.finalists}; it must be 1 or more")
        require(self.epochs is None or self.epochs > 0, f"--epochs is {self.epochs}; it must be 1 or more")
        require(not self.config.exec.rerun, "advise takes what the store has; exec.rerun=true is of train")

    def _shortest(self, combinations: Sequence[Sequence[str]], epochs: int) -> int:
        """How many epochs each of `combinations` can do with, up to `epochs`: a strategy that thaws halfway takes two."""
        from layergraft.report.recommendation import Round

        for length in range(1, epochs):
            with suppress(UserError):  # of `epochs` itself it is raised later
                self._plans(combinations, Round(length, (0,), len(combinations)))
                return length
        return epochs

    def _plans(self, combinations: Sequence[Sequence[str]], at: Any) -> list[RunPlan]:
        """The runs of `combinations` in a round, one after another, one for each seed."""
        kept = [
            [o for o in combination if key_of(o) not in ("seed", "schedule.epochs")] for combination in combinations
        ]
        asked = [
            [*combination, f"schedule.epochs={at.epochs}", f"seed={seed}"] for combination in kept for seed in at.seeds
        ]
        return [plan for combination in asked for plan in self.plan([combination])]

    def _measured(
        self,
        names: Sequence[str],
        combinations: Sequence[Sequence[str]],
        at: Any,
        metrics: Sequence[str] = ("val/acc", "test/acc"),
    ) -> list[Any]:
        """Do the runs of a round, and note them by the first of `metrics`. Return each metric, (A, S), nan for what failed."""
        import numpy as np

        from layergraft.sweeps import execution

        plans = self._plans(combinations, at)
        different = execution.distinct(plans)
        write_plan(self.sweep_folder, different, shlex.join(["layergraft", *map(from_hydra, sys.argv[1:])]))
        self.launcher.newer_than = 0.0
        self.launcher.work(different)
        found = [record.metrics if (record := read_record(plan.folder)) else {} for plan in plans]
        each = ([of_run.get(name, np.nan) for of_run in found] for name in metrics)
        values = [np.array(numbers, float).reshape(len(combinations), -1) for numbers in each]
        keys_AS = np.array([plan.key for plan in plans]).reshape(len(combinations), -1)
        plain = [[None if np.isnan(value) else value for value in row] for row in values[0].tolist()]
        known = zip(names, plain, keys_AS.tolist(), strict=True)
        rows = [{"arm": name, metrics[0]: value, "runs": keys} for name, value, keys in known]
        self.told.append({"epochs": at.epochs, "seeds": list(at.seeds), "arms": rows})
        return values

    def _conclude(
        self, arguments: list[str], arms: dict[str, list[str]], val_AS: Any, test_AS: Any
    ) -> tuple[Advice, list[str], list[str]]:
        """Return what the last round shows, the overrides that are advised, and the commands for whole runs of them. Of
        `val_AS` and `test_AS` the last arm is the host without a donor. Raises RunFailed where no arm is complete."""
        import numpy as np

        from layergraft.report import recommendation

        if np.isnan(val_AS[:-1]).any(1).all():
            keys = [key for row in self.told[-1]["arms"] for key in row["runs"]]
            records = (read_record(run_folder(self.sweep_folder.parents[1], key)) for key in keys)
            why = next((f": {record.error.partition(chr(10))[0]}" for record in records if record and record.error), "")
            raise RunFailed(f"no finalist was completed{why} ({self.sweep_folder} has the runs)")
        found = recommendation.advise(val_AS[:-1], test_AS[:-1], test_AS[-1])
        combination = list(arms.values())[found.arm]
        chosen = [o for o in combination if o not in self.own]
        one = [*(from_hydra(a) for a in arguments if key_of(a) not in map(key_of, chosen)), *chosen]
        strategy = next(o for o in reversed(combination) if key_of(o) == "strategy")
        control = f"hydra.sweeper.controls={json.dumps([CONTROL])}"
        beside = [*(o for o in one if key_of(o) not in ("strategy", "seed")), strategy, control, "seed=range(5)"]
        return found, chosen, [shlex.join(["layergraft", "train", *given]) for given in (one, ["-m", *beside])]
