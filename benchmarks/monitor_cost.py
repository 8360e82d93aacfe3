"""What the stability monitor costs: its share of training time at the default interval.

    python benchmarks/monitor_cost.py

Steps and monitor calls alternate in one run on one thread; the share is taken from their medians.
"""

import statistics
import time

import torch

from mythos_lite.measure.spectral import monitor
from mythos_lite.task.chains import ChainTask
from mythos_lite.task.loss import chain_loss
from mythos_lite.training.recipes import RECIPES, recipe
from mythos_lite.training.trainer import StepStream, build_model, make_optimizer

ROUNDS, WARM_UP = 15, 2


def measure(name: str) -> tuple[float, float, int]:
    """Median seconds of a training step and of a monitor call, and the steps between two calls."""
    model_config, config = recipe(name, seed=10)
    model = build_model(model_config, config.seed)
    optimizer = make_optimizer(model, config)
    stream = StepStream(ChainTask(), config)
    steps, monitors = [], []
    for round_ in range(ROUNDS + WARM_UP):
        batch, n_loops = stream.at(round_)
        started = time.perf_counter()
        loss, _, _ = chain_loss(model, config, batch, n_loops)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        stepped = time.perf_counter()
        monitor(model, config, batch, config.max_loops)
        steps.append(stepped - started)
        monitors.append(time.perf_counter() - stepped)
    return statistics.median(steps[WARM_UP:]), statistics.median(monitors[WARM_UP:]), config.log_every


def main() -> None:
    torch.set_num_threads(1)
    for name in RECIPES:
        step, call, every = measure(name)
        print(
            f"{name:<10} step {1e3 * step:6.1f} ms, monitor {1e3 * call:6.1f} ms "
            f"every {every} steps: {call / (every * step):.1%} of training"
        )


if __name__ == "__main__":
    main()
