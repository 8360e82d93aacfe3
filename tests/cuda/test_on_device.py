"""What must be the same on another device as on a CPU: run by ``make test-cuda``, which names it in MYTHOS_TEST_DEVICE.

The tests themselves can be tried anywhere: ``MYTHOS_TEST_DEVICE=cpu python -m pytest tests/cuda``.
"""

import dataclasses
import os

import pytest
import torch

from mythos_lite import ChainTask, ModelConfig, RecurrentDepthTransformer, TrainConfig
from mythos_lite.files.checkpoint import shipped_names
from mythos_lite.measure.spectral import loop_radii
from mythos_lite.measure.sweep import evaluation_chains, sweep
from mythos_lite.model.cache import Cache
from mythos_lite.study.depth import DOUBLING, POINTERS
from mythos_lite.study.run import Run, execute
from mythos_lite.training.recipes import Sweep, mod7_moe_model, published_model
from mythos_lite.training.trainer import build_model, train

if "MYTHOS_TEST_DEVICE" not in os.environ:
    pytest.skip("the environment variable MYTHOS_TEST_DEVICE does not name a device", allow_module_level=True)

DEVICE = torch.device(os.environ["MYTHOS_TEST_DEVICE"])
DIGITS = ChainTask()
CONFIGS = {
    "dense": ModelConfig(), "experts and latents": mod7_moe_model(), "dilated": DOUBLING,
    "as published": dataclasses.replace(published_model("mla"), vocab_size=10, pad_token_id=9),
    "full attention, groups": ModelConfig(window=None, n_kv_heads=2),
}  # fmt: skip
every_model = pytest.mark.parametrize("name", shipped_names())
every_config = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(autouse=True)
def full_precision():
    """Products of float32 in float32: TF32 would round the operands to ten bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_both(name):
    return [RecurrentDepthTransformer.from_pretrained(name, device=device) for device in ("cpu", DEVICE)]


def questions(name, count=100):
    """Tokens (B, T), answers (B,) and enough loops for a shipped model."""
    task, length, n_loops = (POINTERS, 8, 8) if name == "pointers" else (DIGITS, 12, 12)
    batch = task.encode(evaluation_chains(task, length, count, seed=2))
    return batch.token_ids, batch.answers, n_loops


@every_model
@torch.no_grad()
def test_shipped_models_answer_as_on_a_cpu(name):
    ids, answers, n_loops = questions(name)
    here, there = on_both(name)
    logits, others = here(ids, n_loops=n_loops).logits, there(ids.to(DEVICE), n_loops=n_loops).logits
    assert others.device.type == DEVICE.type
    torch.testing.assert_close(others.cpu(), logits, atol=1e-3, rtol=1e-3)
    assert (others[:, -1].argmax(-1).cpu() == answers).float().mean() >= 0.98


@every_model
@torch.no_grad()
def test_bfloat16_answers_as_float32_does(name):
    """With weights and states of eight bits; ``mod7-experts`` chooses experts by scores that lie close together."""
    ids, _, n_loops = questions(name)
    here, there = on_both(name)
    there = there.to(torch.bfloat16)
    logits = there(ids.to(DEVICE), n_loops=n_loops).logits
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
    same = logits[:, -1].argmax(-1).cpu() == here(ids, n_loops=n_loops).logits[:, -1].argmax(-1)
    assert same.float().mean() >= 0.9


@every_model
def test_generated_tokens_are_those_of_a_cpu(name):
    ids, _, n_loops = questions(name, 8)
    here, there = on_both(name)
    written = [model.generate(ids.to(device), max_new_tokens=3, n_loops=n_loops).cpu()
               for model, device in ((here, "cpu"), (there, DEVICE))]  # fmt: skip
    assert torch.equal(*written)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "dilated"])
@torch.no_grad()
def test_token_by_token_equals_one_pass(name):
    model, ids = build_model(CONFIGS[name], 0, DEVICE).eval(), torch.randint(0, 7, (4, 12), device=DEVICE)
    cache = Cache(12)
    pieces = [model(piece, n_loops=3, cache=cache).logits for piece in ids.split([5, 1, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids, n_loops=3).logits, atol=1e-4, rtol=1e-4)


@every_config
def test_training_has_the_losses_of_a_cpu(name):
    config = TrainConfig(steps=12, batch_size=32, warmup_steps=4, log_every=1, ema_decay=0.9, min_digits=1)
    losses = []
    for device in ("cpu", DEVICE):
        model = build_model(CONFIGS[name], 0, device)
        losses.append([record["loss"] for record in train(model, DIGITS, config, progress=False)])
        assert next(model.parameters()).device.type == torch.device(device).type
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], abs=5e-3)


def test_training_goes_on_where_it_was_stopped(tmp_path):
    class Stopped(Exception):
        pass

    def stop(record):
        if record["step"] == 6:
            raise Stopped

    config = TrainConfig(steps=10, batch_size=16, log_every=1, checkpoint_every=2, ema_decay=0.9)
    whole = train(build_model(ModelConfig(), 0, DEVICE), DIGITS, config, progress=False)
    with pytest.raises(Stopped):
        train(build_model(ModelConfig(), 0, DEVICE), DIGITS, config, folder=tmp_path, on_record=stop, progress=False)
    again = train(build_model(ModelConfig(), 0, DEVICE), DIGITS, config, folder=tmp_path, progress=False)
    assert [r["loss"] for r in again] == pytest.approx([r["loss"] for r in whole], abs=1e-4)


@torch.no_grad()
def test_a_checkpoint_goes_to_a_cpu_and_back(tmp_path):
    model, ids = build_model(mod7_moe_model(), 0, DEVICE).eval(), torch.randint(0, 7, (4, 12))
    model.save_pretrained(tmp_path)
    for device in ("cpu", DEVICE):
        loaded = RecurrentDepthTransformer.from_pretrained(tmp_path, device=device)
        for (key, one), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(one.cpu(), other.cpu()), key
        logits = loaded(ids.to(device), n_loops=3).logits.cpu()
        torch.testing.assert_close(logits, model(ids.to(DEVICE), n_loops=3).logits.cpu(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["mod7", "mod7-experts"])
def test_radii_are_those_of_a_cpu(name):
    ids, *_ = questions(name, 1)
    radii = [loop_radii(model, ids.to(device), [4, 12])
             for model, device in zip(on_both(name), ("cpu", DEVICE), strict=True)]  # fmt: skip
    assert radii[1] == pytest.approx(radii[0], rel=0.02)


def test_a_sweep_counts_what_a_cpu_counts():
    rows = [sweep(model, DIGITS, [8, 32], [4, 8, 32], n_chains=200) for model in on_both("mod7")]
    for one, other in zip(*rows, strict=True):
        assert abs(one["n_correct"] - other["n_correct"]) <= 1


def test_a_run_of_a_study_says_where_it_was_made():
    asked = (Sweep(lengths=(3,), loops=(2, 4), n_chains=20),)
    training = TrainConfig(steps=4, batch_size=16)
    run = Run(study="passing", rung="x", seed=0, task=DIGITS, model=ModelConfig(), train=training, sweeps=asked)
    record, model, _ = execute(run, ["study", "passing"], device=DEVICE)
    assert record["provenance"]["device"] == str(DEVICE)
    assert next(model.parameters()).device.type == DEVICE.type
