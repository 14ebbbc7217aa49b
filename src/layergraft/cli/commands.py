"""The commands: their arguments and help. What they do is in `inspection_commands`, `training_commands`, `sweeps`, `runs` and `report`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import layergraft
from layergraft.errors import RunFailed, UserError, require, unknown
from layergraft.runs.quick_imports import imported

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = """layergraft: load a layer trained on its own into a multi-layer ResNet, and measure what that does.

  layergraft train [KEY=VALUE ...]      one run; with -m and lists of values, a sweep
  layergraft plan [KEY=VALUE ...]       what such a run's strategy trains when, and how fast, before any training
  layergraft pretrain [KEY=VALUE ...]   pretrain the host of such a run (host.pretrain), store it, print its key and accuracy
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
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"  # Hydra's own way to ask for the traceback
    try:
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS)
        if command in SINGLE and {"--help", "-h"}.intersection(rest):
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
    """A command that takes the keys of a run and hands its config to the function that `SINGLE` names."""

    def show_one(composed: DictConfig) -> Any:
        from layergraft.config.compose import to_config

        config = to_config(composed)  # a mistake in a key is told before anything large is imported
        module, _, function = SINGLE[command][0].partition(".")
        return getattr(imported(f"layergraft.cli.{module}"), function)(config)

    def run(arguments: list[str]) -> None:
        one = f"{command} takes one run and no -m; `layergraft train -m` sweeps over many"
        require(command == "train" or not SWEEP.intersection(arguments), one)
        _hydra(arguments, show_one)

    return run


class _Parser(argparse.ArgumentParser):
    """argparse with errors that are raised, for `main` to print as it prints others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('layergraft ')}: {message}")


def _parser(command: str, does: str, **arguments: dict[str, Any]) -> _Parser:
    """The parser of `command`: `does` is what its help says, `arguments` are names -> what argparse needs to know."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(f"layergraft {command}", description=does, formatter_class=formatter, allow_abbrev=False)
    for name, options in arguments.items():
        is_option = "default" in options or "action" in options
        parser.add_argument(f"--{name}" if is_option else name, **options)
    return parser


def advise(arguments: list[str]) -> None:
    number = {"type": int, "default": None, "metavar": "N"}
    parser = _parser("advise", ADVISE, epochs=number | {"help": "of the longest runs; by default half of schedule.epochs, or what the strategies take where that is more"},
                     seeds=number | {"help": "of the finalists (5)"}, finalists=number | {"help": "arms that are run to the end (3)"})  # fmt: skip
    parser.usage = "layergraft advise [KEY=VALUE ...] [--epochs N] [--seeds N] [--finalists N]"
    options, rest = parser.parse_known_args(arguments)
    require(not SWEEP.intersection(rest), "advise takes no -m; lists of values are what it chooses from")
    given = [f"hydra.sweeper.{name}={value}" for name, value in vars(options).items() if value is not None]
    _hydra(["-m", "hydra/sweeper=advise", *given, *rest], lambda composed: None)


def status(arguments: list[str]) -> None:
    options = _parsed(STATUS, arguments)
    from layergraft.sweeps.status import show

    show(Path(options.folder), options.watch)


def report(arguments: list[str]) -> None:
    options = _parsed(REPORT, arguments)
    from layergraft import report as pages

    print(pages.write(list(map(Path, options.folders)), options.where, Path(options.to) if options.to else None))


def compare(arguments: list[str]) -> None:
    options = _parsed(COMPARE, arguments)
    from layergraft import report as pages

    folders = list(map(Path, options.folders or ["outputs/runs"]))
    print(pages.compare(options.a, options.b, folders, options.metric, options.where, options.margin))


def export(arguments: list[str]) -> None:
    options = _parsed(EXPORT, arguments)
    from layergraft.runs.export import export as write

    to = Path(options.to) if options.to else None
    print(write(Path(options.outputs), options.key, options.format, to))


def _parsed(parser: _Parser, arguments: list[str]) -> argparse.Namespace:
    """Raises UserError, which guesses what was meant by an option that is none."""
    options, rest = parser.parse_known_intermixed_args(arguments)
    for argument in rest:
        what = parser.prog.removeprefix("layergraft ")
        require(argument.startswith("-"), f"{what}: one argument too many: {argument}")
        raise unknown(
            f"option of {what}", argument.partition("=")[0], [o for o in parser._option_string_actions if o[:2] == "--"]
        )
    return options


CONDITIONS = """
A condition is AXIS=VALUE, several joined by commas: strategy=freeze,site=early|late,seed<3. Axes are strategy, site, host,
donor, data, seed and whatever else was swept, by its key (host.width=8); with = and != a value or several (a|b), with <, >,
<=, >= a number.
"""
ADVISE = """At which site and by which strategy to load this donor into this host for these data: all of them run briefly, the better third
is trained anew for longer, and the finalists on seeds that the choice has not seen, beside the host without a donor. Ends with the
advice, how sure it is, and the command for the whole run. It takes what `layergraft train` takes; lists of values
(site=layer1.0,layer3.0 surgery=replace,parallel) are what it chooses from, in place of three sites and six strategies.
The runs are in the store like any other: the same command goes on where it was."""
WHERE = {"default": None, "metavar": "CONDITION", "help": "only the runs that meet it"}
STATUS = _parser(
    "status", "How far a sweep is, whoever runs it, on whichever machine: done, running, failed and waiting runs, runs a minute, time left.",
    folder={"metavar": "DIR", "help": "the sweep's folder, outputs/sweeps/NAME"},
    watch={"action": "store_true", "help": "again every 2 seconds, until it is done"},
)  # fmt: skip
REPORT = _parser(
    "report", f"Writes report.html, report.md, runs.csv, runs.parquet and figures/ from the records of runs.\n{CONDITIONS}",
    folders={"metavar": "DIR", "nargs": "+", "help": "folders of sweeps (outputs/sweeps/NAME), or of runs (outputs/runs)"},
    where=WHERE, to={"default": None, "metavar": "FOLDER", "help": "by default the sweep's own; for several, or with --where, one below outputs/reports"},
)  # fmt: skip
COMPARE = _parser(
    "compare", f"""The mean difference of the runs that meet condition A to those that meet B, paired by seed, over the cells that both have,
with its 95% interval. Where it is not significant, the most that A costs (a one-sided 95% bound); with --margin, whether the two are equivalent.
{CONDITIONS}""",
    a={"metavar": "A", "help": "a condition, such as strategy=freeze,site=early"}, b={"metavar": "B", "help": "another, such as donor=none"},
    folders={"metavar": "DIR", "nargs": "*", "help": "sweeps, or folders of runs; by default outputs/runs"},
    metric={"default": "test/acc", "help": "any metric that the runs have (test/acc)"}, where=WHERE,
    margin={"default": None, "type": float, "metavar": "M", "help": "the largest difference that counts as equivalent, in the unit of the metric"},
)  # fmt: skip
EXPORT = _parser(
    "export", """Writes the trained network of a run, donor included, and checks that what was written gives the same logits as the run's own.
safetensors: the weights, with the config; torch.export: a .pt2 that needs no layergraft; onnx: needs layergraft[export]. Images
go in as (N, C, H, W) float32, normalised as the run's record says.""",
    key={"metavar": "KEY", "help": "of the run, or any unique prefix of it: a folder in outputs/runs"},
    format={"default": "safetensors", "help": "safetensors (the default), torch.export or onnx"},
    to={"default": None, "metavar": "FILE", "help": "by default KEY with the suffix of the format, here"},
    outputs={"default": "outputs", "metavar": "DIR", "help": "the store (outputs)"},
)  # fmt: skip


# Commands on one run's config -> the function, and what it does. Those of `inspection_commands` do without Lightning.
SINGLE = {
    "train": ("training_commands.train_one", "does the run"),
    "plan": ("inspection_commands.print_plan", "prints every group with its tensors, when it is frozen, its learning rate by epoch"),
    "pretrain": ("training_commands.pretrain_one", "pretrains the host alone, or finds it, and prints its key and its accuracy"),
    "donate": ("training_commands.donate_one", "trains or cuts the donors alone, or finds them, and prints their keys"),
    "surgery": ("inspection_commands.print_surgery", "prints what the surgery does, step-0 activations and loss; trains no host"),
    "similarity": ("inspection_commands.print_similarity", "prints how alike source and target are, on fixed features and at the site"),
    "sites": ("inspection_commands.print_sites", "prints every site of the host; only host and data matter"),
}  # fmt: skip
FOLDERS = {"status": status, "report": report, "compare": compare, "export": export}  # take no keys of a run
COMMANDS = {command: _on_one_run(command) for command in SINGLE} | {"advise": advise} | FOLDERS


def _help(command: str, arguments: Sequence[str]) -> str:
    if command == "train":
        from layergraft.cli.help import train_help

        return train_help(arguments)
    does = SINGLE[command][1]
    return f"layergraft {command} [KEY=VALUE ...]\n\nTakes what `layergraft train` takes; {does}.\n"


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
