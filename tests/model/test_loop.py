"""The whole model: its loop, what it refuses, its parts against their formulas, and generation."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mythos_lite import ConvergenceExit, ModelConfig, RecurrentDepthTransformer
from mythos_lite.measure.spectral import decay_radius
from mythos_lite.model.attention import attention_context, make_attention
from mythos_lite.model.block import Block
from mythos_lite.model.halting import ActHalting, ActState, answer_change
from mythos_lite.model.injection import MIN_RATE, AdditiveInjection, LTIInjection, make_injection
from mythos_lite.model.layers import SwiGLU
from mythos_lite.model.loop import Trace
from mythos_lite.model.moe import SparseMoE
from mythos_lite.training.recipes import mod7_moe_model

VOCAB, PAD, LENGTH = 10, 9, 8
MLA = {
    "attention": "mla", "n_kv_heads": None, "kv_lora_rank": 6, "q_lora_rank": 8,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 6,
}  # fmt: skip
EXPERTS = {"n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 1, "d_expert": 8}
EXTRAS = {"halting": "act", "depth_lora_rank": 3, "loop_index_embedding": True}
VARIANTS = {
    "gqa dense lti": {"n_kv_heads": 2},
    "mqa": {"n_kv_heads": 1},
    "mla": MLA,
    "experts": EXPERTS,
    "mla experts": {**MLA, **EXPERTS},
    "additive": {"injection": "additive"},
    "no injection": {"injection": "none"},
    "unbounded": {"state_activation": "none"},
    "act": {"halting": "act"},
    "loop index": {"loop_index_embedding": True},
    "depth lora": {"depth_lora_rank": 3},
    "additive with all extras": {"injection": "additive", **EXTRAS},
    "everything": {**MLA, **EXPERTS, **EXTRAS},
    "full attention": {"window": None},
    "window of one": {"window": 1},
    "dilated": {"dilated": True},
    "dilated mla, no injection": {"dilated": True, "injection": "none", **MLA},
    "deep": {"n_prelude_layers": 2, "n_core_layers": 3, "n_coda_layers": 2},
    "core only": {"n_prelude_layers": 0, "n_coda_layers": 0},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
both_injections = pytest.mark.parametrize("injection", ["lti", "additive"])


def make_config(variant: str = "gqa dense lti", **changes) -> ModelConfig:
    sizes = {"d_model": 32, "d_ff": 24, "max_seq_len": 24, "n_loops": 3, "window": 3}
    return ModelConfig(**{**sizes, **VARIANTS[variant], **changes})


@functools.cache
def make_model(variant: str = "gqa dense lti", **changes) -> RecurrentDepthTransformer:
    """A model in which every weight matters, so that nothing hides behind a small initial value."""
    torch.manual_seed(0)
    model = RecurrentDepthTransformer(make_config(variant, **changes))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("injection.") and "norm" not in name:
                p.normal_(std=p.shape[-1] ** -0.5)
    return model.requires_grad_(False).eval()


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(PAD, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------- who depends on whom


@every_variant
def test_no_token_depends_on_a_later_one(variant):
    model, ids = make_model(variant), tokens()
    logits = model(ids, n_loops=4).logits
    for place in range(LENGTH):
        other = ids.clone()
        other[:, place:] = (other[:, place:] + 1) % PAD
        changed = model(other, n_loops=4).logits
        assert_close(changed[:, :place], logits[:, :place])
        assert not torch.allclose(changed[:, place], logits[:, place], atol=1e-3)


@every_variant
def test_sequences_of_a_batch_do_not_mix_and_padding_on_the_right_changes_nothing(variant):
    model, ids = make_model(variant), tokens(3)
    padded = F.pad(ids, (0, 3), value=PAD)
    together = model(padded, n_loops=3).logits
    for i in range(3):
        assert_close(together[i : i + 1, :LENGTH], model(ids[i : i + 1], n_loops=3).logits)


@every_variant
def test_every_parameter_gets_a_gradient(variant):
    model = make_model.__wrapped__(variant).requires_grad_(True)
    model(tokens(4), n_loops=3).logits.square().mean().backward()
    for name, p in model.named_parameters():
        unread = variant == "window of one" and ("query" in name or "key" in name)  # nothing to choose from
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert (p.grad != 0).any() or unread, name


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("n_loops", [0, -1, 2.5, 2.0, True, False, "3", [3], math.nan], ids=repr)
def test_impossible_loop_counts_are_refused_by_name(n_loops):
    model, ids = make_model(), tokens()
    for call in (
        lambda: model(ids, n_loops=n_loops),
        lambda: model.generate(ids, n_loops=n_loops),
        lambda: next(model.loop(ids, n_loops)),
    ):
        with pytest.raises(ValueError, match=r"n_loops=.*whole number, 1 or more"):
            call()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (torch.tensor([[1, -1]]), "token id -1 is outside the vocabulary, 0 … 9"),
        (torch.tensor([[1, VOCAB]]), "token id 10 is outside"),
        (torch.tensor([[-3, 99]]), "token id -3 is outside"),
        (torch.tensor([[2**40]]), "outside"),
        (torch.empty(1, 0, dtype=torch.long), r"T ≥ 1, not \(1, 0\)"),
        (torch.empty(0, 3, dtype=torch.long), r"B ≥ 1.*\(0, 3\)"),
        (torch.tensor([1, 2]), r"\(B, T\).*\(2,\)"),
        (torch.tensor(1), r"\(B, T\).*\(\)"),
        (torch.ones(1, 2, 3, dtype=torch.long), r"\(1, 2, 3\)"),
        (torch.ones(1, 2), "float32"),
        (torch.ones(1, 2, dtype=torch.bool), "bool"),
        (torch.ones(1, 2, dtype=torch.int16), "int16"),
        ([[1, 2]], "list"),
        (None, "NoneType"),
        (torch.ones(1, 25, dtype=torch.long), "25 tokens are more than max_seq_len=24"),
    ],
    ids=lambda value: None if isinstance(value, Tensor) else str(value),
)
def test_impossible_tokens_are_refused_with_the_reason(wrong, reason):
    model = make_model()
    for call in (lambda: model(wrong), lambda: model.generate(wrong), lambda: next(model.loop(wrong))):
        with pytest.raises(ValueError, match=reason):
            call()


def test_a_loop_refuses_at_the_call_and_not_at_its_first_turn():
    model, ids = make_model(), tokens()
    for call in (lambda: model.loop(ids, 0), lambda: model.loop(ids.float()), lambda: model.loop(ids, 1, cache={})):
        with pytest.raises(ValueError, match=r"n_loops=0|float32|cache must be"):
            call()


@pytest.mark.parametrize("variant", ["gqa dense lti", "everything"])
def test_what_a_call_hands_in_is_checked_once(variant, monkeypatch):
    model, checked = make_model(variant), []
    check = model.check_input
    monkeypatch.setattr(model, "check_input", lambda *given: checked.append(given) or check(*given))
    for call in (
        lambda: model(tokens(), exit_policy=ConvergenceExit()),
        lambda: list(model.loop(tokens(), 3)),
        lambda: model.generate(tokens(), max_new_tokens=4),
    ):
        checked.clear()
        call()
        assert len(checked) == 1


def test_int32_tokens_are_taken():
    model, ids = make_model(), tokens()
    assert torch.equal(model(ids.int()).logits, model(ids).logits)
    assert torch.equal(model.generate(ids.int(), max_new_tokens=3), model.generate(ids, max_new_tokens=3))


# ---------------------------------------------------------------- the loop


@every_variant
def test_a_trace_equals_running_at_each_loop_count(variant):
    model, ids, n_loops = make_model(variant), tokens(), 5
    out = model(ids, n_loops=n_loops, trace=True)
    trace = out.trace
    assert trace.states.shape == (n_loops, 2, LENGTH, 32)
    assert trace.logits.shape == (n_loops, 2, LENGTH, VOCAB)
    assert len(trace.routing) == n_loops
    assert all(len(stats) == (model.config.n_core_layers if model.config.n_experts else 0) for stats in trace.routing)
    for loop in range(1, n_loops + 1):
        alone = model(ids, n_loops=loop)
        assert alone.trace is None
        assert alone.n_loops == loop
        assert_close(trace.logits[loop - 1], alone.logits)
    assert torch.equal(out.logits, trace.logits[-1])


@every_variant
def test_steps_follow_on_from_each_other_and_from_the_encoded_input(variant):
    model, ids = make_model(variant), tokens()
    steps = list(model.loop(ids, 4))
    trace = model(ids, n_loops=4, trace=True).trace
    assert [step.loop for step in steps] == [1, 2, 3, 4]
    context = attention_context(model.config, LENGTH, None, ids.device)
    assert torch.equal(steps[0].previous, model.encode(ids, context))
    for before, after in itertools.pairwise(steps):
        assert torch.equal(after.previous, before.state)
    for t, step in enumerate(steps):
        assert torch.equal(step.state, trace.states[t])
        expected = (step.state - step.previous).norm(dim=-1) / step.state.norm(dim=-1)
        assert_close(step.residual(), expected)
        assert_close(trace.residuals[t], expected)
        assert (step.ponder_cost is None) == (model.config.halting == "none")
        if model.config.halting == "none":
            assert step.output is step.state


@every_variant
def test_the_loop_starts_at_the_encoded_input(variant):
    model, ids = make_model(variant), tokens()
    context = attention_context(model.config, LENGTH, None, ids.device)
    e = model.encode(ids, context)
    for t, step in zip(range(3), model.loop(ids, 3), strict=True):
        expected, _ = model.loop_map(e if t == 0 else step.previous, e, t, context)
        assert_close(step.state, expected)


def test_without_a_prelude_the_encoded_input_is_the_embedding():
    model, ids = make_model("core only"), tokens()
    assert torch.equal(next(model.loop(ids)).previous, model.embedding.weight[ids])


@every_variant
def test_the_loop_count_changes_depth_and_not_parameters(variant):
    model, ids = make_model(variant), tokens()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = []
    hooks = [block.register_forward_hook(lambda *_: calls.append(None)) for block in model.core]
    logits = {}
    for n_loops in (1, 2, 7):
        calls.clear()
        logits[n_loops] = model(ids, n_loops=n_loops).logits
        assert len(calls) == n_loops * model.config.n_core_layers
    for hook in hooks:
        hook.remove()
    assert not torch.allclose(logits[1], logits[2], atol=1e-3)
    assert not torch.allclose(logits[2], logits[7], atol=1e-3)
    assert model.n_parameters() == sum(tensor.numel() for tensor in model.parameters())
    assert RecurrentDepthTransformer(make_config(variant, depth_lora_rank=0, n_loops=9)).n_parameters() == sum(
        p.numel() for name, p in model.named_parameters() if "depth_lora" not in name
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_configured_loop_count_is_the_default():
    model, ids = make_model(), tokens()
    out = model(ids)
    assert out.n_loops == 3
    assert torch.equal(out.logits, model(ids, n_loops=3).logits)


@every_variant
def test_states_of_several_loops_can_be_read_out_together(variant):
    model, ids = make_model(variant), tokens()
    steps = list(model.loop(ids, 3))
    together = model.read_out(torch.cat([step.output for step in steps]))
    assert_close(together.view(3, 2, LENGTH, VOCAB), model(ids, n_loops=3, trace=True).trace.logits)


# ---------------------------------------------------------------- initial values


@every_variant
def test_the_seed_of_torch_decides_every_initial_value(variant):
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(RecurrentDepthTransformer(make_config(variant)))
    for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.isfinite(a).all(), name
        assert torch.equal(a, b), name


@pytest.mark.parametrize("wanted", [None, 0.02])
def test_matrices_and_embeddings_start_at_the_initializer_range(wanted):
    """0.079 is √(2 / (5·64))."""
    config = dataclasses.replace(mod7_moe_model(), initializer_range=wanted)
    for name, p in RecurrentDepthTransformer(config).named_parameters():
        if p.ndim >= 2 and not name.startswith("injection."):
            assert p.std().item() == pytest.approx(wanted or 0.079, rel=0.15), name


PARTS = {
    "SwiGLU": lambda: SwiGLU(32, 24),
    "grouped-query attention": lambda: make_attention(make_config()),
    "latent attention": lambda: make_attention(make_config("mla")),
    "experts": lambda: SparseMoE(make_config("experts")),
    "block": lambda: Block(make_config("mla experts"), sparse=True),
    "LTI injection": lambda: LTIInjection(make_config()),
    "additive injection": lambda: AdditiveInjection(make_config()),
    "halting unit": lambda: ActHalting(32),
}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_can_be_used_alone(part, monkeypatch):
    """Memory that nobody has written to is filled with what would show."""
    unwritten = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: unwritten(*size, **options).fill_(torch.nan))
    module = PARTS[part]()
    monkeypatch.undo()
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())
    config = make_config("mla" if part in ("latent attention", "block") else "gqa dense lti")
    h, e = torch.randn(2, 2, LENGTH, 32, generator=seeded()).unbind()
    context = attention_context(config, LENGTH, None, h.device)
    if part.endswith("injection"):
        assert ((module.decay() > 0) & (module.decay() < 1)).all()
        out = module.bypass(h, module.given(e)) + module.drive(h, module.given(e))
    else:
        out = module(h, context) if part.endswith("attention") or part == "block" else module(h)
        out = out[0] if isinstance(out, tuple) else out
    assert out.shape == (h.shape[:2] if part == "halting unit" else h.shape)
    assert torch.isfinite(out).all()
    assert out.abs().max() > 1e-3
    assert out.abs().max() < 100


@pytest.mark.parametrize("variant", ["everything", "additive"])
def test_reset_parameters_sets_every_parameter_and_buffer(variant):
    model = RecurrentDepthTransformer(make_config(variant))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7.0)
    model.reset_parameters()
    assert [name for name, tensor in model.state_dict().items() if (tensor == 7.0).any()] == []


def test_a_new_depth_lora_changes_nothing():
    torch.manual_seed(0)
    model, ids = RecurrentDepthTransformer(make_config("depth lora")), tokens()
    before = model(ids, n_loops=3).logits
    torch.nn.init.normal_(model.depth_lora_scale)
    torch.nn.init.normal_(model.depth_lora_down.weight)
    assert torch.equal(model(ids, n_loops=3).logits, before)


@both_injections
def test_initial_decay(injection):
    module = make_injection(make_config(injection=injection))
    expected = math.sqrt(1 / 5) if injection == "lti" else math.exp(-1 - MIN_RATE)
    assert_close(module.decay(), torch.full((32,), expected))


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize("variant", ["gqa dense lti", "mla experts", "additive with all extras"])
def test_one_batch_can_be_overfitted(variant):
    torch.manual_seed(0)
    model = RecurrentDepthTransformer(make_config(variant, window=None))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    # No two sequences start alike, and none repeats a token, which attention could not count.
    ids, targets = torch.arange(4).unsqueeze(1) + torch.arange(5), tokens(4, 5)
    for _ in range(80):
        loss = F.cross_entropy(model(ids, n_loops=2).logits.flatten(0, 1), targets.flatten())
        if loss < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


# ---------------------------------------------------------------- injections


@both_injections
@pytest.mark.parametrize("with_signal", [False, True])
def test_injections_are_their_formulas(injection, with_signal):
    torch.manual_seed(0)
    module = make_injection(make_config(injection=injection))
    for p in module.parameters():
        torch.nn.init.normal_(p)
    h, e, mix = torch.randn(2, 5, 32), torch.randn(2, 5, 32), torch.randn(32, 32)
    signal = torch.randn(32) if with_signal else 0.0
    a, b = module.a, module.b
    if injection == "lti":
        delta = torch.log1p(module.delta.exp())
        decay = torch.exp(-(1 / 128 + delta * a.exp()))
        expected = torch.tanh((decay * h + (e @ b.T) * delta + signal) @ mix)
    else:
        decay = torch.exp(-(1 / 128 + (module.log_delta + a).exp()))
        seen = h + e + signal
        seen = module.norm.weight * seen / (seen.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        expected = decay * h + b * e + torch.tanh(seen @ mix)
    assert_close(module.decay(), decay)
    assert_close(
        module.bypass(h, module.given(e)) + torch.tanh(module.drive(h, module.given(e), signal) @ mix), expected, 1e-4
    )


@pytest.mark.parametrize("with_signal", [False, True])
def test_no_injection_gives_the_core_the_state_alone(with_signal):
    module = make_injection(make_config(injection="none"))
    h, e, signal = torch.randn(2, 5, 32), torch.full((2, 5, 32), torch.nan), torch.randn(32) if with_signal else 0.0
    assert torch.equal(module.drive(h, module.given(e), signal), h + signal)
    assert torch.equal(torch.zeros(2, 5, 32) + module.bypass(h, module.given(e)), torch.zeros(2, 5, 32))
    assert torch.equal(module.decay(), torch.ones(32))
    assert not [*module.parameters(), *module.buffers()]
    module.reset_parameters()


@pytest.mark.parametrize("state_activation", ["tanh", "none"])
def test_without_injection_a_loop_is_the_core_and_nothing_else(state_activation):
    model = make_model("deep", injection="none", state_activation=state_activation)
    assert not [name for name in model.state_dict() if name.startswith("injection")]
    h = torch.randn(2, 5, 32)
    context = attention_context(model.config, 5, None, h.device)
    expected = h
    for block in model.core:
        expected, _ = block(expected, context)
    got, _ = model.loop_map(h, torch.full_like(h, torch.nan), 3, context)
    assert torch.equal(got, torch.tanh(expected) if state_activation == "tanh" else expected)


def test_without_injection_the_input_is_the_first_state():
    model, ids = make_model("no injection"), tokens()
    context = attention_context(model.config, LENGTH, None, ids.device)
    h = e = model.encode(ids, context)
    for turn in model.loop(ids, 3):
        h, _ = model.loop_map(h, torch.zeros_like(e), turn.loop - 1, context)
        assert torch.equal(turn.state, h)
    assert decay_radius(model) == 1.0


@both_injections
def test_the_state_is_the_tanh_of_what_it_would_be_without(injection):
    model, unbounded = (make_model(injection=injection, state_activation=a) for a in ("tanh", "none"))
    h, e = 3 * torch.randn(2, 1, 3, 32)
    context = attention_context(model.config, 3, None, h.device)
    state, free = (m.loop_map(h, e, 0, context)[0] for m in (model, unbounded))
    assert free.abs().max() > 1
    assert_close(state, torch.tanh(free))
    assert model.loop_map(100 * h, e, 0, context)[0].abs().max() == 1  # float32 reaches the ends


def test_the_loop_index_embedding_is_a_sinusoid_on_the_first_eighth_of_the_channels():
    model = make_model("loop index", d_model=64)
    h, e = torch.randn(2, 1, 3, 64)
    context = attention_context(model.config, 3, None, h.device)
    seen = []
    hook = model.core[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    for t in (0, 1, 5, 40):
        model.loop_map(h, e, t, context)
    hook.remove()
    driven = model.injection.decay() * h + model.injection._delta() * F.linear(e, model.injection.b)
    for t, x in zip((0, 1, 5, 40), seen, strict=True):
        rates = [10_000 ** (-i / 4) for i in range(4)]
        signal = [math.sin(t * rate) for rate in rates] + [math.cos(t * rate) for rate in rates]
        expected = model.config.initial_std * torch.tensor(signal + [0.0] * 56)
        assert_close(x - driven, expected.expand_as(x), 1e-5)


def test_the_depth_lora_has_a_scale_per_loop_and_later_loops_reuse_the_last():
    model = make_model("depth lora", state_activation="none")
    h, e = torch.randn(2, 1, 3, 32)
    context = attention_context(model.config, 3, None, h.device)
    plain = make_model.__wrapped__("unbounded")
    plain.load_state_dict({name: p for name, p in model.state_dict().items() if "depth_lora" not in name})
    without, _ = plain.loop_map(h, e, 0, context)
    states = [model.loop_map(h, e, t, context)[0] for t in range(6)]
    for t, state in enumerate(states):
        scale = model.depth_lora_scale[min(t, 2)]
        low_rank = model.depth_lora_up.weight @ torch.diag(scale) @ model.depth_lora_down.weight
        assert_close(state, without + without @ low_rank.T)
    assert not torch.allclose(states[0], states[1], atol=1e-3)
    assert torch.equal(states[2], states[5])


# ---------------------------------------------------------------- the decay stays below one

EXTREMES = (-3.4e38, -1e30, -200.0, -20.0, -1e-30, 0.0, 1e-45, 20.0, 88.0, 200.0, 1e30, 3.4e38)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
DTYPES = [torch.float32, torch.bfloat16]


def assert_decay_is_safe(module: LTIInjection | AdditiveInjection, dtype: torch.dtype) -> None:
    """Below one in either type, and finite with finite gradients, alone and in the whole update."""
    module = module.to(dtype)
    decay = module.decay()
    assert decay.dtype == torch.float32
    assert torch.isfinite(decay).all()
    assert (decay >= 0).all()
    assert (decay < 1).all()
    assert (decay.to(torch.bfloat16) < 1).all()
    h, e = torch.randn(2, 1, 2, decay.numel()).to(dtype).requires_grad_(True)
    out = module.bypass(h, module.given(e)) + module.drive(h, module.given(e))
    assert torch.isfinite(out).all()
    (decay.sum() + out.float().sum()).backward()
    for name, p in module.named_parameters():
        assert torch.isfinite(p.grad).all(), name


def set_rates(injection: str, a: Tensor, delta: Tensor) -> LTIInjection | AdditiveInjection:
    """``delta`` (D,): the LTI's step per channel; of the additive one's, which is a scalar, the first is taken."""
    module = make_injection(make_config(injection=injection, d_model=4 * a.numel()))
    with torch.no_grad():
        module.a.copy_(a.repeat(4))
        if injection == "lti":
            module.delta.copy_(delta.repeat(4))
        else:
            module.log_delta.fill_(delta[0])
    return module


@both_injections
@pytest.mark.parametrize("dtype", DTYPES)
def test_decay_is_below_one_at_every_pair_of_extremes(injection, dtype):
    a = torch.tensor(EXTREMES)
    for delta in EXTREMES:
        assert_decay_is_safe(set_rates(injection, a, torch.full_like(a, delta)), dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["lti", "additive"]),
    st.lists(FLOATS, min_size=4, max_size=4),
    st.lists(FLOATS, min_size=4, max_size=4),
    st.sampled_from(DTYPES),
)
def test_decay_is_below_one_at_any_parameter_values(injection, a, delta, dtype):
    assert_decay_is_safe(set_rates(injection, torch.tensor(a), torch.tensor(delta)), dtype)


@both_injections
@pytest.mark.parametrize("a", [-3.4e38, 3.4e38])
def test_decay_stays_below_one_when_the_whole_model_is_cast_to_bfloat16(injection, a):
    model = make_model.__wrapped__(injection=injection)
    model.injection.a.fill_(a)
    model = model.to(torch.bfloat16)
    assert (model.injection.decay() < 1).all()
    assert (model.injection.decay() >= 0).all()
    assert torch.isfinite(model(tokens(), n_loops=8).logits).all()


def test_the_textbook_decay_rounds_to_one():
    """Why there is a smallest rate: exp(−rate) of a positive rate is 1.0 once the rate is small enough."""
    assert torch.exp(-torch.exp(torch.tensor(-18.0))) == 1.0
    assert torch.exp(-torch.exp(torch.tensor(-6.5))).to(torch.bfloat16) == 1.0
    assert torch.exp(torch.tensor(-MIN_RATE)).to(torch.bfloat16) < 1.0


# ---------------------------------------------------------------- adaptive computation time


def feed(probabilities: Tensor, threshold: float, states: Tensor | None = None) -> tuple[ActState, list[Tensor]]:
    """ACT on given halting probabilities (L, B, T)."""
    act = ActState(threshold)
    states = torch.zeros(*probabilities.shape, 1) if states is None else states
    return act, [act.update(p, h).output for p, h in zip(probabilities, states, strict=True)]


def graves(probabilities: list[float], threshold: float) -> tuple[list[float], float]:
    """One token, Graves 2016, eq. 5–9: weights of the loops, and the ponder cost."""
    spent = 0.0
    for n, p in enumerate(probabilities):
        if spent + p >= threshold or n == len(probabilities) - 1:
            remainder = 1.0 - spent
            weights = [*probabilities[:n], remainder, *[0.0] * (len(probabilities) - n - 1)]
            return weights, n + 1 + remainder
        spent += p
    raise AssertionError("no loops")


# Sixteenths add up without rounding, so that the reference halts at the very same loop.
SIXTEENTHS = st.integers(0, 16).map(lambda n: n / 16)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(SIXTEENTHS, min_size=n, max_size=n), min_size=1, max_size=4)),
    st.sampled_from([1 / 16, 0.5, 15 / 16, 0.99, 1.0]),
)
def test_act_weights_and_ponder_cost_are_those_of_graves(rows, threshold):
    act, _ = feed(torch.tensor(rows).T.unsqueeze(1), threshold)
    expected = [graves(row, threshold) for row in rows]
    assert act.weights[:, 0].T.tolist() == [weights for weights, _ in expected]
    assert act.ponder_cost[0].tolist() == [cost for _, cost in expected]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=8),
    st.floats(0.0, 1.0, exclude_min=True),
)
def test_act_weights_sum_to_one_at_every_budget(probabilities, threshold):
    for budget in range(1, len(probabilities) + 1):
        act, _ = feed(torch.tensor(probabilities[:budget]).view(-1, 1, 1), threshold)
        assert act.weights.sum().item() == pytest.approx(1.0, abs=1e-6)
        assert act.weights.min() > -1e-6
        assert 1.0 <= act.ponder_cost.item() <= budget + 1 + 1e-6


@pytest.mark.parametrize("bias", [-1e4, -50.0, -5.0, 0.0, 5.0, 50.0, 1e4])
@pytest.mark.parametrize("n_loops", [1, 2, 9])
def test_act_weights_sum_to_one_at_extreme_halting_biases(bias, n_loops):
    torch.manual_seed(0)
    unit = ActHalting(6)
    torch.nn.init.constant_(unit.unit.bias, bias)
    states = torch.randn(n_loops, 2, 3, 6)
    act, outputs = feed(unit(states), 0.99, states)
    assert_close(act.weights.sum(dim=0), torch.ones(2, 3))
    assert_close(outputs[-1], (act.weights.unsqueeze(-1) * states).sum(dim=0))
    if n_loops == 1:
        assert act.ponder_cost.tolist() == [[2.0] * 3] * 2  # whatever the unit says
        assert not act.ponder_cost.requires_grad
    else:
        act.ponder_cost.sum().backward()
        assert torch.isfinite(unit.unit.weight.grad).all()


@pytest.mark.parametrize("n_loops", [1, 4])
def test_a_unit_that_always_halts_uses_one_loop_and_one_that_never_halts_all(n_loops):
    model, ids = make_model.__wrapped__("act"), tokens()
    model.halting.unit.bias.fill_(1e4)
    *_, last = model.loop(ids, n_loops)
    first = next(model.loop(ids, n_loops))
    assert torch.equal(last.output, first.state)
    assert (last.ponder_cost == 2).all()
    model.halting.unit.bias.fill_(-1e4)
    *_, last = model.loop(ids, n_loops)
    assert torch.equal(last.output, last.state)
    assert (last.ponder_cost == n_loops + 1).all()


@pytest.mark.parametrize("variant", ["act", "additive with all extras", "everything"])
@pytest.mark.parametrize("threshold", [0.3, 0.99, 1.0])
def test_one_pass_with_act_gives_the_output_at_every_budget(variant, threshold):
    model, ids = make_model(variant, act_threshold=threshold), tokens()
    steps = list(model.loop(ids, 6))
    assert any((step.ponder_cost < step.loop).any() for step in steps) or threshold > 0.3
    for step in steps:
        alone = model(ids, n_loops=step.loop)
        assert_close(model.read_out(step.output), alone.logits)
        assert_close(step.ponder_cost, alone.ponder_cost)
        probabilities = torch.stack([model.halting(s.state) for s in steps[: step.loop]])
        for b, t in itertools.product(range(2), range(LENGTH)):
            weights, cost = graves(probabilities[:, b, t].tolist(), threshold)
            expected = sum(w * s.state[b, t] for w, s in zip(weights, steps, strict=False))
            assert_close(step.output[b, t], expected)
            assert step.ponder_cost[b, t].item() == pytest.approx(cost, abs=1e-5)


def test_act_sums_in_float32_and_answers_in_the_type_of_the_state():
    states = torch.randn(3, 1, 2, 4).to(torch.bfloat16)
    act, outputs = feed(torch.full((3, 1, 2), 0.1), 0.99, states)
    assert act.weights.dtype == act.ponder_cost.dtype == torch.float32
    assert all(output.dtype == torch.bfloat16 for output in outputs)
    expected = 0.1 * states[0].float() + 0.1 * states[1].float() + 0.8 * states[2].float()
    torch.testing.assert_close(outputs[-1], expected.to(torch.bfloat16), atol=0.01, rtol=0.01)


# ---------------------------------------------------------------- exit by convergence


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "x", True])
def test_impossible_tolerances_are_refused(value):
    with pytest.raises(ValueError, match="tolerance="):
        ConvergenceExit(tolerance=value)


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
@pytest.mark.parametrize("field", ["patience", "every"])
def test_impossible_counts_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}="):
        ConvergenceExit(**{field: value})


def test_a_policy_that_asks_at_impossible_loops_is_refused():
    policy = Fixed(3)
    policy.every = 0
    with pytest.raises(ValueError, match=r"exit_policy\.every=0"):
        make_model()(tokens(), exit_policy=policy)


def test_answer_change_is_the_total_variation():
    a, b = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[math.log(3.0), 0.0]]])
    assert answer_change(a, b).item() == pytest.approx(0.25)
    assert answer_change(b, b + 5).item() == pytest.approx(0.0, abs=1e-6)
    assert answer_change(torch.tensor([[[99.0, -99.0]]]), torch.tensor([[[-99.0, 99.0]]])).item() == pytest.approx(1.0)


@pytest.mark.parametrize("variant", ["gqa dense lti", "additive", "act"])
@pytest.mark.parametrize("patience", [1, 3])
@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_exit_comes_after_so_many_quiet_loops_and_no_later(variant, patience, tolerance, every):
    model, ids, n_loops = make_model(variant), tokens(), 12
    trace = model(ids, n_loops=n_loops, trace=True).trace
    shares = trace.logits[every - 1 :: every].softmax(dim=-1)
    quiet = [0.5 * (b - a).abs().sum(-1).max() <= tolerance for a, b in itertools.pairwise(shares)]
    ends = [i for i in range(patience, len(shares)) if all(quiet[i - patience : i])]
    expected = every * (ends[0] + 1) if ends else n_loops
    policy = ConvergenceExit(tolerance=tolerance, patience=patience, every=every)
    for with_trace in (False, True):
        out = model(ids, n_loops=n_loops, exit_policy=policy, trace=with_trace)
        assert out.n_loops == expected
        assert_close(out.logits, trace.logits[expected - 1])
    assert out.trace.states.shape[0] == expected
    if tolerance == 1.0 and (patience + 1) * every <= n_loops:
        assert expected == (patience + 1) * every


def test_answers_are_read_out_no_more_often_than_asked(monkeypatch):
    model, ids, calls = make_model(), tokens(), []
    read_out = model.read_out
    monkeypatch.setattr(model, "read_out", lambda *given: calls.append(1) or read_out(*given))
    model(ids, n_loops=12, exit_policy=ConvergenceExit(tolerance=0.0, every=5))
    assert len(calls) == 3  # after loops 5, 10 and 12


# ---------------------------------------------------------------- bfloat16


def same_experts(a: Trace, b: Trace) -> Tensor:
    """(B, T) True where a token and all before it were sent to the same experts in both, in every loop and layer."""
    pairs = zip(itertools.chain(*a.routing), itertools.chain(*b.routing), strict=True)
    same = [(x.chosen.sort().values == y.chosen.sort().values).all(-1) for x, y in pairs]
    return torch.stack([torch.ones_like(a.residuals[0], dtype=torch.bool), *same]).all(0).cumprod(-1).bool()


@every_variant
def test_bfloat16_is_finite_and_close_to_float32(variant):
    model = make_model.__wrapped__(variant).to(torch.bfloat16)
    ids = tokens(64)  # among fewer, one token that magnifies a rounding decides
    out = model(ids, n_loops=4, trace=True)
    assert out.logits.dtype == torch.bfloat16
    assert torch.isfinite(out.logits).all()
    assert torch.isfinite(out.trace.states).all()
    exact = model.float()(ids, n_loops=4, trace=True)  # the very same weights
    same = same_experts(out.trace, exact.trace)  # rounding decides between experts that are as good as equal
    assert same.float().mean() > (0.5 if model.config.n_experts else 0.99)
    errors, sizes = (out.logits.float() - exact.logits)[same].norm(dim=-1), exact.logits[same].norm(dim=-1)
    assert errors.norm() < 0.03 * sizes.norm()
    assert (errors / sizes).median() < 0.02


@pytest.mark.parametrize("variant", ["gqa dense lti", "everything"])
def test_bfloat16_models_generate(variant):
    model = make_model.__wrapped__(variant).to(torch.bfloat16)
    ids = model.generate(tokens(), max_new_tokens=4, temperature=0.8, generator=torch.Generator().manual_seed(0))
    assert ids.shape == (2, LENGTH + 4)


# ---------------------------------------------------------------- generation


def greedy_without_cache(model: RecurrentDepthTransformer, ids: Tensor, n_new: int, n_loops: int) -> Tensor:
    for _ in range(n_new):
        following = model(ids, n_loops=n_loops).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, following], dim=1)
    return ids


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_variant
@pytest.mark.parametrize("n_loops", [1, 4])
def test_greedy_generation_is_argmax_after_argmax(variant, n_loops):
    model, ids = make_model(variant), tokens(3)
    expected = greedy_without_cache(model, ids, 6, n_loops)
    assert torch.equal(model.generate(ids, max_new_tokens=6, n_loops=n_loops), expected)


@pytest.mark.parametrize("greedy", [{"temperature": 1e-320}, {"temperature": 1e-30}, {"temperature": 3.0, "top_k": 1}])
def test_a_tiny_temperature_or_a_single_candidate_is_greedy(greedy):
    model, ids = make_model(), tokens()
    expected = model.generate(ids, max_new_tokens=6, temperature=0)
    assert torch.equal(model.generate(ids, max_new_tokens=6, generator=seeded(), **greedy), expected)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        *(({"temperature": value}, "temperature=") for value in (-1.0, -1e-9, math.nan, math.inf, "1", True, None)),
        *(({"top_k": value}, "top_k=") for value in (0, -1, VOCAB + 1, 1.5, True)),
        *(({"max_new_tokens": value}, "max_new_tokens=") for value in (-1, 1.5, True, None)),
        *(({"eos_token_id": value}, "eos_token_id=") for value in (-1, VOCAB, 1.0, True)),
        *(({"generator": value}, "generator must be a torch.Generator or None, not") for value in (3, "cpu", True)),
        ({"max_new_tokens": 24 - LENGTH + 1}, "25 tokens are more than max_seq_len=24"),
    ],
    ids=str,
)
def test_impossible_generation_options_are_refused_by_name(options, reason):
    with pytest.raises(ValueError, match=reason):
        make_model().generate(tokens(), **options)


def test_prompts_with_padding_are_refused_unless_there_is_none():
    ids = tokens()
    ids[1, 0] = PAD
    for variant in ("gqa dense lti", "dilated"):
        with pytest.raises(ValueError, match=r"padding \(token 9\), to which later ones would attend"):
            make_model(variant).generate(ids)
    assert make_model(pad_token_id=None).generate(ids, max_new_tokens=2).shape == (2, LENGTH + 2)


def test_generation_may_fill_max_seq_len_and_may_be_of_nothing():
    model, ids = make_model(), tokens()
    assert model.generate(ids, max_new_tokens=24 - LENGTH).shape == (2, 24)
    assert torch.equal(model.generate(ids, max_new_tokens=0), ids)
    nothing = model.generate(ids, max_new_tokens=0, return_loops=True)
    assert torch.equal(nothing.token_ids, ids)
    assert nothing.loops_used == ()


def test_sampling_follows_the_generator_and_leaves_the_global_one_alone():
    model, ids = make_model(), tokens()
    options = {"max_new_tokens": 10, "temperature": 2.0}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = model.generate(ids, generator=seeded(1), **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.generate(ids, generator=seeded(1), **options), first)
    assert not torch.equal(model.generate(ids, generator=seeded(2), **options), first)
    globally = model.generate(ids, **options)
    torch.manual_seed(3)
    assert torch.equal(model.generate(ids, **options), globally)


@pytest.mark.parametrize(("temperature", "top_k"), [(0.5, None), (1.0, None), (3.0, 3), (1.0, VOCAB)])
def test_samples_have_the_right_shares(temperature, top_k):
    model, count = make_model(), 4000
    prompt = tokens(1, 2)
    logits = model(prompt).logits[0, -1] / temperature
    if top_k is not None:
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    drawn = model.generate(
        prompt.expand(count, 2), max_new_tokens=1, temperature=temperature, top_k=top_k, generator=seeded()
    )[:, -1]
    shares = torch.bincount(drawn, minlength=VOCAB) / count
    assert (shares[logits == -torch.inf] == 0).all()
    assert (shares - logits.softmax(dim=-1)).abs().max() < 0.03


def test_a_finished_sequence_repeats_the_end_and_all_finished_stop_early():
    model, ids = make_model(), tokens(4)
    free = greedy_without_cache(model, ids, 12, 3)[:, LENGTH:]
    for eos in range(VOCAB):
        firsts = [row.tolist().index(eos) if eos in row else None for row in free]
        got = model.generate(ids, max_new_tokens=12, eos_token_id=eos, return_loops=True)
        length = 12 if None in firsts else max(firsts) + 1
        assert got.token_ids.shape[1] == LENGTH + length
        assert len(got.loops_used) == length
        for row, wanted, first in zip(got.token_ids[:, LENGTH:], free, firsts, strict=True):
            end = length if first is None else first + 1
            assert torch.equal(row[:end], wanted[:end])
            assert (row[end:] == eos).all()


def test_all_sequences_finished_at_once_stop_after_one_token():
    model, ids = make_model(), tokens(1)
    eos = model(ids).logits[0, -1].argmax().item()
    assert model.generate(ids, max_new_tokens=12, eos_token_id=eos).shape == (1, LENGTH + 1)


def test_loops_used_are_reported_for_the_prompt_and_each_token_but_the_last():
    model, ids = make_model(), tokens()
    out = model.generate(ids, max_new_tokens=5, n_loops=4, return_loops=True)
    assert out.loops_used == (4, 4, 4, 4, 4)
    assert torch.equal(out.token_ids, model.generate(ids, max_new_tokens=5, n_loops=4))
    early = model.generate(
        ids, max_new_tokens=5, n_loops=9, exit_policy=ConvergenceExit(tolerance=1.0, patience=2), return_loops=True
    )
    assert early.loops_used == (3, 3, 3, 3, 3)


def test_generation_takes_no_gradient():
    model = make_model.__wrapped__().requires_grad_(True)
    model.generate(tokens(), max_new_tokens=3)
    assert all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------- where the loop starts


def test_the_loop_starts_from_e():
    model, ids = RecurrentDepthTransformer(ModelConfig()), torch.tensor([[7, 1, 2, 8]])
    e = model.encode(ids, attention_context(model.config, 4, None, ids.device))
    assert torch.equal(next(model.loop(ids, 1)).previous, e)


def test_damaged_weights_are_an_error_when_generating():
    model = RecurrentDepthTransformer(ModelConfig())
    with torch.no_grad():
        model.embedding.weight[3] = torch.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="not finite"):
            model.generate(torch.tensor([[7, 1, 8]]), temperature=temperature)


@pytest.mark.parametrize(
    "policy",
    [0.1, ConvergenceExit, object(), "settled", lambda changes: True],
    ids=lambda policy: type(policy).__name__,
)
def test_an_exit_policy_that_cannot_say_whether_the_loop_has_settled_is_refused(policy):
    model, ids = make_model(), tokens()
    for call in (lambda: model(ids, exit_policy=policy), lambda: model.generate(ids, exit_policy=policy)):
        with pytest.raises(
            ValueError, match=r"exit_policy must have a method settled, like ConvergenceExit\(\), not be"
        ):
            call()


class Fixed:
    """Stop after a given number of loops, and remember what was shown."""

    def __init__(self, n_loops: int) -> None:
        self.n_loops, self.shown = n_loops, []

    def settled(self, changes: list[float]) -> bool:
        self.shown.append(list(changes))
        return len(changes) + 1 == self.n_loops


@pytest.mark.parametrize("variant", ["gqa dense lti", "act"])
def test_any_object_that_says_when_to_stop_is_an_exit_policy(variant):
    model, ids = make_model(variant), tokens()
    policy = Fixed(4)
    out = model(ids, n_loops=9, exit_policy=policy)
    assert out.n_loops == 4
    assert_close(out.logits, model(ids, n_loops=4).logits)
    shares = model(ids, n_loops=4, trace=True).trace.logits.softmax(dim=-1)
    assert_close(torch.tensor(policy.shown[-1]), 0.5 * shares.diff(dim=0).abs().sum(-1).amax((1, 2)))
    assert [changes == policy.shown[-1][: len(changes)] for changes in policy.shown] == [True] * 3
    generated = model.generate(ids, max_new_tokens=3, n_loops=9, exit_policy=Fixed(2), return_loops=True)
    assert generated.loops_used == (2, 2, 2)


# ---------------------------------------------------------------- padding, and numbers of other libraries


def test_padding_has_no_say_in_when_to_stop():
    model = RecurrentDepthTransformer.from_pretrained("mod7")
    ids = torch.tensor([[7, 1, 2, 3, 8], [7, 4, 5, 6, 8]])
    alone = model(ids, n_loops=64, exit_policy=ConvergenceExit())
    padded = model(F.pad(ids, (0, 5), value=9), n_loops=64, exit_policy=ConvergenceExit())
    assert alone.n_loops == padded.n_loops < 12
    assert_close(padded.logits[:, :5], alone.logits)


@pytest.mark.parametrize("variant", ["act", "everything"])
def test_an_early_exit_is_acts_budget_and_padding_changes_neither(variant):
    model, ids = make_model(variant), tokens()
    policy = ConvergenceExit(tolerance=0.05, patience=2)
    alone = model(ids, n_loops=12, exit_policy=policy)
    assert 3 < alone.n_loops < 12
    budget = model(ids, n_loops=alone.n_loops)
    assert_close(alone.logits, budget.logits)
    assert_close(alone.ponder_cost, budget.ponder_cost)
    padded = model(F.pad(ids, (0, 5), value=PAD), n_loops=12, exit_policy=policy)
    assert padded.n_loops == alone.n_loops
    assert_close(padded.logits[:, :LENGTH], alone.logits)
    assert_close(padded.ponder_cost[:, :LENGTH], alone.ponder_cost)


def test_a_padding_token_that_the_model_itself_has_generated_counts_like_any_other():
    """As padding it would have no say: the loop would stop at once, and routers would not count it."""
    with_padding, without = (make_model("experts", pad_token_id=pad) for pad in (PAD, None))
    shown = []
    for model in (with_padding, without):
        policy = Fixed(6)
        out = model.generate(
            tokens(1), max_new_tokens=12, n_loops=6, temperature=50.0, generator=seeded(3), exit_policy=policy
        )
        assert (out[0, LENGTH:-1] == PAD).any()
        shown.append(policy.shown)
    assert shown[0] == shown[1]


def test_a_model_may_generate_its_padding_token_and_go_on():
    """What is refused in a prompt is an answer like any other when the model gives it."""
    model = RecurrentDepthTransformer(make_config()).eval().requires_grad_(False)
    model.embedding.weight.zero_()
    model.embedding.weight[PAD] = 1.0
    model.embedding.weight[0] = 1.0 / 2
    assert (model.generate(torch.zeros(1, 2, dtype=torch.int64), max_new_tokens=3)[0, 2:] == PAD).all()


def test_a_change_that_is_not_a_number_never_counts_as_settled():
    policy = ConvergenceExit(patience=2)
    for changes in ([0.0, math.nan], [math.nan, 0.0], [math.nan, math.nan]):
        assert not policy.settled(changes)
    assert policy.settled([math.nan, 0.0, 0.0])


def test_numbers_of_numpy_and_torch_are_taken():
    model, ids = make_model(), tokens()
    for two in (np.int64(2), np.uint8(2), torch.tensor(2)):
        assert torch.equal(model(ids, n_loops=two).logits, model(ids, n_loops=2).logits)
    wanted = model.generate(ids, max_new_tokens=2, temperature=0.5, top_k=3, generator=seeded())
    got = model.generate(
        ids, max_new_tokens=np.int64(2), temperature=np.float32(0.5), top_k=np.int32(3), generator=seeded()
    )
    assert torch.equal(got, wanted)
    assert ConvergenceExit(tolerance=np.float32(0.5), patience=np.int64(2)) == ConvergenceExit(
        tolerance=0.5, patience=2
    )


# ---------------------------------------------------------------- where no value can be read


WITHOUT_VALUES = ["gqa dense lti", "full attention", "dilated", "mla experts", "everything"]
SLOWLY = ["gqa dense lti", "everything"]  # compilers take seconds each


@pytest.mark.parametrize("variant", SLOWLY)
def test_the_model_can_be_exported_for_any_batch_and_length(variant):
    model, ids = make_model(variant), tokens()
    sizes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=24)}
    exported = torch.export.export(LogitsOf(model), (ids,), dynamic_shapes={"token_ids": sizes}).module()
    for other in (ids, tokens(5, 11, seed=1)):
        assert_close(exported(other), model(other, n_loops=2).logits)


class LogitsOf(torch.nn.Module):
    def __init__(self, model: RecurrentDepthTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.model(token_ids, n_loops=2).logits


@pytest.mark.parametrize("variant", [*SLOWLY, "dilated"])
def test_the_model_compiles_in_one_piece(variant):
    model, ids = make_model(variant), tokens()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(ids, n_loops=2).logits, model(ids, n_loops=2).logits)


@pytest.mark.parametrize("variant", WITHOUT_VALUES)
def test_the_model_maps_over_sequences(variant):
    model, ids = make_model(variant), tokens(3)
    by_sequence = torch.func.vmap(lambda one: model(one.unsqueeze(0), n_loops=2).logits[0])(ids)
    assert_close(by_sequence, model(ids, n_loops=2).logits)


@pytest.mark.parametrize("variant", WITHOUT_VALUES)
def test_the_model_runs_without_memory(variant):
    with torch.device("meta"):
        model = RecurrentDepthTransformer(make_config(variant))
        assert model(torch.zeros(2, 5, dtype=torch.int64)).logits.shape == (2, 5, VOCAB)


@pytest.mark.parametrize("window", [2, 100])
def test_a_window_saves_work_and_memory(window):
    """Twice the tokens take twice the memory, where a mask of all pairs took four times as much."""
    model = RecurrentDepthTransformer(make_config(window=window, max_seq_len=4096)).eval()
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest[-1] = max(largest[-1], out.numel())
            return out

    for length in (2048, 4096):
        largest.append(0)
        with torch.no_grad(), Watch():
            model(torch.zeros(1, length, dtype=torch.int64), n_loops=1)
    assert largest[1] <= 2.1 * largest[0]
