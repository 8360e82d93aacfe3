"""The loss at EQ: what it counts, which loops it reads, and where its gradient goes.

Shapes: L loops, B chains, T positions, V vocabulary.
"""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.task.chains import Batch, ChainTask, make_generator
from mythos_lite.task.loss import answer_logits, chain_loss, supervised_loops
from mythos_lite.training.trainer import build_model

TASK = ChainTask()
SMALL = ModelConfig(d_model=16, n_heads=2, n_kv_heads=1, d_ff=16)
MLA = {
    "attention": "mla", "n_kv_heads": None, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4,
}  # fmt: skip
EXPERTS = {"n_experts": 3, "n_experts_per_token": 2, "n_shared_experts": 1, "d_expert": 8}
CONFIGS = {
    "lti": SMALL,
    "additive": dataclasses.replace(SMALL, injection="additive"),
    "dilated, no injection": dataclasses.replace(SMALL, dilated=True, injection="none"),
    "mla, experts": dataclasses.replace(SMALL, **MLA, **EXPERTS),
    "loop index, adapter, act": dataclasses.replace(
        SMALL, loop_index_embedding=True, depth_lora_rank=2, halting="act", injection="additive"
    ),
}
LAST = TrainConfig(batch_size=8)
HOLD = TrainConfig(batch_size=8, min_digits=1, min_loops=1, loss="from_needed")
STEPWISE = dataclasses.replace(HOLD, loss="from_length")
everywhere = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
either_loss = pytest.mark.parametrize("train", [LAST, HOLD], ids=["last", "from_needed"])
every_loss = pytest.mark.parametrize("train", [LAST, HOLD, STEPWISE], ids=["last", "from_needed", "from_length"])


def build(config):
    """A model in which every part does something: nothing starts at zero."""
    model = build_model(config, seed=0)
    if config.depth_lora_rank:
        torch.nn.init.normal_(model.depth_lora_up.weight, std=0.1, generator=make_generator(1))
    return model


def draw(seed=0, low=2, high=5, size=8):
    return TASK.batch(size, low, high, make_generator(seed))


def loss_of(model, train, batch, n_loops=4):
    return chain_loss(model, train, batch, n_loops)[0]


def with_ponder_cost(train, config):
    return dataclasses.replace(train, ponder_cost=0.1) if config.halting == "act" else train


def pad(batch, more):
    return batch._replace(token_ids=F.pad(batch.token_ids, (0, more), value=TASK.pad_id))


# ---------------------------------------------------------------- the position of EQ


@everywhere
@either_loss
def test_only_states_that_eq_sees_through_the_coda_carry_gradient(config, train):
    batch = draw()
    loss, _, turns = chain_loss(build(config), train, batch, 4)
    last = turns[-1]  # with ACT, whose sum reads this loop's state with the weight that is left
    (gradient,) = torch.autograd.grad(loss, last.state if last.act is None else last.act.left)
    gradient = gradient if last.act is None else gradient.unsqueeze(-1)
    reached = gradient.abs().sum(-1) > 0  # (B, T)
    back = batch.answer_positions.unsqueeze(1) - torch.arange(reached.shape[1])  # steps back from EQ
    seen = reached.shape[1] if config.window is None else config.n_coda_layers * (config.window - 1)
    assert torch.equal(reached, (back >= 0) & (back <= seen))


@everywhere
@every_loss
def test_tokens_after_eq_change_nothing(config, train):
    model, batch = build(config), draw()
    tokens = batch.token_ids.clone()
    after = torch.arange(tokens.shape[1]) > batch.answer_positions.unsqueeze(1)
    assert after.any()
    tokens[after] = 3
    torch.testing.assert_close(loss_of(model, train, batch._replace(token_ids=tokens)), loss_of(model, train, batch))


@everywhere
@every_loss
def test_more_padding_changes_nothing(config, train):
    model, batch, train = build(config), draw(), with_ponder_cost(train, config)
    torch.testing.assert_close(loss_of(model, train, pad(batch, 5)), loss_of(model, train, batch))


@every_loss
def test_chains_of_a_batch_do_not_see_each_other(train):
    model, batch = build(SMALL), draw(size=6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = Batch(*(column[order] for column in batch))
    torch.testing.assert_close(loss_of(model, train, shuffled), loss_of(model, train, batch))


@pytest.mark.parametrize(
    ("window", "n_coda_layers"), [(2, 1), (2, 0), (2, 2), (3, 1), (3, 4), (1, 1), (None, 1)], ids=str
)
def test_answer_logits_are_the_full_read_out_at_eq(window, n_coda_layers):
    model = build(dataclasses.replace(SMALL, window=window, n_coda_layers=n_coda_layers))
    batch = draw()
    h = torch.randn(*batch.token_ids.shape, model.config.d_model, generator=make_generator(0))
    full = model.read_out(h)[torch.arange(len(h)), batch.answer_positions]
    torch.testing.assert_close(answer_logits(model, h, batch.answer_positions), full)


def test_answer_logits_are_float32_for_a_bfloat16_model():
    model, batch = build(SMALL).bfloat16(), draw()
    h = torch.zeros(*batch.token_ids.shape, model.config.d_model, dtype=torch.bfloat16)
    assert answer_logits(model, h, batch.answer_positions).dtype == torch.float32


# ---------------------------------------------------------------- which loops, and how much


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=10), n_loops=st.integers(1, 12))
def test_supervised_loops_average_from_the_needed_loop_on(lengths, n_loops):
    loops, weights = supervised_loops(SMALL, HOLD, n_loops, torch.tensor(lengths))
    needed = [SMALL.loops_needed(n) for n in lengths]
    answerable = [n <= n_loops for n in needed]
    assert weights.shape == (len(loops), len(lengths))
    assert loops == sorted(set(loops))
    assert all(1 <= loop <= n_loops for loop in loops)
    assert weights.sum().item() == pytest.approx(float(any(answerable)))
    for chain, (first, possible) in enumerate(zip(needed, answerable, strict=True)):
        expected = {loop: 1 / (n_loops - first + 1) / sum(answerable) for loop in range(first, n_loops + 1) if possible}
        found = {loop: weights[row, chain].item() for row, loop in enumerate(loops) if weights[row, chain]}
        assert found == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=10),
    n_loops=st.integers(1, 12),
    window=st.sampled_from([None, 1, 2, 5]),
    dilated=st.booleans(),
)
def test_from_length_averages_from_the_loop_of_the_chains_length_on(lengths, n_loops, window, dilated):
    """Whatever the model's window: how many loops it needs is not asked."""
    model = dataclasses.replace(SMALL, window=window, dilated=dilated and window in (2, 5))
    loops, weights = supervised_loops(model, STEPWISE, n_loops, torch.tensor(lengths))
    answerable = [n <= n_loops for n in lengths]
    assert weights.shape == (len(loops), len(lengths))
    assert weights.sum().item() == pytest.approx(float(any(answerable)))
    for chain, n in enumerate(lengths):
        found = {loop: weights[row, chain].item() for row, loop in enumerate(loops) if weights[row, chain]}
        each = 1 / max(1, n_loops - n + 1) / max(1, sum(answerable))
        assert found == pytest.approx(dict.fromkeys(range(n, n_loops + 1), each))


def test_from_length_weights_written_out():
    loops, weights = supervised_loops(SMALL, STEPWISE, 4, torch.tensor([2, 3, 3, 4, 5]))
    assert loops == [2, 3, 4]
    expected = [[1 / 3, 0, 0, 0, 0], [1 / 3, 1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 2, 1 / 2, 1, 0]]
    torch.testing.assert_close(weights, torch.tensor(expected) / 4)


def test_from_needed_of_a_dilated_model_begins_at_the_logarithm():
    model = dataclasses.replace(SMALL, dilated=True, n_prelude_layers=0, n_coda_layers=0)
    loops, weights = supervised_loops(model, HOLD, 5, torch.tensor([1, 3, 4, 7, 8, 15]))
    assert loops == [1, 2, 3, 4, 5]
    assert [(column > 0).nonzero()[0].item() + 1 for column in weights.T] == [1, 2, 3, 3, 4, 4]


def test_last_reads_the_last_loop_and_weighs_all_chains_alike():
    loops, weights = supervised_loops(SMALL, LAST, 3, torch.tensor([2, 5, 9, 40]))
    assert loops == [3]
    assert weights.tolist() == [[0.25] * 4]


def test_batch_that_cannot_be_answered_has_no_loss_and_no_gradient():
    model, batch = build(SMALL), draw(low=8, high=9)
    loss = sum(loss_of(model, train, batch, n_loops=2) for train in (HOLD, STEPWISE))
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


# ---------------------------------------------------------------- values


@everywhere
def test_last_is_the_cross_entropy_of_a_plain_forward_pass(config):
    model, batch = build(config), draw()
    for n_loops in (1, 3):
        logits = model(batch.token_ids, n_loops=n_loops).logits
        at_eq = torch.stack([row[i] for row, i in zip(logits, batch.answer_positions.tolist(), strict=True)])
        loss, answers, turns = chain_loss(model, LAST, batch, n_loops)
        torch.testing.assert_close(loss, F.cross_entropy(at_eq, batch.answers))
        torch.testing.assert_close(answers, at_eq)
        assert [turn.loop for turn in turns] == list(range(1, n_loops + 1))


@everywhere
def test_from_needed_is_the_mean_over_loops_of_separate_forward_passes(config):
    model, batch = build(config), draw(low=1, high=5)
    n_loops = 4
    per_chain = []
    for i, n in enumerate(batch.n_digits.tolist()):
        one = Batch(*(column[i : i + 1] for column in batch))
        counts = range(config.loops_needed(n), n_loops + 1)
        per_chain.append(torch.stack([loss_of(model, LAST, one, count) for count in counts]).mean())
    torch.testing.assert_close(loss_of(model, HOLD, batch, n_loops), torch.stack(per_chain).mean())


@everywhere
def test_from_length_is_the_mean_over_loops_of_separate_forward_passes(config):
    model, batch, n_loops = build(config), draw(low=1, high=6), 4
    per_chain = []
    for i, n in enumerate(batch.n_digits.tolist()):
        one = Batch(*(column[i : i + 1] for column in batch))
        losses = [loss_of(model, LAST, one, count) for count in range(n, n_loops + 1)]
        per_chain += [torch.stack(losses).mean()] if losses else []
    assert 0 < len(per_chain) < len(batch.answers)
    torch.testing.assert_close(loss_of(model, STEPWISE, batch, n_loops), torch.stack(per_chain).mean())


@every_loss
def test_returned_logits_are_those_of_the_last_loop_and_detached(train):
    model, batch = build(SMALL), draw()
    _, logits, _ = chain_loss(model, train, batch, 4)
    full = model(batch.token_ids, n_loops=4).logits
    expected = full[torch.arange(len(full)), batch.answer_positions]
    torch.testing.assert_close(logits, expected.detach())
    assert not logits.requires_grad


@every_loss
def test_ponder_cost_adds_its_mean_over_the_tokens_that_are_not_padding(train):
    model, batch = build(CONFIGS["loop index, adapter, act"]), draw()
    cost = model(batch.token_ids, n_loops=4).ponder_cost[batch.token_ids != TASK.pad_id].mean()
    plain = loss_of(model, train, batch)
    for weight in (0.01, 1.0):
        with_cost = loss_of(model, dataclasses.replace(train, ponder_cost=weight), batch)
        torch.testing.assert_close(with_cost, plain + weight * cost)


# ---------------------------------------------------------------- gradients


@everywhere
@every_loss
def test_every_parameter_learns(config, train):
    model = build(config)
    loss_of(model, with_ponder_cost(train, config), draw(size=32, low=1, high=5)).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_ponder_cost_alone_teaches_the_halting_unit_to_stop_earlier():
    model = build(CONFIGS["loop index, adapter, act"])
    train = dataclasses.replace(LAST, ponder_cost=100.0)
    loss_of(model, train, draw()).backward()
    assert model.halting.unit.bias.grad.item() < 0
