"""Both attentions against formulas written out here, against torch's and against DeepSeek's own layers."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from mythos_lite import Cache, ModelConfig, RecurrentDepthTransformer
from mythos_lite.model.attention import (
    AttentionContext,
    attend,
    attention_context,
    cached_numbers_per_token,
    make_attention,
    visible,
)
from mythos_lite.model.cache import CacheKey

WINDOWS = [None, 1, 2, 3, 5, 20]
SLOT = CacheKey("core", 0)


def gqa_config(n_kv_heads: int = 4, **changes) -> ModelConfig:
    return ModelConfig(**{"d_model": 32, "n_heads": 4, "n_kv_heads": n_kv_heads, "window": None, **changes})


def mla_config(**changes) -> ModelConfig:
    return ModelConfig(
        **{
            **{"d_model": 32, "n_heads": 4, "attention": "mla", "n_kv_heads": None, "window": None},
            **{"kv_lora_rank": 10, "q_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 5},
            **changes,
        }
    )


ATTENTIONS = {"mha": gqa_config(4), "gqa": gqa_config(2), "mqa": gqa_config(1), "mla": mla_config()}


def windowed(name: str, window: int | None) -> ModelConfig:
    return ModelConfig(**{**ATTENTIONS[name].to_dict(), "window": window})


def make_layer(config: ModelConfig, seed: int = 0) -> nn.Module:
    """An attention layer whose every weight matters, norms included."""
    torch.manual_seed(seed)
    layer = make_attention(config)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=p.shape[-1] ** -0.5) if p.ndim > 1 else p.uniform_(0.5, 1.5)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_one_query_sees_what_a_mask_of_its_sequence_allows(n_kv_heads):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 1, 6), torch.randn(2, n_kv_heads, 5, 6), torch.randn(2, n_kv_heads, 5, 6)
    seen = torch.tensor([[False, False, True, True, True], [True, False, True, False, True]])
    context = AttentionContext(torch.empty(0), torch.empty(0), seen[:, None, None], causal=False)
    mixed = attend(query, key, value, context, enable_gqa=True)
    for row, mask in enumerate(seen):
        parts = (x[row : row + 1, :, mask].repeat_interleave(4 // n_kv_heads, dim=1) for x in (key, value))
        torch.testing.assert_close(mixed[row : row + 1], F.scaled_dot_product_attention(query[row : row + 1], *parts))


def fresh_context(config: ModelConfig, length: int) -> AttentionContext:
    return attention_context(config, length, None, torch.device("cpu"))


def run(layer: nn.Module, config: ModelConfig, x: Tensor) -> Tensor:
    return layer(x, fresh_context(config, x.shape[1]))


def seen(length: int, window: int | None) -> Tensor:
    return torch.tensor([[j <= i and (window is None or i - j < window) for j in range(length)] for i in range(length)])


def turn(x: Tensor, theta: float) -> Tensor:
    """Rotary positions 0, 1, … of (…, T, dim) as complex numbers."""
    first, second = x.double().chunk(2, dim=-1)
    rates = theta ** (-torch.arange(first.shape[-1], dtype=torch.float64) / first.shape[-1])
    out = torch.complex(first, second) * torch.exp(1j * torch.arange(x.shape[-2]).unsqueeze(1) * rates)
    return torch.cat([out.real, out.imag], dim=-1)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """(B, H, T, d) each → (B, T, H·v), scores, mask and softmax written out."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~seen(query.shape[-2], window), -torch.inf)
    return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).flatten(2)


def gqa_reference(layer: nn.Module, config: ModelConfig, x: Tensor) -> Tensor:
    x = x.double()
    groups = config.n_heads // config.n_kv_heads

    def heads(linear: nn.Linear, n_heads: int) -> Tensor:
        return (x @ linear.weight.double().T).view(*x.shape[:2], n_heads, config.head_dim).transpose(1, 2)

    query = turn(heads(layer.query, config.n_heads), config.rope_theta)
    key = turn(heads(layer.key, config.n_kv_heads), config.rope_theta).repeat_interleave(groups, dim=1)
    value = heads(layer.value, config.n_kv_heads).repeat_interleave(groups, dim=1)
    return softmax_attention(query, key, value, config.window) @ layer.out.weight.double().T


def mla_reference(layer: nn.Module, config: ModelConfig, x: Tensor) -> Tensor:
    """DeepSeek-V2, eq. 9–19, head by head, without an absorbed weight."""
    layer, x = deepcopy(layer).double(), x.double()
    n, r = config.qk_nope_head_dim, config.qk_rope_head_dim
    latent, rotary_key = layer.kv_down(x).split([config.kv_lora_rank, r], dim=-1)
    latent, rotary_key = layer.kv_norm(latent), turn(rotary_key, config.rope_theta)
    mixed = []
    for head, query in enumerate(layer.query_up(layer.query_norm(layer.query_down(x))).split(n + r, dim=-1)):
        query = torch.cat([query[..., :n], turn(query[..., n:], config.rope_theta)], dim=-1)
        key = torch.cat([latent @ layer.key_up[head].T, rotary_key], dim=-1)
        value = latent @ layer.value_up[head].T
        mixed.append(softmax_attention(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1), config.window))
    return torch.cat(mixed, dim=-1) @ layer.out.weight.T


def max_difference(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


# ---------------------------------------------------------------- who sees whom


@pytest.mark.parametrize("window", WINDOWS)
def test_visible_is_the_sliding_window_for_any_number_of_new_tokens(window):
    for n_keys in range(1, 8):
        for n_queries in range(1, n_keys + 1):
            assert torch.equal(visible(n_queries, n_keys, window), seen(n_keys, window)[n_keys - n_queries :])


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("window", WINDOWS)
def test_a_token_reaches_itself_and_the_window_after_it_alone(name, window):
    config, length, place = windowed(name, window), 9, 3
    layer = make_layer(config)
    x = torch.randn(2, length, 32)
    other = x.clone()
    other[:, place] += 1.0
    changed = (run(layer, config, x) != run(layer, config, other)).any(-1).any(0)
    assert torch.equal(changed, seen(length, window)[:, place])


# ---------------------------------------------------------------- against formulas


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_grouped_query_attention_is_softmax_over_repeated_heads(n_kv_heads, window):
    config = gqa_config(n_kv_heads, window=window)
    layer, x = make_layer(config), torch.randn(3, 7, 32)
    assert max_difference(run(layer, config, x), gqa_reference(layer, config, x)) < 1e-5


@pytest.mark.parametrize("window", [None, 3])
def test_as_many_kv_heads_as_heads_is_torch_multihead_attention(window):
    config, length = gqa_config(4), 7
    layer, x = make_layer(config), torch.randn(3, length, 32)
    context = fresh_context(config, length)
    unturned = AttentionContext(
        torch.ones_like(context.cos), torch.zeros_like(context.sin), seen(length, window), False
    )
    peer = nn.MultiheadAttention(32, 4, bias=False, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))
        peer.out_proj.weight.copy_(layer.out.weight)
        expected, _ = peer(x, x, x, attn_mask=~seen(length, window))
    assert max_difference(layer(x, unturned), expected) < 1e-5


@pytest.mark.parametrize("n_kv_heads", [2, 1])
def test_sharing_kv_heads_is_multi_head_attention_with_equal_heads(n_kv_heads):
    shared_config, config = gqa_config(n_kv_heads), gqa_config(4)
    shared, layer = make_layer(shared_config), make_layer(config)
    for name in ("key", "value"):
        heads = getattr(shared, name).weight.view(n_kv_heads, 8, 32).repeat_interleave(4 // n_kv_heads, dim=0)
        getattr(layer, name).weight.copy_(heads.flatten(0, 1))
    layer.query.weight.copy_(shared.query.weight)
    layer.out.weight.copy_(shared.out.weight)
    x = torch.randn(2, 6, 32)
    assert max_difference(run(shared, shared_config, x), run(layer, config, x)) < 1e-5


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("changes", [{}, {"n_heads": 1}, {"n_heads": 3, "v_head_dim": 12, "qk_rope_head_dim": 2}])
def test_latent_attention_is_its_formula(changes, window):
    config = mla_config(window=window, **changes)
    layer, x = make_layer(config), torch.randn(3, 7, 32)
    assert max_difference(run(layer, config, x), mla_reference(layer, config, x)) < 1e-5


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("n_heads", [1, 4])
@pytest.mark.parametrize(("n_queries", "n_keys"), [(6, 6), (1, 1), (3, 6)])
def test_explicit_and_absorbed_latent_attention_are_equal(n_heads, window, n_queries, n_keys):
    config = mla_config(n_heads=n_heads, window=window)
    layer = make_layer(config)
    query_nope, query_rope = torch.randn(2, n_heads, n_queries, 6), torch.randn(2, n_heads, n_queries, 8)
    latent, rotary_key = torch.randn(2, 1, n_keys, 10), torch.randn(2, 1, n_keys, 8)
    context = AttentionContext(torch.empty(0), torch.empty(0), visible(n_queries, n_keys, window), False)
    parts = (query_nope, query_rope, torch.cat([latent, rotary_key], dim=-1), context)
    assert max_difference(layer.attend_explicit(*parts), layer.attend_absorbed(*parts)) < 1e-5


def test_latent_attention_has_the_same_gradients_in_both_forms():
    layer = make_layer(mla_config()).requires_grad_(True)
    context = AttentionContext(torch.empty(0), torch.empty(0), seen(5, None), False)
    parts = [torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 8), torch.randn(2, 1, 5, 18)]
    inputs = [part.requires_grad_() for part in parts] + [layer.key_up, layer.value_up]
    weights = torch.randn(2, 4, 5, 5)
    explicit, absorbed = (
        torch.autograd.grad((attend(*parts, context) * weights).sum(), inputs)
        for attend in (layer.attend_explicit, layer.attend_absorbed)
    )
    for a, b in zip(explicit, absorbed, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- with a cache


def run_in_chunks(layer: nn.Module, config: ModelConfig, x: Tensor, sizes: list[int]) -> Tensor:
    cache, outputs = Cache(), []
    cache.begin(config, len(x), 1)
    for chunk in x.split(sizes, dim=1):
        outputs.append(layer(chunk, attention_context(config, chunk.shape[1], cache, x.device), SLOT))
        cache.advance(chunk.shape[1], 1)
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sizes", [[8], [1] * 8, [5, 1, 2], [1, 6, 1], [2, 6]], ids=str)
def test_chunks_through_a_cache_equal_one_pass(name, window, sizes):
    config = windowed(name, window)
    layer, x = make_layer(config), torch.randn(2, 8, 32)
    assert max_difference(run_in_chunks(layer, config, x, sizes), run(layer, config, x)) < 1e-5


@pytest.mark.parametrize("window", [None, 4])
def test_cached_latents_are_never_expanded_again(monkeypatch, window):
    config = mla_config(window=window)
    layer, x = make_layer(config), torch.randn(2, 8, 32)
    forms = []
    for form in ("attend_explicit", "attend_absorbed"):
        attend = getattr(layer, form)
        monkeypatch.setattr(layer, form, lambda *parts, form=form, attend=attend: forms.append(form) or attend(*parts))
    run_in_chunks(layer, config, x, [4, 1, 3])
    run(layer, config, x)
    assert forms == ["attend_explicit", "attend_absorbed", "attend_absorbed", "attend_explicit"]


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (gqa_config(4), 2 * 4 * 8),
        (gqa_config(2), 2 * 2 * 8),
        (gqa_config(1), 2 * 8),
        (mla_config(), 10 + 8),
        (mla_config(n_heads=1), 10 + 8),
        (mla_config(kv_lora_rank=3, qk_rope_head_dim=2), 3 + 2),
    ],
)
@pytest.mark.parametrize("window", [None, 1, 2, 5])
def test_the_cache_holds_so_many_numbers_per_token_layer_and_loop(config, numbers, window):
    config = ModelConfig(**{**config.to_dict(), "window": window, "n_prelude_layers": 2, "n_core_layers": 2})
    assert cached_numbers_per_token(config) == numbers
    model, cache = RecurrentDepthTransformer(config), Cache()
    batch, length, n_loops = 3, 4, 3
    with torch.no_grad():
        model(torch.randint(9, (batch, length)), n_loops=n_loops, cache=cache)
        model(torch.randint(9, (batch, 1)), n_loops=n_loops, cache=cache)
    kept = length + 1 if window is None else min(length + 1, window - 1)
    layers = 2 + 2 * n_loops + 1
    assert cache.n_kept == kept
    assert cache.n_bytes() == batch * kept * layers * numbers * 4


# ---------------------------------------------------------------- against DeepSeek's own layers


def deepseek_config(cls: type, config: ModelConfig, **changes):
    return cls(
        hidden_size=config.d_model, num_attention_heads=config.n_heads, num_key_value_heads=config.n_heads,
        q_lora_rank=config.q_lora_rank, kv_lora_rank=config.kv_lora_rank, v_head_dim=config.v_head_dim,
        qk_nope_head_dim=config.qk_nope_head_dim, qk_rope_head_dim=config.qk_rope_head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        num_hidden_layers=1, attn_implementation="eager", **changes,
    )  # fmt: skip


def deepseek_state(layer: nn.Module, config: ModelConfig, adjacent: bool) -> dict[str, Tensor]:
    """Our weights under DeepSeek's names; with ``adjacent`` the rotary rows are put in the order of its pairs."""
    n, r, rank = config.qk_nope_head_dim, config.qk_rope_head_dim, config.kv_lora_rank
    order = torch.arange(r).view(2, r // 2).T.flatten() if adjacent else torch.arange(r)
    query_rows = torch.cat([torch.arange(n), n + order])
    key_rows = torch.cat([torch.arange(rank), rank + order])
    return {
        "q_a_proj.weight": layer.query_down.weight,
        "q_a_layernorm.weight": layer.query_norm.weight,
        "q_b_proj.weight": layer.query_up.weight.view(config.n_heads, n + r, -1)[:, query_rows].flatten(0, 1),
        "kv_a_proj_with_mqa.weight": layer.kv_down.weight[key_rows],
        "kv_a_layernorm.weight": layer.kv_norm.weight,
        "kv_b_proj.weight": torch.cat([layer.key_up, layer.value_up], dim=1).flatten(0, 1),
        "o_proj.weight": layer.out.weight,
    }


def deepseek_v2(config: ModelConfig) -> tuple[nn.Module, nn.Module, bool]:
    peer = deepseek_config(DeepseekV2Config, config)
    return DeepseekV2Attention(peer, 0), DeepseekV2RotaryEmbedding(peer), True


def deepseek_v3(config: ModelConfig, interleave: bool) -> tuple[nn.Module, nn.Module, bool]:
    peer = deepseek_config(DeepseekV3Config, config, rope_interleave=interleave)
    return DeepseekV3Attention(peer, 0), DeepseekV3RotaryEmbedding(peer), interleave


PEERS = {
    "V2": deepseek_v2,
    "V3": lambda config: deepseek_v3(config, True),
    "V3 half heads": lambda config: deepseek_v3(config, False),
}


def run_deepseek(peer: nn.Module, rotary: nn.Module, x: Tensor, window: int | None) -> Tensor:
    length = x.shape[1]
    mask = torch.zeros(1, 1, length, length).masked_fill(~seen(length, window), -torch.inf)
    angles = rotary(x, torch.arange(length).unsqueeze(0))
    with torch.no_grad():
        return peer(hidden_states=x, position_embeddings=angles, attention_mask=mask)[0]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["unit", "small enough for the norms' epsilon to matter"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": 3, "rope_theta": 500_000.0},
        {"n_heads": 1, "q_lora_rank": 40, "kv_lora_rank": 40},
        {"n_heads": 8, "v_head_dim": 14, "qk_nope_head_dim": 2, "qk_rope_head_dim": 2},
    ],
    ids=["", "low query rank", "one head", "eight heads"],
)
def test_latent_attention_equals_deepseek(name, changes, window, scale):
    config = mla_config(window=window, **changes)
    layer, x = make_layer(config), torch.randn(2, 9, 32) * scale
    peer, rotary, adjacent = PEERS[name](config)
    peer.load_state_dict(deepseek_state(layer, config, adjacent))
    assert peer.q_a_layernorm.variance_epsilon == layer.query_norm.eps == layer.kv_norm.eps == 1e-6
    expected = run_deepseek(peer, rotary, x, window)
    assert expected.abs().max() > 0.1
    assert max_difference(run(layer, config, x), expected) <= 1e-5
    assert max_difference(run_in_chunks(layer, config, x, [4, 1, 3, 1]), expected) <= 1e-5


# ---------------------------------------------------------------- a window over many positions


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize(("window", "length"), [(1, 512), (2, 513), (5, 640), (200, 900)])
def test_blocks_of_queries_equal_a_mask_of_all_pairs(name, window, length):
    config = windowed(name, window)
    layer = make_layer(config).requires_grad_()
    x = torch.randn(2, length, config.d_model, generator=torch.Generator().manual_seed(0))
    in_blocks = attention_context(config, length, None, x.device)
    assert (in_blocks.mask, in_blocks.causal, in_blocks.window) == (None, False, window)
    masked = in_blocks._replace(window=None, mask=visible(length, length, window))
    grids = []
    for context in (in_blocks, masked):
        y = layer(x.requires_grad_(), context)
        grids.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    for got, wanted in zip(*grids, strict=True):
        assert max_difference(got, wanted) <= 1e-4 * max(1.0, wanted.abs().max().item())


@pytest.mark.parametrize("name", ATTENTIONS)
def test_blocks_follow_on_from_what_a_cache_kept(name):
    config = windowed(name, 4)
    config = ModelConfig(**{**config.to_dict(), "max_seq_len": 2000})
    layer = make_layer(config)
    x = torch.randn(1, 1300, config.d_model, generator=torch.Generator().manual_seed(0))
    assert max_difference(run_in_chunks(layer, config, x, [600, 1, 600, 2, 97]), run(layer, config, x)) <= 1e-5
