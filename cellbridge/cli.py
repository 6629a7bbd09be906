"""The command line: one sub-command per stage. A stage is imported only when it is called."""

import argparse
import errno
import importlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellbridge import processes
from cellbridge.errors import (
    CellbridgeError,
    ProblemsFound,
    ResourceError,
    StoppedBySignal,
    did_you_mean,
    in_one_line,
    is_out_of_memory,
)


@dataclass(frozen=True)
class Option:
    """A short spelling of a configuration key; `many` options may be given several times, a `switch` takes no value."""

    flag: str
    key: str
    help: str
    many: bool = False
    switch: bool = False


@dataclass(frozen=True)
class Command:
    """A stage, as the user calls it."""

    name: str
    module: str
    help: str
    options: tuple[Option, ...] = ()
    writes: bool = True
    """Whether `--out` is required."""
    positional: tuple[Option, ...] = ()
    shares: bool = False
    """Whether several processes share the work; the others leave it to the main one."""
    behind: tuple[str, ...] = ()
    """Entries of the summary that only `--json` prints: the numbers behind a table."""
    instead: tuple[str, str] | None = None
    """A setting, and the module of the stage that takes over where it is given."""


_STORE = Option("--store", "store", "the store of real cells that `prepare` made")
_SEED = Option("--seed", "seed", "the seed of every random choice")
_DEVICE = Option("--device", "device", "auto, cpu, cuda or cuda:N")
_SELECTION = (
    Option("--plates", "plates", "only this plate; give several", many=True),
    Option("--wells", "wells", "only this well, as B03 or PLATE/B03; give several", many=True),
)
_TRAINING = (
    Option(
        "--resume",
        "resume",
        "auto (default: the same command continues), never, or where to go on from: a checkpoint or another run",
    ),
    Option(
        "--accept-changes",
        "accept_changes",
        "continue a checkpoint that was made with other data, another base or other settings",
        switch=True,
    ),
    Option("--keep-last", "training.keep_last", "how many checkpoints to keep"),
    Option(
        "--profile",
        "training.profile",
        "trace a few steps into RUN/profile, for TensorBoard or Perfetto",
        switch=True,
    ),
    Option(
        "--tracker",
        "training.trackers",
        "also log to wandb, mlflow, trackio, or another tracker that accelerate knows",
        many=True,
    ),
    Option("--init-from", "init_from", "a model directory whose weights training starts from"),
    Option("--seed", "training.seed", "the seed of every random choice"),
    _DEVICE,
)

COMMANDS = (
    Command("synthesize", "synthesize", "render synthetic plates whose counterfactual truth is known", (_SEED,)),
    Command(
        "fetch",
        "fetch",
        "bring a data set's files here, whole and verified, from S3, the web or a folder",
        (
            Option("--root", "root", "where the files go (default: what the manifest says)"),
            *_SELECTION,
            Option(
                "--dry-run", "dry_run", "say how much it is and how long it may take, and fetch nothing", switch=True
            ),
        ),
        writes=False,
        positional=(Option("manifest", "manifest", "the data set's manifest.yaml"),),
    ),
    Command(
        "prepare",
        "prepare",
        "plates or ready-made crops into a store of cells",
        (
            Option("--manifest", "manifest", "the data set's manifest.yaml"),
            Option("--root", "root", "where the data set's files lie"),
            *_SELECTION,
            Option(
                "--crops-from", "crops_from", "cut the same cells as this store, out of other images of the same fields"
            ),
        ),
    ),
    Command(
        "validate",
        "validate",
        "find everything that is wrong with a plate or a store, in one pass",
        (
            Option("--root", "root", "where the data set's files lie"),
            *_SELECTION,
            Option("--deep", "deep", "read every pixel; by default tables and the heads of files only", switch=True),
            Option(
                "--strict", "strict", "take remarks (BOM, CRLF, ; or µM in a table …) for problems, too", switch=True
            ),
        ),
        writes=False,
        positional=(Option("path", "path", "a manifest.yaml, the folder that holds one, or a store"),),
        behind=("path", "what", "clean", "problems", "remarks", "looked_at", "kinds", "all"),
    ),
    Command(
        "inspect",
        "inspect",
        "show what a plate or a store looks like: plate maps, histograms and a montage, as PNG and one page",
        (
            Option("--root", "root", "where the data set's files lie"),
            *_SELECTION,
            Option("--sites-per-well", "sites_per_well", "fields of each well of a data set to look at (default: 1)"),
        ),
        positional=(Option("path", "path", "a store, a manifest.yaml, or the folder that holds one"),),
    ),
    Command(
        "train-classifier",
        "train_classifier",
        "train the condition classifier, which is also the offline feature extractor",
        (_STORE, *_TRAINING),
        shares=True,
    ),
    Command(
        "pretrain",
        "pretrain",
        "train the base diffusion model, on control cells by default",
        (_STORE, *_TRAINING),
        shares=True,
    ),
    Command(
        "finetune",
        "finetune",
        "train one LoRA adapter for a condition over the frozen base",
        (
            _STORE,
            Option("--base", "base", "the run directory of `pretrain`"),
            Option("--condition", "condition", "compound, compound@dose (micromolar), or a JUMP identifier"),
            *_TRAINING,
        ),
        shares=True,
    ),
    Command(
        "fit-prior",
        "fit_prior",
        "fit the law that x_T of a condition really has, for --x-T prior:DIR",
        (
            _STORE,
            Option("--base", "base", "the run directory of `pretrain`"),
            Option("--adapter", "adapters", "a run directory of `finetune`; give one per condition", many=True),
            Option(
                "--condition",
                "conditions",
                "the condition to fit (default: the control and every one that an adapter models)",
                many=True,
            ),
            Option("--kind", "kind", "field (default), bank or flow"),
            Option("--n", "n", "training cells of each condition (default: 512)"),
            _SEED,
            _DEVICE,
        ),
    ),
    Command(
        "fit-bridge",
        "fit_bridge",
        "fit one bridge between the control and some conditions, or between two unpaired samples of vectors",
        (
            _STORE,
            Option("--base", "base", "a run directory of `pretrain` whose network and weights to start from"),
            Option("--condition", "conditions", "a condition to lead to; give several, for one network", many=True),
            Option("--coupling", "bridge.coupling", "ot (default), independent, or gaussian"),
            Option(
                "--sigma-rel", "bridge.sigma_rel", "volatility over the pixels' std (--set bridge.sigma_rel=[0.05,0.4])"
            ),
            Option("--source-array", "source_array", "a .npy array (n, d) of the source"),
            Option("--target-array", "target_array", "a .npy array (m, d) of the target, with the same columns"),
            Option("--reg", "reg", "squared volatility of the bridge, in squared units of the data"),
            Option("--solver", "bridge.solver", "auto (default), mixture or neural"),
            Option("--budget-seconds", "bridge.budget_seconds", "processor seconds of the fit"),
            *(option for option in _TRAINING if option.flag != "--seed"),
            _SEED,
        ),
        shares=True,
        instead=("source_array", "fit_bridge_array"),
    ),
    Command(
        "fit-baseline",
        "fit_baseline",
        "train a peer's recipe on the same network and engine, to compare with: a flow from control cells, or from noise",
        (
            Option("--kind", "kind", "control-flow (as CellFlux: from control cells of the plate) or noise-flow"),
            _STORE,
            Option("--base", "base", "a run directory of `pretrain` whose network and weights to start from"),
            Option("--condition", "conditions", "a condition to learn; give several, for one network", many=True),
            *_TRAINING,
        ),
        shares=True,
    ),
    Command(
        "translate",
        "translate",
        "show what these very cells would look like under a condition",
        (
            _STORE,
            Option("--base", "base", "the run directory of `pretrain`"),
            Option("--adapter", "adapters", "a run directory of `finetune`; give one per target", many=True),
            Option("--source", "source", "the condition of the cells to translate (default: the control)"),
            Option(
                "--target", "targets", "the condition to translate to (default: every one that is modelled)", many=True
            ),
            Option("--method", "method", "ddib (default), bridge, sdedit or flow"),
            Option("--x-T", "x_T", "inverted (default), fresh, or prior:DIR, a run of `fit-prior`"),
            Option("--n", "n", "how many cells (default: all of the split)"),
            Option(
                "--bridge", "bridge", "a run directory of `fit-bridge`, for --method bridge or --input-array", many=True
            ),
            Option(
                "--strength",
                "strength",
                "sdedit: share of the way to noise; bridge: volatility over the pixels' std; flow: noise added to a cell",
            ),
            Option("--baseline", "baseline", "the run directory of `fit-baseline`, for --method flow"),
            Option("--nfe", "nfe", "calls of the network that a cell may cost; steps follow from it"),
            Option("--samples-per-cell", "samples_per_cell", "draws of each cell (default: 1)"),
            Option("--trajectories", "trajectories", "of how many cells to keep and draw the way"),
            Option("--name", "name", "what results call the model (default: the method's own name)"),
            Option("--input-array", "input_array", "a .npy array (n, d) to translate over --bridge, in place of cells"),
            _SEED,
            _DEVICE,
        ),
        shares=True,
        instead=("input_array", "translate_array"),
    ),
    Command(
        "generate",
        "generate",
        "make new cells of a condition out of noise",
        (
            Option("--base", "base", "the run directory of `pretrain`"),
            Option("--adapter", "adapters", "a run directory of `finetune`; give one per condition", many=True),
            Option(
                "--condition", "conditions", "the condition to generate; give several, one after the other", many=True
            ),
            Option("--n", "n", "how many cells of each condition"),
            Option("--blend", "blend", "shares of adapters, such as taxol@1:0.3,taxol@10:0.7, or doses"),
            Option("--store", "store", "the store whose maps turn images into counts (default: the base's own)"),
            Option("--x-T", "x_T", "fresh (default), or prior:DIR, a run of `fit-prior`"),
            Option("--plate", "plate", "the plate whose map it is (default: the first that the base was trained on)"),
            _SEED,
            _DEVICE,
        ),
        shares=True,
    ),
    Command(
        "evaluate",
        "evaluate",
        "judge translated cells, or anybody's images, beside the null rows (numbers only)",
        (
            Option("--translated", "translated", "the store that `translate` made; give one per method", many=True),
            Option("--reference", "reference", "the store of real cells"),
            Option("--classifier", "classifier", "the run directory of `train-classifier`"),
            Option("--truth", "truth", "the store of counterfactual cells, where the truth is known"),
            Option("--inception-weights", "inception_weights", "torch-fidelity's Inception weights file"),
            Option(
                "--generated", "generated", "images of any model, to be judged against --real; give several", many=True
            ),
            Option(
                "--real", "real", "real images that cellbridge did not prepare: a folder, .npz, .h5ad, Zarr or a store"
            ),
            Option("--control", "control", "real control images, beside --real"),
            Option("--train", "train", "the images that the model was trained on, beside --real"),
            Option("--source", "source", "the images that were translated, by the same names, beside --real"),
            Option("--n", "n", "cells per row (default: as many as every row can have)"),
            _SEED,
        ),
        instead=("real", "evaluate_images"),
    ),
    Command(
        "report",
        "report",
        "render an evaluation as one self-contained HTML page",
        writes=False,
        positional=(Option("runs", "runs", "the evaluation, and the training runs whose curves to show", many=True),),
    ),
    Command(
        "export",
        "export",
        "cells in the files that others open: AnnData, OME-Zarr plates, profiles of wells",
        (
            Option("--to", "to", "anndata (.h5ad), ome-zarr (a folder of plates) or profiles (.parquet)"),
            Option(
                "--translated", "translated", "a store translated from it, to go beside it; give several", many=True
            ),
            Option("--features", "features", "features of the cells or wells: .csv, .parquet or .npy"),
            Option("--ngff", "ngff", "the OME-Zarr version, 0.5 (default) or 0.4"),
            Option("--overwrite", "overwrite", "replace what an earlier export left there", switch=True),
        ),
        positional=(Option("store", "store", "the store to export"),),
    ),
    Command(
        "benchmark",
        "benchmark",
        "measure what cellbridge costs and gains, as ratios to other ways of doing the same",
        (
            Option("--parts", "parts", "the parts of the suite to measure, such as step,example (default: all)"),
            Option("--quick", "quick", "a minute or two, with wide intervals", switch=True),
            Option("--out", "out", "a run directory to write metrics.json, table.txt and provenance to"),
            _DEVICE,
        ),
        writes=False,
        positional=(Option("suite", "suite", "train"),),
        behind=("suite", "machine", "parts"),
    ),
    Command(
        "checkpoint",
        "checkpoint",
        "list or verify the checkpoints of a run",
        writes=False,
        positional=(
            Option("action", "action", "list or verify"),
            Option("run", "run", "a run directory"),
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 bad input, 3 numerical failure, 4 resources, 129/130/143 stopped."""
    arguments = _parser().parse_args(argv)
    if arguments.command is None:
        _parser().print_help()
        return 0
    command = next(c for c in COMMANDS if c.name == arguments.command)
    if not (command.shares or processes.is_main()):
        return processes.finish()
    with processes.watched():
        try:
            return _run(command, arguments)
        except Exception:
            code, first = processes.fail(1)
            if first:
                raise
            return code


def _run(command: Command, arguments: argparse.Namespace) -> int:
    try:
        summary = _call(command, arguments)
    except ProblemsFound as error:
        _show(command, error.summary, as_json=arguments.json)
        return _fail(command, error, error.exit_code, debug=arguments.debug)
    except CellbridgeError as error:
        return _fail(command, error, error.exit_code, debug=arguments.debug)
    except KeyboardInterrupt as error:
        return _fail(command, error, 130, debug=arguments.debug, text="stopped before anything had to be saved")
    except (MemoryError, OSError, RuntimeError) as error:
        text = _resource_failure(error, out=arguments.out if command.writes else None)
        if text is not None:
            return _fail(command, error, 4, debug=arguments.debug, text=text)
        lost = processes.lost_another(error)
        if lost is not None:
            return _fail(command, ResourceError(lost), 4, debug=arguments.debug)
        if not isinstance(error, OSError) or error.filename is None:
            raise
        text = f"{error.filename}: {error.strerror or error}. Check the path and its permissions (--debug shows where it was used)."
        return _fail(command, error, 2, debug=arguments.debug, text=text)
    code = processes.finish()
    if code or not processes.is_main():
        return code
    return _show(command, summary, as_json=arguments.json)


def _call(command: Command, arguments: argparse.Namespace) -> dict[str, Any]:
    from cellbridge.settings import load

    options = {
        option.key: value
        for option in (*command.options, *command.positional)
        if (value := getattr(arguments, _destination(option))) not in (None, [])
    }
    stage = importlib.import_module(f"cellbridge.stages.{_module(command, arguments, options)}")
    config = load(stage.Config, file=arguments.config, overrides=arguments.set, options=options)
    summary: dict[str, Any] = stage.run(config, out=arguments.out) if command.writes else stage.run(config)
    return summary


def _module(command: Command, arguments: argparse.Namespace, options: Mapping[str, Any]) -> str:
    """Return the stage that is called: the command's own, or the one that takes over where its setting is given."""
    from cellbridge.settings import given_keys

    if command.instead is None:
        return command.module
    key, other = command.instead
    return other if key in given_keys(arguments.config, arguments.set) | set(options) else command.module


def _parser() -> argparse.ArgumentParser:
    from cellbridge import __version__

    parser = _Parser(
        prog="cellbridge",
        description="What would this very cell look like under compound X, and can I believe it?",
        epilog="Each command takes --config FILE and --set a.b=c; `cellbridge COMMAND --help` shows the rest.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for command in COMMANDS:
        sub = subparsers.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.stages = (command.module, *([command.instead[1]] if command.instead else []))
        for option in command.positional:
            sub.add_argument(option.flag, help=option.help, nargs="+" if option.many else None)
        for option in command.options:
            kind: dict[str, Any] = {"action": "append" if option.many else "store", "metavar": "VALUE"}
            if option.switch:
                kind = {"action": "store_const", "const": True}
            sub.add_argument(option.flag, dest=_destination(option), help=option.help, **kind)
        sub.add_argument(
            "--config", type=Path, metavar="FILE", help="settings in YAML; see pipelines/studies for examples"
        )
        sub.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one setting")
        if command.writes:
            sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the result goes")
        sub.add_argument("--json", action="store_true", help="print the summary as one line of JSON")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse, with the settings of a stage in its help, and the nearest command's name for one that does not exist."""

    stages: tuple[str, ...] = ()

    def format_help(self) -> str:
        """List the settings too; a stage is imported for its own help alone."""
        if self.stages:
            self.epilog = "\n\n".join(map(_settings_text, self.stages))
        return super().format_help()

    def error(self, message: str) -> Any:
        if "invalid choice" in message and "COMMAND" in message:
            found = message.split("invalid choice: '", 1)[-1].split("'", 1)[0]
            message = f'there is no command "{found}".{did_you_mean(found, (c.name for c in COMMANDS))}'
        self.exit(2, f"{self.prog}: {message}\n" if processes.is_main() else None)


def _settings_text(stage: str) -> str:
    from cellbridge.settings import settings

    config = importlib.import_module(f"cellbridge.stages.{stage}").Config
    lines = [f"  {key} = {default}" + (f"\n      {text}" if text else "") for key, default, text in settings(config)]
    own = any(command.module == stage for command in COMMANDS)
    heading = "settings" if own else f"{(config.__doc__ or '').strip().rstrip('.').lower()}"
    return f"{heading} (--set A.B=C, or in the YAML of --config):\n" + "\n".join(lines)


def _destination(option: Option) -> str:
    return option.flag if not option.flag.startswith("-") else "option_" + option.key.replace(".", "_")


def _resource_failure(error: BaseException, *, out: Path | None) -> str | None:
    """Say what ran out, memory or disk; None where nothing did. A write to a file that is open names no file: `out` stands for it."""
    if is_out_of_memory(error):
        return (
            "out of memory. Lower batch_size, or raise training.accumulation: the micro-batch shrinks and the result stays "
            f"the same ({in_one_line(error)})"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        place = Path(error.filename or out or ".")
        free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
        return f"{place}: {error.strerror} ({free} bytes free). Free some space and run the same command again."
    return None


def _fail(command: Command, error: BaseException, code: int, *, debug: bool, text: str | None = None) -> int:
    if isinstance(error, StoppedBySignal) and not processes.is_main():
        return processes.finish() or code  # only the main process knows what is saved
    code, first = processes.fail(code)
    if not first:
        return code
    if debug:
        traceback.print_exception(error)
    kind = type(error).__name__
    with suppress(OSError):  # the exit code tells it too
        print(f"cellbridge {command.name}: {kind}: {' '.join((text or str(error)).split())}", file=sys.stderr)
    return code


def _told(key: str, value: Any) -> list[str]:
    """Return an entry of a summary as lines: a warning each has its own, and a text of several lines stands by itself."""
    if key == "warnings":
        return [f"warning: {line}" for line in value]
    return [value if isinstance(value, str) and "\n" in value else f"{key}: {value}"]


def _show(command: Command, summary: dict[str, Any], *, as_json: bool) -> int:
    """Print what a command found, and return its exit code: whoever reads it may have seen enough, but not be short of disk."""
    shown = {key: value for key, value in summary.items() if key not in command.behind}
    lines = [line for key, value in shown.items() for line in _told(key, value)]
    text = json.dumps(summary, ensure_ascii=False, default=str) if as_json else "\n".join(lines)
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python itself flushes at its end
        if not isinstance(error, BrokenPipeError):
            said = f"standard output: {error.strerror}. The work is done; only its summary was not printed."
            return _fail(command, error, 4, debug=False, text=said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
