"""What 8 and 4 bits cost in answers, loop by loop, in bytes and in time.

    python benchmarks/quantization.py   # writes results/quantization.json; an hour of one core

Three models: the shipped ``mod7``, and two trainings of the recipe ``fixed`` on one seed, the second with noise on the
state (``study.cures.noisy_loss``). What is done lies in ``runs/quantization``, from where an interrupted run goes on;
the seconds told of training and latency are then those of the last part.
Each is quantised in every form and asked held-out chains of each length at the loops they need and at powers of two.

A row holds ``counts`` of ``[n_digits, n_loops, n_chains, n_correct]`` and the bytes of the form's ONNX file. GPTQ sees
training chains alone. ``latency`` is of ``mod7`` on one chain of 64 digits at the loops it needs: milliseconds of one
thread, medians of rounds in which the forms take turns, and the quartiles of the rounds' ratios to float32.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from mythos_lite import ChainTask, RecurrentDepthTransformer
from mythos_lite.files.atomic import write_files
from mythos_lite.files.provenance import provenance, source_hash
from mythos_lite.interop.onnx import export_onnx
from mythos_lite.interop.quantize import quantize
from mythos_lite.measure.sweep import evaluation_chains, sweep
from mythos_lite.study.cures import noisy_loss
from mythos_lite.task.chains import make_generator
from mythos_lite.task.loss import chain_loss
from mythos_lite.training.recipes import recipe
from mythos_lite.training.trainer import build_model, train

ROOT = Path(__file__).resolve().parents[1]
RESULT, PARTS = ROOT / "results" / "quantization.json", ROOT / "runs" / "quantization"
TASK, SEED, CHAINS_SEED, N_CHAINS, ROUNDS = ChainTask(), 50, 1, 1000, 15
LENGTHS, LOOPS = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64), (1, 2, 4, 8, 16, 32, 64)
MODELS = ("mod7", "fixed", "fixed, noise on the state")
GRANULARITIES = {"tensor": "per tensor", "channel": "per channel", 32: "in groups of 32"}


@dataclasses.dataclass(frozen=True)
class Form:
    bits: int = 32
    granularity: str | int = "channel"
    calibrated: bool = False
    injection_bits: int = 8

    @property
    def name(self) -> str:
        if self.bits == 32:
            return "float32"
        name = f"int{self.bits} {GRANULARITIES[self.granularity]}"
        return name + ", GPTQ" * self.calibrated + ", B in 8 bits" * (self.bits < self.injection_bits)

    def of(self, model: RecurrentDepthTransformer) -> RecurrentDepthTransformer:
        if self.bits == 32:
            return model
        shown = TASK.encode(TASK.sample(64, 16, make_generator(0, 90), "train")).token_ids if self.calibrated else None
        options = {"calibration": shown, "n_loops": 16, "injection_bits": self.injection_bits}
        return quantize(model, self.bits, self.granularity, **options)


FORMS = (
    Form(),
    *(Form(8, granularity) for granularity in GRANULARITIES),
    *(Form(4, granularity, injection_bits=4) for granularity in GRANULARITIES),
    *(Form(4, granularity, True, injection_bits=4) for granularity in GRANULARITIES),
    *(Form(4, granularity) for granularity in GRANULARITIES),
)


def trained(name: str) -> RecurrentDepthTransformer:
    if name == "mod7":
        return RecurrentDepthTransformer.from_pretrained("mod7")
    config, training = recipe("fixed", SEED)
    model, objective = build_model(config, SEED), noisy_loss if "noise" in name else chain_loss
    train(model, TASK, training, objective=objective, folder=PARTS / objective.__name__, progress=False)
    return model.eval()


def measure(name: str, model: RecurrentDepthTransformer, form: Form) -> dict:
    """The row of one model in one form."""
    started, quantized, counts = time.process_time(), form.of(model), []
    with parametrize.cached():  # weights are made floats once, not in every loop of every batch
        for n in LENGTHS:
            loops = {*LOOPS, model.config.loops_needed(n)}
            rows = sweep(quantized, TASK, [n], loops, n_chains=N_CHAINS, seed=CHAINS_SEED, count_non_finite=True)
            counts += [[row[key] for key in ("n_digits", "n_loops", "n_chains", "n_correct")] for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        n_bytes = export_onnx(quantized, Path(folder) / "model.onnx").stat().st_size
    row = {"model": name, "form": form.name, **dataclasses.asdict(form), "onnx_bytes": n_bytes, "counts": counts}
    return {**row, "seconds": round(time.process_time() - started, 1)}


def measured(models: dict[str, RecurrentDepthTransformer], source: str) -> list[dict]:
    """The rows of all models, those that an earlier part of the run has measured from the file that it left."""
    path, rows = PARTS / f"rows-{source}.json", []
    done = {(row["model"], row["form"]): row for row in json.loads(path.read_text())} if path.exists() else {}
    for name, model in models.items():
        for form in FORMS:
            rows.append(done.get((name, form.name)) or measure(name, model, form))
            if len(rows) > len(done):
                write_files({path: json.dumps(rows).encode()})
                print(name, form.name, rows[-1]["seconds"], sep=": ", file=sys.stderr, flush=True)
    return rows


# ---------------------------------------------------------------- time


def ways(model: RecurrentDepthTransformer, ids: Tensor, n_loops: int) -> dict[str, dict[str, Callable[[], object]]]:
    """Runtime → form → a run of it."""
    forms = {form.name: form.of(model) for form in (Form(), Form(8), Form(4))}
    options, found = onnxruntime.SessionOptions(), {}
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for name, quantized in forms.items():
        with tempfile.TemporaryDirectory() as folder:
            session = onnxruntime.InferenceSession(export_onnx(quantized, Path(folder) / "model.onnx"), options)
        feeds = {"token_ids": ids.numpy(), "n_loops": np.array(n_loops)}

        def in_torch(quantized: RecurrentDepthTransformer = quantized) -> None:
            quantized(ids, n_loops=n_loops)

        def in_cache(run: Callable[[], None] = in_torch) -> None:
            with parametrize.cached():
                run()

        def in_runtime(session: onnxruntime.InferenceSession = session, feeds: dict = feeds) -> None:
            session.run(None, feeds)

        for runtime, run in (("torch", in_torch), ("torch, cached()", in_cache), ("onnxruntime", in_runtime)):
            found.setdefault(runtime, {})[name] = run
    return found


@torch.no_grad()
def latency(model: RecurrentDepthTransformer) -> list[dict]:
    ids = TASK.encode(evaluation_chains(TASK, 64, 1, CHAINS_SEED)).token_ids
    rows = []
    for runtime, forms in ways(model, ids, model.config.loops_needed(64)).items():
        times: dict[str, list[float]] = {name: [] for name in forms}
        for round_ in range(ROUNDS + 2):
            for name, run in forms.items():
                started = time.process_time()  # other processes on the machine do not count in it
                run()
                if round_ >= 2:
                    times[name].append(1e3 * (time.process_time() - started))
        for name, own in times.items():
            ratios = [ours / float32 for ours, float32 in zip(own, times["float32"], strict=True)]
            quartiles = [round(value, 2) for value in statistics.quantiles(ratios, n=4)]
            rows.append({"runtime": runtime, "form": name, "ms": round(statistics.median(own), 2), "ratio": quartiles})
    return rows


def main() -> None:
    torch.set_num_threads(1)
    source, clock = source_hash(), [time.process_time()]
    models = {name: trained(name) for name in MODELS}
    clock.append(time.process_time())
    times = latency(models["mod7"])
    clock.append(time.process_time())
    rows = measured(models, source)
    seconds = {"training, CPU": clock[1] - clock[0], "latency, CPU": clock[2] - clock[1]}
    seconds["sweeps, CPU"] = sum(row["seconds"] for row in rows)
    made = provenance(["python", "benchmarks/quantization.py"], source, torch.device("cpu"), seconds)
    made["onnxruntime"] = onnxruntime.__version__
    write_files({RESULT: (json.dumps({"rows": rows, "latency": times, "provenance": made}) + "\n").encode()})


if __name__ == "__main__":
    main()
