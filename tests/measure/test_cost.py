"""Costs from the configuration against what the model really holds, computes, caches and keeps."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mythos_lite import ModelConfig, RecurrentDepthTransformer
from mythos_lite.measure.cost import cost, parameters
from mythos_lite.model.cache import Cache
from mythos_lite.training.recipes import published_model

BASE = {"d_model": 48, "n_heads": 4, "n_kv_heads": 2, "d_ff": 72, "window": None}
MLA = {
    "attention": "mla", "n_kv_heads": None, "kv_lora_rank": 20, "q_lora_rank": 24, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 12,
}  # fmt: skip
EXPERTS = {"n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 1, "d_expert": 32}
EXTRAS = {"injection": "additive", "depth_lora_rank": 3, "halting": "act", "loop_index_embedding": True}
BARE = {"injection": "none", "state_activation": "none", "n_prelude_layers": 0, "n_coda_layers": 0}
VARIANTS = {
    "gqa": {}, "window of 2": {"window": 2}, "window of 5, two layers": {"window": 5, "n_core_layers": 2},
    "mla": MLA, "wide values": {**MLA, "v_head_dim": 40}, "experts": EXPERTS, "mla with experts": {**MLA, **EXPERTS},
    "extras": EXTRAS, "bare": BARE, "few answers": {"output_size": 5},
    "dilated": {**BARE, "window": 2, "dilated": True},
    "everything": {**MLA, **EXPERTS, **EXTRAS, "window": 3}, "no shared expert": {**EXPERTS, "n_shared_experts": 0},
}  # fmt: skip


def make(name):
    config = ModelConfig(**{**BASE, **VARIANTS[name]})
    torch.manual_seed(0)
    return config, RecurrentDepthTransformer(config)


def counted_flops(model, *given, **named):
    """What PyTorch counts; it sees into attention only where the plain kernel is asked for."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*given, **named)
    return counter.get_total_flops()


def kept_bytes(model, ids, n_loops):
    """Bytes of the distinct tensors that autograd keeps, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        logits = model(ids, n_loops=n_loops).logits
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert logits.requires_grad
    return sum(size for place, size in storages.items() if place not in weights)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_of_the_model(name):
    config, model = make(name)
    assert parameters(config) == cost(config).parameters == model.n_parameters()
    assert cost(config, bytes_per_number=2).weight_bytes == 2 * model.n_parameters()


@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_parameters_of_the_published_model(attention):
    assert parameters(published_model(attention)) == {"mla": 370_306, "gqa": 437_698}[attention]


@pytest.mark.parametrize(("batch", "length", "n_loops"), [(1, 1, 1), (2, 37, 3), (1, 600, 2)])
@pytest.mark.parametrize("name", VARIANTS)
def test_operations_are_those_that_are_counted(name, batch, length, n_loops):
    config, model = make(name)
    ids = torch.randint(0, 9, (batch, length))
    assert cost(config, n_loops, batch=batch, length=length).flops == counted_flops(model, ids, n_loops=n_loops)


@pytest.mark.parametrize(("batch", "length", "more"), [(2, 37, 1), (1, 3, 4), (1, 600, 1)])
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "dilated"])
def test_a_cache_costs_what_it_holds_and_saves(name, batch, length, more):
    config, model = make(name)
    ids, cache = torch.randint(0, 9, (batch, length + more)), Cache()
    with torch.no_grad():
        model(ids[:, :length], n_loops=3, cache=cache)
    assert cost(config, 3, batch=batch, length=length).cache_bytes == cache.n_bytes()
    counted = counted_flops(model, ids[:, length:], n_loops=3, cache=cache)
    expected = cost(config, 3, batch=batch, length=more, cached=length)
    assert (expected.flops, expected.cache_bytes) == (counted, cache.n_bytes())


@pytest.mark.parametrize(("batch", "length"), [(8, 32), (1, 64), (2, 600)])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_training_keeps_is_met_to_five_per_cent(name, batch, length):
    config, model = make(name)
    ids = torch.randint(0, 9, (batch, length))
    for n_loops in (1, 4):
        expected = cost(config, n_loops, batch=batch, length=length).kept_bytes
        assert expected == pytest.approx(kept_bytes(model, ids, n_loops), rel=0.05)


def test_loops_share_weights_and_may_share_cache_slots():
    config = ModelConfig(**BASE)
    one, many = (cost(config, n, length=10) for n in (1, 8))
    assert one.parameters == many.parameters
    assert many.cache_bytes == one.cache_bytes // 3 * 10  # prelude, coda and a slot per loop
    assert cost(config, 8, length=10, shared_slot=True).cache_bytes == one.cache_bytes
    assert cost(config, length=10) == cost(config, config.n_loops, length=10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_loops": 0}, "n_loops=0"), ({"batch": 0}, "batch=0"), ({"length": 1.5}, "length=1.5"),
        ({"cached": -1}, "cached=-1"), ({"bytes_per_number": 0}, "bytes_per_number=0"),
    ],
)  # fmt: skip
def test_impossible_counts_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        cost(ModelConfig(), **given)


def test_a_dilated_window_keeps_no_cache():
    config = ModelConfig(**{**BASE, **VARIANTS["dilated"]})
    assert cost(config, length=5).cache_bytes == 0
    with pytest.raises(ValueError, match="cached=3 is not possible: a model with a dilated window keeps no cache"):
        cost(config, cached=3)
