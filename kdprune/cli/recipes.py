"""`kdprune run` and the commands that run one kind of stages of a recipe."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from kdprune import config, records
from kdprune._log import logger
from kdprune.cli.options import add_cache, add_debug
from kdprune.cli.quiet import import_tensorflow_quietly
from kdprune.runner import cluster
from kdprune.runner.hosts import find_layout
from kdprune.stages import FLOAT_MODEL

if TYPE_CHECKING:
    from kdprune.runner.dask_engine import Dask

# What each of these commands runs: the stages whose kind has this role, with what
# they need.
ROLES = {
    "train_teacher": "the stages that teach others",
    "train_student": "the students trained alone (the baselines)",
    "distill": "the stages that distill a student",
    "prune": "the stages that prune",
    "sensitivity": "the stages that measure per-group sensitivity to pruning",
    "quantize": "the stages that cluster and quantize",
    "export": "the stages that write .tflite files and the ship kit",
    "evaluate": "the stages that measure on the test images",
    "report": "the stages that draw tables and plots (or redraw a run's folder)",
}

RUN = """Runs the stages of a recipe, each after those it starts from.

  kdprune run configs/quickstart.yaml             everything, on generated images
  kdprune run RECIPE.yaml --dry-run               what would be done, and how long
  kdprune run RECIPE.yaml --until pruned          one stage and what it needs
  kdprune run RECIPE.yaml --only pruned           one stage, whose inputs are done
  kdprune run RECIPE.yaml --set stages.student.training.epochs=5
  kdprune run RECIPE.yaml --set stages.pruned=null    without a stage

A stage that is done is skipped, one that was interrupted goes on from its last epoch,
and one whose settings, images or inputs changed is run again. Results are in
runs/NAME, or the folder given by --output: report.md, metrics.json, the int8 files of
the flagship, and a folder for each stage with its record.json.
"""


def add_run(commands: argparse._SubParsersAction) -> None:
    """Adds `kdprune run`, and a command for each role."""
    run = commands.add_parser(
        "run",
        help="run a recipe, skipping what is done",
        description=RUN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_options(run, until=True)
    run.set_defaults(function=run_recipe, role=None)
    for role, what in ROLES.items():
        if role == "evaluate":
            continue  # `kdprune evaluate` measures files; the script runs the stage.
        stages = what.replace("the ", "a recipe's ", 1)
        command = commands.add_parser(
            role.replace("_", "-"),
            help=f"run {stages}, and what they need",
            description=f"Runs {stages}, and what they need. "
            "`kdprune run RECIPE.yaml --dry-run` shows the recipe's stages.",
        )
        add_run_options(command, until=False)
        command.set_defaults(function=run_recipe, role=role)


def add_run_options(parser: argparse.ArgumentParser, until: bool) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE.yaml", help="the recipe; see configs/ for examples"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="the run's folder (default: runs/NAME)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set is")
    add_cache(parser)
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY.PATH=VALUE",
        action="append",
        default=[],
        help="override a key of the recipe; may be given several times",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="stages run at once, each on its share of the cores (1); for small "
        "networks one job per core is quickest",
    )
    parser.add_argument(
        "--workers",
        metavar="HOST:PORT,…",
        help="train on several hosts: the address of each worker, the same list on all "
        "of them (default: those of TF_CONFIG, if it is set)",
    )
    parser.add_argument(
        "--index",
        type=int,
        metavar="I",
        help="this worker's place in --workers, from 0; the first is the chief",
    )
    parser.add_argument(
        "--executor",
        choices=["processes", "dask"],
        default="processes",
        help="what runs the stages: processes of this machine (the default), or the "
        "workers of a dask scheduler, over an --output that they share",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="the dask scheduler: tls://HOST:PORT, or tcp:// of this machine "
        "(tcp://127.0.0.1:8786)",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow a scheduler and workers of other machines by tcp://: whoever "
        "reaches their ports can run code there and here",
    )
    if until:
        some = parser.add_mutually_exclusive_group()
        some.add_argument(
            "--until", metavar="STAGE", help="run this stage and what it needs"
        )
        some.add_argument(
            "--only",
            metavar="STAGE",
            help="run this stage alone, or one cell of it by its folder's name, once "
            "what it needs is done; other processes may run others meanwhile",
        )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the stages, what is done already, and how long the rest takes",
    )
    add_debug(parser)


def run_recipe(options: argparse.Namespace) -> None:
    """Runs a recipe's stages, or describes what would be run."""
    if options.role == "report" and pathlib.Path(options.recipe).is_dir():
        from kdprune import report

        logger.info("report: %s", report.write_report(options.recipe))
        return
    layout = find_layout(options.workers, options.index)
    if layout and options.jobs != 1:
        raise ValueError(
            "--jobs expects 1 where several workers train together. "
            f"Received: {options.jobs}"
        )
    _check_executor(options, layout is not None)
    recipe = config.load_recipe(options.recipe, options.overrides)
    folder = pathlib.Path(options.output or f"runs/{recipe.name}")
    accepts = wanted(options.role) if options.role else None
    until, only = (getattr(options, name, None) for name in ("until", "only"))
    if options.dry_run:
        import_tensorflow_quietly()
        from kdprune.runner import run as runner

        text = runner.preview(recipe, folder, options.data_dir, until, accepts, only)
        logger.info("%s", text)
        return
    # Before TensorFlow takes its seconds to load.
    about = cluster.about(recipe, until, options.role)
    joined = cluster.join(layout, about) if layout else None
    dask = _connect(options) if options.executor == "dask" else None
    with (
        joined or contextlib.nullcontext() as workers,
        dask or contextlib.nullcontext(),
    ):
        import_tensorflow_quietly()
        from kdprune.runner import run as runner

        runner.run(
            recipe,
            folder,
            data_dir=options.data_dir,
            until=until,
            only=only,
            wanted=accepts,
            command=records.command(),
            jobs=options.jobs,
            workers=workers,
            dask=dask,
        )


def _check_executor(options: argparse.Namespace, together: bool) -> None:
    """Raises `ValueError` for options that don't go together with where stages run."""
    only = getattr(options, "only", None)
    if together and only is not None:
        raise ValueError(
            "--only expects one process: several workers that train together run whole "
            f"recipes, or up to a stage by --until. Received: {only!r}"
        )
    if options.executor != "dask":
        for name in ("scheduler", "insecure"):
            if getattr(options, name):
                raise ValueError(f"--{name} expects --executor dask. Received: none")
        return
    if together or options.jobs != 1 or only is not None:
        what = "--workers" if together else "--only" if only is not None else "--jobs"
        raise ValueError(
            "--executor dask runs each stage on one worker of the scheduler, and "
            "expects no --workers (or TF_CONFIG), --jobs or --only. "
            f"Received: {what}"
        )


def _connect(options: argparse.Namespace) -> Dask:
    from kdprune.runner import dask_engine

    address = options.scheduler or dask_engine.ADDRESS
    return dask_engine.connect(address, insecure=options.insecure)


def wanted(role: str) -> Callable[[config.Recipe, str], bool]:
    """Which stages of a recipe a role stands for."""

    def accepts(recipe: config.Recipe, name: str) -> bool:
        stage = recipe.stages[name]
        if stage.role is not None:
            return stage.role == role
        # Without a role of their own are those that start from no other stage.
        teachers = {t for s in recipe.stages.values() for t in s.references("teacher")}
        if stage.gives != FLOAT_MODEL:
            return False
        if role == "train_teacher":
            return name in teachers
        given = isinstance(stage.origin(), str)  # A file: nothing is trained.
        return role == "train_student" and name not in teachers and not given

    return accepts
