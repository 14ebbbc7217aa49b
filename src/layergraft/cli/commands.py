"""The commands: their arguments and help. What they do is in `show`, `sweeps`, `runs` and `report`."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layergraft
from layergraft.errors import RunFailed, require, unknown

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = """layergraft: load a layer trained on its own into a multi-layer ResNet, and measure what that does.

  layergraft train [KEY=VALUE ...]      one run; with -m and lists of values, a sweep
  layergraft plan [KEY=VALUE ...]       what such a run's strategy trains when, and how fast, before any training
  layergraft donate [KEY=VALUE ...]     train or cut the donor of such a run, store it, print its key
  layergraft surgery [KEY=VALUE ...]    what such a run's surgery does, before any training
  layergraft similarity [KEY=VALUE ...] how alike donor.data and data are, on fixed features and at the graft site
  layergraft advise [KEY=VALUE ...]     at which site and by which strategy to load a donor, from few short runs
  layergraft sites [KEY=VALUE ...]      the places in a host where a donor can go: layergraft sites host=resnet50
  layergraft status DIR [--watch]       how far the sweep in DIR (outputs/sweeps/NAME) is: done, running, failed, waiting
  layergraft report DIR ...             write the report of a sweep anew, or of several, or of outputs/runs: --where, --to
  layergraft compare A B [DIR ...]      one contrast: layergraft compare strategy=freeze strategy=full outputs/sweeps/NAME
  layergraft export KEY                 write a run's network as safetensors, torch.export or ONNX: --format, --to
  layergraft COMMAND --help             what a command takes
  layergraft --version                  which this is
"""
SWEEP = {"-m", "--multirun"}  # ask for one
FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0, with 1 where runs failed, 2 for bad input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["-sc"]:  # Hydra's completion calls the bare program; the command is in COMP_LINE
        program, _, typed = os.environ.get("COMP_LINE", "").partition(" ")
        command, _, more = typed.lstrip().partition(" ")
        if command not in COMMANDS or command in FOLDERS or typed == command:
            print(" ".join(name for name in COMMANDS if name.startswith(command)))
            return
        os.environ["COMP_LINE"] = f"{program} {more}"
        arguments = ["train", *arguments]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if arguments == ["--version"]:
        print(f"layergraft {layergraft.__version__}")
        return
    command, *rest = arguments
    asks_for_all = re.compile(r"exec\.traceback=(true|yes|on|1)", re.IGNORECASE)
    full = os.environ.get("HYDRA_FULL_ERROR") == "1" or any(map(asks_for_all.fullmatch, rest))
    try:
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS)
        if "--help" in rest or "-h" in rest:
            print(_help(command, rest), end="")
        else:
            COMMANDS[command](rest)
        sys.stdout.flush()
    except BrokenPipeError:  # `layergraft sites | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except (Exception, KeyboardInterrupt) as error:
        if _of_an_interrupt(error):
            print("interrupted; the same command goes on with the runs that are left", file=sys.stderr)
            sys.exit(INTERRUPTED)
        from layergraft.config.error_messages import explain

        line = explain(error)
        if full or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(FAILED if isinstance(error, RunFailed) else BAD_INPUT)


def _of_an_interrupt(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or was raised while Ctrl-C was on its way up, by what a library cleans up half done."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _on_one_run(command: str) -> Callable[[list[str]], None]:
    """A command that takes the keys of a run and hands its config to a function of `show`."""

    def show_one(composed: DictConfig) -> Any:
        from layergraft.cli import run_commands
        from layergraft.config.compose import to_config

        config = to_config(composed)
        import layergraft.runs.preload  # noqa: F401

        return getattr(run_commands, SINGLE[command][0])(config)

    def run(arguments: list[str]) -> None:
        one = f"{command} takes one run and no -m; `layergraft train -m` sweeps over many"
        require(command == "train" or not SWEEP.intersection(arguments), one)
        _hydra(arguments, show_one)

    return run


def advise(arguments: list[str]) -> None:
    """layergraft advise [KEY=VALUE ...] [--epochs N] [--seeds 5] [--finalists 3]

    At which site and by which strategy to load this donor into this host for these data: all of them run briefly, the better third
    is trained anew for longer, and the finalists on seeds that the choice has not seen, beside the host without a donor. Ends with the
    advice, how sure it is, and the command for the whole run. It takes what `layergraft train` takes; lists of values
    (site=layer1.0,layer3.0 surgery=replace,parallel) are what it chooses from, in place of three sites and six strategies.
    --epochs: of the longest runs, by default half of schedule.epochs, or what the strategies take where that is more; --seeds: of
    the finalists. The runs are in the store like any other: the same command goes on where it was.
    """
    require(not SWEEP.intersection(arguments), "advise takes no -m; lists of values are what it chooses from")
    rest, options = _options("advise", arguments, ("--epochs", "--seeds", "--finalists"), others=True)
    for name, value in options.items():
        require(value.isdecimal(), f"advise: {name} takes a number{f', not {value}' if value else ''}")
    chosen = [f"hydra.sweeper.{name[2:]}={value}" for name, value in options.items()]
    _hydra(["-m", "hydra/sweeper=advise", *chosen, *rest], lambda composed: None)


def status(arguments: list[str]) -> None:
    """layergraft status DIR [--watch]

    How far the sweep in DIR (outputs/sweeps/NAME) is, whoever runs it, on whichever machine: done, running, failed and waiting runs, runs a minute, time left. --watch: again every 2 seconds, until it is done.
    """
    folders, _ = _options("status", [a for a in arguments if a != "--watch"], flags=("--watch",))
    _require(len(folders) == 1, "status takes one folder of a sweep, such as outputs/sweeps/quickstart", folders)
    from layergraft.sweeps.status import show

    show(Path(folders[0]), watch="--watch" in arguments)


def report(arguments: list[str]) -> None:
    """layergraft report DIR ... [--where CONDITION] [--to FOLDER]

    Writes report.html, report.md, runs.csv, runs.parquet and figures/ from the records of sweeps (outputs/sweeps/NAME) or of a
    folder of runs (outputs/runs): into the sweep's own folder, or for several, or with --where, below outputs/reports.
    """
    folders, options = _options("report", arguments, ("--where", "--to"))
    takes = "report takes folders of sweeps, such as outputs/sweeps/quickstart, or outputs/runs"
    _require(bool(folders), takes, folders)
    from layergraft import report as pages

    to = options.get("--to")
    print(pages.write([Path(folder) for folder in folders], options.get("--where"), Path(to) if to else None))


def compare(arguments: list[str]) -> None:
    """layergraft compare A B [DIR ...] [--metric test/acc] [--where CONDITION]

    The mean difference of the runs that meet the condition A to those that meet B, paired by seed, over the cells that both
    have, with its 95% interval. DIR: sweeps, or a folder of runs; left out: outputs/runs.
    """
    given, options = _options("compare", arguments, ("--metric", "--where"))
    conditions = [a for a in given if re.search("[=<>]", a)]
    folders = [a for a in given if a not in conditions]
    takes = "compare takes two conditions, such as strategy=freeze,site=early and donor=none"
    _require(len(conditions) == 2, takes, given)
    from layergraft import report as pages

    (one, other), metric = conditions, options.get("--metric", "test/acc")
    print(pages.compare(one, other, [Path(f) for f in folders or ["outputs/runs"]], metric, options.get("--where")))


def export(arguments: list[str]) -> None:
    """layergraft export KEY [--format safetensors|torch.export|onnx] [--to FILE] [--outputs outputs]

    Writes the trained network of a run of outputs/runs, donor included, and checks that what was written gives the same logits
    as the run's own. safetensors: the weights, with the config; torch.export: a .pt2 that needs no layergraft; onnx: needs
    layergraft[export]. Images go in as (N, C, H, W) float32, normalised as the run's record says.
    """
    keys, options = _options("export", arguments, ("--format", "--to", "--outputs"))
    _require(len(keys) == 1, "export takes the key of one run, a folder in outputs/runs", keys)
    from layergraft.runs.export import export as write

    to = options.get("--to")
    outputs, form = Path(options.get("--outputs", "outputs")), options.get("--format", "safetensors")
    print(write(outputs, keys[0], form, Path(to) if to else None))


def _require(holds: bool, takes: str, given: Sequence[str]) -> None:
    require(holds, f"{takes}; given: {' '.join(given) or 'none'}")


def _options(
    command: str, arguments: Sequence[str], names: Sequence[str] = (), flags: Sequence[str] = (), others: bool = False
) -> tuple[list[str], dict[str, str]]:
    """What is no option, and option -> its value, given as `--to DIR` or `--to=DIR`. Raises UserError for other options
    and for a missing value, unless `others` are Hydra's affair: then a missing value is empty."""
    rest, found, left = [], {}, list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if name in names:
            require(bool(equals or left or others), f"{command}: {name} needs a value")
            found[name] = value if equals or not left else left.pop(0)
        elif argument.startswith("-") and not others:
            raise unknown(f"option of {command}", name, [*names, *flags])
        else:
            rest.append(argument)
    return rest, found


# Commands on one run's config -> the function of `show`, and what it does.
SINGLE = {
    "train": ("train_one", "does the run"),
    "plan": ("print_plan", "prints every group with its tensors, when it is frozen, its learning rate by epoch"),
    "donate": ("donate_one", "trains or cuts the donors alone, or finds them, and prints their keys"),
    "surgery": ("print_surgery", "prints what the surgery does, step-0 activations and loss; trains no host"),
    "similarity": ("print_similarity", "prints how alike source and target are, on fixed features and at the site"),
    "sites": ("print_sites", "prints every site of the host; only host and data matter"),
}
FOLDERS = {"status": status, "report": report, "compare": compare, "export": export}  # take no keys of a run
COMMANDS = {command: _on_one_run(command) for command in SINGLE} | {"advise": advise} | FOLDERS
CONDITIONS = """
A condition is AXIS=VALUE, several joined by commas: strategy=freeze,site=early|late,seed<3. Axes are strategy, site, host,
donor, data, seed and whatever else was swept, by its key (host.width=8); with = and != a value or several (a|b), with <, >,
<=, >= a number.
"""


def _help(command: str, arguments: Sequence[str]) -> str:
    if command == "train":
        from layergraft.cli.help import train_help

        return train_help(arguments)
    if command in SINGLE:
        does = SINGLE[command][1]
        return f"layergraft {command} [KEY=VALUE ...]\n\nTakes what `layergraft train` takes; {does}.\n"
    return f"{inspect.getdoc(COMMANDS[command])}\n{CONDITIONS if command in ('report', 'compare') else ''}"


def _hydra(arguments: list[str], task: Callable[[DictConfig], object]) -> None:
    """Run `task(composed config)` under Hydra. Errors come up as exceptions, for `main` to word."""
    import hydra

    from layergraft.config.compose import conf_dir, normalize_overrides
    from layergraft.config.security import configs_checked, require_readable

    raised: list[BaseException] = []

    def guarded(composed: DictConfig) -> Any:
        try:
            return task(composed)
        except (Exception, KeyboardInterrupt) as error:  # kept from Hydra, which would print lines of its own
            raised.append(error)

    arguments = normalize_overrides(arguments)
    require_readable(arguments)
    sys.argv = [sys.argv[0], *arguments]
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with configs_checked():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(guarded)()
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
    if raised:
        raise raised[0]
