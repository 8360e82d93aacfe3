"""The shipped models on a CUDA device beside a CPU, and a few steps of training there.

    python benchmarks/on_gpu.py   # needs a GPU; a minute

Prints, for each shipped model, the largest difference of logits, the accuracy on 64 digits there, whether generated
tokens are the same, and ρ(J) of both; then the last loss of 60 training steps of three models.
"""

from __future__ import annotations

import torch

from mythos_lite import ChainTask, ModelConfig, RecurrentDepthTransformer, TrainConfig
from mythos_lite.files.checkpoint import shipped_names
from mythos_lite.measure.spectral import loop_radii
from mythos_lite.measure.sweep import evaluation_chains, sweep
from mythos_lite.study.depth import DOUBLING
from mythos_lite.study.plan import FINAL
from mythos_lite.training.trainer import build_model, train


def main() -> None:
    task, devices = ChainTask(), ("cpu", "cuda")
    ids = task.encode(evaluation_chains(task, 32, 50)).token_ids
    for name in shipped_names():
        models = [RecurrentDepthTransformer.from_pretrained(name, device=device) for device in devices]
        n_loops, far = (models[0].config.loops_needed(n) for n in (32, 64))
        found = []
        for model, device in zip(models, devices, strict=True):
            own = ids.to(device)
            with torch.no_grad():
                logits = model(own, n_loops=n_loops).logits.cpu()
            written = model.generate(own, max_new_tokens=4, n_loops=n_loops).cpu()
            found.append((logits, written, loop_radii(model, own[:1], [n_loops])[0]))
        (here, text, radius), (there, other_text, other_radius) = found
        (row,) = sweep(models[1], task, [64], [far], n_chains=500)
        print(f"{name}: logits within {(here - there).abs().max():.1e}, {row['accuracy']:.3f} of 64 digits, ", end="")
        print(f"same tokens {torch.equal(text, other_text)}, rho(J) {radius:.4f} and {other_radius:.4f}")
    training = TrainConfig(steps=60, log_every=60, loss="from_needed", min_loops=4, max_loops=5)
    for name, config in {"dense": ModelConfig(), "dilated": DOUBLING, "experts": FINAL}.items():
        history = train(build_model(config, 0, "cuda"), task, training, progress=False)
        print(f"{name}: loss {history[-1]['loss']:.3f} after {training.steps} steps")


if __name__ == "__main__":
    main()
