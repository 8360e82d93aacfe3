"""Which chains a trained parity model loses when it is given more loops than it needs.

    python -m mythos_lite study tasks --rungs "parity, trained on 8 bits" --seeds 2 --results runs/parity
    python benchmarks/lost_chains.py runs/parity/tasks/parity-trained-on-8-bits-seed2

Prints one line of JSON; that of the run above is ``results/lost_chains.json``. ``right_by_first_bits``: right ones and
all of 500 chains of 16 bits, at 64 loops. ``lost_at``: by length, the first loop from the needed one on at which less
than .9 of 500 chains are right. ``start_residual``: at START and loop 16, the median over the same chains of 16 bits.
"""

from __future__ import annotations

import argparse
import json

import torch

from mythos_lite import RecurrentDepthTransformer
from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.study.plan import TASKS

N_LOOPS = 64


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="weights of a parity run of the study")
    model = RecurrentDepthTransformer.from_pretrained(parser.parse_args().folder)
    torch.set_num_threads(1)
    task, found = TASKS["parity"][0], {"right_by_first_bits": {}, "lost_at": {}}
    for n in (5, 8, 16):
        chains = evaluation_chains(task, n, 500, seed=1)
        batch = task.encode(chains)
        for step in model.loop(batch.token_ids, N_LOOPS):
            right = model.read_out(step.output)[:, -1].argmax(-1) == batch.answers
            if step.loop >= model.config.loops_needed(n) and right.double().mean() < 0.9:
                found["lost_at"].setdefault(n, step.loop)
            if (n, step.loop) == (16, 16):
                found["start_residual"] = round(step.residual()[:, 0].median().item(), 3)
    for first in ("00", "01", "10", "11"):
        begin = (chains[:, :2] == torch.tensor([int(bit) for bit in first])).all(dim=1)
        found["right_by_first_bits"][first] = [int(right[begin].sum()), int(begin.sum())]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
