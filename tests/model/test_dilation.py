"""A dilated window against a computation position by position, how far it reaches, and what such a model refuses."""

import dataclasses
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mythos_lite import Cache, ConvergenceExit, ModelConfig, RecurrentDepthTransformer
from mythos_lite.files.checkpoint import CONFIG_FILE
from mythos_lite.model.attention import attention_context
from mythos_lite.model.dilation import fold, unfold

PAD, LENGTH = 9, 11
MLA = {
    "attention": "mla", "n_kv_heads": None, "kv_lora_rank": 6, "q_lora_rank": 8,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 6,
}  # fmt: skip
ATTENTIONS = {"gqa": {"n_kv_heads": 2}, "mla": MLA}
BARE = {"n_prelude_layers": 0, "n_coda_layers": 0}
EXTRAS = {"halting": "act", "depth_lora_rank": 3, "loop_index_embedding": True}
VARIANTS = {
    "window of two": {"window": 2},
    "window of three": {},
    "mla": MLA,
    "two core layers": {"n_core_layers": 2},
    "no injection, core only": {"window": 2, "injection": "none", **BARE},
    "additive with all extras": {"injection": "additive", **EXTRAS},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
sizes = {"n_positions": st.integers(1, 20), "dilation": st.integers(1, 25), "batch": st.integers(1, 3)}


@functools.cache
def make_model(variant: str = "window of two", **changes) -> RecurrentDepthTransformer:
    """A dilated model in which every weight matters, so that nothing hides behind a small initial value."""
    widths = {"d_model": 32, "d_ff": 24, "max_seq_len": 700, "n_loops": 3, "n_kv_heads": 2, "window": 3}
    config = ModelConfig(**{**widths, "dilated": True, **VARIANTS[variant], **changes})
    torch.manual_seed(0)
    model = RecurrentDepthTransformer(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("injection."):
                p.normal_(std=p.shape[-1] ** -0.5) if p.ndim > 1 else p.uniform_(0.5, 1.5)
    return model.requires_grad_(False).eval()


def undilated(model: RecurrentDepthTransformer) -> RecurrentDepthTransformer:
    """The model with an ordinary window. It has the same weights: a dilated one has no other."""
    plain = RecurrentDepthTransformer(dataclasses.replace(model.config, dilated=False)).eval()
    plain.load_state_dict(model.state_dict())
    return plain.requires_grad_(False)


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(PAD, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- folding


@settings(max_examples=60, deadline=None)
@given(**sizes)
def test_unfold_gives_back_what_was_folded(n_positions, dilation, batch):
    x = torch.randn(batch, n_positions, 3)
    assert torch.equal(unfold(fold(x, dilation), dilation, n_positions), x)


@settings(max_examples=60, deadline=None)
@given(**sizes)
def test_each_remainder_is_a_row_behind_the_first_position_and_ends_in_zeros(n_positions, dilation, batch):
    x = 1.0 + torch.arange(batch * n_positions).view(batch, n_positions, 1)
    folded = fold(x, dilation)
    rows = [[x[b, 0], *x[b, r::dilation]] for b in range(batch) for r in range(dilation)]
    width = max(len(row) for row in rows)
    assert folded.shape == (batch * dilation, width, 1)
    for got, row in zip(folded.squeeze(-1).tolist(), rows, strict=True):
        assert got == [v.item() for v in row] + [0.0] * (width - len(row))


@settings(max_examples=60, deadline=None)
@given(n_positions=st.integers(1, 20), dilation=st.integers(1, 25))
def test_a_position_stands_right_behind_the_one_a_dilation_earlier_or_the_first(n_positions, dilation):
    rows = fold(torch.arange(n_positions).view(1, -1, 1) + 1, dilation).squeeze(-1).tolist()
    before = {}
    for row in rows:
        for earlier, position in itertools.pairwise(row):
            if position:  # not a zero at the end
                assert before.setdefault(position - 1, earlier - 1) == earlier - 1
    assert before == {i: i - dilation if i >= dilation else 0 for i in range(n_positions)}


@settings(max_examples=30, deadline=None)
@given(n_positions=st.integers(1, 20), dilation=st.integers(1, 25))
def test_gradients_reach_every_position_through_folding(n_positions, dilation):
    x, weights = torch.randn(2, n_positions, 3, requires_grad=True), torch.randn(2, n_positions, 3)
    (back,) = torch.autograd.grad((unfold(fold(x, dilation), dilation, n_positions) * weights).sum(), x)
    assert torch.equal(back, weights)
    (copies,) = torch.autograd.grad(fold(x, dilation).sum(), x)
    expected = torch.ones(n_positions)
    expected[0] += dilation  # the first position goes before every row
    assert torch.equal(copies, expected.view(1, -1, 1).expand_as(copies))


# ---------------------------------------------------------------- the core, position by position


def normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    return norm.weight.double() * x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def through(x: Tensor, linear: nn.Linear) -> Tensor:
    return x @ linear.weight.double().T


def turned(x: Tensor, position: int, theta: float) -> Tensor:
    """Channels (…, dim) at a rotary position, as complex numbers."""
    first, second = x.chunk(2, dim=-1)
    rates = theta ** (-torch.arange(first.shape[-1], dtype=torch.float64) / first.shape[-1])
    out = torch.complex(first, second) * torch.exp(1j * position * rates)
    return torch.cat([out.real, out.imag], dim=-1)


def gqa_head(layer: nn.Module, config: ModelConfig, seen: Tensor, head: int) -> tuple[Tensor, Tensor, Tensor]:
    group, d = head // (config.n_heads // config.n_kv_heads), config.head_dim
    query = through(seen[-1], layer.query)[head * d : (head + 1) * d]
    keys, values = (through(seen, linear)[:, group * d : (group + 1) * d] for linear in (layer.key, layer.value))
    keys = torch.stack([turned(key, i, config.rope_theta) for i, key in enumerate(keys)])
    return turned(query, len(seen) - 1, config.rope_theta), keys, values


def mla_head(layer: nn.Module, config: ModelConfig, seen: Tensor, head: int) -> tuple[Tensor, Tensor, Tensor]:
    n, r = config.qk_nope_head_dim, config.qk_rope_head_dim
    query = through(normed(through(seen[-1], layer.query_down), layer.query_norm), layer.query_up)
    query = query[head * (n + r) : (head + 1) * (n + r)]
    query = torch.cat([query[:n], turned(query[n:], len(seen) - 1, config.rope_theta)])
    latent, rotary = through(seen, layer.kv_down).split([config.kv_lora_rank, r], dim=-1)
    latent = normed(latent, layer.kv_norm)
    rotary = torch.stack([turned(key, i, config.rope_theta) for i, key in enumerate(rotary)])
    keys = torch.cat([latent @ layer.key_up[head].double().T, rotary], dim=-1)
    return query, keys, latent @ layer.value_up[head].double().T


def block_reference(block: nn.Module, config: ModelConfig, seen: Tensor) -> Tensor:
    """States (w, D) that the last of them sees, in order and itself included, → that state after the block."""
    parts = mla_head if config.attention == "mla" else gqa_head
    inside, mixed = normed(seen, block.attention_norm), []
    for head in range(config.n_heads):
        query, keys, values = parts(block.attention, config, inside, head)
        mixed.append(torch.softmax(keys @ query / len(query) ** 0.5, dim=0) @ values)
    x = seen[-1] + through(torch.cat(mixed), block.attention.out)
    inside, ffn = normed(x, block.ffn_norm), block.ffn
    return x + through(F.silu(through(inside, ffn.gate)) * through(inside, ffn.up), ffn.down)


def core_reference(model: RecurrentDepthTransformer, x: Tensor, t: int) -> Tensor:
    """The core of loop t on one sequence (T, D): i attends to i, i − d, i − 2d, …, and the first behind the last."""
    config, x = model.config, x.double()
    dilation, first = config.window**t, x[0]
    for block in model.core:
        seen = [[first, *(x[j] for j in range(i % dilation, i + 1, dilation))] for i in range(len(x))]
        x = torch.stack([block_reference(block, config, torch.stack(row[-config.window :])) for row in seen])
        first = block_reference(block, config, first.unsqueeze(0))
    return x


@pytest.mark.parametrize("injection", ["none", "lti"])
@pytest.mark.parametrize("n_core_layers", [1, 2])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_each_loop_is_attention_to_positions_that_stand_apart(attention, window, n_core_layers, injection):
    changes = {**ATTENTIONS[attention], "window": window, "n_core_layers": n_core_layers, "injection": injection}
    model = make_model(**changes)
    h, e = torch.randn(2, 2, LENGTH, 32, generator=torch.Generator().manual_seed(1))
    context = attention_context(model.config, LENGTH, None, h.device)
    given_to_core = model.injection.drive(h, model.injection.given(e))
    for t in (0, 1, 2, 3, 7):
        expected = torch.tanh(torch.stack([core_reference(model, x, t) for x in given_to_core]))
        expected[:, 0] = e[:, 0]  # the first position keeps its input
        got, routing = model.loop_map(h, e, t, context)
        assert routing == ()
        assert (got.double() - expected).abs().max() <= 1e-5


def test_loops_follow_on_from_each_other_from_the_embedding_on():
    model, ids = make_model("no injection, core only"), tokens()
    h = e = model.embedding.weight[ids].double()
    for turn in model.loop(ids, 6):
        h = torch.tanh(torch.stack([core_reference(model, x, turn.loop - 1) for x in h]))
        h[:, 0] = e[:, 0]
        assert (turn.state.double() - h).abs().max() <= 1e-5


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_long_sequence_is_computed_as_a_short_one(attention):
    """From 512 positions on, attention goes block by block."""
    model, length = make_model(**ATTENTIONS[attention], window=3), 700
    h = torch.randn(1, length, 32, generator=torch.Generator().manual_seed(1))
    context = attention_context(model.config, length, None, h.device)
    x = model.injection.drive(h, model.injection.given(h))[0].double()
    for t in (0, 1, 4, 6):
        got, dilation = model.loop_map(h, h, t, context)[0][0].double(), 3**t
        assert torch.equal(got[0], h[0, 0].double())
        for i in (1, 2, 127, 128, 129, 511, 513, length - 1):
            row = [x[0], *(x[j] for j in range(i % dilation, i + 1, dilation))][-3:]
            expected = torch.tanh(block_reference(model.core[0], model.config, torch.stack(row)))
            assert (got[i] - expected).abs().max() <= 1e-5


def test_prelude_and_coda_keep_an_ordinary_window():
    dilated, ids = make_model("window of three"), tokens()
    plain = undilated(dilated)
    context = attention_context(plain.config, LENGTH, None, ids.device)
    e = plain.encode(ids, context)
    assert torch.equal(dilated.encode(ids, context), e)
    assert torch.equal(dilated.read_out(e), plain.read_out(e))


def test_the_first_loop_is_that_of_an_ordinary_window_where_that_is_full():
    model, ids = make_model("window of three"), tokens()
    plain = undilated(model)
    ours, theirs = ([turn.state for turn in one.loop(ids, 2)] for one in (model, plain))
    assert torch.equal(ours[0][:, 0], ours[1][:, 0])  # the first one stays as it was
    assert not torch.allclose(ours[0][:, 1], theirs[0][:, 1], atol=1e-3)  # the second one sees the first twice
    assert_close(ours[0][:, 2:], theirs[0][:, 2:])
    assert not torch.allclose(ours[1][:, 2:], theirs[1][:, 2:], atol=1e-3)


# ---------------------------------------------------------------- who depends on whom


@every_variant
def test_a_change_leaves_earlier_positions_alone_at_every_loop(variant):
    model, ids = make_model(variant), tokens(1)
    states = model(ids, n_loops=5, trace=True).trace.states
    for place in range(LENGTH):
        other = ids.clone()
        other[:, place] = (other[:, place] + 1) % PAD
        changed = model(other, n_loops=5, trace=True).trace.states
        assert_close(changed[:, :, :place], states[:, :, :place])
        assert not torch.allclose(changed[:, :, place], states[:, :, place], atol=1e-3)


def reached(model: RecurrentDepthTransformer, length: int, n_loops: int, position: int) -> Tensor:
    """(L, T) bool: which tokens the logits at ``position`` depend on after each loop, by gradients."""
    embedded = []
    hook = model.embedding.register_forward_hook(lambda module, args, out: embedded.append(out))
    logits = model(tokens(1, length), n_loops=n_loops, trace=True).trace.logits[:, 0, position]  # (L, V)
    hook.remove()
    weights = torch.randn(logits.shape, dtype=logits.dtype, generator=torch.Generator().manual_seed(2))
    grads = [torch.autograd.grad(loop.sum(), embedded[0], retain_graph=True)[0] for loop in logits * weights]
    return torch.stack(grads)[:, 0].abs().sum(-1) > 0


@pytest.mark.parametrize(
    ("n_prelude", "n_core", "n_coda", "parts"),
    [(0, 1, 0, {"injection": "none"}), (1, 1, 1, MLA), (0, 2, 0, MLA), (2, 2, 1, {"injection": "none"})],
)
@pytest.mark.parametrize("window", [2, 3, 4])
def test_news_crosses_as_many_positions_as_a_power_of_the_window(window, n_prelude, n_core, n_coda, parts):
    layers = {"n_prelude_layers": n_prelude, "n_core_layers": n_core, "n_coda_layers": n_coda}
    model = make_model.__wrapped__(window=window, state_activation="none", **layers, **parts).double()
    model.requires_grad_(True)
    length, n_loops = 36, 5
    for position in (1, 20, length - 1):
        found = reached(model, length, n_loops, position)
        for loop in range(1, n_loops + 1):
            reach = n_core * (window**loop - 1) + (n_prelude + n_coda) * (window - 1)
            assert found[loop - 1].tolist() == [0 <= position - p <= reach for p in range(length)]
    for distance, column in enumerate(found.T.flip(0).tolist()):  # of the last position
        needed = model.config.loops_needed(distance)
        assert column == [loop >= needed for loop in range(1, n_loops + 1)]


# ---------------------------------------------------------------- padding, batches, many loops


@every_variant
def test_padding_on_the_right_changes_no_real_position(variant):
    model, ids = make_model(variant), tokens()
    for n_loops in (1, 2, 3, 6):
        expected = model(ids, n_loops=n_loops).logits
        for more in (1, 2, 5, 17):
            padded = model(F.pad(ids, (0, more), value=PAD), n_loops=n_loops).logits
            assert_close(padded[:, :LENGTH], expected)


@every_variant
def test_chains_of_mixed_lengths_give_what_each_gives_alone(variant):
    model, lengths = make_model(variant), [1, 2, 5, 8, 13]
    chains = [tokens(1, n, seed=n) for n in lengths]
    together = torch.cat([F.pad(chain, (0, max(lengths) - chain.shape[1]), value=PAD) for chain in chains])
    for n_loops in (2, 5):
        logits = model(together, n_loops=n_loops).logits
        for row, chain in zip(logits, chains, strict=True):
            assert_close(row[: chain.shape[1]], model(chain, n_loops=n_loops).logits[0])


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_loops_beyond_the_length_are_loops_in_which_all_see_the_first(length):
    model, ids = make_model("no injection, core only"), tokens(1, length)
    turns = list(model.loop(ids, 40))
    for turn in (turns[10], turns[-1]):
        alone = [
            torch.tanh(block_reference(model.core[0], model.config, turn.previous[0, [0, i]].double()))
            for i in range(length)
        ]
        alone[0] = model.embedding.weight[ids[0, 0]].double()
        assert (turn.state[0].double() - torch.stack(alone)).abs().max() <= 1e-5
    assert torch.isfinite(model(ids, n_loops=300).logits).all()


# ---------------------------------------------------------------- cache and generation


def test_a_cache_is_refused_and_stays_empty():
    model, ids, cache = make_model(), tokens(), Cache()
    for call in (lambda: model(ids, cache=cache), lambda: model.loop(ids, 2, cache)):
        with pytest.raises(ValueError, match=r"dilated window .* keeps no cache"):
            call()
    assert (cache.length, cache.n_kept, cache.n_bytes()) == (0, 0, 0)
    plain = RecurrentDepthTransformer(ModelConfig())
    plain(ids, n_loops=2, cache=cache)  # it is not tied to the model that refused it
    assert cache.length == LENGTH


@every_variant
@pytest.mark.parametrize("n_loops", [1, 4])
def test_generation_is_argmax_after_argmax_of_whole_passes(variant, n_loops):
    model, ids = make_model(variant, pad_token_id=None), tokens(3)
    out = model.generate(ids, max_new_tokens=6, n_loops=n_loops, return_loops=True)
    for _ in range(6):
        ids = torch.cat([ids, model(ids, n_loops=n_loops).logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(out.token_ids, ids)
    assert out.loops_used == (n_loops,) * 6


def test_a_finished_sequence_repeats_the_end_without_a_cache_too():
    model, ids = make_model(pad_token_id=None), tokens(4)
    free = model.generate(ids, max_new_tokens=8)[:, LENGTH:]
    eos = free[0, 2].item()
    got = model.generate(ids, max_new_tokens=8, eos_token_id=eos)[:, LENGTH:]
    for row, wanted in zip(got.tolist(), free.tolist(), strict=True):
        end = wanted.index(eos) if eos in wanted else len(row)
        assert row == (wanted[:end] + [eos] * 8)[: len(row)]


def test_padding_in_a_prompt_is_refused():
    model, ids = make_model(), tokens()
    for place in (0, 4, LENGTH - 1):
        padded = ids.clone()
        padded[1, place] = PAD
        with pytest.raises(ValueError, match=r"padding \(token 9\).* one by one"):
            model.generate(padded, max_new_tokens=1)
        assert model(padded).logits.shape == (2, LENGTH, 10)  # in a batch it is as welcome as anywhere


def test_a_prompt_may_fill_max_seq_len_and_no_more():
    model = make_model(max_seq_len=LENGTH + 2)
    assert model.generate(tokens(), max_new_tokens=2).shape == (2, LENGTH + 2)
    with pytest.raises(ValueError, match=f"{LENGTH + 3} tokens are more than max_seq_len={LENGTH + 2}"):
        model.generate(tokens(), max_new_tokens=3)


class Watching:
    """Never stop, and remember what was shown."""

    def __init__(self) -> None:
        self.shown = []

    def settled(self, changes: list[float]) -> bool:
        self.shown.append(list(changes))
        return False


def test_a_padding_token_that_the_model_itself_has_generated_has_a_say_in_when_to_stop():
    shown = []
    for pad in (PAD, None):
        model, policy = make_model(pad_token_id=pad), Watching()
        generator = torch.Generator().manual_seed(3)
        options = {"n_loops": 5, "temperature": 50.0, "generator": generator, "exit_policy": policy}
        out = model.generate(tokens(1, 3), max_new_tokens=24, **options)
        assert (out[0, 3:-1] == PAD).any()
        shown.append(policy.shown)
    assert shown[0] == shown[1]


def test_an_exit_ends_the_loop_of_a_dilated_model():
    model, ids = make_model(), tokens()
    out = model(ids, n_loops=9, exit_policy=ConvergenceExit(tolerance=1.0, patience=2))
    assert out.n_loops == 3
    assert_close(out.logits, model(ids, n_loops=3).logits)


# ---------------------------------------------------------------- gradients and files


@every_variant
def test_every_parameter_gets_a_gradient(variant):
    model = make_model.__wrapped__(variant).requires_grad_(True)
    model(tokens(4), n_loops=3).logits.square().mean().backward()
    for name, p in model.named_parameters():
        assert torch.isfinite(p.grad).all(), name
        assert (p.grad != 0).any(), name


def test_a_saved_model_is_dilated_when_it_is_loaded_and_one_of_before_is_not(tmp_path, monkeypatch):
    model, ids = make_model("no injection, core only"), tokens()
    folder = model.save_pretrained(tmp_path / "dilated")
    loaded = RecurrentDepthTransformer.from_pretrained(folder)
    assert (loaded.config.dilated, loaded.config.injection) == (True, "none")
    assert torch.equal(loaded(ids, n_loops=4).logits, model(ids, n_loops=4).logits)

    older, to_dict = undilated(model), ModelConfig.to_dict
    monkeypatch.setattr(ModelConfig, "to_dict", lambda c: {k: v for k, v in to_dict(c).items() if k != "dilated"})
    folder = older.save_pretrained(tmp_path / "older")
    assert "dilated" not in (folder / CONFIG_FILE).read_text()
    loaded = RecurrentDepthTransformer.from_pretrained(folder)
    assert loaded.config == older.config
    assert loaded.config.dilated is False
    assert torch.equal(loaded(ids, n_loops=4).logits, older(ids, n_loops=4).logits)


@pytest.mark.parametrize("name", ["mod7", "mod7-experts"])
def test_shipped_models_are_not_dilated(name):
    assert RecurrentDepthTransformer.from_pretrained(name).config.dilated is False
