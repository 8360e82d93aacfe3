"""Command line: ``python -m mythos_lite experiment`` is the main job."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mythos_lite import __version__
from mythos_lite.config import RECIPES, check_int
from mythos_lite.experiment import run_experiment, run_folder
from mythos_lite.report import seed_table, summary_table
from mythos_lite.study.plan import STUDIES, Run
from mythos_lite.study.runner import RESULTS, chosen_runs, disagreements, find_record, run_study
from mythos_lite.training import STATE_FILE, NonFiniteError

EXPERIMENT_EXAMPLES = """\
recipes:
  fixed      chains of 2 to 5 digits, four loops in every batch (the default)
  hold       three or four loops, loss from the needed loop on: learns to keep its answer
  published  the setting of the published tutorial, rerun

examples:
  python -m mythos_lite experiment
  python -m mythos_lite experiment --recipe hold --seed 3 --out runs/hold-3
  python -m mythos_lite experiment --quick          # under a minute, to see that it runs

An interrupted run goes on from the last saved step when the same command is given again.
"""

STUDY_EXAMPLES = """\
examples:
  python -m mythos_lite study ladder removal --list
  python -m mythos_lite study final --rungs "GQA with experts" --seeds 0
  python -m mythos_lite study baselines --rungs GRU --seeds 0 --results runs/again --compare results/study

Each run is written when it ends; after an interruption the same command does the rest.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mythos_lite", description="Recurrent-depth transformers on digit chains."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    run = commands.add_parser(
        "experiment",
        help="train, sweep the loop count, draw loops against accuracy",
        description="Train on short digit chains, then sweep the loop count on longer ones.",
        epilog=EXPERIMENT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("--recipe", default="fixed", help=f"one of {', '.join(RECIPES)} (default: %(default)s)")
    run.add_argument(
        "--seed", type=int, default=0, help="weights, chains and loop counts follow from it (default: %(default)s)"
    )
    run.add_argument(
        "--experts", action="store_true", help="latent attention and sparse experts in place of the dense model"
    )
    run.add_argument(
        "--quick", action="store_true", help="a few steps and chains: shows that everything runs, proves nothing"
    )
    run.add_argument("--out", metavar="DIR", help="where to write (default: runs/RECIPE-seedN)")
    run.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    run.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1),
        help="CPU threads; the matrices are small, more than two do not pay (default: %(default)s)",
    )  # fmt: skip

    study = commands.add_parser(
        "study",
        help="run the comparisons behind the tables, as far as they are not in results/study",
        description="Train and measure the runs of these studies; a run whose result is there is not run again.",
        epilog=STUDY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.add_argument("studies", nargs="+", metavar="STUDY", help=f"of {', '.join(STUDIES)}")
    study.add_argument("--rungs", nargs="+", default=[], metavar="RUNG", help="only these rows, by name")
    study.add_argument("--seeds", nargs="+", type=int, metavar="N", help="only these seeds (default: the study's)")
    study.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default: %(default)s)")
    study.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR",
        help="where records go (default: %(default)s); weights go there too, those of the default to runs/study",
    )  # fmt: skip
    study.add_argument(
        "--compare",
        type=Path,
        metavar="DIR",
        help="say whether the results agree with those in DIR, and exit with 1 if not; on another processor a rerun "
        "may differ as much as seeds do",
    )
    study.add_argument("--list", action="store_true", help="print the rows and seeds, and run nothing")

    grade = commands.add_parser(
        "grade",
        help="run a lesson's notebook and count the exercises it solves",
        description="Run a lesson's notebook from the top in a fresh kernel and print which exercises it solves. "
        "The notebook is not changed.",
    )
    grade.add_argument("notebook", metavar="NOTEBOOK", help="for example notebooks/01_attention_variants.ipynb")

    table = commands.add_parser("table", help="print results as a Markdown table")
    table.add_argument("files", nargs="+", metavar="FILE", help="sweep.json files of finished runs")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a bar gets a question mark
            stream.reconfigure(errors="replace")
    folder = None
    try:
        if args.command == "table":
            results = [_read_result(Path(name)) for name in args.files]
            print(f"Mean over seeds, worst seed in brackets\n\n{summary_table(results)}")
            print(f"Each seed\n\n{seed_table(results)}", end="")
            return 0
        if args.command == "grade":
            from mythos_lite.lessons.grading import grade  # here, because it needs Jupyter

            print(grade(args.notebook).report())
            return 0
        if args.command == "study":
            return _study(args)
        check_int("threads", args.threads, 1)
        torch.set_num_threads(args.threads)
        folder = run_folder(args.recipe, args.seed, out=args.out, experts=args.experts, quick=args.quick)
        run_experiment(args.recipe, args.seed, out=folder, experts=args.experts, quick=args.quick, device=args.device)
    except KeyboardInterrupt:
        if args.command == "study":
            what_now = "the same command runs what is missing"
        elif folder is not None and (folder / STATE_FILE).exists():
            what_now = "the same command goes on from the last saved step"
        else:
            what_now = "nothing had been saved yet"
        print(f"\ninterrupted; {what_now}", file=sys.stderr)
        return 130
    except (ValueError, OSError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _study(args: argparse.Namespace) -> int:
    runs = chosen_runs(args.studies, args.rungs, args.seeds)
    if args.list:
        for run in runs:
            print(f"{run.study:10} {run.rung}, seed {run.seed}")
        return 0
    others = [] if args.compare is None else [_other_record(run, args.compare) for run in runs]
    weights = Path("runs") / "study" if args.results.resolve() == RESULTS.resolve() else args.results
    records = run_study(runs, args.results, weights, args.jobs)
    print(f"{len(records)} runs are in {args.results}")
    if args.compare is None:
        return 0
    differing = [line for pair in zip(records, others, strict=True) for line in disagreements(*pair)]
    print("\n".join(differing) or f"they agree with those in {args.compare}: all intervals overlap")
    return 1 if differing else 0


def _other_record(run: Run, folder: Path) -> dict:
    if (record := find_record(run, folder)) is None:
        raise ValueError(f"{folder} does not hold {run.name}.json, so there is nothing to compare with")
    return record


def _read_result(path: Path) -> dict:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        seed_table([result])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, StopIteration, RecursionError) as error:
        raise ValueError(f"{path} is not the sweep.json of a finished run") from error
    return result


if __name__ == "__main__":
    sys.exit(main())
