"""The mixture of experts against a readable loop over experts and against DeepSeek-V3's layer."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from mythos_lite import ModelConfig, RecurrentDepthTransformer
from mythos_lite.model.moe import SparseMoE, hold_experts
from mythos_lite.task.chains import make_generator
from mythos_lite.training.trainer import build_model


def make_moe(
    *, n_experts: int = 4, k: int = 2, n_shared: int = 1, d_model: int = 12, d_expert: int = 6, seed: int = 0
) -> SparseMoE:
    """Experts of unit gain and a router that makes up its mind."""
    config = ModelConfig(
        d_model=d_model, n_heads=1, n_kv_heads=1, n_experts=n_experts, n_experts_per_token=k, n_shared_experts=n_shared,
        d_expert=d_expert,
    )  # fmt: skip
    torch.manual_seed(seed)
    moe = SparseMoE(config)
    with torch.no_grad():
        for p in (moe.gate, moe.up, moe.down):
            p.normal_(std=p.shape[1] ** -0.5)
        moe.router.weight.normal_(std=d_model**-0.5)
        moe.bias.normal_(std=0.1)
    return moe


def choose(moe: SparseMoE, x: Tensor) -> Tensor:
    """(B, T, k) experts with the largest scores plus bias, found by sorting."""
    scores = torch.sigmoid(x @ moe.router.weight.T)
    return (scores + moe.bias).argsort(dim=-1, descending=True)[..., : moe.n_experts_per_token]


def loop_over_experts(moe: SparseMoE, x: Tensor, chosen: Tensor) -> Tensor:
    """Every expert answers every token; where it was not chosen its gate is zero."""
    scores = torch.sigmoid(x @ moe.router.weight.T)
    gates = scores * torch.zeros_like(scores).scatter(-1, chosen, 1.0)
    gates = gates / gates.sum(dim=-1, keepdim=True)
    y = torch.zeros_like(x)
    for expert in range(moe.gate.shape[0]):
        answer = (F.silu(x @ moe.gate[expert]) * (x @ moe.up[expert])) @ moe.down[expert]
        y = y + gates[..., expert : expert + 1] * answer
    if moe.shared is not None:
        y = y + (F.silu(x @ moe.shared.gate.weight.T) * (x @ moe.shared.up.weight.T)) @ moe.shared.down.weight.T
    return y


def assert_equal_with_gradients(moe: SparseMoE, x: Tensor) -> None:
    x = x.detach().requires_grad_()
    wanted = [x, *moe.parameters()]
    got, stats = moe(x)
    assert torch.equal(stats.chosen, choose(moe, x))
    expected = loop_over_experts(moe, x, stats.chosen)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(got)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), wanted) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- against the loop


@pytest.mark.parametrize("n_shared", [0, 2])
@pytest.mark.parametrize(("n_experts", "k"), [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 3)])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 7), (5, 1), (3, 6)])
def test_experts_in_blocks_equal_a_loop_over_experts(n_experts, k, n_shared, batch, length):
    moe = make_moe(n_experts=n_experts, k=k, n_shared=n_shared)
    assert_equal_with_gradients(moe, torch.randn(batch, length, 12))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(2, 9), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2), st.integers(0, 99))
def test_any_shape_equals_a_loop_over_experts(data, n_experts, batch, length, n_shared, seed):
    k, d_expert = data.draw(st.integers(1, n_experts)), data.draw(st.integers(1, 9))
    d_model = 2 * data.draw(st.integers(1, 7))
    moe = make_moe(n_experts=n_experts, k=k, n_shared=n_shared, d_model=d_model, d_expert=d_expert, seed=seed)
    assert_equal_with_gradients(moe, torch.randn(batch, length, d_model))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("favoured", [0, 2, 3])
def test_all_tokens_may_go_to_one_expert(favoured, k):
    moe, x = make_moe(k=k), torch.randn(3, 7, 12)
    moe.bias[favoured] = 10.0
    assert moe(x)[1].load[favoured] == 21
    assert_equal_with_gradients(moe, x)


@pytest.mark.parametrize("neglected", [[0], [3], [1, 2], [0, 3]])
def test_an_expert_may_get_no_token(neglected):
    moe, x = make_moe(), torch.randn(3, 7, 12)
    moe.bias[neglected] = -10.0
    assert (moe(x)[1].load[neglected] == 0).all()
    assert_equal_with_gradients(moe, x)


def test_experts_without_tokens_get_no_gradient():
    moe = make_moe()
    moe.bias[1] = -10.0
    moe(torch.randn(2, 5, 12))[0].sum().backward()
    for p in (moe.gate, moe.up, moe.down):
        assert (p.grad[1] == 0).all()
        assert (p.grad[[0, 2, 3]] != 0).any(dim=-1).any(dim=-1).all()


def test_choosing_every_expert_is_a_dense_mixture():
    moe, x = make_moe(k=4, n_shared=0), torch.randn(3, 7, 12)
    shares = torch.sigmoid(moe.router(x))
    shares = shares / shares.sum(dim=-1, keepdim=True)
    hidden = F.silu(torch.einsum("btd,edf->btef", x, moe.gate)) * torch.einsum("btd,edf->btef", x, moe.up)
    expected = torch.einsum("bte,btef,efd->btd", shares, hidden, moe.down)
    torch.testing.assert_close(moe(x)[0], expected, atol=1e-5, rtol=1e-5)


def test_tokens_are_answered_one_by_one_whatever_their_neighbours():
    moe, x = make_moe(), torch.randn(3, 7, 12)
    together = moe(x)[0]
    for b in range(3):
        for t in range(7):
            torch.testing.assert_close(moe(x[b : b + 1, t : t + 1])[0], together[b : b + 1, t : t + 1])


# ---------------------------------------------------------------- against DeepSeek-V3


def deepseek_moe(moe: SparseMoE, n_shared: int) -> nn.Module:
    n_experts, d_model, d_expert = moe.gate.shape
    peer = DeepseekV3MoE(
        DeepseekV3Config(
            hidden_size=d_model, moe_intermediate_size=d_expert, n_routed_experts=n_experts, n_shared_experts=n_shared,
            num_experts_per_tok=moe.n_experts_per_token, n_group=1, topk_group=1, routed_scaling_factor=1.0,
            norm_topk_prob=True, experts_implementation="eager",
        )
    )  # fmt: skip
    peer.load_state_dict(
        {
            "gate.weight": moe.router.weight,
            "gate.e_score_correction_bias": moe.bias,
            "experts.gate_up_proj": torch.cat([moe.gate, moe.up], dim=-1).transpose(1, 2),
            "experts.down_proj": moe.down.transpose(1, 2),
            **{f"shared_experts.{name}_proj.weight": p.weight for name, p in moe.shared.named_children()},
        }
    )
    return peer


@pytest.mark.parametrize("n_shared", [1, 2])
@pytest.mark.parametrize(("n_experts", "k"), [(2, 1), (4, 2), (8, 3), (4, 4)])
def test_equals_deepseek_v3(n_experts, k, n_shared):
    moe, x = make_moe(n_experts=n_experts, k=k, n_shared=n_shared), torch.randn(3, 9, 12)
    got, stats = moe(x)
    peer = deepseek_moe(moe, n_shared)
    expected = peer(x)
    assert expected.abs().max() > 0.5
    assert (got - expected).abs().max() <= 1e-5
    _, _, chosen = peer.gate(x)
    assert torch.equal(chosen.sort().values, stats.chosen.flatten(0, 1).sort().values)


# ---------------------------------------------------------------- the router's bias


def test_the_bias_moves_the_choice_and_never_the_gates():
    moe, x = make_moe(n_shared=0), torch.randn(4, 8, 12)
    moe.bias.zero_()
    _, before = moe(x)
    moe.bias[1] = 10.0
    y, after = moe(x)
    assert (after.chosen == 1).any(-1).all()
    assert not torch.equal(before.chosen, after.chosen)
    assert torch.equal(before.entropy, after.entropy)
    torch.testing.assert_close(y, loop_over_experts(moe, x, after.chosen), atol=1e-5, rtol=1e-5)


def test_the_bias_changes_nothing_where_every_expert_is_chosen():
    moe, x = make_moe(k=4), torch.randn(2, 5, 12)
    before = moe(x)[0]
    moe.bias.uniform_(-5, 5)
    torch.testing.assert_close(moe(x)[0], before, atol=1e-5, rtol=1e-5)


def test_the_bias_is_no_parameter_but_is_saved():
    moe = make_moe()
    assert "bias" not in dict(moe.named_parameters())
    assert "bias" in moe.state_dict()


@pytest.mark.parametrize(
    ("load", "signs"),
    [([0, 2, 4, 2], [1, 0, -1, 0]), ([8, 0, 0, 0], [-1, 1, 1, 1]), ([3, 3, 3, 3], [0, 0, 0, 0]), ([0] * 4, [0] * 4)],
)
def test_update_bias_steps_towards_the_mean_load(load, signs):
    moe = make_moe()
    before = moe.bias.clone()
    moe.update_bias(torch.tensor(load), 0.25)
    torch.testing.assert_close(moe.bias - before, 0.25 * torch.tensor(signs, dtype=torch.float32))


def test_updating_the_bias_again_and_again_balances_the_load():
    moe, x = make_moe(n_experts=8, k=2), torch.randn(16, 16, 12)
    with torch.no_grad():
        moe.router.weight[0] += 0.5 * x.mean(dim=(0, 1))
        moe.bias.copy_(torch.linspace(-0.5, 0.5, 8))
        first = moe(x)[1].load
        for _ in range(200):
            moe.update_bias(moe(x)[1].load, 0.01)
        last = moe(x)[1].load
    mean = 2 * 256 / 8
    assert first.max() > 2 * mean
    assert first.min() < 0.1 * mean
    assert last.max() < 1.3 * mean
    assert last.min() > 0.7 * mean


# ---------------------------------------------------------------- statistics


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.data())
def test_statistics_are_those_of_the_counted_tokens(k, batch, length, data):
    moe, x = make_moe(k=k), torch.randn(batch, length, 12)
    flags = data.draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length))
    counted = torch.tensor(flags).view(batch, length)
    y, stats = moe(x, counted)
    plain, everything = moe(x)
    assert torch.equal(y, plain)
    assert torch.equal(stats.chosen, everything.chosen)
    assert stats.chosen.shape == (batch, length, k)
    assert stats.load.sum() == k * counted.sum()
    assert torch.equal(stats.load, torch.bincount(stats.chosen[counted].flatten(), minlength=4))
    assert 0.0 <= stats.entropy <= math.log(4) + 1e-6
    if counted.any():
        _, alone = moe(x[counted].unsqueeze(0))
        torch.testing.assert_close(stats.entropy, alone.entropy)
    else:
        assert stats.entropy == 0


def test_padding_is_left_out_of_the_statistics_of_a_model():
    config = ModelConfig(n_experts=4, n_experts_per_token=2, d_expert=8, n_core_layers=2)
    model = RecurrentDepthTransformer(config)
    ids = torch.tensor([[7, 1, 2, 8, 9, 9], [7, 3, 4, 5, 6, 8]])
    short = model(ids[:1, :4], n_loops=3, trace=True).trace.routing
    long = model(ids[1:], n_loops=3, trace=True).trace.routing
    both = model(ids, n_loops=3, trace=True).trace.routing
    assert len(both) == 3
    for loop in range(3):
        assert len(both[loop]) == 2
        for a, b, c in zip(short[loop], long[loop], both[loop], strict=True):
            assert c.load.sum() == 2 * 10
            assert torch.equal(a.load + b.load, c.load)
            torch.testing.assert_close((4 * a.entropy + 6 * b.entropy) / 10, c.entropy)


def test_entropy_is_largest_for_an_undecided_router_and_nothing_for_a_decided_one():
    moe, x = make_moe(), torch.ones(2, 3, 12)
    with torch.no_grad():
        moe.router.weight.zero_()
        assert moe(x)[1].entropy.item() == pytest.approx(math.log(4))
        moe.router.weight[0] = 2.0
        moe.router.weight[1:] = -2.0
        assert 0.0 <= moe(x)[1].entropy.item() < 1e-6


def test_statistics_carry_no_gradient():
    _, stats = make_moe()(torch.randn(2, 3, 12, requires_grad=True))
    assert not any(value.requires_grad for value in stats)


@pytest.mark.parametrize("logit", [-50.0, -200.0, -1e4])
def test_scores_that_underflow_leave_everything_finite(logit):
    """At −200 every sigmoid is exactly zero in float32: no share is left to divide by."""
    moe, x = make_moe(), torch.ones(2, 3, 12, requires_grad=True)
    with torch.no_grad():
        moe.router.weight.fill_(logit / 12)
    y, stats = moe(x)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(p.grad).all() for p in (x, *moe.parameters()))
    assert 0.0 <= stats.entropy <= math.log(4) + 1e-6


# ---------------------------------------------------------------- bfloat16


@pytest.mark.parametrize("k", [1, 2, 4])
def test_bfloat16_is_close_to_float32_on_the_same_weights(k):
    moe = make_moe(k=k, d_model=32, d_expert=16).to(torch.bfloat16)
    x = torch.randn(4, 8, 32).to(torch.bfloat16)
    y, stats = moe(x)
    assert y.dtype == torch.bfloat16
    assert torch.isfinite(y).all()
    assert torch.isfinite(stats.entropy)
    expected = loop_over_experts(moe.float(), x.float(), stats.chosen)
    assert (y.float() - expected).norm() < 0.02 * expected.norm()


@torch.no_grad()
def test_held_experts_are_those_of_the_given_loop_from_then_on():
    model = RecurrentDepthTransformer.from_pretrained("mod7-experts")
    ids = torch.tensor([[7, 3, 5, 0, 6, 2, 4, 1, 1, 8]])
    free = [step.routing[0].chosen for step in model.loop(ids, 12)]
    with hold_experts(model.core, 4):
        held = [step.routing[0].chosen for step in model.loop(ids, 12)]
    assert all(torch.equal(a, b) for a, b in zip(free[:4], held[:4], strict=True))
    assert all(torch.equal(a, held[3]) for a in held[4:])
    assert not all(torch.equal(a, free[3]) for a in free[4:])  # else nothing would have been held
    again = [step.routing[0].chosen for step in model.loop(ids, 12)]
    assert all(torch.equal(a, b) for a, b in zip(free, again, strict=True))


def experts_of(model, ids, n_loops=4):
    return [step.routing[0].chosen for step in model.loop(ids, n_loops)]


@pytest.fixture(scope="module")
def restless():
    """A model whose tokens change experts, and three batches of one shape."""
    model = build_model(ModelConfig(n_experts=6, n_experts_per_token=2, d_expert=8, state_activation="none"), 3)
    batches = torch.randint(0, 7, (3, 4, 9), generator=make_generator(5)).unbind()
    assert all(not torch.equal(*experts_of(model, ids)[:2]) for ids in batches)
    return model, batches


def test_each_pass_is_held_at_its_own_experts(restless):
    model, batches = restless
    free = [experts_of(model, ids) for ids in batches]
    with hold_experts(model.core, 1):
        for ids, alone in zip(batches, free, strict=True):
            held = experts_of(model, ids)
            assert all(torch.equal(chosen, alone[0]) for chosen in held)
        short = experts_of(model, batches[0][:1, :3])  # of another shape too
        assert torch.equal(short[0], short[-1])


def test_nested_holds_end_one_after_the_other(restless):
    model, (ids, *_) = restless
    free = experts_of(model, ids)
    with hold_experts(model.core, 1):
        with hold_experts(model.core, 2):
            inner = experts_of(model, ids)
        outer = experts_of(model, ids)
    assert torch.equal(inner[1], free[1])
    assert torch.equal(inner[3], free[1])
    assert torch.equal(outer[3], free[0])
    assert all(map(torch.equal, experts_of(model, ids), free))


def test_a_copy_made_while_experts_are_held_is_free(restless):
    model, (ids, *_) = restless
    free = experts_of(model, ids)
    with hold_experts(model.core, 1):
        experts_of(model, ids)
        doubles = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert all(map(torch.equal, experts_of(doubles[0], ids), free))
    for double in doubles:
        assert all(map(torch.equal, experts_of(double, ids), free))


def test_threads_that_share_a_hold_do_not_share_experts(restless):
    model, batches = restless
    with hold_experts(model.core, 1), ThreadPoolExecutor(3) as pool:
        for ids, held in zip(batches * 4, pool.map(lambda ids: experts_of(model, ids, 12), batches * 4), strict=True):
            assert all(torch.equal(chosen, held[0]) for chosen in held), ids


def test_passes_that_are_mixed_up_are_an_error_while_experts_are_held(restless):
    model, (one, other, _) = restless
    with hold_experts(model.core, 1), pytest.raises(ValueError, match="one batch after the other"):
        for _ in zip(model.loop(one, 3), model.loop(other, 3), strict=True):
            pass


def test_held_experts_are_let_go_when_the_pass_fails():
    moe = make_moe()
    with pytest.raises(RuntimeError, match="mine"), hold_experts(moe, 1):
        raise RuntimeError("mine")
    assert moe.hold is None


@pytest.mark.parametrize(("core", "loop", "said"), [(nn.Linear(2, 2), 1, "has none"), (make_moe(), 0, "from_loop")])
def test_holding_experts_refuses(core, loop, said):
    with pytest.raises(ValueError, match=said), hold_experts(core, loop):
        pass
