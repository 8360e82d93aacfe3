"""Radii, singular values, gradient norms and residuals against slower ways to get them.

Shapes: T positions, D width, one sequence.
"""

import copy
import dataclasses
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mythos_lite import RecurrentDepthTransformer
from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.measure.spectral import (
    METHODS,
    decay_radius,
    gains_along_chain,
    gradient_norms,
    jacobian,
    jacobian_radius,
    largest_singular_value,
    loop_radii,
    make_loop_map,
    monitor,
    residuals,
)
from mythos_lite.model.attention import attention_context
from mythos_lite.task.chains import Batch, ChainTask, make_generator
from mythos_lite.task.loss import answer_logits, supervised_loops
from mythos_lite.training.trainer import build_model

TASK = ChainTask()
SMALL = ModelConfig(d_model=16, n_heads=2, n_kv_heads=1, d_ff=16)
MLA = {
    "attention": "mla",
    "n_kv_heads": None,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
}
EXPERTS = {"n_experts": 3, "n_experts_per_token": 2, "n_shared_experts": 1, "d_expert": 8}
CONFIGS = {
    "lti": SMALL,
    "additive": dataclasses.replace(SMALL, injection="additive"),
    "mla": dataclasses.replace(SMALL, **MLA),
    "experts": dataclasses.replace(SMALL, **EXPERTS),
    "mla, experts, full attention": dataclasses.replace(SMALL, **MLA, **EXPERTS, window=None, n_core_layers=2),
    "loop index, adapter, act": dataclasses.replace(
        SMALL, loop_index_embedding=True, depth_lora_rank=2, halting="act", injection="additive"
    ),
}
LAST = TrainConfig()
HOLD = TrainConfig(min_digits=1, min_loops=1, loss="from_needed")
everywhere = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
either_method = pytest.mark.parametrize("method", ["exact", "iterative"])


def build(config, dtype=torch.float64):
    """A model in which every part does something: nothing starts at zero."""
    model = build_model(config, seed=0)
    if config.depth_lora_rank:
        torch.nn.init.normal_(model.depth_lora_up.weight, std=0.1, generator=make_generator(1))
    return model.to(dtype)


def tokens(n=5, seed=0):
    return TASK.encode(TASK.sample(1, n - 2, make_generator(seed), "train")).token_ids


def map_and_state(config, dtype=torch.float64, n=5, t=2):
    """The map of loop ``t`` and the state that it is given there."""
    model, ids = build(config, dtype), tokens(n)
    loop_map, state = make_loop_map(model, ids, t)
    for turn in model.loop(ids, t) if t else ():
        state = turn.state.detach()
    return loop_map, state


def draw(size=8, low=2, high=5):
    return TASK.batch(size, low, high, make_generator(0))


# ---------------------------------------------------------------- linear maps that are known


def with_eigenvalues(pairs, generator):
    """A real matrix with the eigenvalues a ± bi, on a random basis."""
    normal = torch.block_diag(*(torch.tensor([[a, -b], [b, a]], dtype=torch.float64) for a, b in pairs))
    basis = torch.eye(len(normal)) + 0.2 * torch.randn(normal.shape, generator=generator, dtype=torch.float64)
    return basis @ normal @ torch.linalg.inv(basis)


class LinearMap:
    """h → A h, causal: blocks on the diagonal, ``coupling`` times noise below it."""

    def __init__(self, blocks, coupling):
        n, d = len(blocks), len(blocks[0])
        below = torch.randn(n, n, d, d, generator=make_generator(7), dtype=torch.float64)
        self.parts = coupling * below * torch.ones(n, n).tril(-1)[:, :, None, None]
        self.parts[range(n), range(n)] = torch.stack(blocks)  # (T, T, D, D)
        self.state = torch.randn(1, n, d, generator=make_generator(8), dtype=torch.float64)

    def __call__(self, h):
        return torch.einsum("tsab,nsb->nta", self.parts.to(h.dtype), h)

    def dense(self):
        return self.parts.transpose(1, 2).flatten(2).flatten(0, 1)


def known_map(largest, place, coupling):
    """Four positions, eight channels; the eigenvalues of largest modulus, ``largest``, sit at ``place``."""
    generator = make_generator(3)
    pairs = [[(0.3, 0.2), (-0.5, 0.1), (0.1, 0.4), (0.2, 0.0)] for _ in range(4)]
    pairs[place][2] = largest
    return LinearMap([with_eigenvalues(p, generator) for p in pairs], coupling)


@either_method
@pytest.mark.parametrize("largest", [(0.0, 0.9), (-0.8, 0.3), (0.6, 1.2)])
@pytest.mark.parametrize("place", [0, 2, 3])
def test_radius_of_a_known_map_whatever_lies_below_the_diagonal(method, largest, place):
    for coupling in (0.0, 100.0):
        known = known_map(largest, place, coupling)
        radius = jacobian_radius(known, known.state, method=method)
        assert radius == pytest.approx(math.hypot(*largest), rel=1e-6)


@either_method
@pytest.mark.parametrize("coupling", [0.0, 1.0, 100.0])
def test_singular_value_of_a_known_map(method, coupling):
    known = known_map((0.6, 0.6), 1, coupling)
    sigma = largest_singular_value(known, known.state, method=method)
    assert sigma == pytest.approx(torch.linalg.matrix_norm(known.dense(), 2).item(), rel=0.01)


@pytest.mark.parametrize("at_once", [2**18, 100])
def test_jacobian_of_a_linear_map_is_its_matrix(at_once, monkeypatch):
    monkeypatch.setattr("mythos_lite.measure.spectral._AT_ONCE", at_once)
    known = known_map((0.6, 0.6), 1, 1.0)
    torch.testing.assert_close(jacobian(known, known.state), known.dense())
    ignoring = torch.ones(1, 1, 1, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(jacobian(lambda h: ignoring.expand(h.shape), known.state), 0.0 * known.dense())


@either_method
def test_map_can_stretch_errors_at_once_and_still_let_them_die_out(method):
    block = torch.tensor([[0.5, 10.0], [0.0, 0.4]], dtype=torch.float64)
    shear = LinearMap([block, block], coupling=0.0)
    assert largest_singular_value(shear, shear.state, method=method) > 10
    assert jacobian_radius(shear, shear.state, method=method) == pytest.approx(0.5)
    error = shear.state
    for _ in range(60):
        error = shear(error)
    assert error.norm() < 1e-9


@either_method
@pytest.mark.parametrize("factor", [0.0, 1.0, -2.0])
def test_multiples_of_the_identity(method, factor):
    h = torch.randn(1, 3, 6, generator=make_generator(0))
    assert jacobian_radius(lambda x: factor * x, h, method=method) == pytest.approx(abs(factor))
    assert largest_singular_value(lambda x: factor * x, h, method=method) == pytest.approx(abs(factor))


@pytest.mark.parametrize("seed", range(3))
def test_few_iterations_come_close_on_random_maps(seed):
    blocks = torch.randn(4, 64, 64, generator=make_generator(seed), dtype=torch.float64) / 8
    random = LinearMap(list(blocks), coupling=0.1)
    exact = jacobian_radius(random, random.state, method="exact")
    assert jacobian_radius(random, random.state, method="iterative") == pytest.approx(exact, rel=0.1)
    assert jacobian_radius(random, random.state, method="iterative", n_iterations=48) == pytest.approx(exact, rel=0.03)


# ---------------------------------------------------------------- the model's loop map


@pytest.mark.parametrize("injection", ["lti", "additive"])
def test_decay_radius_is_that_of_the_diagonal_matrix(injection):
    model = build(dataclasses.replace(SMALL, injection=injection), torch.float32)
    with torch.no_grad():
        model.injection.a.normal_(generator=make_generator(0))
    dense = torch.diag(model.injection.decay().detach())
    assert decay_radius(model) == pytest.approx(torch.linalg.eigvals(dense).abs().max().item())


@everywhere
def test_loop_map_is_one_turn_of_the_loop(config):
    model, ids = build(config), tokens()
    loop_map, start = make_loop_map(model, ids)
    for turn in model.loop(ids, 4):
        loop_map, e = make_loop_map(model, ids, turn.loop - 1)
        torch.testing.assert_close(loop_map(turn.previous), turn.state)
        torch.testing.assert_close(e, start)
        two = loop_map(torch.cat([turn.previous, turn.state]))
        torch.testing.assert_close(two[:1], turn.state)
    assert not start.requires_grad


@everywhere
def test_jacobian_agrees_with_reverse_mode_and_with_finite_differences(config):
    loop_map, h = map_and_state(config, n=4)
    dense = jacobian(loop_map, h)
    with sdpa_kernel(SDPBackend.MATH):
        reverse = torch.func.jacrev(loop_map)(h).reshape(h.numel(), h.numel())
    torch.testing.assert_close(dense, reverse)
    nudge = 1e-3  # the router and the decay compute in float32, so no smaller one would tell
    basis = torch.eye(h.numel(), dtype=h.dtype).view(-1, *h.shape[1:])
    with torch.no_grad():
        columns = (loop_map(h + nudge * basis) - loop_map(h - nudge * basis)) / (2 * nudge)
    torch.testing.assert_close(dense, columns.flatten(1).T, atol=2e-3, rtol=2e-3)


@everywhere
def test_jacobian_is_causal(config):
    loop_map, h = map_and_state(config)
    n, d = h.shape[1:]
    reached = jacobian(loop_map, h).view(n, d, n, d).abs().amax(dim=(1, 3)) > 0
    assert not reached.triu(1).any()
    assert reached.diagonal().all()


@everywhere
def test_exact_radius_is_that_of_the_whole_jacobian(config):
    loop_map, h = map_and_state(config)
    whole = torch.linalg.eigvals(jacobian(loop_map, h)).abs().max().item()
    assert jacobian_radius(loop_map, h, method="exact") == pytest.approx(whole, rel=1e-6)
    assert jacobian_radius(loop_map, h) == jacobian_radius(loop_map, h, method="exact")


@everywhere
def test_iterative_radius_is_exact_once_it_has_as_many_iterations_as_channels(config):
    loop_map, h = map_and_state(config, torch.float32)
    exact = jacobian_radius(loop_map, h, method="exact")
    for n_iterations in (16, 40):
        iterative = jacobian_radius(loop_map, h, method="iterative", n_iterations=n_iterations)
        assert iterative == pytest.approx(exact, rel=1e-3)


def lesson_map_and_state(injection, seed):
    """The loop map of the lesson's model at its initial weights, and the state after three loops."""
    model, ids = build_model(ModelConfig(injection=injection), seed), tokens(7, seed)
    *_, last = model.loop(ids, 3)
    return make_loop_map(model, ids)[0], last.state


@pytest.mark.parametrize("injection", ["lti", "additive"])
@pytest.mark.parametrize("seed", range(2))
def test_fewer_iterations_than_channels_come_close_on_the_lesson_model(injection, seed):
    loop_map, h = lesson_map_and_state(injection, seed)
    exact = jacobian_radius(loop_map, h, method="exact")
    assert jacobian_radius(loop_map, h, method="iterative") == pytest.approx(exact, rel=0.03)


@everywhere
def test_exact_singular_value_bounds_the_radius_and_is_that_of_the_whole_jacobian(config):
    loop_map, h = map_and_state(config, torch.float32)
    sigma = largest_singular_value(loop_map, h, method="exact")
    assert sigma == pytest.approx(torch.linalg.matrix_norm(jacobian(loop_map, h), 2).item(), rel=1e-5)
    assert sigma == largest_singular_value(loop_map, h)
    assert sigma >= jacobian_radius(loop_map, h, method="exact")


@everywhere
def test_iterative_singular_value_is_within_one_percent(config):
    loop_map, h = map_and_state(config, torch.float32)
    exact = largest_singular_value(loop_map, h, method="exact")
    assert largest_singular_value(loop_map, h, method="iterative") == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("injection", ["lti", "additive"])
@pytest.mark.parametrize("seed", range(2))
def test_iterative_singular_value_is_within_one_percent_on_the_lesson_model(injection, seed):
    loop_map, h = lesson_map_and_state(injection, seed)
    exact = largest_singular_value(loop_map, h, method="exact")
    assert largest_singular_value(loop_map, h, method="iterative") == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(
    ("measure", "n_numbers"), [(jacobian_radius, 5 * 16**2), (largest_singular_value, (5 * 16) ** 2)]
)
def test_large_problems_go_the_iterative_way(measure, n_numbers, monkeypatch):
    """Positions count as well as channels: the radius needs T blocks of D × D, the singular value (T·D)² numbers."""
    loop_map, h = map_and_state(SMALL, n=5)
    exact, rough = measure(loop_map, h, method="exact"), measure(loop_map, h, n_iterations=3, method="iterative")
    assert rough != exact
    for limit, wanted in ((n_numbers, exact), (n_numbers - 1, rough)):
        monkeypatch.setattr("mythos_lite.measure.spectral.EXACT_NUMBERS", limit)
        assert measure(loop_map, h, n_iterations=3) == wanted


@pytest.mark.parametrize("measure", [jacobian_radius, largest_singular_value])
def test_iterative_measures_follow_their_seed_and_leave_the_global_generator_alone(measure):
    loop_map, h = map_and_state(SMALL)
    before = torch.get_rng_state()
    one, other = (measure(loop_map, h, method="iterative", n_iterations=5, seed=3) for _ in range(2))
    assert one == other
    assert one != measure(loop_map, h, method="iterative", n_iterations=5, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- gradients and residuals over the loops


def loss_from_state(model, train, batch, n_loops, t, h):
    """The training loss if the state after loop ``t`` were ``h``."""
    context = attention_context(model.config, batch.token_ids.shape[1], None, h.device)
    e = model.encode(batch.token_ids, context)
    states = [turn.state.detach() for turn in model.loop(batch.token_ids, n_loops)]
    states[t - 1] = h
    for later in range(t, n_loops):
        states[later] = model.loop_map(states[later - 1], e, later, context)[0]
    loss = 0.0
    for loop, weights in zip(*supervised_loops(model.config, train, n_loops, batch.n_digits), strict=True):
        logits = answer_logits(model, states[loop - 1], batch.answer_positions)
        loss = loss + (F.cross_entropy(logits, batch.answers, reduction="none") * weights).sum()
    return loss


@pytest.mark.parametrize("train", [LAST, HOLD], ids=["last", "from_needed"])
@pytest.mark.parametrize("name", ["lti", "additive", "mla, experts, full attention"])
def test_gradient_norms_are_those_of_a_loop_restarted_from_each_state(train, name):
    model, batch = build(CONFIGS[name], torch.float32), draw()
    norms = gradient_norms(model, train, batch, 4)
    states = [turn.state.detach().requires_grad_() for turn in model.loop(batch.token_ids, 4)]
    by_hand = [
        torch.autograd.grad(loss_from_state(model, train, batch, 4, t, h), h)[0].norm().item()
        for t, h in enumerate(states, start=1)
    ]
    assert norms == pytest.approx(by_hand, rel=1e-4)
    assert all(norm > 0 for norm in norms)


def test_gradient_norm_is_the_slope_of_the_loss():
    """Finite differences along the gradient itself, where the slope is its norm."""
    model, batch = build(SMALL), draw()
    h = next(model.loop(batch.token_ids, 3)).state.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_from_state(model, LAST, batch, 3, 1, h), h)
    step = 1e-2 * gradient / gradient.norm()
    up, down = (loss_from_state(model, LAST, batch, 3, 1, h + sign * step).item() for sign in (1, -1))
    assert gradient_norms(model, LAST, batch, 3)[0] == pytest.approx((up - down) / 2e-2, rel=1e-2)


def test_loops_after_the_loss_have_no_gradient_norm():
    """No chain of this batch can be answered, so nothing depends on any state."""
    assert gradient_norms(build(SMALL), HOLD, draw(low=9, high=9), 2) == [0.0, 0.0]


@everywhere
def test_residuals_are_relative_changes_averaged_over_real_tokens(config):
    model, batch = build(config), draw(size=6)
    per_token = []
    for row, n in zip(batch.token_ids, batch.n_digits.tolist(), strict=True):
        chain = row[: n + 2].unsqueeze(0)
        with torch.no_grad():
            states = model(chain, n_loops=3, trace=True).trace.states[:, 0]  # (L, T, D)
        before = torch.cat([make_loop_map(model, chain)[1], states[:-1]])
        per_token.append((states - before).norm(dim=-1) / states.norm(dim=-1))
    assert residuals(model, batch, 3) == pytest.approx(torch.cat(per_token, dim=1).mean(dim=1).tolist(), rel=1e-4)


# ---------------------------------------------------------------- the monitor


@everywhere
@pytest.mark.parametrize("train", [LAST, HOLD], ids=["last", "from_needed"])
def test_monitor_is_finite_json_with_one_value_per_loop(config, train):
    line = monitor(build(config, torch.float32), train, draw(), 3)
    assert json.loads(json.dumps(line, allow_nan=False)) == line
    assert 0 < line["decay_radius"] < 1
    assert {len(line[name]) for name in ("residuals", "gradient_norms")} == {3}
    assert line["jacobian_radius"] > 0


@everywhere
def test_loop_radii_are_those_of_each_map_at_its_state_and_the_monitor_logs_the_last(config):
    model, batch = build(config, torch.float32), draw(size=24)
    chain = batch.token_ids[-1:, : batch.n_digits[-1] + 2]
    by_hand = [
        jacobian_radius(make_loop_map(model, chain, turn.loop - 1)[0], turn.previous, method="exact")
        for turn in model.loop(chain, 3)
    ]
    assert loop_radii(model, chain, [3, 1, 2]) == pytest.approx(by_hand)
    assert loop_radii(model, chain, [2]) == pytest.approx(by_hand[1:2])
    assert monitor(model, LAST, batch, 3)["jacobian_radius"] == pytest.approx(by_hand[-1])


@pytest.mark.parametrize(
    ("loops", "named"),
    [
        *(([*bad], "loops must be a whole number, 1 or more") for bad in ([0], [-1, 2], [1.5], [True])),
        ([], "loops must hold at least one"),
        (3, "loops must be whole numbers in a row"),
        ("3", "loops must be whole numbers in a row"),
    ],
)
def test_loop_radii_refuse_what_is_no_loop(loops, named):
    model = build(SMALL)
    with pytest.raises(ValueError, match=named):
        loop_radii(model, draw().token_ids[-1:], loops)


@pytest.mark.parametrize("name", ["lti", "mla, experts, full attention", "loop index, adapter, act"])
def test_monitor_leaves_gradients_weights_mode_and_generator_alone(name):
    model, batch = build(CONFIGS[name], torch.float32).train(), draw()
    with_gradient = model.norm.weight
    with_gradient.grad = torch.full_like(with_gradient, 5.0)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    monitor(model, LAST, batch, 3)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert (with_gradient.grad == 5.0).all()
    assert all(p.grad is None for p in model.parameters() if p is not with_gradient)
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator)


def test_monitor_works_where_gradients_are_off():
    model, batch = build(SMALL, torch.float32), draw()
    chain = batch.token_ids[-1:]
    expected = loop_radii(model, chain, [1])
    with torch.no_grad():
        loop_map, e = make_loop_map(model, chain)
        assert [jacobian_radius(loop_map, e)] == loop_radii(model, chain, [1]) == pytest.approx(expected)


def test_monitor_takes_a_batch_of_one():
    model = build(SMALL, torch.float32)
    one = Batch(*(column[:1] for column in draw()))
    assert len(monitor(model, LAST, one, 2)["residuals"]) == 2


# ---------------------------------------------------------------- along the chain


def gains_by_running(loop_map, h, position, size):
    """Hold an error in every channel in turn, run the loop until it rests, and look at what became of it."""
    d = h.shape[2]
    held = h[0, position] + size * torch.eye(d, dtype=h.dtype)
    states = h.repeat(d, 1, 1)
    for _ in range(200):
        states = loop_map(states)
        states[:, position] = held
    response = (states - h)[:, position + 1 :] / size  # (D, later, D)
    return [torch.linalg.matrix_norm(at, 2).item() for at in response.unbind(1)]


@pytest.mark.parametrize("position", [0, 2])
def test_gains_of_a_known_map_are_what_running_it_gives(position):
    known = known_map((0.6, 0.6), 3, 0.3)
    at_rest = torch.zeros_like(known.state)
    gains = gains_along_chain(known, at_rest, position)
    assert gains == pytest.approx(gains_by_running(known, at_rest, position, 1.0), rel=1e-6)
    assert len(gains) == 3 - position


@torch.no_grad()
def test_in_the_shipped_model_errors_fade_along_the_chain_as_running_it_shows():
    model = RecurrentDepthTransformer.from_pretrained("mod7").double()
    ids = TASK.encode(TASK.sample(1, 10, make_generator(0), "held_out")).token_ids
    loop_map, h = make_loop_map(model, ids)
    for _ in range(200):
        h = loop_map(h)
    gains = gains_along_chain(loop_map, h, 2)
    assert gains == pytest.approx(gains_by_running(loop_map, h, 2, 1e-6), rel=1e-3)
    assert gains[5] < 0.05


def test_gains_of_a_map_that_blew_up_are_not_numbers():
    assert all(map(math.isnan, gains_along_chain(lambda h: h * math.nan, torch.ones(1, 3, 4), 0)))


@pytest.mark.parametrize(("shape", "position", "named"), [((2, 3, 4), 0, r"\(2, 3, 4\)"), ((1, 3, 4), 2, "position=2")])
def test_gains_reject_what_has_no_later_position(shape, position, named):
    with pytest.raises(ValueError, match=named):
        gains_along_chain(lambda h: h, torch.zeros(shape), position)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("measure", [jacobian_radius, largest_singular_value])
@pytest.mark.parametrize(
    ("shape", "arguments", "named"),
    [
        ((1, 3, 4), {"method": "lanczos"}, "'lanczos'.*'auto', 'exact', 'iterative'"),
        ((1, 3, 4), {"n_iterations": 0}, "n_iterations=0"),
        ((1, 3, 4), {"n_iterations": 2.5}, "n_iterations=2.5"),
        ((2, 3, 4), {}, r"\(2, 3, 4\)"),
        ((3, 4), {}, r"\(3, 4\)"),
    ],
)
def test_measures_reject_what_they_cannot_do(measure, shape, arguments, named):
    with pytest.raises(ValueError, match=named):
        measure(lambda h: h, torch.zeros(shape), **arguments)


@pytest.mark.parametrize(
    ("ids", "t", "named"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), 0, r"\(2, 3\)"),
        (torch.full((1, 3), 10), 0, "token id 10"),
        (torch.zeros(1, 3, dtype=torch.int64), -1, "t=-1"),
    ],
)
def test_loop_map_rejects_what_it_cannot_do(ids, t, named):
    with pytest.raises(ValueError, match=named):
        make_loop_map(build(SMALL), ids, t)


def test_radii_of_a_bfloat16_model_are_near_those_in_float32():
    model = build_model(ModelConfig(d_model=16, n_heads=2, n_kv_heads=1, d_ff=16), seed=0)
    ids = torch.tensor([[7, 1, 2, 8]])
    values = []
    for each in (model, copy.deepcopy(model).bfloat16()):
        loop_map, e = make_loop_map(each, ids)
        values.append([jacobian_radius(loop_map, e), largest_singular_value(loop_map, e)])
    assert values[1] == pytest.approx(values[0], rel=0.05)


# ---------------------------------------------------------------- modes that the caller set


def measures_of(model, ids):
    """Every measure on one sequence, the way that a lesson calls them."""
    loop_map, e = make_loop_map(model, ids)
    values = {
        f"{measure.__name__}, {method}": [measure(loop_map, e, method=method)]
        for measure in (jacobian_radius, largest_singular_value)
        for method in ("exact", "iterative")
    }
    values["gains"] = gains_along_chain(loop_map, e, 1)
    values["radii"] = loop_radii(model, ids, [1, 3])
    values["monitor"] = [monitor(model, LAST, draw(), 3)["jacobian_radius"]]
    values["gradients"] = gradient_norms(model, LAST, draw(), 3)
    return values


MODES = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=True),
    "another default device": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def measured_without_a_mode():
    model = build(CONFIGS["mla, experts, full attention"], torch.float32)
    return model, measures_of(model, tokens())


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_measures_say_the_same_in_every_mode(mode, measured_without_a_mode):
    model, wanted = measured_without_a_mode
    assert wanted["largest_singular_value, exact"][0] > 0.1
    ids = tokens()
    with mode():
        got = measures_of(model, ids)
    for measure, values in wanted.items():
        assert got[measure] == pytest.approx(values, rel=1e-4), measure


def test_tensors_made_in_inference_mode_may_be_measured():
    model = build(SMALL, torch.float32)
    wanted = loop_radii(model, tokens(), [1, 3])
    with torch.inference_mode():
        ids, batch = tokens(), draw()
        state = list(model.loop(ids, 2))[-1].state
    assert loop_radii(model, ids, [1, 3]) == pytest.approx(wanted)
    assert jacobian_radius(make_loop_map(model, ids)[0], state) == pytest.approx(wanted[1], rel=1e-3)
    assert gradient_norms(model, LAST, batch, 3) == gradient_norms(model, LAST, draw(), 3)


def test_a_model_of_inference_tensors_is_refused():
    with torch.inference_mode():
        model = RecurrentDepthTransformer(SMALL)
    with pytest.raises(ValueError, match=r"made inside torch\.inference_mode"):
        make_loop_map(model, tokens())


def test_a_compiled_model_is_measured_as_the_module_that_it_was_made_of():
    model = build(SMALL, torch.float32)
    compiled = torch.compile(model)
    assert measures_of(compiled, tokens()) == measures_of(model, tokens())


@pytest.mark.parametrize("blocked", [torch.no_grad(), torch.inference_mode(), lambda f: lambda h: f(h).detach()])
@pytest.mark.parametrize(
    "measure",
    [
        jacobian,
        *(partial(measure, method=m) for measure in (jacobian_radius, largest_singular_value) for m in METHODS),
        partial(gains_along_chain, position=0),
    ],
)
def test_a_map_that_leaves_no_trace_is_refused_and_not_called_stable(measure, blocked):
    loop_map, e = map_and_state(SMALL)
    with pytest.raises(ValueError, match="no derivative can be taken through this loop map"):
        measure(blocked(loop_map), e)


def test_a_frozen_model_has_no_gradient_norms():
    model = build(SMALL, torch.float32).requires_grad_(False)
    assert gradient_norms(model, LAST, draw(), 3) == [0.0, 0.0, 0.0]
    model.coda.requires_grad_()
    assert gradient_norms(model, LAST, draw(), 3) == [0.0, 0.0, 0.0]


# ---------------------------------------------------------------- maps that blew up, and long chains


PROGRAM = """
import itertools, json, math, torch
from pathlib import Path
from mythos_lite import ModelConfig, RecurrentDepthTransformer
from mythos_lite.measure.spectral import (
    gains_along_chain, jacobian_radius, largest_singular_value, make_loop_map
)
def peak():  # in megabytes; what getrusage says begins with the peak of the process that started this one
    words = PROC.read_text().split() if PROC.exists() else ["VmHWM:", 0]
    return int(words[words.index("VmHWM:") + 1]) // 1024
PROC = Path("/proc/self/status")
torch.set_num_threads(1)
start, peaks = peak(), {}
ids = torch.zeros(1, 384, dtype=torch.int64)
loop_map, e = make_loop_map(RecurrentDepthTransformer(ModelConfig()), ids)
assert len(gains_along_chain(loop_map, e, 381)) == 2
peaks["gains, 384 positions"] = peak() - start
assert jacobian_radius(lambda h: 0.5 * h, torch.ones(1, 64, 128)) == 0.5
peaks["exact radius, 64 positions, width 128"] = peak() - start
loop_map, e = make_loop_map(RecurrentDepthTransformer(ModelConfig(d_model=256)), ids[:, :64])
auto, iterative = (jacobian_radius(loop_map, e, method=m, n_iterations=2) for m in ("auto", "iterative"))
assert auto == iterative
peaks["radius, 64 positions, width 256"] = peak() - start
blown_up = []
for measure, method, bad in itertools.product(
    (jacobian_radius, largest_singular_value), ("exact", "iterative"), (math.nan, math.inf)
):
    try:
        blown_up.append(measure(lambda h: h * bad, torch.ones(1, 3, 16), method=method))
    except (ArithmeticError, ValueError):
        blown_up.append(math.nan)
print(json.dumps({"megabytes": peaks, "blown up": blown_up}))
"""


@pytest.fixture(scope="module")
def in_a_process_of_its_own():
    """Whose peak of memory is its own, and which may crash."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_map_that_blew_up_does_not_take_the_process_with_it(in_a_process_of_its_own):
    """LAPACK may crash on NaN; a diverging run must end in an exception or in a number that says so."""
    values = in_a_process_of_its_own["blown up"]
    assert len(values) == 8
    assert not any(map(math.isfinite, values))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what the peak of a process was")
def test_long_chains_take_little_memory(in_a_process_of_its_own):
    """64 positions of width 256 took 1.2 GB when the radius was exact at any length and kept all rows of J."""
    peaks = in_a_process_of_its_own["megabytes"]
    assert len(peaks) == 3
    assert all(0 < megabytes < 300 for megabytes in peaks.values()), peaks


@pytest.mark.parametrize(
    "state", [torch.zeros(1, 3, 4, dtype=torch.int64), torch.zeros(1, 0, 4), torch.zeros(1, 3, 0), torch.zeros(0, 3, 4)]
)
@pytest.mark.parametrize(
    "measure",
    [jacobian, jacobian_radius, largest_singular_value, partial(gains_along_chain, position=0)],
)
def test_states_that_are_none_are_refused(measure, state):
    with pytest.raises(ValueError, match="the state must be floating-point numbers of shape"):
        measure(lambda h: h, state)
    with pytest.raises(ValueError, match="the state must be a tensor"):
        measure(lambda h: h, np.zeros((1, 3, 4)))


@pytest.mark.parametrize("n_iterations", [np.int64(24), torch.tensor(24)])
def test_numbers_of_numpy_and_torch_are_taken(n_iterations):
    loop_map, e = map_and_state(SMALL)
    wanted = jacobian_radius(loop_map, e, method="iterative", n_iterations=24)
    seed = n_iterations - 24  # 0 in either kind
    assert jacobian_radius(loop_map, e, method="iterative", n_iterations=n_iterations, seed=seed) == wanted
    model = build(SMALL)
    assert loop_radii(model, tokens(), np.array([1, 3])) == loop_radii(model, tokens(), (n for n in (1, 3)))
