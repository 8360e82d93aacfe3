"""Three additions to the loss."""

import dataclasses

import pytest
import torch

from mythos_lite import ChainTask, ModelConfig
from mythos_lite.config import TrainConfig
from mythos_lite.study import cures
from mythos_lite.study.plan import chosen_runs
from mythos_lite.study.run import OBJECTIVES, Run, execute
from mythos_lite.task.chains import make_generator
from mythos_lite.task.loss import chain_loss
from mythos_lite.training.recipes import Sweep
from mythos_lite.training.trainer import build_model, train

TASK = ChainTask()
TRAIN = TrainConfig(steps=3, batch_size=8, log_every=3, warmup_steps=0, seed=3)
ADDED = ("noisy_loss", "fixed_point_loss", "jacobian_loss")


def model_and_batch(**fields):
    model = build_model(dataclasses.replace(ModelConfig(d_model=16, n_heads=2, n_kv_heads=2, d_ff=32), **fields), 1)
    return model, TASK.batch(8, 2, 5, make_generator(4))


@pytest.mark.parametrize("name", ADDED)
def test_each_gives_a_loss_of_its_own_again_and_again(name):
    model, batch = model_and_batch()
    loss, logits, turns = OBJECTIVES[name](model, TRAIN, batch, 4)
    again, *_ = OBJECTIVES[name](model, TRAIN, batch, 4)
    plain, plain_logits, _ = chain_loss(model, TRAIN, batch, 4)
    assert loss.item() == again.item() != plain.item()
    assert len(turns) == 4
    assert torch.equal(logits, plain_logits) == (name != "noisy_loss")
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_noise_has_the_size_that_it_says_and_another_seed_draws_other_noise():
    model, batch = model_and_batch()
    *_, turns = cures.noisy_loss(model, TRAIN, batch, 1)
    *_, (clean,) = chain_loss(model, TRAIN, batch, 1)
    assert (turns[0].state - clean.state).std().item() == pytest.approx(cures.NOISE, rel=0.1)
    *_, others = cures.noisy_loss(model, dataclasses.replace(TRAIN, seed=4), batch, 1)
    assert not torch.equal(turns[0].state, others[0].state)


def test_fixed_point_loss_is_the_squared_residual_of_one_loop_more(monkeypatch):
    monkeypatch.setattr(cures, "REST_WEIGHT", 10.0)  # of a difference of two losses .01 of it would be lost in rounding
    model, batch = model_and_batch()
    added = cures.fixed_point_loss(model, TRAIN, batch, 3)[0] - chain_loss(model, TRAIN, batch, 3)[0]
    *_, last = model.loop(batch.token_ids, 4)
    moved = ((last.state - last.previous).norm(dim=-1) / last.previous.norm(dim=-1)) ** 2
    read = batch.token_ids != model.config.pad_token_id
    assert added.item() == pytest.approx(cures.REST_WEIGHT * moved[read].mean().item(), rel=1e-3)


def test_jacobian_penalty_is_near_the_largest_singular_value_squared():
    """Of one chain, where it can be computed in full; three steps of power iteration come close from below."""
    model, _ = model_and_batch(initializer_range=0.6)
    batch = TASK.encode(torch.tensor([[3, 1, 4]]))
    added = cures.jacobian_loss(model, TRAIN, batch, 3)[0] - chain_loss(model, TRAIN, batch, 3)[0]
    *_, last = model.loop(batch.token_ids, 3)
    context = model._context(batch.token_ids, None)
    e = model.encode(batch.token_ids, context)
    full = torch.autograd.functional.jacobian(lambda h: model.loop_map(h, e, 3, context)[0], last.state.detach())
    sigma = torch.linalg.svdvals(full.reshape(last.state.numel(), -1)).max().item()
    assert 0.8 * sigma**2 < added.item() / cures.JACOBIAN_WEIGHT < 1.01 * sigma**2


def test_padding_has_no_part_in_any_of_them():
    model, _ = model_and_batch()
    short = TASK.encode(torch.tensor([[3, 1]]))
    padded = short._replace(token_ids=torch.nn.functional.pad(short.token_ids, (0, 3), value=TASK.pad_id))
    a, b = (cures.fixed_point_loss(model, TRAIN, batch, 3)[0].item() for batch in (short, padded))
    assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("name", ADDED)
def test_a_run_keeps_its_objective(name):
    (run,) = (
        run for run in chosen_runs(["cures"], seeds=[50]) if run.rung.startswith("fixed") and run.objective == name
    )
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=2, batch_size=4, warmup_steps=0))
    run = dataclasses.replace(run, sweeps=(Sweep(lengths=(6,), loops=(8,), n_chains=5),))
    record, *_ = execute(run, ["study", "cures"])
    assert Run.from_dict(record) == run
    with pytest.raises(ValueError, match="objective='sleep'"):
        Run.from_dict({**record, "objective": "sleep"})


def test_training_with_one_differs_from_training_without():
    weights = {}
    for objective in (chain_loss, *(OBJECTIVES[name] for name in ADDED)):
        model, _ = model_and_batch()
        train(model, TASK, TRAIN, objective=objective, progress=False)
        weights[objective.__name__] = torch.cat([p.flatten() for p in model.parameters()])
    assert len({tuple(values.tolist()) for values in weights.values()}) == 4
