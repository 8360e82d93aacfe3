"""How well ``mod7`` learns another modulus from a CSV file, by LoRA and by QLoRA.

    python benchmarks/finetuning.py   # writes results/finetuning.json; 40 minutes of one core; needs mythos-lite[out]

A file has 4,000 rows of 2 to 8 digits and the sum's remainder; the same rows serve all seeds. A row of the result has
the accuracy on the tenth that the command holds out, by loops, and on other chains: ``far`` is of
``[n_digits, n_loops, n_chains, n_correct]``.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from mythos_lite import RecurrentDepthTransformer
from mythos_lite.files.atomic import write_files
from mythos_lite.files.provenance import provenance, source_hash
from mythos_lite.interop.csv_chains import encode_chains
from mythos_lite.interop.finetune import finetune
from mythos_lite.task.chains import ChainTask
from mythos_lite.task.loss import answer_logits

RESULT = Path(__file__).resolve().parents[1] / "results" / "finetuning.json"
MODULI, BITS, SEEDS = (5, 2, 3, 6), (32, 4), (50, 51, 52)
N_ROWS, SHORTEST, LONGEST = 4000, 2, 8
FAR = ((8, 64), (16, 16), (32, 32))
"""Digits and loops."""
N_FAR = 300


def chains(rng: random.Random, n: int, shortest: int, longest: int) -> list[tuple[int, ...]]:
    return [tuple(rng.randrange(7) for _ in range(rng.randint(shortest, longest))) for _ in range(n)]


def write_csv(path: Path, modulus: int) -> None:
    rows = chains(random.Random(modulus), N_ROWS, SHORTEST, LONGEST)
    path.write_text("chain,answer\n" + "".join(f"{' '.join(map(str, row))},{sum(row) % modulus}\n" for row in rows))


@torch.no_grad()
def far_counts(model: RecurrentDepthTransformer, modulus: int) -> list[list[int]]:
    counts = []
    for n, n_loops in FAR:
        asked = {chain: sum(chain) % modulus for chain in chains(random.Random(n), N_FAR, n, n)}
        batch = encode_chains(ChainTask(), asked)
        *_, last = model.loop(batch.token_ids, n_loops)
        right = answer_logits(model, last.output, batch.answer_positions).argmax(-1) == batch.answers
        counts.append([n, n_loops, len(asked), int(right.sum())])
    return counts


def main() -> None:
    torch.set_num_threads(1)
    source, rows, started = source_hash(), [], time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for modulus in MODULI:
                data = Path(folder) / f"modulo-{modulus}.csv"
                write_csv(data, modulus)
                for bits in BITS:
                    out, began = Path(folder) / f"{modulus}-{bits}-{seed}", time.process_time()
                    notes = finetune(data, out, bits=bits, seed=seed)
                    told = {key: notes[key] for key in ("n_parameters", "n_trained", "n_held_out", "accuracy", "steps")}
                    row = {"modulus": modulus, "bits": bits, "seed": seed, **told}
                    row["cpu_seconds"] = round(time.process_time() - began, 1)
                    row["far"] = far_counts(RecurrentDepthTransformer.from_pretrained(out), modulus)
                    print(json.dumps(row), file=sys.stderr, flush=True)
                    rows.append(row)
    took = {"all, CPU": time.process_time() - started}
    found = {
        "rows": rows,
        "provenance": provenance(["python", "benchmarks/finetuning.py"], source, torch.device("cpu"), took),
    }
    write_files({RESULT: (json.dumps(found, indent=1) + "\n").encode()})


if __name__ == "__main__":
    main()
