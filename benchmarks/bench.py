"""Speed and memory, measured beside a peer, beside our own slower ways, and beside the machine's limit.

    make bench                                   # everything: about 5 minutes on two cores
    make bench ARGS="decoding experts"           # these parts alone
    python benchmarks/bench.py --peer FOLDER     # FOLDER holds open_mythos/ of open-mythos 0.5.0

Writes ``results/bench.json`` and prints it as a table. The two sides of a comparison take turns in one process of one
thread, after a warm-up; a number is a median over rounds, a ratio the median of the ratios of the rounds, with the
quartiles beside it. The peer's file needs torch alone and is loaded from the folder that ``make bench`` installs it to.

Both sides are given the dimensions of the published tutorial unless a row says other ones. The peer's ACT ends a fresh
model's loop after two turns; its threshold is raised, so that as many are run as on our side.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from mythos_lite import ChainTask, ConvergenceExit, ModelConfig, RecurrentDepthTransformer, TrainConfig
from mythos_lite.files.atomic import write_files
from mythos_lite.files.provenance import provenance, source_hash
from mythos_lite.measure.cost import cost
from mythos_lite.measure.sweep import evaluation_chains, sweep
from mythos_lite.model.attention import attention_context
from mythos_lite.model.cache import Cache
from mythos_lite.model.moe import SparseMoE
from mythos_lite.task.chains import Batch
from mythos_lite.task.loss import chain_loss
from mythos_lite.training.recipes import published_model, recipe
from mythos_lite.training.trainer import StepStream, build_model, make_optimizer

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "bench.json"
KINDS = ("mla", "gqa")
_PEER: list = []


# ---------------------------------------------------------------- the peer


def load_peer(folder: Path) -> None:
    """Load ``open_mythos/main.py`` by itself: the package around it would import a tokenizer library."""
    spec = importlib.util.spec_from_file_location("open_mythos_main", folder / "open_mythos" / "main.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass asks for it
    spec.loader.exec_module(module)
    _PEER.append(module)


def peer(kind: str, **changes: object) -> nn.Module:
    """The peer's model at the tutorial's dimensions."""
    (module,) = _PEER
    torch.manual_seed(0)
    fields = {
        "vocab_size": 64, "dim": 128, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 2048, "max_loop_iters": 8,
        "prelude_layers": 1, "coda_layers": 1, "attn_type": kind, "kv_lora_rank": 32, "q_lora_rank": 32,
        "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_experts": 4, "n_shared_experts": 1,
        "n_experts_per_tok": 2, "expert_dim": 64, "act_threshold": 1e9, "rope_theta": 5e5, "lora_rank": 8,
    }  # fmt: skip
    return module.OpenMythos(module.MythosConfig(**{**fields, **changes}))


def ours(kind: str, **changes: object) -> RecurrentDepthTransformer:
    return build_model(dataclasses.replace(published_model(kind), max_seq_len=2048, **changes), 0)


# ---------------------------------------------------------------- measuring


def alternate(sides: dict[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each side per round, the sides taking turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + warm_up):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if round_ >= warm_up:
                times[name].append(time.perf_counter() - started)
    return times


def compared(what: str, times: dict[str, list[float]], target: float, scale: float = 1e3, unit: str = "ms") -> dict:
    """A row: medians of both sides, how many times faster the first is, and the quartiles of that."""
    (name, own), (other_name, other) = times.items()
    ratios = sorted(b / a for a, b in zip(own, other, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    return {
        "what": what, "side": name, "value": round(scale * statistics.median(own), 3), "unit": unit,
        "beside": other_name, "other": round(scale * statistics.median(other), 3), "ratio": round(middle, 2),
        "quartiles": [round(low, 2), round(high, 2)], "target": target, "met": middle >= target,
    }  # fmt: skip


def plain(what: str, value: float, unit: str, *, target: float, met: bool, note: str = "") -> dict:
    return {"what": what, "value": round(value, 3), "unit": unit, "target": target, "met": bool(met), "note": note}


def median(run: Callable[[], object], rounds: int = 5) -> float:
    return statistics.median(alternate({"": run}, rounds, warm_up=1)[""])


# ---------------------------------------------------------------- training

BATCH, LENGTH, LOOPS = 64, 32, 4
TUTORIAL = TrainConfig(
    steps=282, batch_size=BATCH, n_train_chains=3000, lr=3e-4, warmup_steps=0, weight_decay=0.01, beta2=0.999, eps=1e-8
)


def step_of_ours(model: RecurrentDepthTransformer, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    loss, _, _ = chain_loss(model, TUTORIAL, batch, LOOPS)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def step_of_peer(model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    logits = model(batch.token_ids, n_loops=LOOPS)
    loss = F.cross_entropy(logits[torch.arange(len(batch.answers)), batch.answer_positions], batch.answers)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def full_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 7, (BATCH, LENGTH), generator=generator)
    answers = torch.randint(0, 7, (BATCH,), generator=generator)
    return Batch(ids, torch.full((BATCH,), LENGTH - 1), answers, torch.full((BATCH,), 5))


def training() -> list[dict]:
    """A step on 64 sequences of 32 tokens, four loops executed; and as a share of the machine's matrix products."""
    rows, batch = [], full_batch()
    for kind in KINDS:
        model, other = ours(kind).train(), peer(kind).train()
        optimizers = make_optimizer(model, TUTORIAL), torch.optim.AdamW(other.parameters(), lr=3e-4, weight_decay=0.01)
        sides = {
            "ours": lambda m=model, o=optimizers[0]: step_of_ours(m, batch, o),
            "open-mythos": lambda m=other, o=optimizers[1]: step_of_peer(m, batch, o),
        }
        times = alternate(sides, 15)
        rows.append(compared(f"training step, {kind.upper()}, {BATCH} × {LENGTH} tokens, {LOOPS} loops", times, 1.5))
        flops = 3 * cost(model.config, LOOPS, batch=BATCH, length=LENGTH).flops
        rate, limit = flops / statistics.median(times["ours"]), matrix_rate(model.config)
        note = f"{rate / 1e9:.0f} of {limit / 1e9:.0f} GFLOP/s"
        rows.append(plain(f"of the matrix products' rate, {kind.upper()}", rate / limit, "share", target=0.7,
                          met=rate >= 0.7 * limit, note=note))  # fmt: skip
    return rows


def matrix_rate(config: ModelConfig) -> float:
    """Operations a second of plain matrix products of a block's shapes, forward and back, on rotating operands."""
    tokens, shapes = BATCH * LENGTH, [(config.d_model, config.d_model), (config.d_model, config.d_ff)]
    operations, products = 0, []
    for n_in, n_out in shapes:
        for _ in range(8):  # eight sets, so that they do not all stay in the innermost cache
            x, w, g = torch.randn(tokens, n_in), torch.randn(n_out, n_in), torch.randn(tokens, n_out)
            out = torch.empty(tokens, n_out), torch.empty(tokens, n_in), torch.empty(n_out, n_in)
            products.append((x, w, g, out))
            operations += 3 * 2 * tokens * n_in * n_out

    def run() -> None:
        for x, w, g, (forward, to_input, to_weight) in products:
            torch.mm(x, w.t(), out=forward)
            torch.mm(g, w, out=to_input)
            torch.mm(g.t(), x, out=to_weight)

    return operations / median(run, 9)


def tutorial() -> list[dict]:
    """The published training whole: 3,000 chains of 2 to 5 digits, six epochs of 47 steps, four loops executed."""
    rows, task = [], ChainTask()
    for kind in KINDS:
        model, other = ours(kind).train(), peer(kind).train()
        own_optimizer = make_optimizer(model, TUTORIAL)
        optimizer = torch.optim.AdamW(other.parameters(), lr=3e-4, weight_decay=0.01)
        stream = StepStream(task, TUTORIAL)
        batches = [stream.at(step)[0] for step in range(TUTORIAL.steps)]
        wide = [F.pad(b.token_ids, (0, LENGTH - b.token_ids.shape[1]), value=task.pad_id) for b in batches]
        padded = [batch._replace(token_ids=ids) for batch, ids in zip(batches, wide, strict=True)]
        times: dict[str, list[float]] = {"ours": [], "open-mythos, padded to 32": []}
        for own, theirs in zip(batches, padded, strict=True):  # step by step in turns, then added up
            started = time.perf_counter()
            step_of_ours(model, own, own_optimizer)
            turned = time.perf_counter()
            step_of_peer(other, theirs, optimizer)
            times["ours"].append(turned - started)
            times["open-mythos, padded to 32"].append(time.perf_counter() - turned)
        totals = {name: [sum(own)] for name, own in times.items()}
        rows.append(compared(f"the tutorial's training, {kind.upper()}", totals, 5.0, scale=1.0, unit="s"))
    return rows


# ---------------------------------------------------------------- decoding


@torch.no_grad()
def decoding() -> list[dict]:
    """One token behind a full cache, 8 loops."""
    rows = []
    for kind in KINDS:
        model, other = ours(kind).eval(), peer(kind).eval()
        for batch, context in ((1, 128), (1, 1024), (32, 128), (32, 1024)):
            ids, new = torch.randint(0, 7, (batch, context)), torch.randint(0, 7, (batch, 1))
            cache, theirs = Cache(context + 1), {}
            model(ids, n_loops=8, cache=cache)
            other(ids, n_loops=8, kv_cache=theirs)

            def own(model=model, new=new, cache=cache) -> None:  # the same token over and over: the cache is not kept
                model(new, n_loops=8, cache=copy.copy(cache))

            def of_peer(other=other, new=new, theirs=theirs, context=context) -> None:
                filled = {key: dict(entry) for key, entry in theirs.items()}
                other(new, n_loops=8, kv_cache=filled, start_pos=context)

            times = alternate({"ours": own, "open-mythos": of_peer}, 60 if batch == 1 else 12)
            target = 2.0 if batch == 1 or context == 128 else {"mla": 8.0, "gqa": 4.0}[kind]
            rows.append(compared(f"one token, {kind.upper()}, batch {batch}, context {context:,}", times, target))
    return rows


@torch.no_grad()
def absorbed() -> list[dict]:
    """Latent attention of one token: queries moved into the latent, or keys and values built for every position."""
    model, batch, context = ours("mla"), 32, 1024
    layer = model.core[0].attention
    seen = torch.randn(batch, 1, context + 1, layer.rank + layer.rope)
    queries = torch.randn(batch, layer.n_heads, 1, layer.nope), torch.randn(batch, layer.n_heads, 1, layer.rope)
    rotary = attention_context(model.config, 1, None, seen.device)._replace(causal=False)
    sides = {
        "absorbed": lambda: layer.attend_absorbed(*queries, seen, rotary),
        "explicit": lambda: layer.attend_explicit(*queries, seen, rotary),
    }
    return [compared(f"latent attention of one token, batch {batch}, context {context:,}", alternate(sides, 25), 3.0)]


@torch.no_grad()
def cache_size() -> list[dict]:
    """Bytes for one more token, in all layers and loops, at the tutorial's dimensions and at the peer's defaults."""
    rows = []
    latent = {
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    }  # fmt: skip
    for kind, target in (("mla", {"tutorial": 2.0, "defaults": 2.6}), ("gqa", {"tutorial": 1.0, "defaults": 1.0})):
        wide = {"n_heads": 16, **(latent if kind == "mla" else {"n_kv_heads": 4})}
        for name, own, other in (
            ("tutorial", {}, {}), ("defaults", {"d_model": 2048, **wide}, {"dim": 2048, **wide}),
        ):  # fmt: skip
            config = dataclasses.replace(published_model(kind), **own)
            ids, cache, filled = torch.randint(0, 7, (1, 9)), Cache(), {}
            build_model(config, 0)(ids, n_loops=8, cache=cache)
            peer(kind, **other)(ids, n_loops=8, kv_cache=filled)
            held = sum(4 * tensor.numel() for entry in filled.values() for tensor in entry.values()) // 9
            own_bytes, expected = cache.n_bytes() // 9, cost(config, 8, length=9).cache_bytes // 9
            rows.append({
                "what": f"cache of a token, {kind.upper()}, {name}", "side": "ours", "value": own_bytes,
                "unit": "bytes" + (", as computed" if expected == own_bytes else f", not {expected}"),
                "beside": "open-mythos", "other": held, "ratio": round(held / own_bytes, 2), "target": target[name],
                "met": held / own_bytes >= target[name] and expected == own_bytes,
            })  # fmt: skip
    return rows


# ---------------------------------------------------------------- experts


def routed(moe: SparseMoE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, T, D) → the experts of each and their weights (B, T, k)."""
    scores = torch.sigmoid(moe.router(x))
    chosen = moe.choose(scores)
    weights = scores.gather(-1, chosen)
    return chosen, weights / weights.sum(-1, keepdim=True)


def loop_over_picks(moe: SparseMoE, x: torch.Tensor) -> torch.Tensor:
    """The peer's dispatch: for each of the k choices and each expert, the tokens that made it."""
    flat, chosen, weights = (tensor.flatten(0, 1) for tensor in (x, *routed(moe, x)))
    y = torch.zeros_like(flat)
    for pick in range(chosen.shape[1]):
        for expert, matrices in enumerate(zip(moe.gate, moe.up, moe.down, strict=True)):
            mine = chosen[:, pick] == expert
            if mine.any():
                gate, up, down = matrices
                answer = (F.silu(flat[mine] @ gate) * (flat[mine] @ up)) @ down
                y[mine] += weights[mine, pick].unsqueeze(1) * answer
    return y.view_as(x) + moe.shared(x)


def all_experts(moe: SparseMoE, x: torch.Tensor) -> torch.Tensor:
    """A dense mixture: every expert answers every token."""
    chosen, weights = routed(moe, x)
    of_expert = torch.zeros(*x.shape[:2], len(moe.gate)).scatter(-1, chosen, weights)
    hidden = F.silu(torch.einsum("btd,edf->btef", x, moe.gate)) * torch.einsum("btd,edf->btef", x, moe.up)
    return torch.einsum("btef,efd,bte->btd", hidden, moe.down, of_expert) + moe.shared(x)


def experts() -> list[dict]:
    """A layer of top-2 experts on 2,048 tokens, forward and back."""
    rows, x, medians = [], torch.randn(BATCH, LENGTH, 128, requires_grad=True), {}
    for n in (8, 16, 32, 64):
        config = ModelConfig(d_model=128, n_experts=n, n_experts_per_token=2, d_expert=64, n_shared_experts=2)
        torch.manual_seed(0)
        moe = SparseMoE(config)
        sides = {"ours": lambda m=moe: m(x)[0].sum().backward()}
        for name, other in (("loop over picks and experts", loop_over_picks), ("dense mixture", all_experts)):
            times = alternate({**sides, name: lambda m=moe, f=other: f(m, x).sum().backward()}, 7)
            rows.append(compared(f"{n} experts, top 2, 2,048 tokens", times, 1.0))
            medians[n] = statistics.median(times["ours"])
    growth = medians[64] / medians[8]
    rows.append(plain("64 experts over 8", growth, "times the time", target=2.0, met=growth <= 2.0))
    return rows


# ---------------------------------------------------------------- loops


@torch.no_grad()
def loops() -> list[dict]:
    """1 to 64 loops: time, memory in inference, sweep in one pass, early exit."""
    model, task = build_model(recipe("fixed")[0], 0).eval(), ChainTask()
    counts = (1, 2, 4, 8, 16, 32, 64)
    batch = task.encode(evaluation_chains(task, 30, 64))
    times = alternate({str(n): lambda n=n: model(batch.token_ids, n_loops=n) for n in counts}, 7)
    seconds = [statistics.median(times[str(n)]) for n in counts]
    r2 = statistics.correlation(counts, seconds) ** 2
    rows = [plain("time against loops, 1 to 64", r2, "R²", target=0.99, met=r2 >= 0.99)]
    peaks = {n: peak_memory(n) for n in (1, 3, 64)}
    for few in (1, 3):  # a first loop has its input for state, a second one for the state before
        growth = peaks[64] / peaks[few]
        note = f"{peaks[few] / 1e6:.1f} and {peaks[64] / 1e6:.1f} MB above what the process has"
        what = f"memory of inference, 64 loops over {few}"
        rows.append(plain(what, growth, "times", target=1.05, met=growth <= 1.05, note=note))
    lengths, asked = tuple(range(2, 14)), (1, 2, 4, 6, 8, 12, 16, 24, 32)
    sides = {
        "one pass": lambda: sweep(model, task, lengths, asked, n_chains=50),
        "one run per loop count": lambda: [sweep(model, task, lengths, (n,), n_chains=50) for n in asked],
    }
    rows.append(compared("sweep of 9 loop counts × 12 lengths", alternate(sides, 3, 1), 1.0, scale=1.0, unit="s"))
    return rows + early_exit()


@torch.no_grad()
def early_exit() -> list[dict]:
    """mod7 on chains of 2 to 64 digits, one by one, with a budget of 64 loops."""
    model, task = RecurrentDepthTransformer.from_pretrained("mod7"), ChainTask()
    chains = [task.encode(evaluation_chains(task, n, 12, seed=3)) for n in (2, 4, 8, 16, 32, 48, 64)]
    asked = [(b.token_ids[i : i + 1], b.answers[i]) for b in chains for i in range(len(b.answers))]
    used, right = {"exit": 0, "budget": 0}, {"exit": 0, "budget": 0}

    def run(name: str, policy: ConvergenceExit | None) -> None:
        used[name] = right[name] = 0
        for ids, answer in asked:
            out = model(ids, n_loops=64, exit_policy=policy)
            used[name] += out.n_loops
            right[name] += int(out.logits[0, -1].argmax() == answer)

    policy = ConvergenceExit(every=4, patience=1)
    sides = {"early exit": lambda: run("exit", policy), "all 64 loops": lambda: run("budget", None)}
    times = alternate(sides, 3, 1)
    saved, lost = used["budget"] / used["exit"], (right["budget"] - right["exit"]) / len(asked)
    return [
        compared("chains of 2 to 64 digits, time", times, 1.0, scale=1.0, unit="s"),
        plain("loops executed, budget over exit", saved, "times fewer", target=2.0, met=saved >= 2.0),
        plain("accuracy lost by the exit", 100 * lost, "points", target=0.2, met=100 * lost <= 0.2),
    ]


def peak_memory(n_loops: int) -> int:
    """Bytes that a pass needs at its peak above what a fresh process holds. Linux alone can set a peak back.

    The C library is told to give freed tensors back at once; how many it would keep differs from run to run.
    """
    code = (
        "import re, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from mythos_lite.training.recipes import recipe; from mythos_lite.training.trainer import build_model\n"
        "def kilobytes(key): return int(re.search(key + r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "model = build_model(recipe('fixed')[0], 0).eval(); ids = torch.randint(0, 7, (512, 64))\n"
        "with torch.no_grad():\n"
        "    model(ids[:1], n_loops=2)\n"
        "    Path('/proc/self/clear_refs').write_text('5')\n"
        "    before = kilobytes('VmRSS')\n"
        f"    model(ids, n_loops={n_loops})\n"
        "print(kilobytes('VmHWM') - before)"
    )
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return 1024 * int(run.stdout)


# ---------------------------------------------------------------- starting


LEARN = """
import torch, sys, time
torch.set_num_threads(2)
from mythos_lite import ChainTask
from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.task.loss import chain_loss, answer_logits
from mythos_lite.training.recipes import recipe
from mythos_lite.training.trainer import StepStream, average_weights, build_model, learning_rate, make_optimizer
config, train = recipe("fixed", seed={seed})
model, task = build_model(config, train.seed), ChainTask()
asked = [task.encode(evaluation_chains(task, n, 300, seed=10)) for n in (6, 7, 8)]
stream, optimizer = StepStream(task, train), make_optimizer(model, train)
for step in range(train.steps):
    batch, n_loops = stream.at(step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(train, step)
    loss, *_ = chain_loss(model, train, batch, n_loops)
    optimizer.zero_grad(); loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm); optimizer.step()
    if step % 50 == 49:
        with torch.no_grad():
            answers = [model(b.token_ids, n_loops=8).logits[:, -1].argmax(-1) for b in asked]
            right = [(found == b.answers).float().mean() for found, b in zip(answers, asked)]
        if sum(right) / 3 >= .99:
            break
print(step + 1, float(sum(right) / 3))
"""


def starting() -> list[dict]:
    """Seconds from a cold start to 99 % on 6 to 8 digits at 8 loops, and the import of the package."""
    taken = []
    for seed in range(60, 65):
        started = time.perf_counter()
        command = [sys.executable, "-c", LEARN.format(seed=seed)]
        steps, share = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        taken.append((time.perf_counter() - started if float(share) >= 0.99 else float("inf"), int(steps)))
    middle, steps = sorted(taken)[2]
    note = f"five seeds: {', '.join(f'{seconds:.0f}' for seconds, _ in sorted(taken))} s; {steps} steps"
    rows = [plain("to .99 on 6 to 8 digits, two threads", middle, "s", target=45.0, met=middle <= 45, note=note)]
    sides = {
        name: lambda what=what: subprocess.run([sys.executable, "-c", f"import {what}"], check=True)
        for name, what in (("mythos_lite", "mythos_lite"), ("torch", "torch"))
    }
    times = alternate(sides, 7, 1)
    more = statistics.median(a - b for a, b in zip(times["mythos_lite"], times["torch"], strict=True))
    rows.append(plain("import, more than torch alone", more, "s", target=0.3, met=more <= 0.3))
    return rows


PARTS = {part.__name__: part for part in (training, tutorial, decoding, absorbed, cache_size, experts, loops, starting)}


def shown(rows: Sequence[dict]) -> str:
    """Rows as a Markdown table."""
    lines = [
        "| what | ours | beside it | ratio (quartiles) | to reach | reached |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        value = f"{row['value']:,g} {row['unit']}"
        beside = f"{row['other']:,g} ({row['beside']})" if "other" in row else row.get("note", "")
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        ratio += f" ({row['quartiles'][0]:.2f}–{row['quartiles'][1]:.2f})" if "quartiles" in row else ""
        cells = (row["what"], value, beside, ratio, f"{row['target']:g}", "✓" if row["met"] else "✗")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--peer", type=Path, default=ROOT / ".bench", help="folder with open_mythos/ (default: .bench)")
    args = parser.parse_args()
    if unknown := sorted(set(args.parts) - set(PARTS)):
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if not (args.peer / "open_mythos" / "main.py").is_file():
        parser.error(f"{args.peer} does not hold open_mythos/main.py: make bench installs it, or name a folder")
    torch.set_num_threads(1)
    load_peer(args.peer)
    found = json.loads(RESULT.read_text(encoding="utf-8"))["parts"] if RESULT.exists() else {}
    for name in args.parts or PARTS:
        source, started = source_hash(), time.perf_counter()
        rows = PARTS[name]()
        seconds = {"measuring": time.perf_counter() - started}
        command = ["python", "benchmarks/bench.py", name]
        found[name] = {"rows": rows, "provenance": provenance(command, source, torch.device("cpu"), seconds)}
        print(shown(rows), flush=True)
        parts = {key: found[key] for key in PARTS if key in found}
        write_files({RESULT: (json.dumps({"parts": parts}, ensure_ascii=False, indent=1) + "\n").encode()})


if __name__ == "__main__":
    main()
