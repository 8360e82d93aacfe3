"""Command line: ``python -m mythos_lite experiment`` is the main job."""

import argparse
import contextlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch

from mythos_lite import __version__
from mythos_lite.checks import NonFiniteError, check_choice, check_int
from mythos_lite.files.checkpoint import holds_checkpoint, open_checkpoint
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.study.experiment import run_experiment, run_folder
from mythos_lite.study.plan import STUDIES, chosen_runs, experiment_run
from mythos_lite.study.records import check_together, disagreements, find_record, read_record
from mythos_lite.study.report import seed_tables
from mythos_lite.study.run import Run
from mythos_lite.study.workers import MOST_AT_ONCE, RESULTS, run_study
from mythos_lite.training.parallel import is_first, process_group
from mythos_lite.training.recipes import RECIPES
from mythos_lite.training.state import STATE_FILE
from mythos_lite.training.trainer import find_device

STDOUT = "standard output"
FORMATS = ("transformers", "onnx", "gguf")

_RECIPES = "\n".join(f"  {name:<10} {recipe.help}" for name, recipe in RECIPES.items())
EXPERIMENT_EXAMPLES = f"""\
recipes:
{_RECIPES}

examples:
  python -m mythos_lite experiment
  python -m mythos_lite experiment --recipe hold --seed 3 --out runs/hold-3
  python -m mythos_lite experiment --quick          # under a minute, to see that it runs

An interrupted run goes on from the last saved step when the same command is given again. torchrun trains on several
processes, each with its part of every batch: torchrun --nproc-per-node 2 -m mythos_lite experiment --threads 1
"""

STUDY_EXAMPLES = """\
examples:
  python -m mythos_lite study ladder removal --list
  python -m mythos_lite study final --rungs "GQA with experts" --seeds 0
  python -m mythos_lite study baselines --rungs GRU --seeds 0 --results runs/again --compare results/study
  python -m mythos_lite study ladder --shard 3/8    # on the third of eight machines
  torchrun --nproc-per-node 2 -m mythos_lite study final --seeds 7

Each run is written when it ends. After an interruption the same command goes on, each training from its last
saved step.
"""

FINETUNE_EXAMPLES = """\
examples:
  python -m mythos_lite finetune --data my.csv
  python -m mythos_lite finetune --data my.csv --bits 4 --seed 3 --out runs/my-rule

my.csv has the columns chain,answer:

  chain,answer
  3 5 1,4
  6 2,3

Digits may stand together (351), but spreadsheets take the zero from 051. What is written is an ordinary checkpoint.
"""

EXPORT_EXAMPLES = """\
examples:
  python -m mythos_lite export transformers mod7 runs/mod7-hf     # a folder; loads here and in transformers
  python -m mythos_lite export onnx mod7 mod7.onnx                # the loop count is an input
  python -m mythos_lite export gguf my-folder my.gguf --loops 8   # for llama.cpp; few models fit, the others learn why
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mythos_lite", description="Recurrent-depth transformers on digit chains."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for add in (_add_experiment, _add_study, _add_grade, _add_table, _add_finetune, _add_export):
        add(commands)
    return parser


def _add_experiment(commands: argparse._SubParsersAction) -> None:
    run = commands.add_parser(
        "experiment", help="train, sweep the loop count, draw loops against accuracy", epilog=EXPERIMENT_EXAMPLES,
        description="Train on short digit chains, then sweep the loop count on longer ones.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    run.set_defaults(do=_experiment, place=lambda args: str(_folder(args)))
    run.add_argument("--recipe", default="fixed", help=f"one of {', '.join(RECIPES)} (default: %(default)s)")
    what = "weights, chains and loop counts follow from it (default: %(default)s)"
    run.add_argument("--seed", type=int, default=0, help=what)
    what = "latent attention and sparse experts in place of the dense model"
    run.add_argument("--experts", action="store_true", help=what)
    what = "a few steps and chains: shows that everything runs, proves nothing"
    run.add_argument("--quick", action="store_true", help=what)
    run.add_argument("--out", metavar="DIR", help="where to write (default: runs/RECIPE-seedN)")
    run.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    what = f"CPU threads, 1 to {MOST_AT_ONCE} here; the matrices are small, more than two do not pay"
    run.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help=f"{what} (default: %(default)s)")


def _add_study(commands: argparse._SubParsersAction) -> None:
    study = commands.add_parser(
        "study", help="run the comparisons behind the tables, as far as they are not in results/study",
        description="Train and measure the runs of these studies; a run whose result is there is not run again.",
        epilog=STUDY_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    study.set_defaults(do=_study, place=lambda args: args.results)
    study.add_argument("studies", nargs="+", metavar="STUDY", help=f"of {', '.join(STUDIES)}")
    study.add_argument("--rungs", nargs="+", default=[], metavar="RUNG", help="only these rows, by name")
    study.add_argument("--seeds", nargs="+", type=int, metavar="N", help="only these seeds (default: the study's)")
    what = f"processes of one thread each, 1 to {MOST_AT_ONCE} here (default: %(default)s)"
    study.add_argument("--jobs", type=int, default=2, help=what)
    study.add_argument("--device", default="cpu", help="auto, cpu or cuda (default: %(default)s)")
    what = "where records go (default: %(default)s); weights go there too, those of the default to runs/study"
    study.add_argument("--results", default=str(RESULTS), metavar="DIR", help=what)
    what = "say whether the results agree with those in DIR, and exit with 1 if not; on another processor a rerun may "
    study.add_argument("--compare", metavar="DIR", help=f"{what}differ as much as seeds do")
    what = (
        "only every N-th run, from the K-th on: for N machines that share a folder for the records, or whose records "
    )
    study.add_argument("--shard", metavar="K/N", help=f"{what}are copied together afterwards")
    study.add_argument("--list", action="store_true", help="print the rows and seeds, and run nothing")


def _add_grade(commands: argparse._SubParsersAction) -> None:
    grade = commands.add_parser(
        "grade", help="run a lesson's notebook and count the exercises it solves",
        description="Run a lesson's notebook from the top in a fresh kernel and print which exercises it solves. The "
        "notebook is not changed. Its code runs as you, with all that you may do: grade what you would run yourself.",
    )  # fmt: skip
    grade.set_defaults(do=_grade, place=lambda args: args.notebook)
    what = "a cell that takes longer is interrupted, and the cells after it still run (default: %(default)g)"
    grade.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help=what)
    grade.add_argument("notebook", metavar="NOTEBOOK", help="for example notebooks/01_attention_variants.ipynb")


def _add_table(commands: argparse._SubParsersAction) -> None:
    table = commands.add_parser("table", help="print records as a Markdown table")
    table.set_defaults(do=_table, place=lambda args: ", ".join(args.files))
    table.add_argument("files", nargs="+", metavar="FILE", help="records, such as the sweep.json of finished runs")


def _add_finetune(commands: argparse._SubParsersAction) -> None:
    tune = commands.add_parser(
        "finetune", help="teach a trained model another rule from a CSV file, training a few per cent of its numbers",
        description="Train low-rank adapters (LoRA) on your chains and answers, and merge them into the model. Needs "
        "the library peft, and bitsandbytes for four bits.",
        epilog=FINETUNE_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    tune.set_defaults(do=_finetune, place=lambda args: _tuned_folder(args))
    tune.add_argument("--data", required=True, metavar="CSV", help="the chains, digits 0 to 6, and their answers")
    what = "a checkpoint of digit chains, by folder or shipped name (default: %(default)s)"
    tune.add_argument("--base", default="mod7", help=what)
    what = "4 holds the base in four bits (NF4) while it is adapted (QLoRA); 32 is plain LoRA (default: %(default)s)"
    tune.add_argument("--bits", type=int, default=32, help=what)
    tune.add_argument("--steps", type=int, default=600, help="of training (default: %(default)s)")
    what = "adapters, batches and the tenth that is held out follow from it (default: %(default)s)"
    tune.add_argument("--seed", type=int, default=0, help=what)
    tune.add_argument("--out", metavar="DIR", help="where to write (default: runs/finetune-CSV-seedN)")
    what = f"CPU threads, 1 to {MOST_AT_ONCE} here (default: %(default)s)"
    tune.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help=what)


def _add_export(commands: argparse._SubParsersAction) -> None:
    out = commands.add_parser(
        "export", help="write a model as a file that other programs run",
        description="Write a checkpoint for transformers, as one ONNX file, or as GGUF for llama.cpp.",
        epilog=EXPORT_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    out.set_defaults(do=_export, place=lambda args: args.out)
    out.add_argument("format", metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")
    out.add_argument("model", metavar="MODEL", help="a checkpoint, by folder or shipped name")
    out.add_argument("out", metavar="OUT", help="the file to write; for transformers, the folder")
    what = "gguf alone: the loop count that the file says (default: the model's); who loads it may say another"
    out.add_argument("--loops", type=int, metavar="N", help=what)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks and return the exit status.

    Help, and arguments that cannot be parsed, raise ``SystemExit``.
    """
    args = None
    with _working_streams(), _ending_like_ctrl_c():
        try:
            try:
                args = build_parser().parse_args(arguments)
                return args.do(args)
            finally:
                sys.stdout.flush()  # here and not when the interpreter ends, where nobody answers its errors
        except KeyboardInterrupt as interruption:
            print(f"\ninterrupted{_what_now(args)}", file=sys.stderr)
            return 143 if isinstance(interruption, _Terminated) else 130
        except OSError as error:
            if isinstance(error, BrokenPipeError) and error.filename == STDOUT:
                return 141  # as if by SIGPIPE: whoever read, such as head, has seen enough
            named = error if error.filename or not error.errno else f"{error}: {args.place(args)!r}"
            print(f"error: {named}", file=sys.stderr)
            return 2
        except (ValueError, NonFiniteError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2


class _Terminated(KeyboardInterrupt):
    """SIGTERM: answered like Ctrl-C, with another exit status."""


@contextlib.contextmanager
def _ending_like_ctrl_c() -> Iterator[None]:
    """SIGTERM, which job schedulers send, would end the program without a word and leave its processes behind."""

    def end(*_: object) -> None:
        raise _Terminated

    in_charge = threading.current_thread() is threading.main_thread()
    if not in_charge or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _working_streams() -> Iterator[None]:
    """Let ``sys.stdout`` and ``sys.stderr`` take text, whatever the program was started with.

    With a stream closed (``2>&-``, or a program without a terminal), Python has ``None`` in its place, and the next
    file that is opened gets its number. A terminal that cannot show a bar gets a question mark.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(errors="replace")
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(_Stream(sys.stdout, nowhere, STDOUT)),
        contextlib.redirect_stderr(_Stream(sys.stderr, nowhere)),
    ):
        yield


class _Stream:
    """A stream in which an error of writing carries the ``name`` or, without one, is passed over.

    Messages that nobody can be shown are no reason to end a training. After an error nothing more is written.
    """

    def __init__(self, stream: TextIO | None, nowhere: TextIO, name: str | None = None) -> None:
        self._stream = nowhere if stream is None or getattr(stream, "closed", False) else stream
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        return getattr(self._stream, attribute)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, do: Callable, *arguments: str) -> None:
        try:
            do(*arguments)
        except OSError as error:
            self._give_up()
            if self._name is not None:
                raise type(error)(error.errno, error.strerror, self._name) from error

    def _give_up(self) -> None:
        """Send what is still in the stream nowhere: the interpreter writes it when it ends."""
        with contextlib.suppress(OSError, AttributeError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


def _what_now(args: argparse.Namespace | None) -> str:
    """What the user should know after an interruption."""
    command = args and args.command
    if command == "study":
        return "; the same command runs what is missing"
    if command == "experiment":
        saved = (_folder(args) / STATE_FILE).exists()
        return f"; {'the same command goes on from the last saved step' if saved else 'nothing had been saved yet'}"
    return "; nothing was saved" if command == "finetune" else ""


def _run(args: argparse.Namespace) -> Run:
    return experiment_run(args.recipe, args.seed, experts=args.experts, quick=args.quick)


def _folder(args: argparse.Namespace) -> Path:
    return run_folder(_run(args), args.out)


def _experiment(args: argparse.Namespace) -> int:
    check_int("threads", args.threads, 1, MOST_AT_ONCE)  # torch takes any number and ends the process at some
    torch.set_num_threads(args.threads)
    with process_group(find_device(args.device)):
        run_experiment(_run(args), args.out, args.device, say=print if is_first() else lambda _: None)
    return 0


def _tuned_folder(args: argparse.Namespace) -> str:
    return f"runs/finetune-{Path(args.data).stem}-seed{args.seed}" if args.out is None else args.out


def _finetune(args: argparse.Namespace) -> int:
    from mythos_lite.interop.finetune import finetune  # here, because the core needs none of its libraries

    check_int("threads", args.threads, 1, MOST_AT_ONCE)
    torch.set_num_threads(args.threads)
    out, options = _tuned_folder(args), {"base": args.base, "bits": args.bits, "steps": args.steps, "seed": args.seed}
    finetune(args.data, out, **options, say=print)
    return 0


def _export(args: argparse.Namespace) -> int:
    check_choice("FORMAT", args.format, FORMATS)
    if args.loops is not None and args.format != "gguf":
        raise ValueError(f"--loops is for gguf: {args.format} takes the loop count where the model is called")
    if not args.out:
        raise ValueError("OUT is empty; name what to write")
    found, model, options = open_checkpoint(args.model), RecurrentDepthTransformer.from_pretrained(args.model), {}
    if args.format == "transformers":
        from mythos_lite.interop.hf import export_transformers as export

        if holds_checkpoint(args.out):
            raise ValueError(f"{args.out} holds a checkpoint; name another folder")
        options = found.notes
    elif args.format == "onnx":
        from mythos_lite.interop.onnx import export_onnx as export

        model = model.float()  # which runs everywhere
    else:
        from mythos_lite.interop.csv_chains import digits_of
        from mythos_lite.interop.gguf import export_gguf as export

        model, task = model.float(), digits_of(found) if "task" in found.notes else None
        options = {"n_loops": args.loops, "task": task if task and task.n_symbols <= 10 else None}
    print(f"written to {export(model, args.out, **options)}")
    return 0


def _grade(args: argparse.Namespace) -> int:
    from mythos_lite.lessons.grading import grade  # here, because it needs Jupyter

    print(grade(args.notebook, timeout=args.timeout).report())
    return 0


def _table(args: argparse.Namespace) -> int:
    records = [read_record(Path(name)) for name in args.files]
    check_together(records, args.files)
    print(f"Mean over seeds, worst seed in brackets\n\n{seed_tables(records, per_seed=False)}")
    print(f"Each seed\n\n{seed_tables(records, per_seed=True)}", end="")
    return 0


def _study(args: argparse.Namespace) -> int:
    runs = _shard(chosen_runs(args.studies, args.rungs, args.seeds), args.shard)
    if args.list:
        for run in runs:
            print(f"{run.study:10} {run.rung}, seed {run.seed}")
        return 0
    for name in ("results", "compare"):
        if getattr(args, name) == "":
            raise ValueError(f"{name}='' is not possible: name a folder, or leave it out")
    results, compare = Path(args.results), None if args.compare is None else Path(args.compare)
    others = [] if compare is None else [_other_record(run, compare) for run in runs]
    folders = Path("runs") / "study" if results.resolve() == RESULTS.resolve() else results
    with process_group(find_device(args.device)):
        records, first = run_study(runs, results, folders, args.jobs, args.device), is_first()
    if not first:
        return 0
    print(f"{len(records)} runs are in {results}")
    if compare is None:
        return 0
    differing = [line for pair in zip(records, others, strict=True) for line in disagreements(*pair)]
    print("\n".join(differing) or f"they agree with those in {compare}: all intervals overlap")
    return 1 if differing else 0


def _shard(runs: list[Run], part: str | None) -> list[Run]:
    """The K-th of N parts of the runs for ``part`` "K/N", every N-th of them; all for ``None``."""
    if part is None:
        return runs
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", part)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(f"shard={part!r} is not possible: write K/N, such as 3/8, with K from 1 to N")
    return runs[int(found[1]) - 1 :: int(found[2])]


def _other_record(run: Run, folder: Path) -> dict:
    if (record := find_record(run, folder)) is None:
        raise ValueError(f"{folder} does not hold {run.name}.json, so there is nothing to compare with")
    return record


if __name__ == "__main__":
    sys.exit(main())
