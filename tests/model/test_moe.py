"""The mixture of experts against a readable loop over experts and against DeepSeek-V3's layer."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from mythos_lite import ModelConfig, RecurrentDepthTransformer
from mythos_lite.model.moe import SparseMoE


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
    """Every expert answers every token; where it was not chosen its weight is zero."""
    scores = torch.sigmoid(x @ moe.router.weight.T)
    weights = scores * torch.zeros_like(scores).scatter(-1, chosen, 1.0)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    y = torch.zeros_like(x)
    for expert in range(moe.gate.shape[0]):
        answer = (F.silu(x @ moe.gate[expert]) * (x @ moe.up[expert])) @ moe.down[expert]
        y = y + weights[..., expert : expert + 1] * answer
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
def test_experts_of_chosen_tokens_equal_experts_of_all_tokens(n_experts, k, n_shared, batch, length):
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


def test_the_bias_moves_the_choice_and_never_the_weights():
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
    assert not any(value.requires_grad for value in (stats.scores, stats.chosen, stats.load, stats.entropy))


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
