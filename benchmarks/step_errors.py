"""At which level of a product a model of the study ``words`` goes wrong, and whether rounding its states mends that.

    python -m mythos_lite study words --rungs "A5: loop" "S5: loop"   # the weights go to runs/study/words
    python benchmarks/step_errors.py FOLDER [FOLDER ...]              # writes results/step_errors.json

With a dilated window loop t makes the product of 2^t elements out of two products of half as many. Read out at every
position after every loop, chains of 128 elements say how often such a step is right *if both of its parts were read
out right*: what is then wrong is not the parts' value but how exactly the states hold it (``steps``).

The read-out shares its matrix with the embedding, so a state can be *rounded*: in its place comes the embedding of the
element that it reads out. ``rounded`` has the counts, ``[n_elements, n_loops, n_chains, n_correct]``, where that is
done after every loop, at every token but START. Training knows nothing of it. The chains are those of the study.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from mythos_lite import RecurrentDepthTransformer
from mythos_lite.files.atomic import write_files
from mythos_lite.files.checkpoint import open_checkpoint
from mythos_lite.files.provenance import provenance, source_hash
from mythos_lite.measure.hooks import Hook, HookPoint, run_with_hooks
from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.study.run import Run

RESULT = Path(__file__).resolve().parents[1] / "results" / "step_errors.json"
N_DIGITS, N_CHAINS, SEED = 128, 100, 1
ASKED = ((8, 1, 1000), (16, 1, 1000), (32, 1, 1000), (64, 1, 1000), (128, 1, 1000), (128, 4, 1000), (256, 1, 300),
         (512, 1, 300), (1024, 1, 300), (1024, 4, 300))  # fmt: skip
"""Elements, how many times the needed loops, and chains."""


@torch.no_grad()
def step_rows(folder: str) -> list[dict]:
    """One row a loop: steps whose parts were right, and how many of them were right."""
    run, model = Run.from_dict(open_checkpoint(folder).notes), RecurrentDepthTransformer.from_pretrained(folder)
    task, rows = run.task, []
    ids = task.encode(evaluation_chains(task, N_DIGITS, N_CHAINS, SEED)).token_ids
    everything = torch.arange(task.n_answers)
    pairs = torch.cartesian_prod(everything, everything)
    table = task.answer(pairs).view(task.n_answers, task.n_answers)
    value = ids.where(ids < task.n_answers, 0)  # START and EQ are no elements: 0 is the identity
    right = torch.ones_like(ids, dtype=torch.bool)
    for turn in model.loop(ids, (N_DIGITS + 1).bit_length() - 2):
        back, first = 2 ** (turn.loop - 1), 2**turn.loop
        value = torch.cat([value[:, :back], table[value[:, :-back], value[:, back:]]], dim=1)
        parts = right[:, first - back : N_DIGITS - back] & right[:, first:N_DIGITS]
        right = model.read_out(turn.state).argmax(-1) == value
        counts = {"n_steps": int(parts.sum()), "n_right": int((right[:, first:N_DIGITS] & parts).sum())}
        rows.append({"rung": run.rung, "seed": run.seed, "loop": turn.loop, "n_elements": first, **counts})
    return rows


def rounded_to_what_it_reads(model: RecurrentDepthTransformer) -> Hook:
    def put(state: Tensor, point: HookPoint) -> Tensor:
        elements = model.read_out(state)[:, 1:].argmax(-1)
        return torch.cat([state[:, :1], model.embedding.weight[elements]], dim=1)

    return put


@torch.no_grad()
def rounded_counts(folder: str) -> list[list[int]]:
    run, model = Run.from_dict(open_checkpoint(folder).notes), RecurrentDepthTransformer.from_pretrained(folder)
    hook, counts = rounded_to_what_it_reads(model), []
    for n, more, n_chains in ASKED:
        n_loops, n_right = more * model.config.loops_needed(n), 0
        hooks = [(f"loop.{t}.state", hook) for t in range(1, n_loops + 1)]
        for part in evaluation_chains(run.task, n, n_chains, SEED).split(50):
            batch = run.task.encode(part)
            logits = run_with_hooks(model, batch.token_ids, n_loops=n_loops, fwd_hooks=hooks).logits
            n_right += int((logits[:, -1].argmax(-1) == batch.answers).sum())
        counts.append([n, n_loops, n_chains, n_right])
    return counts


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    source, started = source_hash(), time.process_time()
    steps, rounded = [], []
    for folder in sys.argv[1:]:
        steps += step_rows(folder)
        told = {key: steps[-1][key] for key in ("rung", "seed")}
        rounded.append({**told, "counts": rounded_counts(folder)})
        print(rounded[-1], file=sys.stderr, flush=True)
    took = {"all, CPU": time.process_time() - started}
    made = provenance(["python", "benchmarks/step_errors.py", "FOLDER"], source, torch.device("cpu"), took)
    write_files({RESULT: (json.dumps({"steps": steps, "rounded": rounded, "provenance": made}) + "\n").encode()})


if __name__ == "__main__":
    main()
