"""A model that llama.cpp can run: what it learns of the chains, and whether llama.cpp answers them as torch does.

    pip install gguf llama-cpp-python      # compiles llama.cpp
    python benchmarks/in_llama_cpp.py FOLDER  # writes results/llama_cpp.json; FOLDER keeps the models as GGUF files

``torch`` has one row per seed, length and loop count, on held-out chains, for models within llama.cpp's profile (full
attention, no prelude, coda, injection or tanh), and for the shipped ``mod7`` (``seed`` null). ``llama_cpp`` has one per
seed, loop count, type of llama.cpp's cache and length: right answers of llama.cpp, which is given the token ids and
whose largest logit is the answer, and of torch on the same chains; on how many the two answer alike; and the largest
difference between their logits at EQ. Training resumes in FOLDER where it was stopped.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import llama_cpp
import torch
from torch import Tensor

from mythos_lite import ChainTask, RecurrentDepthTransformer, TrainConfig
from mythos_lite.files.atomic import write_files
from mythos_lite.files.provenance import provenance, source_hash
from mythos_lite.interop.gguf import export_gguf, llama_cpp_profile, read_gguf
from mythos_lite.measure.sweep import evaluation_chains, sweep
from mythos_lite.training.trainer import build_model, train

RESULT = Path(__file__).resolve().parents[1] / "results" / "llama_cpp.json"
SEEDS = (50, 51)
MODEL = llama_cpp_profile(n_core_layers=2)
TRAIN = {"steps": 2000, "ema_decay": 0.99}
LENGTHS, LOOPS, N_CHAINS = (2, 3, 4, 5, 6, 7, 8, 16, 32), (1, 2, 3, 4, 6, 8, 16, 32, 64), 1000
ENGINE_LENGTHS, ENGINE_LOOPS, N_ENGINE_CHAINS = (2, 3, 4, 5, 6, 7, 8, 16), (1, 2, 4, 8, 32), 200
CACHES = {"f16": 1, "f32": 0}
"""llama.cpp's types of keys and values by name; the first is its default."""
TASK = ChainTask()


def trained(seed: int, folder: Path) -> Path:
    """The GGUF file of the model that is trained with ``seed``."""
    model = build_model(MODEL, seed)
    train(model, TASK, TrainConfig(seed=seed, **TRAIN), folder=folder / f"seed{seed}")
    return export_gguf(model, folder / f"seed{seed}.gguf")


def torch_rows(model: RecurrentDepthTransformer, seed: int | None) -> list[dict]:
    return [{"seed": seed, **row} for row in sweep(model, TASK, LENGTHS, LOOPS, n_chains=N_CHAINS)]


def llama_cpp_logits(llama: llama_cpp.Llama, token_ids: Tensor) -> Tensor:
    """Chains (B, T) → logits (B, V) at EQ, which stands last."""
    rows = []
    for ids in token_ids.tolist():
        llama.reset()
        llama.eval(ids)
        rows.append(torch.tensor(llama.scores[len(ids) - 1]))
    return torch.stack(rows)


@torch.no_grad()
def llama_cpp_rows(path: Path, seed: int) -> list[dict]:
    model, rows = read_gguf(path), []
    for n_loops in ENGINE_LOOPS:
        for cache, kind in CACHES.items():
            llama = llama_cpp.Llama(
                str(path), kv_overrides={"nanbeige.num_loops": n_loops}, type_k=kind, type_v=kind, n_threads=1,
                n_threads_batch=1, logits_all=True, verbose=False,
            )  # fmt: skip
            for n_digits in ENGINE_LENGTHS:
                batch = TASK.encode(evaluation_chains(TASK, n_digits, N_ENGINE_CHAINS))
                ours = model(batch.token_ids, n_loops=n_loops).logits[:, -1]
                theirs = llama_cpp_logits(llama, batch.token_ids)
                rows.append({
                    "seed": seed, "n_loops": n_loops, "cache": cache, "n_digits": n_digits,
                    "n_chains": len(batch.answers),
                    "n_correct": int((theirs.argmax(-1) == batch.answers).sum()),
                    "n_correct_torch": int((ours.argmax(-1) == batch.answers).sum()),
                    "n_alike": int((theirs.argmax(-1) == ours.argmax(-1)).sum()),
                    "max_difference": round((theirs - ours).abs().max().item(), 6),
                })  # fmt: skip
                print(rows[-1], file=sys.stderr)
            llama.close()
    return rows


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    folder, source, seconds = Path(sys.argv[1]), source_hash(), {}
    found = {"model": MODEL.to_dict(), "train": TRAIN, "llama_cpp_python": llama_cpp.__version__}
    found["torch"], found["llama_cpp"] = torch_rows(RecurrentDepthTransformer.from_pretrained("mod7"), None), []
    for seed in SEEDS:
        started = time.process_time()
        path = trained(seed, folder)
        seconds[f"training, seed {seed}, CPU"] = time.process_time() - started
        found["torch"] += torch_rows(read_gguf(path), seed)
        found["llama_cpp"] += llama_cpp_rows(path, seed)
    command = ["python", "benchmarks/in_llama_cpp.py", "FOLDER"]
    found["provenance"] = provenance(command, source, torch.device("cpu"), seconds)
    write_files({RESULT: (json.dumps(found, indent=1) + "\n").encode()})


if __name__ == "__main__":
    main()
