"""The command line: `layergraft train | plan | donate | surgery | similarity | advise | sites | status | report | compare | export`.

Arguments only; what they do is in `runs` and `report`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layergraft
from layergraft.errors import RunFailed, UserError, unknown

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
    full = os.environ.get("HYDRA_FULL_ERROR") == "1" or any(
        re.fullmatch(r"exec\.traceback=(true|yes|on|1)", a, re.IGNORECASE) for a in rest
    )
    try:
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS)
        if _asks_for_help(rest):
            print(_help(command, rest), end="")
        else:
            COMMANDS[command](rest)
        sys.stdout.flush()
    except BrokenPipeError:  # `layergraft sites | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except KeyboardInterrupt:
        _end_interrupted()
    except Exception as error:
        if _of_an_interrupt(error):
            _end_interrupted()
        from layergraft.config.error_messages import explain

        line = explain(error)
        if full or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(FAILED if isinstance(error, RunFailed) else BAD_INPUT)


def _end_interrupted() -> None:
    print("interrupted; the same command goes on with the runs that are left", file=sys.stderr)
    sys.exit(INTERRUPTED)


def _of_an_interrupt(error: BaseException | None) -> bool:
    """Whether it was raised while Ctrl-C was on its way up, by what a library cleans up half done."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _on_one_run(command: str) -> Callable[[list[str]], None]:
    """A command that takes the keys of a run and hands its config to a function of `show`."""

    def run(arguments: list[str]) -> None:
        if command != "train" and _asks_for_sweep(arguments):
            raise UserError(f"{command} takes one run and no -m; `layergraft train -m` sweeps over many")
        _hydra(arguments, lambda composed: _on_config(composed, SINGLE[command]))

    return run


def advise(arguments: list[str]) -> None:
    if _asks_for_sweep(arguments):
        raise UserError("advise takes no -m; lists of values are what it chooses from")
    numbers = {f"--{name}": f"hydra.sweeper.{name}" for name in ("epochs", "seeds", "finalists")}
    rest, chosen, left = [], [], list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if name not in numbers:
            rest.append(argument)  # Hydra's affair
            continue
        value = value if equals else left.pop(0) if left else ""
        if not value.isdecimal():
            raise UserError(f"advise: {name} takes a number{f', not {value}' if value else ''}")
        chosen.append(f"{numbers[name]}={value}")
    _hydra(["-m", "hydra/sweeper=advise", *chosen, *rest], lambda composed: None)


def status(arguments: list[str]) -> None:
    folders, _ = _options("status", [a for a in arguments if a != "--watch"], (), ("--watch",))
    if len(folders) != 1:
        raise UserError(
            f"status takes one folder of a sweep, such as outputs/sweeps/quickstart; given: {' '.join(folders) or 'none'}"
        )
    from layergraft.sweeps.status import show

    show(Path(folders[0]), watch="--watch" in arguments)


def report(arguments: list[str]) -> None:
    folders, options = _options("report", arguments, ("--where", "--to"))
    if not folders:
        raise UserError(
            "report takes folders of sweeps, such as outputs/sweeps/quickstart, or outputs/runs; given: none"
        )
    from layergraft import report as pages

    to = options.get("--to")
    print(pages.write([Path(folder) for folder in folders], options.get("--where"), Path(to) if to else None))


def compare(arguments: list[str]) -> None:
    given, options = _options("compare", arguments, ("--metric", "--where"))
    conditions = [a for a in given if re.search("[=<>]", a)]
    folders = [a for a in given if a not in conditions]
    if len(conditions) != 2:
        raise UserError(
            f"compare takes two conditions, such as strategy=freeze,site=early and strategy=scratch; given: {' '.join(given) or 'none'}"
        )
    from layergraft import report as pages

    (one, other), metric = conditions, options.get("--metric", "test/acc")
    print(pages.compare(one, other, [Path(f) for f in folders or ["outputs/runs"]], metric, options.get("--where")))


def export(arguments: list[str]) -> None:
    keys, options = _options("export", arguments, ("--format", "--to", "--outputs"))
    if len(keys) != 1:
        raise UserError(f"export takes the key of one run, a folder in outputs/runs; given: {' '.join(keys) or 'none'}")
    from layergraft.runs.export import export as write

    to = options.get("--to")
    outputs, form = Path(options.get("--outputs", "outputs")), options.get("--format", "safetensors")
    print(write(outputs, keys[0], form, Path(to) if to else None))


def _options(
    command: str, arguments: Sequence[str], names: Sequence[str], flags: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """What is no option, and option -> its value, given as `--to DIR` or `--to=DIR`. Raises UserError for others."""
    rest, found, left = [], {}, list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            rest.append(argument)
        elif name not in names:
            raise unknown(f"option of {command}", name, [*names, *flags])
        elif not equals and not left:
            raise UserError(f"{command}: {name} needs a value")
        else:
            found[name] = value if equals else left.pop(0)
    return rest, found


# Commands on one run's config -> the function of `show`.
SINGLE = {
    "train": "train_one",
    "plan": "print_plan",
    "donate": "donate_one",
    "surgery": "print_surgery",
    "similarity": "print_similarity",
    "sites": "print_sites",
}
COMMANDS: dict[str, Callable[[list[str]], None]] = {command: _on_one_run(command) for command in SINGLE} | {
    "advise": advise,
    "status": status,
    "report": report,
    "compare": compare,
    "export": export,
}
FOLDERS = ("status", "report", "compare", "export")  # take no keys of a run
ADVISE_HELP = """layergraft advise [KEY=VALUE ...] [--epochs N] [--seeds 5] [--finalists 3]

At which site and by which strategy to load this donor into this host for these data: all of them run briefly, the better third
is trained anew for longer, and the finalists on seeds that the choice has not seen, beside the host without a donor. Ends with the
advice, how sure it is, and the command for the whole run. It takes what `layergraft train` takes; lists of values
(site=layer1.0,layer3.0 surgery=replace,parallel) are what it chooses from, in place of three sites and six strategies.
--epochs: of the longest runs, by default half of schedule.epochs, or what the strategies take where that is more; --seeds: of
the finalists. The runs are in the store like any other: the same command goes on where it was.
"""
STATUS_HELP = """layergraft status DIR [--watch]

How far the sweep in DIR (outputs/sweeps/NAME) is, whoever runs it, on whichever machine: done, running, failed and waiting runs, runs a minute, time left. --watch: again every 2 seconds, until it is done.
"""
CONDITIONS = """
A condition is AXIS=VALUE, several joined by commas: strategy=freeze,site=early|late,seed<3. Axes are strategy, site, host,
donor, data, seed and whatever else was swept, by its key (host.width=8); with = and != a value or several (a|b), with <, >,
<=, >= a number.
"""
REPORT_HELP = f"""layergraft report DIR ... [--where CONDITION] [--to FOLDER]

Writes report.html, report.md, runs.csv, runs.parquet and figures/ from the records of sweeps (outputs/sweeps/NAME) or of a
folder of runs (outputs/runs): into the sweep's own folder, or for several, or with --where, below outputs/reports.
{CONDITIONS}"""
COMPARE_HELP = f"""layergraft compare A B [DIR ...] [--metric test/acc] [--where CONDITION]

The mean difference of the runs that meet the condition A to those that meet B, paired by seed, over the cells that both
have, with its 95% interval. DIR: sweeps, or a folder of runs; left out: outputs/runs.
{CONDITIONS}"""
EXPORT_HELP = """layergraft export KEY [--format safetensors|torch.export|onnx] [--to FILE] [--outputs outputs]

Writes the trained network of a run of outputs/runs, donor included, and checks that what was written gives the same logits
as the run's own. safetensors: the weights, with the config; torch.export: a .pt2 that needs no layergraft; onnx: needs
layergraft[export]. Images go in as (N, C, H, W) float32, normalised as the run's record says.
"""


AS_TRAIN = {
    "plan": "prints every group with its tensors, when it is frozen, its learning rate by epoch",
    "donate": "trains or cuts the donors alone, or finds them, and prints their keys",
    "surgery": "prints what the surgery does, step-0 activations and loss; trains no host",
    "similarity": "prints how alike source and target are, on fixed features and at the site",
    "sites": "prints every site of the host; only host and data matter",
}
HELP = {
    command: f"layergraft {command} [KEY=VALUE ...]\n\nTakes what `layergraft train` takes; {what}.\n"
    for command, what in AS_TRAIN.items()
} | {
    "advise": ADVISE_HELP,
    "status": STATUS_HELP,
    "report": REPORT_HELP,
    "compare": COMPARE_HELP,
    "export": EXPORT_HELP,
}


def _help(command: str, arguments: Sequence[str]) -> str:
    if command in HELP:
        return HELP[command]
    from layergraft.cli.help import train_help

    return train_help(arguments)


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


def _asks_for_sweep(arguments: Sequence[str]) -> bool:
    return "-m" in arguments or "--multirun" in arguments


def _hydra(arguments: list[str], task: Callable[[DictConfig], object]) -> None:
    """Run `task(composed config)` under Hydra. Errors come up as exceptions, for `main` to word."""
    import hydra

    from layergraft.config.compose import conf_dir, understood
    from layergraft.config.guard import configs_checked, require_readable

    raised: list[BaseException] = []

    def guarded(composed: DictConfig) -> Any:
        try:
            return task(composed)
        except (Exception, KeyboardInterrupt) as error:  # kept from Hydra, which would print lines of its own
            raised.append(error)

    arguments = understood(arguments)
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


def _on_config(composed: DictConfig, function: str) -> Any:
    from layergraft.config.compose import to_config

    config = to_config(composed)
    import layergraft.runs.imports  # noqa: F401
    from layergraft.cli import show

    return getattr(show, function)(config)
