"""Teach a trained model another rule, from a file of chains and answers, by training a few per cent of its numbers.

==============  ==============================================================================
name here       symbol and source
==============  ==============================================================================
``adapt``       W + B·A on every ``nn.Linear``, W frozen, r = ``RANK``; Hu et al. 2021 (LoRA), §4.1
``bits=4``      W in NF4 with double quantization; Dettmers et al. 2023 (QLoRA), §3
``merge``       W ← W + B·A, after which the adapters cost nothing; LoRA, §4.1
==============  ==============================================================================

The embedding is trained whole: it is small, and where the modulus is another one, other digits mean the same. What is
no ``nn.Linear`` stays as it is, frozen and in full precision: norms, injection, the latent attention's ``key_up`` and
``value_up``, and the routed experts, whose weights are one tensor for all.

The loss is over the needed loop and those after it (``task.loss``), so that the model goes on to longer chains.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from mythos_lite.checks import NonFiniteError, reject
from mythos_lite.config import TrainConfig
from mythos_lite.files.atomic import make_folder, only_writer
from mythos_lite.files.checkpoint import holds_checkpoint, open_checkpoint
from mythos_lite.interop.csv_chains import digits_of, encode_chains, read_chains, split_chains, take
from mythos_lite.interop.extras import need
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.model.modes import own_derivatives
from mythos_lite.task.chains import Batch, ChainTask, make_generator
from mythos_lite.task.loss import answer_logits, chain_loss
from mythos_lite.training.trainer import can_show_progress, initial_weights, learning_rate, make_optimizer

MOST_DIGITS = 16
"""Longer chains take many loops in training, and are what a model that has learned the rule on shorter ones can do."""
MORE_LOOPS = 3
"""A batch is given as many loops as it needs and up to so many more, to hold the answer through."""
LOOPS = (1, 2, 4, 8, 16)
RANK = 1
BLOCK = 64
"""Weights of a row that share a scale in NF4."""
STEPS = 600


@own_derivatives()
def finetune(
    data: str | os.PathLike, out: str | os.PathLike, *, base: str | os.PathLike = "mod7", bits: int = 32,
    steps: int = STEPS, seed: int = 0, say: Callable[[str], None] = lambda line: None,
) -> dict:  # fmt: skip
    """Train adapters of ``base`` on the CSV file ``data`` (``read_chains``), merge them, save an ordinary checkpoint.

    One chain in ten is held out. Returns the checkpoint's notes: where it comes from, how many numbers were trained,
    and the accuracy on the chains held out at each of ``LOOPS``.

    Args:
        out: a folder that holds no checkpoint yet.
        base: a model of digit chains, by folder or shipped name.
        bits: 4 holds the base in NF4 while the adapters are trained; 32 leaves it as it is.
        say: is given each line of the report.

    Raises:
        ValueError: for a file with a row that cannot be used, a base of another task, a folder with a checkpoint.
        ImportError: without ``peft`` or, for 4 bits, ``bitsandbytes``; says what installs them.
        OSError: for a file that cannot be read, or a folder that cannot be written.
        NonFiniteError: when training blows up.
    """
    if bits not in (4, 32):
        reject("bits", bits, "it must be 4 or 32")
    if not os.fspath(out) or holds_checkpoint(out):
        reject("out", os.fspath(out), "name a folder that holds no checkpoint yet")
    model, task = _open_base(base)
    n_parameters = model.n_parameters()
    chains = read_chains(data, task.n_symbols, min(MOST_DIGITS, model.config.max_seq_len - 2))
    needed = model.config.loops_needed(max(map(len, chains)))
    config = TrainConfig(steps=steps, loss="from_needed", lr=2e-2, warmup_steps=50, seed=seed)
    trained_on, held_out = split_chains(chains, config.seed)
    adapted = adapt(model, bits, config.seed)
    n_trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    with only_writer(make_folder(out)):
        say(f"{base}{' in NF4' if bits == 4 else ''}: {n_parameters:,} parameters; {n_trained:,} are trained beside "
            f"them, {n_trained / n_parameters:.1%}")  # fmt: skip
        say(f"{data}: {len(trained_on):,} chains to learn from, {len(held_out):,} held out; {steps} steps")
        train_adapters(adapted.get_base_model(), encode_chains(task, trained_on), config)
        merged = merge(adapted)
        shares = accuracy(merged, encode_chains(task, held_out))
        notes = {
            "base": str(base), "bits": bits, "data": Path(data).name, "steps": steps, "seed": config.seed,
            "n_parameters": n_parameters, "n_trained": n_trained, "n_held_out": len(held_out),
            "accuracy": {str(n_loops): share for n_loops, share in shares.items()},
            "task": {"kind": "file", "start_token": task.start_token},
        }  # fmt: skip
        merged.save_pretrained(out, **notes)
    say("held-out accuracy by loops: " + ", ".join(f"{share:.3f} at {n_loops}" for n_loops, share in shares.items()))
    say(f"held-out accuracy at 8 loops: {shares[8]:.3f}; the longest chain needs {needed}")
    say(f"written to {out}: RecurrentDepthTransformer.from_pretrained({str(out)!r}) loads it")
    return notes


def _open_base(base: str | os.PathLike) -> tuple[RecurrentDepthTransformer, ChainTask]:
    """The model, and a task of its tokens, whose answers nobody reads; ``ValueError`` for a model of another task."""
    found = open_checkpoint(base)
    if (task := digits_of(found)) is None:
        raise ValueError(f"base={str(base)!r} is not a model of digit chains, such as 'mod7'")
    task.check_fit(found.config, 1)
    return RecurrentDepthTransformer.from_pretrained(base).float(), task


def adapt(model: RecurrentDepthTransformer, bits: int, seed: int) -> nn.Module:
    """A ``peft.PeftModel`` of ``model``, which it changes: frozen but for the new adapters and the embedding.

    With 4 bits, layers whose number of inputs is no multiple of ``BLOCK`` stay as they are, since ``bitsandbytes`` 0.50
    gives them back wrong on a CPU; ``ValueError`` if there are no others.
    """
    peft, linear = need("peft"), {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    held = [name for name, part in linear.items() if bits == 4 and part.in_features % BLOCK == 0]
    if bits == 4 and not held:
        reject("bits", bits, f"no layer of this model has a multiple of {BLOCK} inputs; use 32")
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=sorted(linear), modules_to_save=["embedding"])
    with initial_weights(seed):
        for name in held:
            model.set_submodule(name, _in_four_bits(linear[name]))
        model.is_loaded_in_4bit = bool(held)  # where peft looks
        return peft.get_peft_model(model, config)


def _in_four_bits(linear: nn.Linear) -> nn.Linear:
    """The layer in NF4."""
    size, bias = (linear.in_features, linear.out_features), linear.bias is not None
    layer = need("bitsandbytes").nn.Linear4bit(*size, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict(linear.state_dict())
    # Else it computes in bfloat16 on some processors, in evaluation only.
    layer.support_avx512bf16_for_cpu = False
    return layer.to("cpu")  # which is when it quantizes


def train_adapters(model: RecurrentDepthTransformer, data: Batch, config: TrainConfig) -> None:
    """Train what takes a gradient, on ``data`` from short to long; ``NonFiniteError`` when it blows up.

    Lengths are drawn evenly, from the shortest alone at first and from all of them after half of the steps. Without
    that growth some rules are not found: modulo 2 and 6 stay near chance where chains have up to eight digits.
    """
    optimizer = make_optimizer(model, config)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    counts = data.n_digits.unique_consecutive(return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    hidden = bool(os.environ.get("CI")) or not can_show_progress()
    bar = tqdm(range(config.steps), "training", disable=hidden, unit="step")
    for step in bar:
        draw = {"generator": make_generator(config.seed, step), "device": "cpu"}
        n_lengths = min(len(counts), 1 + 2 * step * len(counts) // config.steps)
        length = torch.randint(n_lengths, (config.batch_size,), **draw)
        within = counts[length] * torch.rand(length.shape, dtype=torch.float64, **draw)
        batch = take(data, starts[length] + within.long())
        n_loops = model.config.loops_needed(int(batch.n_digits.max())) + int(torch.randint(MORE_LOOPS + 1, (), **draw))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        loss, *_ = chain_loss(model, config, batch, n_loops)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(trained, config.clip_norm)
        if not torch.isfinite(loss + grad_norm):
            raise NonFiniteError(f"the loss or its gradient is not finite at step {step + 1}; nothing was saved")
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


@initial_weights(0)  # what is drawn is replaced; torch's own generator is left alone
def merge(adapted: nn.Module) -> RecurrentDepthTransformer:
    """The ordinary float32 model that computes the same; ``adapted`` is used up."""
    peft, config = need("peft"), adapted.peft_config["default"]
    state = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)  # modules_to_save are among it anyway
    model = adapted.unload()
    for name, part in list(model.named_modules()):
        if hasattr(getattr(part, "weight", None), "quant_state"):
            model.set_submodule(name, _in_full(part))
    again = peft.get_peft_model(model, config)  # merged where they are, into NF4, the sums would be rounded to 4 bits
    peft.set_peft_model_state_dict(again, state)
    merged = RecurrentDepthTransformer(model.config)
    merged.load_state_dict(again.merge_and_unload().state_dict())
    return merged.eval()


def _in_full(layer: nn.Linear) -> nn.Linear:
    """The float32 layer that one in NF4 stands for."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    weight = need("bitsandbytes").functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    linear.load_state_dict({"weight": weight} | ({} if layer.bias is None else {"bias": layer.bias}))
    return linear


@torch.no_grad()
def accuracy(model: RecurrentDepthTransformer, data: Batch) -> dict[int, float]:
    """Share of right answers after each of ``LOOPS``."""
    right = dict.fromkeys(LOOPS, 0)
    for chosen in torch.arange(len(data.answers), device="cpu").split(1024):
        batch = take(data, chosen)
        for turn in model.loop(batch.token_ids, LOOPS[-1]):
            if turn.loop in right:
                logits = answer_logits(model, turn.output, batch.answer_positions)
                right[turn.loop] += int((logits.argmax(-1) == batch.answers).sum())
    return {n_loops: count / len(data.answers) for n_loops, count in right.items()}
