"""A training step on a GPU: its time, and its share of the matrix products' rate there.

    python benchmarks/on_gpu.py   # needs a GPU; a minute; writes results/cuda.json

Models of the tutorial's dimensions, of the lesson's, and of a width at which a GPU has something to do; in float32,
with and without TF32, and with products in bfloat16 (``torch.autocast``). The rate is that of a product of two matrices
of 4096 × 4096, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from mythos_lite import ModelConfig, TrainConfig
from mythos_lite.files.atomic import write_files
from mythos_lite.files.provenance import provenance, source_hash
from mythos_lite.measure.cost import cost
from mythos_lite.task.chains import Batch
from mythos_lite.task.loss import chain_loss
from mythos_lite.training.recipes import mod7_model, published_model
from mythos_lite.training.trainer import build_model, make_optimizer

RESULT = Path(__file__).resolve().parents[1] / "results" / "cuda.json"
WIDE = ModelConfig(d_model=1024, n_heads=16, n_kv_heads=4, d_ff=4096, window=None, vocab_size=32_000, pad_token_id=None)
MODELS = {  # configuration, sequences, tokens
    "the tutorial's, GQA": (published_model("gqa"), 64, 32),
    "the lesson's": (mod7_model(), 256, 7),
    "width 1024": (WIDE, 16, 512),
}
LOOPS = 4
PRECISIONS = {"float32": ("highest", False), "TF32": ("high", False), "bfloat16": ("highest", True)}


def seconds(run, device: torch.device, rounds: int = 20) -> float:
    """Median time of a call, the device's work included."""
    times = []
    for _ in range(rounds):
        synchronise(device)
        started = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations a second of a plain product of two square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def measure(name: str, precision: str, device: torch.device, size: int) -> dict:
    """The row of one model in one precision."""
    config, n, length = MODELS[name]
    products, autocast = PRECISIONS[precision]
    torch.set_float32_matmul_precision(products)
    training = TrainConfig(steps=1)
    model = build_model(config, 0, device).train()
    optimizer = make_optimizer(model, training)
    ids = torch.randint(0, 7, (n, length), device=device)
    last = torch.full((n,), length - 1, device=device)
    batch = Batch(ids, last, ids[:, 0], torch.full((n,), 5, device=device))

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss, _, _ = chain_loss(model, training, batch, LOOPS)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    took = seconds(step, device)
    rate = 3 * cost(config, LOOPS, batch=n, length=length).flops / took
    limit = product_rate(device, torch.bfloat16 if autocast else torch.float32, size)
    return {
        "model": name, "precision": precision, "tokens": n * length, "ms": round(1e3 * took, 3),
        "tflops": round(rate / 1e12, 3), "products_tflops": round(limit / 1e12, 1), "share": round(rate / limit, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=4096, help="of the plain matrix products")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(f"there is no CUDA device here: torch {torch.__version__} sees none")
    source, started, rows = source_hash(), time.perf_counter(), []
    for name in MODELS:
        for precision in PRECISIONS:
            rows.append(measure(name, precision, device, args.size))
            print(*(f"{value}" for value in rows[-1].values()), sep="  ", flush=True)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    took = {"measuring": time.perf_counter() - started}
    found = {"device": where, "rows": rows,
             "provenance": provenance(["python", "benchmarks/on_gpu.py"], source, device, took)}  # fmt: skip
    if device.type == "cuda":
        write_files({RESULT: (json.dumps(found, indent=1) + "\n").encode()})


if __name__ == "__main__":
    main()
