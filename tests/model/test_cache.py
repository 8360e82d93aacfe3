"""A sequence fed in pieces gives what it gives in one piece, and what does not count leaves no trace."""

import copy
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mythos_lite import Cache, ConvergenceExit, ModelConfig, RecurrentDepthTransformer
from mythos_lite.model.attention import cached_numbers_per_token
from mythos_lite.model.cache import CacheKey

LENGTH = 9
MLA = {
    "attention": "mla", "n_kv_heads": None, "kv_lora_rank": 6, "q_lora_rank": 8,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 6,
}  # fmt: skip
ATTENTIONS = {"gqa": {"n_kv_heads": 2}, "mqa": {"n_kv_heads": 1}, "mla": MLA}
WINDOWS = [None, 1, 2, 3, 5]
EXPERTS = {"n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 1, "d_expert": 8}
FEATURES = {
    "dense lti": {},
    "additive": {"injection": "additive"},
    "no injection": {"injection": "none"},
    "experts": EXPERTS,
    "act": {"halting": "act"},
    "depth lora": {"depth_lora_rank": 3},
    "loop index": {"loop_index_embedding": True},
    "all": {**EXPERTS, "injection": "additive", "halting": "act", "depth_lora_rank": 3, "loop_index_embedding": True},
    "deep": {"n_prelude_layers": 2, "n_core_layers": 3, "n_coda_layers": 2},
    "core only": {"n_prelude_layers": 0, "n_coda_layers": 0},
}


@functools.cache
def make_model(attention: str = "gqa", window: int | None = 3, feature: str = "dense lti") -> RecurrentDepthTransformer:
    """A model in which every weight matters, so that nothing hides behind a small initial value."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_ff": 24, "max_seq_len": 2 * LENGTH, "n_loops": 3}
    config = ModelConfig(**sizes, window=window, **ATTENTIONS[attention], **FEATURES[feature])
    model = RecurrentDepthTransformer(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("injection.") and "norm" not in name:
                p.normal_(std=p.shape[-1] ** -0.5)
        for block in model.core:
            if model.config.n_experts:
                block.ffn.bias.normal_(std=0.1)
    return model.requires_grad_(False).eval()


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(9, (batch, length), generator=torch.Generator().manual_seed(seed))


def in_pieces(model: RecurrentDepthTransformer, ids: Tensor, sizes: list[int], n_loops: int, cache: Cache) -> Tensor:
    return torch.cat([model(piece, n_loops=n_loops, cache=cache).logits for piece in ids.split(sizes, dim=1)], dim=1)


def assert_close(got: Tensor, expected: Tensor, size: float = 1.0) -> None:
    """Equal within rounding, and of a size at which a difference would show."""
    assert expected.abs().max() > size
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- equal results


@pytest.mark.parametrize("n_loops", [1, 2, 5])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_one_piece_chunks_and_single_tokens_equal_no_cache(attention, window, n_loops):
    model, ids = make_model(attention, window), tokens()
    expected = model(ids, n_loops=n_loops).logits
    for sizes in ([LENGTH], [4, 2, 3], [1] * LENGTH, [1, LENGTH - 1]):
        assert_close(in_pieces(model, ids, sizes, n_loops, Cache()), expected)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_every_part_of_the_model_works_with_a_cache(attention, window, feature):
    model, ids = make_model(attention, window, feature), tokens()
    expected = model(ids, n_loops=4).logits
    for sizes in ([5, 1, 3], [1] * LENGTH):
        assert_close(in_pieces(model, ids, sizes, 4, Cache()), expected)


@settings(max_examples=60, deadline=None)
@given(
    attention=st.sampled_from(list(ATTENTIONS)),
    window=st.sampled_from(WINDOWS),
    feature=st.sampled_from(list(FEATURES)),
    n_loops=st.integers(1, 4),
    batch=st.integers(1, 3),
    ends=st.lists(st.booleans(), min_size=LENGTH - 1, max_size=LENGTH - 1),
    seed=st.integers(0, 99),
)
def test_any_partition_equals_no_cache(attention, window, feature, n_loops, batch, ends, seed):
    cuts = [0, *(i for i, end in enumerate(ends, start=1) if end), LENGTH]
    sizes = [after - before for before, after in itertools.pairwise(cuts)]
    model, ids, cache = make_model(attention, window, feature), tokens(batch, seed=seed), Cache()
    assert_close(in_pieces(model, ids, sizes, n_loops, cache), model(ids, n_loops=n_loops).logits)
    assert (cache.length, cache.n_loops, cache.batch_size) == (LENGTH, n_loops, batch)


@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_act_reports_the_same_ponder_cost_with_a_cache(attention):
    model, ids, cache = make_model(attention, 3, "act"), tokens(), Cache()
    pieces = [model(piece, n_loops=5, cache=cache).ponder_cost for piece in ids.split([4, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids, n_loops=5).ponder_cost)


def traces(model: RecurrentDepthTransformer, ids: Tensor, sizes: list[int]) -> list:
    cache = Cache()
    return [model(piece, n_loops=4, cache=cache, trace=True).trace for piece in ids.split(sizes, dim=1)]


@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_a_trace_has_the_same_states_in_pieces(attention):
    model, ids = make_model(attention), tokens()
    (expected,), pieces = traces(model, ids, [LENGTH]), traces(model, ids, [4, 1, 4])
    assert_close(
        torch.cat([trace.states for trace in pieces], dim=2), expected.states, size=0.9
    )  # the tanh keeps states in [−1, 1]
    torch.testing.assert_close(torch.cat([trace.residuals for trace in pieces], dim=2), expected.residuals)
    assert_close(torch.cat([trace.logits[-1] for trace in pieces], dim=1), expected.logits[-1])


def test_two_caches_do_not_disturb_each_other():
    model, sequences, caches = make_model(), (tokens(seed=1), tokens(seed=2)), (Cache(), Cache())
    got = [
        [model(ids[:, i : i + 1], n_loops=3, cache=c).logits for ids, c in zip(sequences, caches, strict=True)]
        for i in range(LENGTH)
    ]
    for ids, logits in zip(sequences, zip(*got, strict=True), strict=True):
        assert_close(torch.cat(logits, dim=1), model(ids, n_loops=3).logits)


# ---------------------------------------------------------------- rejections


def wrong_calls(model: RecurrentDepthTransformer, ids: Tensor) -> dict:
    """Calls that do not fit a cache of two sequences filled at three loops: (tokens, loops, what is said)."""
    room = model.config.max_seq_len
    return {
        "fewer loops": (ids[:, :1], 2, "n_loops=3 and cannot be used at n_loops=2"),
        "more loops": (ids[:, :1], 4, "n_loops=3 and cannot be used at n_loops=4"),
        "fewer sequences": (ids[:1, :1], 3, "batch_size=2 and cannot be used at batch_size=1"),
        "more sequences": (ids.repeat(2, 1)[:, :1], 3, "batch_size=2 and cannot be used at batch_size=4"),
        "too many tokens": (tokens(2, room - 3), 3, f"{room + 1} tokens are more than max_seq_len={room}"),
        "no such token": (ids[:, :1] + 10, 3, "outside the vocabulary"),
        "no tokens": (ids[:, :0], 3, "T ≥ 1"),
    }


@pytest.mark.parametrize("wrong", wrong_calls(make_model(), tokens()))
@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_a_refused_call_names_the_reason_and_leaves_the_cache_usable(attention, wrong):
    model, ids, cache = make_model(attention), tokens(), Cache()
    expected = model(ids, n_loops=3).logits
    start = model(ids[:, :4], n_loops=3, cache=cache).logits
    before = (cache.length, cache.n_kept, cache.n_loops, cache.batch_size, cache.n_bytes())
    bad_ids, n_loops, reason = wrong_calls(model, ids)[wrong]
    with pytest.raises(ValueError, match=reason):
        model(bad_ids, n_loops=n_loops, cache=cache)
    assert before == (cache.length, cache.n_kept, cache.n_loops, cache.batch_size, cache.n_bytes())
    assert_close(torch.cat([start, in_pieces(model, ids[:, 4:], [1, 4], 3, cache)], dim=1), expected)


def test_a_cache_of_another_model_is_refused():
    cache = Cache()
    make_model(window=2)(tokens(), n_loops=3, cache=cache)
    with pytest.raises(ValueError, match="another configuration"):
        make_model(window=None)(tokens(), n_loops=3, cache=cache)


@pytest.mark.parametrize("wrong", [{}, [], False, Cache], ids=str)
def test_what_is_no_cache_is_refused(wrong):
    model = make_model()
    for call in (lambda: model(tokens(), cache=wrong), lambda: next(model.loop(tokens(), 1, wrong))):
        with pytest.raises(ValueError, match="cache must be a Cache or None, not"):
            call()


def test_an_empty_cache_takes_any_loop_count_and_batch():
    for n_loops, batch in ((1, 3), (5, 1)):
        cache = Cache()
        make_model()(tokens(batch), n_loops=n_loops, cache=cache)
        assert (cache.n_loops, cache.batch_size) == (n_loops, batch)


def test_a_sequence_may_fill_max_seq_len_exactly():
    model, cache = make_model(), Cache()
    ids = tokens(1, model.config.max_seq_len)
    assert_close(in_pieces(model, ids, [LENGTH, LENGTH], 2, cache), model(ids, n_loops=2).logits)
    with pytest.raises(ValueError, match="max_seq_len"):
        model(ids[:, :1], n_loops=2, cache=cache)


# ---------------------------------------------------------------- passes that do not count


class Crash(Exception):
    pass


def crash_in(model: RecurrentDepthTransformer, stage: str, ids: Tensor, n_loops: int, cache: Cache) -> None:
    """A pass that dies after ``stage`` has written to the cache: in the core, after its second loop."""
    calls = []

    def die(*_):
        calls.append(None)
        if stage != "core" or len(calls) == 2:
            raise Crash

    hook = getattr(model, stage)[-1].register_forward_hook(die)
    try:
        with pytest.raises(Crash):
            model(ids, n_loops=n_loops, cache=cache)
    finally:
        hook.remove()


def abandon(model: RecurrentDepthTransformer, ids: Tensor, n_loops: int, cache: Cache) -> None:
    """Two loops, read out after each, and then no more."""
    loop = model.loop(ids, n_loops, cache)
    for _ in range(2):
        model.read_out(next(loop).output, cache=cache)
    loop.close()


INTERRUPTIONS = {
    "crash in the prelude": lambda *call: crash_in(call[0], "prelude", *call[1:]),
    "crash in the core": lambda *call: crash_in(call[0], "core", *call[1:]),
    "crash in the coda": lambda *call: crash_in(call[0], "coda", *call[1:]),
    "abandoned after two loops": abandon,
}


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
@pytest.mark.parametrize("window", [None, 1, 2, 4])
@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_an_unfinished_pass_leaves_no_trace(attention, window, interruption):
    model, ids, cache = make_model(attention, window), tokens(), Cache()
    interrupt = INTERRUPTIONS[interruption]
    others = tokens(seed=7)
    logits = []
    for piece in ids.split([3, 1, 5], dim=1):
        seen = (cache.length, cache.n_kept)
        interrupt(model, others[:, :4], 3, cache)
        assert seen == (cache.length, cache.n_kept)
        logits.append(model(piece, n_loops=3, cache=cache).logits)
    assert_close(torch.cat(logits, dim=1), model(ids, n_loops=3).logits)


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
@pytest.mark.parametrize("window", [None, 3])
def test_an_unfinished_first_pass_ties_the_cache_to_nothing(window, interruption):
    model, ids, cache = make_model(window=window), tokens(), Cache()
    INTERRUPTIONS[interruption](model, tokens(5, seed=7), 4, cache)
    assert (cache.length, cache.n_kept) == (0, 0)
    assert_close(in_pieces(model, ids, [4, 5], 1, cache), model(ids, n_loops=1).logits)


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
@pytest.mark.parametrize("window", [None, 3])
def test_an_unfinished_first_pass_takes_no_memory_from_later_ones(window, interruption):
    model, ids, cache, fresh = make_model(window=window), tokens(), Cache(), Cache()
    INTERRUPTIONS[interruption](model, tokens(5, seed=7), 4, cache)
    for each in (cache, fresh):
        in_pieces(model, ids, [4, 5], 1, each)
    assert cache.n_bytes() == fresh.n_bytes()


def test_reading_the_coda_out_after_every_loop_leaves_no_trace():
    model, ids, cache, plain = make_model(window=None), tokens(), Cache(), Cache()
    model(ids[:, :5], n_loops=4, cache=cache, trace=True)
    model(ids[:, :5], n_loops=4, cache=plain)
    assert cache.n_bytes() == plain.n_bytes()
    assert_close(in_pieces(model, ids[:, 5:], [1, 3], 4, cache), model(ids, n_loops=4).logits[:, 5:])


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("prefill", [1, LENGTH])
def test_a_window_lets_go_of_old_tokens(attention, window, prefill):
    model, cache, n_loops = make_model(attention, window), Cache(), 2
    ids = tokens(2, 2 * LENGTH)
    model(ids[:, :prefill], n_loops=n_loops, cache=cache)
    for i in range(prefill, 2 * LENGTH):
        model(ids[:, i : i + 1], n_loops=n_loops, cache=cache)
        kept = min(cache.length, window - 1)
        assert cache.n_kept == kept
        assert cache.n_bytes() == 2 * kept * (2 + n_loops) * cached_numbers_per_token(model.config) * 4
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for entry in cache._entries.values() for t in entry}
    assert sum(storage.nbytes() for storage in storages.values()) == cache.n_bytes()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_without_a_window_the_cache_grows_by_the_same_for_every_token(attention):
    model, cache, n_loops = make_model(attention, None), Cache(), 3
    sizes = []
    for piece in tokens().split(1, dim=1):
        model(piece, n_loops=n_loops, cache=cache)
        sizes.append(cache.n_bytes())
    each = 2 * (2 + n_loops) * cached_numbers_per_token(model.config) * 4
    assert sizes == [each * (i + 1) for i in range(LENGTH)]


def buffers(cache):
    return {key: [tensor.untyped_storage().data_ptr() for tensor in entry] for key, entry in cache._entries.items()}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("expected", [0, LENGTH])
def test_new_tokens_are_written_into_room_that_is_there(attention, expected):
    model, ids, cache = make_model(attention, None), tokens(), Cache(expected)
    outputs, moves = [], 0
    for piece in ids.split(1, dim=1):
        before = buffers(cache)
        outputs.append(model(piece, n_loops=2, cache=cache).logits)
        moves += before != buffers(cache)
    assert moves == 1 if expected else 1 < moves < LENGTH - 1
    assert_close(torch.cat(outputs, dim=1), model(ids, n_loops=2).logits)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("window", [None, 3])
def test_tokens_of_inference_mode_can_be_followed_by_others(attention, window):
    model, ids, cache = make_model(attention, window), tokens(), Cache(2 * LENGTH)
    with torch.inference_mode():
        first = model(ids[:, :4], n_loops=2, cache=cache).logits
    with torch.no_grad():
        second = model(ids[:, 4:6], n_loops=2, cache=cache).logits
    with torch.inference_mode():
        third = model(ids[:, 6:], n_loops=2, cache=cache).logits
    assert_close(torch.cat([first, second, third], dim=1).clone(), model(ids, n_loops=2).logits)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("window", [None, 3])
def test_gradients_go_through_a_cache(attention, window):
    model, ids = make_model.__wrapped__(attention, window), tokens()
    model.requires_grad_(True)
    pieces = in_pieces(model, ids, [4, 1, LENGTH - 5], 2, Cache())
    weights = torch.randn_like(pieces)
    wanted = list(model.parameters())
    found = [torch.autograd.grad((y * weights).sum(), wanted) for y in (pieces, model(ids, n_loops=2).logits)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_an_empty_cache_takes_no_bytes():
    cache = Cache()
    assert (cache.n_bytes(), cache.length, cache.n_kept) == (0, 0, 0)


# ---------------------------------------------------------------- early exit


@functools.cache
def make_settling_model(attention: str, window: int | None) -> RecurrentDepthTransformer:
    """Its state forgets at once, h' = R(B̄ e): from the first loop on it does not change any more."""
    model = make_model.__wrapped__(attention, window)
    with torch.no_grad():
        model.injection.a.fill_(20.0)
        model.injection.delta.fill_(0.5)
    assert model.injection.decay().abs().max() == 0
    return model


@pytest.mark.parametrize("window", [None, 1, 2, 5])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("sizes", [[4, 1, 4], [1] * LENGTH], ids=str)
def test_an_early_exit_of_a_settled_state_changes_nothing(attention, window, sizes):
    model, ids, cache = make_settling_model(attention, window), tokens(), Cache()
    policy = ConvergenceExit(tolerance=0.0, patience=2)
    outs = [model(piece, n_loops=8, cache=cache, exit_policy=policy) for piece in ids.split(sizes, dim=1)]
    assert [out.n_loops for out in outs] == [3] * len(sizes)
    assert_close(torch.cat([out.logits for out in outs], dim=1), model(ids, n_loops=8).logits)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_exit_may_come_and_go_between_pieces(attention, window):
    model, ids, cache = make_settling_model(attention, window), tokens(), Cache()
    policies = [ConvergenceExit(tolerance=0.0, patience=1), ConvergenceExit(tolerance=0.0, patience=4), None, None]
    outs = [
        model(piece, n_loops=8, cache=cache, exit_policy=policy)
        for piece, policy in zip(ids.split([4, 3, 1, 1], dim=1), policies, strict=True)
    ]
    assert [out.n_loops for out in outs] == [2, 5, 8, 8]
    assert_close(torch.cat([out.logits for out in outs], dim=1), model(ids, n_loops=8).logits)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("window", [None, 3])
def test_an_exit_before_the_state_has_settled_fills_every_loop(window, feature):
    model, ids, cache, full = make_model("gqa", window, feature), tokens(), Cache(), Cache()
    policy = ConvergenceExit(tolerance=1.0, patience=2)
    out = model(ids[:, :5], n_loops=6, cache=cache, exit_policy=policy)
    model(ids[:, :5], n_loops=6, cache=full)
    assert out.n_loops == 3
    assert_close(out.logits, model(ids[:, :5], n_loops=3).logits)
    assert cache.n_bytes() == full.n_bytes()
    for piece in ids[:, 5:].split([1, 3], dim=1):
        later = model(piece, n_loops=6, cache=cache)
        assert later.n_loops == 6
        assert torch.isfinite(later.logits).all()


def test_an_exit_that_never_comes_is_no_exit():
    model, ids, cache = make_model("mla", None), tokens(), Cache()
    policy = ConvergenceExit(tolerance=0.0, patience=9)
    outs = [model(piece, n_loops=6, cache=cache, exit_policy=policy) for piece in ids.split([4, 1, 4], dim=1)]
    assert [out.n_loops for out in outs] == [6, 6, 6]
    assert_close(torch.cat([out.logits for out in outs], dim=1), model(ids, n_loops=6).logits)


def test_no_token_settles_before_those_it_follows():
    model, ids, cache = make_settling_model("gqa", 2), tokens(), Cache()
    policy = ConvergenceExit(tolerance=0.0, patience=1)
    first = model(ids[:, :4], n_loops=8, cache=cache, exit_policy=ConvergenceExit(tolerance=0.0, patience=5))
    later = model(ids[:, 4:5], n_loops=8, cache=cache, exit_policy=policy)
    alone = model(ids[:, 4:5], n_loops=8, exit_policy=policy)
    assert (first.n_loops, later.n_loops, alone.n_loops) == (6, 6, 2)


@pytest.mark.parametrize("window", [None, 3, 8])
def test_skipped_loops_get_the_keys_of_the_last_loop_that_was_run(window):
    cache, parts = Cache(), torch.randn(4, 2, 1, 5, 3)
    cache.begin(ModelConfig(window=window), 2, 4)
    for key, part in zip([("prelude", 0), ("core", 0, 0), ("core", 0, 1), ("core", 1, 1)], parts, strict=True):
        cache.put(CacheKey(*key), part, 2 * part)
    cache.advance(5, 2)
    kept = 5 if window is None else min(5, window - 1)
    fresh = torch.randn(2, 1, 1, 3)
    for layer, last in ((0, parts[2]), (1, parts[3])):
        for loop in (1, 2, 3):
            key, value = cache.put(CacheKey("core", layer, loop), fresh, 2 * fresh)
            assert torch.equal(key, torch.cat([last[..., 5 - kept :, :], fresh], dim=-2))
            assert torch.equal(value, 2 * key)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_model_that_was_cast_in_between_is_refused(attention):
    model, ids = copy.deepcopy(make_model(attention, None)), tokens()
    cache = Cache()
    model(ids[:, :4], cache=cache)
    with pytest.raises(ValueError, match=r"filled at dtype=torch.float32 and cannot be used at dtype=torch.bfloat16"):
        copy.deepcopy(model).bfloat16()(ids[:, 4:], cache=cache)
    assert_close(model(ids[:, 4:], cache=cache).logits, model(ids).logits[:, 4:])


def test_padding_is_refused_where_later_tokens_would_attend_to_it():
    model, ids = make_model(), tokens()
    cache = Cache()
    for padded in (torch.cat([ids, torch.full((2, 1), 9)], dim=1), torch.full((2, 1), 9)):
        with pytest.raises(ValueError, match=r"padding \(token 9\), to which later ones would attend: run"):
            model(padded, cache=cache)
        with pytest.raises(ValueError, match=r"padding \(token 9\)"):
            list(model.loop(padded, 3, cache))
    assert cache.length == 0
    model(ids, cache=cache)
    assert cache.length == LENGTH
