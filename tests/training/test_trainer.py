"""Training: what it depends on, that it can be stopped at any moment, and what it refuses."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from mythos_lite.checks import NonFiniteError
from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.files import atomic, provenance
from mythos_lite.files.atomic import only_writer
from mythos_lite.files.checkpoint import CheckpointError
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.model.moe import RouterStats
from mythos_lite.task.chains import ChainTask
from mythos_lite.task.loss import chain_loss
from mythos_lite.task.pointers import PointerTask
from mythos_lite.training import trainer as training
from mythos_lite.training.state import METRICS_FILE, PART_FILE, STATE_FILE
from mythos_lite.training.trainer import (
    StepStream,
    average_weights,
    build_model,
    initial_weights,
    learning_rate,
    make_optimizer,
    train,
)

TASK = ChainTask()
TINY = ModelConfig(d_model=16, n_heads=2, n_kv_heads=1, d_ff=16, n_loops=3)
EXPERTS = dataclasses.replace(TINY, n_experts=3, n_experts_per_token=1, n_shared_experts=1, d_expert=8)
ADAPTER = dataclasses.replace(TINY, depth_lora_rank=2, halting="act")
SHORT = TrainConfig(
    steps=10,
    batch_size=8,
    log_every=3,
    checkpoint_every=4,
    warmup_steps=3,
    min_loops=1,
    max_loops=3,
)
AVERAGED = dataclasses.replace(SHORT, ema_decay=0.9, loss="from_needed", min_digits=1, router_bias_rate=0.01)
either_run = pytest.mark.parametrize(
    ("model_config", "config"), [(TINY, SHORT), (EXPERTS, AVERAGED)], ids=["dense", "experts, averaged"]
)


class Interruption(Exception):
    """What stops a run in these tests."""


def run(config=SHORT, model_config=TINY, **arguments):
    model = build_model(model_config, config.seed)
    return model, train(model, TASK, config, progress=False, **arguments)


class Plain(nn.Module):
    """A model without a loop."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 16), nn.Linear(16, 10)

    def forward(self, token_ids):
        return self.head(torch.tanh(self.embedding(token_ids).cumsum(1)))


def answer_loss(model, config, batch, n_loops):
    logits = model(batch.token_ids)[torch.arange(len(batch.answers)), batch.answer_positions]
    return F.cross_entropy(logits, batch.answers), logits.detach(), []


def build(kind, config=SHORT):
    """A model with a loop or without one, and ``train`` for it."""
    if kind == "looped":
        return build_model(TINY, config.seed), train
    with initial_weights(config.seed):
        return Plain(), functools.partial(train, objective=answer_loss)


looped_or_not = pytest.mark.parametrize("kind", ["looped", "plain"])


def interrupt_at(step):
    def on_record(record):
        if record["step"] >= step:
            raise Interruption

    return on_record


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(one, other):
    """Names of the tensors that are not the same in both, bit for bit."""
    missing = one.keys() ^ other.keys()
    return sorted(missing | {name for name in one.keys() - missing if not torch.equal(one[name], other[name])})


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def saved_step(folder):
    with safe_open(folder / STATE_FILE, framework="pt") as file:
        return int(file.metadata()["step"])


# ---------------------------------------------------------------- what a run depends on


@either_run
def test_same_seed_gives_the_same_weights_and_history_bit_for_bit(model_config, config):
    (one, history), (other, again) = (run(config, model_config) for _ in range(2))
    assert differing(weights(one), weights(other)) == []
    assert history == again


def test_seed_of_the_training_decides_batches_and_loops():
    runs = []
    for seed in (0, 1):
        model = build_model(TINY, seed=0)
        train(model, TASK, dataclasses.replace(SHORT, seed=seed), progress=False)
        runs.append(weights(model))
    assert differing(*runs)


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = build_model(TINY, seed=5)
    torch.manual_seed(2)
    other = build_model(TINY, seed=5)
    assert differing(weights(one), weights(other)) == []
    assert differing(weights(one), weights(build_model(TINY, seed=6)))


def test_models_that_are_built_at_once_are_those_of_their_seeds():
    """Torch's own generator is one for all threads."""
    wanted = [weights(build_model(EXPERTS, seed)) for seed in range(4)]
    stop = threading.Event()

    def disturb():
        while not stop.is_set():
            torch.rand(100)

    noise = threading.Thread(target=disturb)
    noise.start()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        seeds = [seed for _ in range(10) for seed in range(4)]
        built = list(pool.map(lambda seed: weights(build_model(EXPERTS, seed)), seeds))
    stop.set()
    noise.join()
    assert not [seed for seed, found in zip(seeds, built, strict=True) if differing(found, wanted[seed])]


@either_run
def test_global_generator_is_left_alone(model_config, config, tmp_path):
    before = torch.get_rng_state()
    run(config, model_config, folder=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_watching_and_saving_do_not_change_the_run(tmp_path):
    model, _ = run(SHORT)
    watched, _ = run(dataclasses.replace(SHORT, log_every=1, checkpoint_every=1), folder=tmp_path, on_record=len)
    assert differing(weights(model), weights(watched)) == []


def test_records_come_every_few_steps_and_at_the_end(tmp_path):
    seen = []
    model, history = run(SHORT, folder=tmp_path, on_record=seen.append)
    assert [record["step"] for record in history] == [3, 6, 9, 10]
    assert history == seen == lines(tmp_path)
    assert [record["lr"] for record in history] == [learning_rate(SHORT, step - 1) for step in (3, 6, 9, 10)]
    assert saved_step(tmp_path) == SHORT.steps
    assert not model.training


def test_a_handful_of_chains_can_be_learned_by_heart():
    config = TrainConfig(
        steps=150, batch_size=16, n_train_chains=16, log_every=150, lr=1e-2, warmup_steps=10, min_loops=3, max_loops=3
    )
    _, history = run(config)
    assert history[-1]["accuracy"] == 1.0
    assert history[-1]["loss"] < 0.05


# ---------------------------------------------------------------- interruption


@either_run
@pytest.mark.parametrize("step", [6, 10])
def test_interrupted_run_ends_like_an_uninterrupted_one(model_config, config, step, tmp_path):
    whole, history = run(config, model_config, folder=tmp_path / "whole")
    with pytest.raises(Interruption):
        run(config, model_config, folder=tmp_path / "cut", on_record=interrupt_at(step))
    resumed, again = run(config, model_config, folder=tmp_path / "cut")
    assert differing(weights(resumed), weights(whole)) == []
    assert again == history
    files = [(tmp_path / name / METRICS_FILE).read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_run_can_be_interrupted_again_and_again(tmp_path):
    config = dataclasses.replace(SHORT, checkpoint_every=1, log_every=1)
    whole, history = run(config)
    for step in (2, 3, 7):
        with pytest.raises(Interruption):
            run(config, folder=tmp_path, on_record=interrupt_at(step))
        assert saved_step(tmp_path) == step - 1
    resumed, again = run(config, folder=tmp_path)
    assert differing(weights(resumed), weights(whole)) == []
    assert again == history == lines(tmp_path)


@either_run
def test_finished_run_is_returned_without_another_step(model_config, config, tmp_path, monkeypatch):
    model, history = run(config, model_config, folder=tmp_path)
    monkeypatch.setattr(StepStream, "at", None)
    again, same_history = run(config, model_config, folder=tmp_path)
    assert differing(weights(again), weights(model)) == []
    assert same_history == history == lines(tmp_path)
    assert not again.training


@either_run
def test_killed_run_goes_on_as_if_nothing_had_happened(model_config, config, tmp_path):
    config = dataclasses.replace(config, log_every=1, checkpoint_every=2)
    if not (victim := os.fork()):
        try:
            run(config, model_config, folder=tmp_path, on_record=lambda record: time.sleep(0.05))
        finally:
            os._exit(1)
    deadline = time.monotonic() + 60
    while not (tmp_path / STATE_FILE).exists() or (tmp_path / PART_FILE).read_text().count("\n") < 3:
        assert os.waitpid(victim, os.WNOHANG) == (0, 0)
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(victim, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL
    assert 0 < saved_step(tmp_path) < config.steps

    resumed, again = run(config, model_config, folder=tmp_path)
    whole, history = run(config, model_config)
    assert differing(weights(resumed), weights(whole)) == []
    assert again == history == lines(tmp_path)


# ---------------------------------------------------------------- states that cannot be resumed


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    run(folder=folder)
    return folder


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_header(path):
    path.write_bytes(path.read_bytes()[:5])


def empty(path):
    path.write_bytes(b"")


def rewrite(change):
    """The same run's state with other tensors."""

    @functools.wraps(change)
    def spoil(path):
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        change(tensors)
        save_file(tensors, path, metadata)

    return spoil


@rewrite
def drop_a_weight(tensors):
    del tensors["model.norm.weight"]


@rewrite
def drop_a_moment(tensors):
    del tensors["optimizer.0.exp_avg"]


@rewrite
def add_a_weight(tensors):
    tensors["model.other"] = torch.zeros(2)


@rewrite
def change_a_shape(tensors):
    tensors["model.norm.weight"] = torch.ones(3)


@rewrite
def spoil_a_weight(tensors):
    tensors["model.norm.weight"][2] = torch.nan


@rewrite
def spoil_a_moment(tensors):
    tensors["optimizer.0.exp_avg_sq"][2] = torch.inf


@rewrite
def change_a_type(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"].long()


def with_metadata(**values):
    """Other metadata; ``None`` takes an entry out."""

    def spoil(path):
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        save_file(tensors, path, {k: v for k, v in {**metadata, **values}.items() if v is not None})

    spoil.__name__ = ", ".join(f"{name} {str(value)[:20]}" for name, value in values.items())
    return spoil


DAMAGED_METADATA = [
    *(with_metadata(step=value) for value in (None, "", "four", "4.0", "0", "-1", "11")),
    *(with_metadata(history=value) for value in (None, "", "{}", "[]", "3", "[3]", '[{"step": 4}]', "[" * 100_000)),
]


@pytest.mark.parametrize(
    "spoil",
    [
        truncate, cut_header, empty, drop_a_weight, drop_a_moment, add_a_weight, change_a_shape,
        spoil_a_weight, spoil_a_moment, change_a_type, *DAMAGED_METADATA,
    ],
    ids=lambda spoil: spoil.__name__,
)  # fmt: skip
def test_spoiled_state_is_refused_and_the_model_left_alone(spoil, written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    spoil(tmp_path / STATE_FILE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = build_model(TINY, seed=0)
    untouched = weights(model)
    with pytest.raises(CheckpointError, match=STATE_FILE):
        train(model, TASK, SHORT, folder=tmp_path, progress=False)
    assert differing(weights(model), untouched) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("model_config", "task", "config"),
    [
        (TINY, TASK, dataclasses.replace(SHORT, seed=1)),
        (TINY, TASK, dataclasses.replace(SHORT, steps=11)),
        (dataclasses.replace(TINY, injection="additive"), TASK, SHORT),
        (TINY, ChainTask(modulus=5), SHORT),
    ],
    ids=["seed", "steps", "model", "task"],
)
def test_state_of_another_run_is_refused_and_the_model_left_alone(model_config, task, config, written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = build_model(model_config, seed=0)
    untouched = weights(model)
    with pytest.raises(CheckpointError, match=f"{STATE_FILE}.*another run"):
        train(model, task, config, folder=tmp_path, progress=False)
    assert differing(weights(model), untouched) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("edited", "refused"),
    [
        ("task/loss.py", True), ("model/moe.py", True), ("checks.py", True), ("training/trainer.py", True),
        ("measure/spectral.py", True), ("measure/plots.py", False), ("lessons/session.py", False),
    ],
)  # fmt: skip
def test_state_of_other_code_is_refused_if_training_depends_on_that(edited, refused, written, tmp_path, monkeypatch):
    package = tmp_path / "package"
    shutil.copytree(provenance.PACKAGE, package, ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    shutil.copytree(written, tmp_path / "run")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    run(folder=tmp_path / "run")
    with open(package / edited, "a") as file:
        file.write("# a comment\n")
    with pytest.raises(CheckpointError, match=f"{STATE_FILE}.*code") if refused else contextlib.nullcontext():
        run(folder=tmp_path / "run")


def test_state_of_another_objective_is_refused(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)

    def double(*arguments):
        loss, *others = chain_loss(*arguments)
        return 2 * loss, *others

    with pytest.raises(CheckpointError, match=f"{STATE_FILE}.*another run"):
        run(folder=tmp_path, objective=double)


def test_state_of_a_run_that_trained_other_weights_is_refused(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    model = build_model(TINY, seed=0)
    model.embedding.requires_grad_(False)
    with pytest.raises(CheckpointError, match=f"{STATE_FILE}.*another run"):
        train(model, TASK, SHORT, folder=tmp_path, progress=False)


def test_state_of_a_run_from_other_first_weights_is_refused(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match=f"{STATE_FILE}.*another run"):
        train(build_model(TINY, seed=1), TASK, SHORT, folder=tmp_path, progress=False)


def test_folder_that_cannot_be_written_is_an_error_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(StepStream, "at", None)
    with pytest.raises(OSError, match="file"):
        run(folder=tmp_path / "file" / "run")


# ---------------------------------------------------------------- numbers that are not numbers


def poison(model, parameter, index=...):
    """Spoil a weight after the record of step 6; the last checkpoint is that of step 4."""

    def on_record(record):
        if record["step"] == 6:
            with torch.no_grad():
                model.get_parameter(parameter)[index] = torch.nan

    return on_record


@pytest.mark.parametrize(
    ("parameter", "index", "where"),
    [
        ("prelude.0.ffn.down.weight", ..., "not finite from loop 1 of 3 on"),
        ("depth_lora_scale", 1, "not finite from loop 2 of 3 on"),
        ("depth_lora_scale", 2, "not finite from loop 3 of 3 on"),
        ("coda.0.ffn.down.weight", ..., "finite up to loop 3, the read-out after it is not"),
    ],
)
def test_loss_that_is_not_finite_is_traced_to_its_loop(parameter, index, where, tmp_path):
    config = dataclasses.replace(SHORT, min_loops=3)
    model = build_model(ADAPTER, seed=0)
    with pytest.raises(NonFiniteError, match=rf"step 7: .*{where}.*after step 4 .*{STATE_FILE}"):
        train(model, TASK, config, folder=tmp_path, on_record=poison(model, parameter, index), progress=False)


def test_last_good_state_outlives_a_run_that_blew_up(tmp_path):
    model = build_model(TINY, seed=0)
    with pytest.raises(NonFiniteError):
        train(model, TASK, SHORT, folder=tmp_path, on_record=poison(model, "norm.weight"), progress=False)
    assert saved_step(tmp_path) == 4
    resumed, history = run(folder=tmp_path)
    whole, expected = run()
    assert differing(weights(resumed), weights(whole)) == []
    assert history == expected


@pytest.mark.parametrize(("every", "kept"), [(2, "the weights after step 4 are kept"), (6, "nothing had been saved")])
def test_weights_that_are_not_finite_are_not_saved(every, kept, tmp_path):
    model = build_model(TINY, seed=0)
    with pytest.raises(NonFiniteError, match=f"the weights are not finite after step 6; {kept}"):
        train(
            model, TASK, dataclasses.replace(SHORT, checkpoint_every=every), folder=tmp_path, progress=False,
            on_record=poison(model, "norm.weight"),
        )  # fmt: skip
    assert (tmp_path / STATE_FILE).exists() == (every == 2)


def test_blow_up_without_a_folder_says_that_nothing_was_saved():
    model = build_model(TINY, seed=0)
    with pytest.raises(NonFiniteError, match=r"step 7: .*nothing had been saved"):
        train(model, TASK, SHORT, on_record=poison(model, "norm.weight"), progress=False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_measurement_that_is_not_finite_stops_the_run(value, monkeypatch):
    monkeypatch.setattr(training, "monitor", lambda *_: {"decay_radius": 0.5, "residuals": [0.5, value]})
    with pytest.raises(
        NonFiniteError, match=r"loop map is not finite after step 3: .*residuals.*nothing had been saved"
    ):
        run()


def test_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights():
    model = build_model(TINY, seed=0)
    initial = weights(model)
    model.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteError, match=r"gradient is not finite at step 1, through \d loops"):
        train(model, TASK, SHORT, progress=False)
    assert differing(weights(model), initial) == []


def test_diverging_run_is_an_error_and_not_a_crash():
    """In a process of its own: the measurements of a record must survive weights that have blown up."""
    if not (child := os.fork()):
        try:
            run(TrainConfig(steps=5, lr=1e10, warmup_steps=0, log_every=1))
        except NonFiniteError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---------------------------------------------------------------- optimiser


def test_learning_rate_warms_up_and_follows_half_a_cosine_down():
    config = TrainConfig(lr=1.0, warmup_steps=4, steps=12)
    rates = [learning_rate(config, step) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert rates[6] + rates[10] == pytest.approx(1.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.04
    assert learning_rate(config, 12) == 0.0


@pytest.mark.parametrize(("warmup_steps", "first"), [(0, 1.0), (10, 0.1), (50, 0.02)])
@looped_or_not
def test_first_step_moves_the_weights_by_its_learning_rate(kind, warmup_steps, first):
    """AdamW's first update is lr · sign of the gradient."""
    config = dataclasses.replace(SHORT, steps=1, warmup_steps=warmup_steps, lr=1e-3, weight_decay=0.0)
    trained, training_of = build(kind)
    initial = weights(trained)
    training_of(trained, TASK, config, progress=False)
    moved = max((tensor - initial[name]).abs().max().item() for name, tensor in trained.state_dict().items())
    assert moved == pytest.approx(1e-3 * first, rel=1e-2)


def test_optimiser_takes_its_numbers_from_the_configuration():
    config = dataclasses.replace(SHORT, lr=0.1, beta1=0.2, beta2=0.3, eps=0.4)
    defaults = make_optimizer(build_model(TINY, seed=0), config).defaults
    assert (defaults["lr"], defaults["betas"], defaults["eps"]) == (0.1, (0.2, 0.3), 0.4)


@looped_or_not
def test_gradients_are_clipped_to_their_norm(kind):
    """With a large eps, AdamW's first update is lr · gradient / eps."""
    config = dataclasses.replace(SHORT, steps=1, warmup_steps=0, lr=1.0, weight_decay=0.0, eps=1e3, clip_norm=0.5)
    trained, training_of = build(kind)
    initial = weights(trained)
    (record,) = training_of(trained, TASK, config, progress=False)
    assert record["grad_norm"] > 0.5
    update = torch.cat([(tensor - initial[name]).flatten() for name, tensor in trained.state_dict().items()])
    assert update.norm().item() * 1e3 == pytest.approx(0.5, rel=1e-2)


def test_eps_of_zero_is_refused():
    """Where a gradient is exactly zero, as at first in an adapter, it would divide zero by zero."""
    with pytest.raises(ValueError, match=r"eps=0\.0"):
        dataclasses.replace(SHORT, eps=0.0)


@pytest.mark.parametrize("injection", ["lti", "additive"])
def test_norms_embeddings_biases_and_injection_do_not_decay(injection):
    config = dataclasses.replace(
        EXPERTS, injection=injection, halting="act", depth_lora_rank=2, attention="mla", n_kv_heads=None,
        kv_lora_rank=8, q_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4,
    )  # fmt: skip
    model = build_model(config, seed=0)
    spared = set(model.injection.parameters())
    for module in model.modules():
        if isinstance(module, (nn.RMSNorm, nn.Embedding)):
            spared |= set(module.parameters(recurse=False))
        elif isinstance(module, nn.Linear) and module.bias is not None:
            spared.add(module.bias)
    by_decay = {group["weight_decay"]: group["params"] for group in make_optimizer(model, SHORT).param_groups}
    assert by_decay.keys() == {0.0, SHORT.weight_decay}
    assert set(by_decay[0.0]) == spared
    assert set(by_decay[SHORT.weight_decay]) == set(model.parameters()) - spared


def test_every_step_has_its_learning_rate():
    """Without momentum AdamW's update is lr · sign of the gradient, at every step."""
    config = dataclasses.replace(SHORT, log_every=1, weight_decay=0.0, beta1=0.0, beta2=0.0, lr=1e-3)
    model = build_model(TINY, seed=0)
    path = [weights(model)]
    train(model, TASK, config, on_record=lambda _: path.append(weights(model)), progress=False)
    moved = [max((b[name] - a[name]).abs().max().item() for name in a) for a, b in itertools.pairwise(path)]
    assert moved == pytest.approx([learning_rate(config, step) for step in range(config.steps)], rel=1e-2)


@looped_or_not
@pytest.mark.parametrize("ema_decay", [0.99, 0.3])
def test_run_ends_with_the_moving_average_of_its_weights(kind, ema_decay):
    """The first is limited by the run's short past at every step, the second only at the first few."""
    config = dataclasses.replace(SHORT, log_every=1, lr=1e-2, warmup_steps=0, ema_decay=ema_decay)
    model, training_of = build(kind)
    path = [{name: p.detach().double().clone() for name, p in model.named_parameters()}]
    training_of(
        model, TASK, config, progress=False,
        on_record=lambda _: path.append({name: p.detach().double().clone() for name, p in model.named_parameters()}),
    )  # fmt: skip
    average = path[0]
    for step, current in enumerate(path[1:]):
        decay = min(ema_decay, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * current[name] for name in average}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.double(), average[name], atol=1e-6, rtol=1e-6)
        assert not torch.equal(p.double(), path[-1][name])


@pytest.mark.parametrize("change", [lambda names: names.pop("norm.weight"), lambda names: names.update(other=0)])
def test_an_average_of_other_weights_is_an_error(change, monkeypatch):
    """It must not go unnoticed that a weight has none, or that one belongs to no weight."""

    def misnamed(average, model, decay, step):
        change(average)
        average_weights(average, model, decay, step)

    monkeypatch.setattr(training, "average_weights", misnamed)
    with pytest.raises((KeyError, RuntimeError), match=r"norm\.weight|other"):
        run(dataclasses.replace(AVERAGED, steps=1))


def test_run_without_averaging_ends_with_its_last_weights():
    model, last = build_model(TINY, seed=0), {}
    train(model, TASK, SHORT, on_record=lambda _: last.update(weights(model)), progress=False)
    assert differing(weights(model), last) == []


# ---------------------------------------------------------------- experts


def test_router_bias_moves_against_the_load():
    config = dataclasses.replace(SHORT, steps=1, router_bias_rate=0.01, min_loops=3)
    model, (record,) = run(config, EXPERTS)
    load = torch.tensor(record["expert_load"]).sum(dim=(0, 1))  # over loops and the one layer
    assert load.sum().item() == pytest.approx(3)
    torch.testing.assert_close(model.core[0].ffn.bias, 0.01 * torch.sign(load.mean() - load))


def test_router_bias_moves_against_the_load_of_all_loops_together():
    """The loads are such that any loop alone, and any two, would move the bias in another way."""
    picks = [[0] * 6, [1] * 7 + [2] * 2, [2] * 6]  # loads 6 0 0, 0 7 2, 0 0 6

    def planted(*arguments):
        loss, logits, turns = chain_loss(*arguments)
        chosen = [torch.tensor(own).view(1, -1, 1) for own in picks]
        stats = [
            RouterStats(torch.zeros(1, len(own), 3), chosen, None) for own, chosen in zip(picks, chosen, strict=True)
        ]
        return loss, logits, [turn._replace(routing=(own,)) for turn, own in zip(turns, stats, strict=True)]

    config = dataclasses.replace(SHORT, steps=1, router_bias_rate=0.01, min_loops=3)
    model, _ = run(config, EXPERTS, objective=planted)
    torch.testing.assert_close(model.core[0].ffn.bias, torch.tensor([0.01, 0.0, -0.01]))


def test_router_bias_stays_where_its_rate_is_zero():
    model, _ = run(dataclasses.replace(SHORT, router_bias_rate=0.0), EXPERTS)
    assert not model.core[0].ffn.bias.any()


def test_dense_records_hold_no_expert_load():
    assert "expert_load" not in run()[1][-1]


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(("n_chains", "batch_size"), [(20, 5), (21, 8), (3, 8)])
def test_each_epoch_visits_every_chain_of_a_fixed_set_once(n_chains, batch_size):
    stream = StepStream(TASK, dataclasses.replace(SHORT, n_train_chains=n_chains, batch_size=batch_size))
    wanted = Counter(map(tuple, stream.pool.token_ids.tolist()))
    per_epoch = -(-n_chains // batch_size)
    orders = []
    for epoch in range(3):
        batches = [stream.at(epoch * per_epoch + i)[0] for i in range(per_epoch)]
        visited = [tuple(row) for batch in batches for row in batch.token_ids.tolist()]
        assert Counter(visited) == wanted
        assert all((batch.n_digits.diff() >= 0).all() for batch in batches)
        orders.append(visited)
    assert per_epoch == 1 or orders[0] != orders[1]


def test_batch_of_a_step_depends_on_nothing_but_seed_and_step():
    one, other = (StepStream(TASK, SHORT) for _ in range(2))
    expected = [one.at(step) for step in range(5)]
    for step in (3, 0, 4):
        batch, n_loops = other.at(step)
        assert n_loops == expected[step][1]
        assert all(torch.equal(a, b) for a, b in zip(batch, expected[step][0], strict=True))
    assert not torch.equal(expected[0][0].token_ids, expected[1][0].token_ids)


def test_loop_counts_cover_their_range():
    stream = StepStream(TASK, dataclasses.replace(SHORT, min_loops=2, max_loops=4))
    assert {stream.at(step)[1] for step in range(60)} == {2, 3, 4}


def test_training_uses_the_batches_and_loops_of_its_stream_and_no_held_out_chain():
    seen, stream = [], StepStream(TASK, SHORT)

    def spy(model, config, batch, n_loops):
        seen.append((batch, n_loops))
        return chain_loss(model, config, batch, n_loops)

    _, history = run(objective=spy)
    assert len({n_loops for _, n_loops in seen}) > 1
    assert [record["n_loops"] for record in history] == [seen[record["step"] - 1][1] for record in history]
    for step, (batch, n_loops) in enumerate(seen):
        expected, expected_loops = stream.at(step)
        assert n_loops == expected_loops
        assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
        for row, n in zip(batch.token_ids, batch.n_digits.tolist(), strict=True):
            assert not TASK.is_held_out(row[1 : n + 1].unsqueeze(0)).any()


# ---------------------------------------------------------------- progress and errors


@pytest.mark.parametrize(
    ("ci", "progress", "shown"),
    [("true", None, False), ("", None, True), (None, None, True), ("true", True, True), (None, False, False)],
)
def test_progress_is_shown_unless_ci_is_set_or_the_caller_decides(ci, progress, shown, monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    if ci is not None:
        monkeypatch.setenv("CI", ci)
    train(build_model(TINY, 0), TASK, dataclasses.replace(SHORT, steps=1), progress=progress)
    captured = capsys.readouterr()
    assert ("training" in captured.err) == shown
    assert captured.out == ""


@pytest.mark.parametrize("progress", [None, True])
def test_a_run_needs_no_stderr(progress, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with open(os.devnull, "w") as closed:
        pass
    for stderr in (None, closed):
        monkeypatch.setattr(sys, "stderr", stderr)
        train(build_model(TINY, 0), TASK, dataclasses.replace(SHORT, steps=1), progress=progress)


@pytest.mark.parametrize(
    ("model_config", "task", "config", "named"),
    [
        (TINY, ChainTask(n_symbols=8), SHORT, r"vocab_size=10.*11 tokens"),
        (dataclasses.replace(TINY, pad_token_id=None), TASK, SHORT, r"pad_token_id=None.*9"),
        (dataclasses.replace(TINY, pad_token_id=0), TASK, SHORT, r"pad_token_id=0.*9"),
        (dataclasses.replace(TINY, max_seq_len=6), TASK, SHORT, r"n_digits=5.*max_seq_len=6"),
        (TINY, TASK, dataclasses.replace(SHORT, ponder_cost=0.1), r"ponder_cost=0\.1.*halting"),
        (TINY, TASK, dataclasses.replace(AVERAGED, max_digits=6), r"max_loops=3.*6 digits need 4 loops"),
        (dataclasses.replace(TINY, window=1), TASK, AVERAGED, r"window=1"),
        (
            dataclasses.replace(TINY, window=None),
            TASK,
            dataclasses.replace(SHORT, max_digits=5, max_loops=4, loss="from_length"),
            r"max_loops=4.*5 digits need 5",
        ),
        (
            dataclasses.replace(TINY, dilated=True, n_prelude_layers=0, n_coda_layers=0),
            TASK,
            dataclasses.replace(AVERAGED, max_digits=8, max_loops=3),
            r"max_loops=3.*8 digits need 4 loops",
        ),
        (TINY, PointerTask(), SHORT, r"vocab_size=10.*601 tokens"),
    ],
)
def test_model_task_and_training_that_do_not_fit_are_refused(model_config, task, config, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        train(build_model(model_config, 0), task, config, folder=tmp_path / "run", progress=False)
    assert not os.listdir(tmp_path)


def test_longest_chain_that_fits_is_accepted():
    run(dataclasses.replace(SHORT, steps=1), dataclasses.replace(TINY, max_seq_len=7))


@pytest.mark.parametrize("loss", ["last", "from_needed"])
def test_model_that_halts_trains_with_a_ponder_cost(loss):
    _, history = run(dataclasses.replace(SHORT, ponder_cost=0.01, loss=loss), ADAPTER)
    assert history[-1]["step"] == SHORT.steps


def test_a_model_in_bfloat16_is_refused():
    with pytest.raises(ValueError, match=r"torch\.bfloat16; train in float32"):
        train(build_model(TINY, seed=0).bfloat16(), TASK, SHORT)


# ---------------------------------------------------------------- modes that the caller set


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=True),
    "another default device": lambda: torch.device("meta"),
    "another default type": lambda: default_dtype(torch.float64),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_run_is_the_same_in_every_mode(mode):
    config = dataclasses.replace(AVERAGED, steps=4)
    wanted, history = run(config, EXPERTS)
    model = build_model(EXPERTS, config.seed)
    with mode():
        again = train(model, TASK, config, progress=False)
    assert differing(weights(model), weights(wanted)) == []
    assert again == history


@pytest.mark.parametrize("mode", [MODES["inference"], MODES["another default device"], MODES["another default type"]])
def test_a_model_built_in_any_mode_can_be_trained(mode):
    with mode():
        model = build_model(TINY, SHORT.seed)
    train(model, TASK, SHORT, progress=False)
    assert differing(weights(model), weights(run()[0])) == []


def test_a_model_of_inference_tensors_is_refused():
    with torch.inference_mode():
        model = RecurrentDepthTransformer(TINY)
    with pytest.raises(ValueError, match=r"made inside torch\.inference_mode"):
        train(model, TASK, SHORT, progress=False)


# ---------------------------------------------------------------- wrapped and frozen models


@either_run
def test_a_compiled_model_trains_as_the_module_that_it_was_made_of(model_config, config, tmp_path):
    wanted, history = run(config, model_config, folder=tmp_path / "plain")
    model = build_model(model_config, config.seed)
    again = train(torch.compile(model), TASK, config, folder=tmp_path / "compiled", progress=False)
    assert differing(weights(model), weights(wanted)) == []
    assert again == history
    files = [(tmp_path / name / STATE_FILE).read_bytes() for name in ("plain", "compiled")]
    assert files[0] == files[1]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: nn.Sequential(m)])
def test_the_same_parameters_decay_whatever_they_are_wrapped_in(wrap):
    model = build_model(TINY, 0)
    plain, wrapped = (make_optimizer(each, SHORT) for each in (model, wrap(model)))
    for one, other in zip(plain.param_groups, wrapped.param_groups, strict=True):
        assert one["weight_decay"] == other["weight_decay"]
        assert list(map(id, one["params"])) == list(map(id, other["params"]))


@pytest.mark.parametrize("wrap", [nn.DataParallel, nn.Sequential])
def test_other_wrappers_are_refused(wrap):
    with pytest.raises(ValueError, match=f"train takes a RecurrentDepthTransformer, not {wrap.__name__}"):
        train(wrap(build_model(TINY, 0)), TASK, SHORT, progress=False)


def test_everything_may_be_frozen_but_the_coda():
    model = build_model(TINY, 0).requires_grad_(False)
    model.coda.requires_grad_()
    before = weights(model)
    history = train(model, TASK, SHORT, progress=False)
    assert {name.partition(".")[0] for name in differing(before, weights(model))} == {"coda"}
    assert history[-1]["gradient_norms"] == [0.0] * SHORT.max_loops


def test_a_model_that_is_frozen_as_a_whole_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        train(build_model(TINY, 0).requires_grad_(False), TASK, SHORT, progress=False)


# ---------------------------------------------------------------- models without a loop


@pytest.mark.parametrize("config", [SHORT, dataclasses.replace(SHORT, ema_decay=0.9)], ids=["plain", "averaged"])
def test_a_model_without_a_loop_is_trained_logged_and_resumed_like_any_other(config, tmp_path):
    (whole, training_of), (cut, _), (resumed, _) = (build("plain") for _ in range(3))
    history = training_of(whole, TASK, config, progress=False)
    assert [record["step"] for record in history] == [3, 6, 9, 10]
    assert all(record.keys() == {"step", "loss", "accuracy", "lr", "grad_norm"} for record in history)
    assert not whole.training
    with pytest.raises(Interruption):
        training_of(cut, TASK, config, folder=tmp_path, progress=False, on_record=interrupt_at(6))
    assert training_of(resumed, TASK, config, folder=tmp_path, progress=False) == history == lines(tmp_path)
    assert differing(weights(resumed), weights(whole)) == []


def test_a_model_without_a_loop_learns():
    config = dataclasses.replace(SHORT, steps=150, batch_size=16, n_train_chains=16, lr=3e-2, log_every=150)
    model, training_of = build("plain")
    assert training_of(model, TASK, config, progress=False)[-1]["accuracy"] > 0.9


def test_blow_up_of_a_model_without_a_loop_is_named_with_its_step():
    model, training_of = build("plain")
    with pytest.raises(NonFiniteError, match=r"loss is not finite at step 7; nothing had been saved"):
        training_of(model, TASK, SHORT, progress=False, on_record=poison(model, "head.weight"))


# ---------------------------------------------------------------- one run to a folder


def test_two_runs_cannot_write_into_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "PATIENCE", 0.1)
    said = []

    def meanwhile(record):
        if not said:
            with pytest.raises(OSError, match="another run is writing here") as caught:
                concurrent.futures.ThreadPoolExecutor(1).submit(run, folder=tmp_path).result()
            said.append(str(caught.value))

    _, history = run(folder=tmp_path, on_record=meanwhile)
    assert said
    assert lines(tmp_path) == history
    with only_writer(tmp_path):  # whoever holds the folder may train in it
        run(folder=tmp_path)


def test_an_earlier_runs_records_stay_until_the_next_run_has_ended(tmp_path):
    run(folder=tmp_path)
    before = (tmp_path / METRICS_FILE).read_bytes()
    (tmp_path / STATE_FILE).unlink()
    with pytest.raises(Interruption):
        run(dataclasses.replace(SHORT, seed=3), folder=tmp_path, on_record=interrupt_at(3))
    assert (tmp_path / METRICS_FILE).read_bytes() == before
    _, history = run(dataclasses.replace(SHORT, seed=3), folder=tmp_path)
    assert lines(tmp_path) == history
    assert sorted(os.listdir(tmp_path)) == [METRICS_FILE, STATE_FILE]


def test_a_flipped_bit_in_a_saved_state_is_found_out(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    content = bytearray((tmp_path / STATE_FILE).read_bytes())
    content[-100] ^= 1
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{STATE_FILE} is damaged"):
        run(folder=tmp_path)


def test_seeds_of_numpy_give_the_same_run(tmp_path):
    run(folder=tmp_path)
    config = dataclasses.replace(SHORT, seed=np.int64(SHORT.seed), lr=np.float64(SHORT.lr))
    assert run(config, folder=tmp_path)[1] == run()[1]  # its state is taken for the same run's
