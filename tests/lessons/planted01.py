"""Lesson 1: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mythos_lite.lessons import lesson01 as ours
from mythos_lite.lessons.lesson01 import absorb, attend, decode, grouped_attention, layers_needed, rotate
from mythos_lite.model.attention import visible
from mythos_lite.model.layers import apply_rotary, rotary_tables


def scores_of(q, k, mask=None, scale=None):
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def attend_by_exp(q, k, v, mask=None, scale=None, *, shift=False):
    scores = scores_of(q, k, mask, scale)
    weights = (scores - scores.amax(dim=-1, keepdim=True) if shift else scores).exp()
    return weights / weights.sum(dim=-1, keepdim=True) @ v


def attend_with_a_small_number(q, k, v, mask=None, scale=None):
    """−20 in place of −∞ lets a little of what is hidden through."""
    scores = scores_of(q, k, None, scale)
    return (scores if mask is None else scores + (~mask) * -3.0).softmax(dim=-1) @ v


def attend_filling_with(number):
    """Another number in place of −∞."""

    def answer(q, k, v, mask=None, scale=None):
        scores = scores_of(q, k, None, scale)
        return (scores if mask is None else scores.masked_fill(~mask, number)).softmax(dim=-1) @ v

    return answer


def attend_without_broadcasting(q, k, v, mask=None, scale=None):
    if q.ndim == 2:
        return attend(q, k, v, mask, scale)
    made = attend(*(torch.stack([*t.flatten(0, -3)]) for t in (q, k, v)), mask, scale)
    return torch.bmm(made, torch.eye(v.shape[-1]).repeat(k.shape[:-2].numel(), 1, 1)).view(*q.shape[:-1], -1)


def attend_in_place(q, k, v, mask=None, scale=None):
    q *= q.shape[-1] ** -0.5 if scale is None else scale
    return attend(q, k, v, mask, 1.0)


def attend_in_numpy(q, k, v, mask=None, scale=None):
    return attend(q.detach(), k.detach(), v.detach(), mask, scale).numpy()


def rotate_as_complex(x, positions):
    half = x.shape[-1] // 2
    turns = torch.polar(torch.ones(1), positions[:, None] * 10_000.0 ** (-torch.arange(half) / half))
    turned = torch.complex(x[..., :half], x[..., half:]) * turns
    return torch.cat([turned.real, turned.imag], dim=-1)


def rotate_with_the_package(x, positions):
    tables = rotary_tables(positions, x.shape[-1], 10_000.0)
    turned = apply_rotary(x.unsqueeze(-2), *tables)
    return turned.squeeze(-2)


def rotate_neighbours(x, positions):
    angles = positions[:, None] * 10_000.0 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1).flatten(-2)


def rotate_in_place(x, positions):
    x.copy_(rotate(x, positions))
    return x


def rotate_wrong_sum(x, positions):
    turned = rotate(x, positions).chunk(2, dim=-1)
    return torch.cat([turned[0], turned[0] + turned[1]], dim=-1)


def grouped_by_einsum(x, weights, n_heads, n_kv_heads, mask):
    B, T, _ = x.shape
    d = len(weights["query"]) // n_heads
    q, k, v = (F.linear(x, weights[name]).view(B, T, -1, d) for name in ("query", "key", "value"))
    q, k = (rotate_with_the_package(t.transpose(1, 2), torch.arange(T)).transpose(1, 2) for t in (q, k))
    q = q.view(B, T, n_kv_heads, n_heads // n_kv_heads, d)
    scores = torch.einsum("btkgd,bskd->bkgts", q, k) / d**0.5
    shares = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return F.linear(torch.einsum("bkgts,bskd->btkgd", shares, v).reshape(B, T, -1), weights["out"])


def grouped_head_by_head(x, weights, n_heads, n_kv_heads, mask, d=None):
    d = d or len(weights["query"]) // n_heads
    made = {name: (x @ weights[name].T).split(d, dim=-1) for name in ("query", "key", "value")}
    heads, positions = [], torch.arange(x.shape[1])
    for h in range(n_heads):
        shared = h * n_kv_heads // n_heads
        q, k = rotate(made["query"][h], positions), rotate(made["key"][shared], positions)
        heads.append(attend(q, k, made["value"][shared], mask))
    return torch.cat(heads, dim=-1) @ weights["out"].T


def grouped_of_width_four(x, weights, n_heads, n_kv_heads, mask):
    """The width of the first case is written into the code."""
    return grouped_head_by_head(x, weights, n_heads, n_kv_heads, mask, d=4)


def grouped_by_the_kernel(x, weights, n_heads, n_kv_heads, mask):
    q, k, v = (
        (x @ weights[name].T).unflatten(-1, (count, -1)).transpose(1, 2)
        for name, count in {"query": n_heads, "key": n_kv_heads, "value": n_kv_heads}.items()
    )
    q, k = (rotate(t, torch.arange(x.shape[1])) for t in (q, k))
    mixed = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    return mixed.transpose(1, 2).flatten(2) @ weights["out"].T


def grouped_with_heads_of(x, weights, n_heads, n_kv_heads, mask):
    """d is taken for D/H."""
    d = x.shape[-1] // n_heads
    q, k, v = (
        (x @ weights[name].T).unflatten(-1, (count, d)).transpose(1, 2)
        for name, count in {"query": n_heads, "key": n_kv_heads, "value": n_kv_heads}.items()
    )
    return attend(q, k, v, mask).transpose(1, 2).flatten(2) @ weights["out"].T


def grouped_without_handing_out(x, weights, n_heads, n_kv_heads, mask):
    names = {"query": n_heads, "key": n_kv_heads, "value": n_kv_heads}
    q, k, v = ((x @ weights[name].T).unflatten(-1, (count, -1)).transpose(1, 2) for name, count in names.items())
    q, k = (rotate(t, torch.arange(x.shape[1])) for t in (q, k))
    return attend(q, k, v, mask).transpose(1, 2).flatten(2) @ weights["out"].T


def grouped_in_place(x, weights, n_heads, n_kv_heads, mask):
    y = grouped_attention(x, weights, n_heads, n_kv_heads, mask)
    if not x.requires_grad:
        x.zero_()
    return y


def grouped_for_one_batch(x, weights, n_heads, n_kv_heads, mask):
    return grouped_attention(x[:1], weights, n_heads, n_kv_heads, mask).expand_as(x)


def decode_from_scratch(x, weights, n_heads, n_kv_heads, cache=None, window=None):
    """Keeps the inputs, not keys and values: right, but these are computed again."""
    cache = x if cache is None else torch.cat([cache, x], dim=1)
    mask = visible(cache.shape[1], cache.shape[1], window)
    return grouped_attention(cache, weights, n_heads, n_kv_heads, mask)[:, -x.shape[1] :], cache


def decode_keeping_all_heads(x, weights, n_heads, n_kv_heads, cache=None, window=None):
    wide = dict(weights)
    for name in ("key", "value"):
        one = weights[name].unflatten(0, (n_kv_heads, -1))
        wide[name] = one.repeat_interleave(n_heads // n_kv_heads, dim=0).flatten(0, 1)
    return decode(x, wide, n_heads, n_heads, cache, window)


def decode_forgetting(x, weights, n_heads, n_kv_heads, cache=None, window=None):
    y, new = decode(x, weights, n_heads, n_kv_heads, cache, window)
    return y, new if cache is None else cache


def decode_zeroing(x, weights, n_heads, n_kv_heads, cache=None, window=None):
    y, new = decode(x, weights, n_heads, n_kv_heads, cache, window)
    x.zero_()
    return y, new


def decode_in_place(x, weights, n_heads, n_kv_heads, cache=None, window=None):
    """Changes the cache that it was given."""
    past = None if cache is None else (torch.cat(cache["k"], dim=2), torch.cat(cache["v"], dim=2))
    y, (k, v) = decode(x, weights, n_heads, n_kv_heads, past, window)
    cache = {"k": [], "v": []} if cache is None else cache
    cache["k"].append(k[:, :, -x.shape[1] :])
    cache["v"].append(v[:, :, -x.shape[1] :])
    return y, cache


def decode_turning_late(x, weights, n_heads, n_kv_heads, cache=None, window=None):
    """Keeps keys before they are turned, as a dictionary."""
    names = {"query": n_heads, "key": n_kv_heads, "value": n_kv_heads}
    q, k, v = ((x @ weights[name].T).unflatten(-1, (count, -1)).transpose(1, 2) for name, count in names.items())
    if cache is not None:
        k, v = torch.cat([cache["k"], k], dim=2), torch.cat([cache["v"], v], dim=2)
    S = k.shape[2]
    turned = rotate(k, torch.arange(S)).repeat_interleave(n_heads // n_kv_heads, dim=1)
    q = rotate(q, torch.arange(S)[-x.shape[1] :])
    mixed = attend(q, turned, v.repeat_interleave(n_heads // n_kv_heads, dim=1), visible(x.shape[1], S, window))
    return mixed.transpose(1, 2).flatten(2) @ weights["out"].T, {"k": k, "v": v}


def decode_in_numpy(x, weights, n_heads, n_kv_heads, cache=None, window=None):
    past = None if cache is None else tuple(map(torch.from_numpy, cache))
    y, new = decode(x, weights, n_heads, n_kv_heads, past, window)
    return y.numpy(), [part.numpy() for part in new]


class Kept:
    """A cache that is an object."""

    def __init__(self, k, v):
        self.k, self.v = k, v


def decode_with_an_object(x, weights, n_heads, n_kv_heads, cache=None, window=None):
    y, new = decode(x, weights, n_heads, n_kv_heads, None if cache is None else (cache.k, cache.v), window)
    return y, Kept(*new)


def with_decode(**mistakes):
    def answer(x, weights, n_heads, n_kv_heads, cache=None, window=None):
        return ours._decode_wrongly(x, weights, n_heads, n_kv_heads, cache, window, **mistakes)

    return answer


class Latent(ours.LatentAttention):
    pass


def latent(compress=None, forward=None):
    """The right class with another method."""
    return type("LatentAttention", (Latent,), {
        name: method for name, method in (("compress", compress), ("forward", forward)) if method
    })  # fmt: skip


def compress_parts(self, x, positions, **changes):
    """``compress`` with a mistake."""
    q = self.query_down(x) if changes.get("bare_query") else self.query_norm(self.query_down(x))
    q = self.query_up(q).unflatten(-1, (self.n_heads, self.nope + self.rope)).transpose(1, 2)
    down = self.kv_down(x)
    q_nope, q_rope = q.split([self.nope, self.rope], dim=-1)
    c, key = down.split([self.rank, self.rope], dim=-1)
    if changes.get("swapped"):
        key, c = down.split([self.rope, self.rank], dim=-1)
    key = key if changes.get("still_key") else rotate(key, positions)
    B, T, H, n, r = *x.shape[:2], self.n_heads, self.nope, self.rope
    side_by_side = self.query_up(self.query_norm(self.query_down(x)))
    if changes.get("mixed_up"):
        q_nope, q_rope = side_by_side.view(B, H, T, n + r).split([n, r], dim=-1)
    if changes.get("split_first"):
        parts = side_by_side.split([H * n, H * r], dim=-1)
        q_nope, q_rope = (part.unflatten(-1, (H, -1)).transpose(1, 2) for part in parts)
    if changes.get("not_transposed"):
        q_nope, q_rope = q_nope.transpose(1, 2), q_rope.transpose(1, 2)
    return q_nope, rotate(q_rope, positions), c if changes.get("bare_latent") else self.kv_norm(c), key


def compress_wrongly(**changes):
    return latent(compress=lambda self, x, positions: compress_parts(self, x, positions, **changes))


def forward_wrongly(mixing):
    """``forward`` with another way of mixing: given q_nope, q_rope, k_nope, k_rope, v and the mask."""

    def forward(self, x, mask):
        q_nope, q_rope, c, key = self.compress(x, torch.arange(x.shape[1]))
        k_nope, v = c.unsqueeze(1) @ self.key_up.mT, c.unsqueeze(1) @ self.value_up.mT
        mixed = mixing(q_nope, q_rope, k_nope, key.unsqueeze(1).expand_as(q_rope), v, mask)
        return self.out(mixed.transpose(1, 2).flatten(2))

    return latent(forward=forward)


def joined(q_nope, q_rope, k_nope, k_rope, v, mask):
    return attend(torch.cat([q_nope, q_rope], dim=-1), torch.cat([k_nope, k_rope], dim=-1), v, mask)


def rotary_first(q_nope, q_rope, k_nope, k_rope, v, mask):
    return attend(torch.cat([q_rope, q_nope], dim=-1), torch.cat([k_rope, k_nope], dim=-1), v, mask)


def crossed(q_nope, q_rope, k_nope, k_rope, v, mask):
    return attend(torch.cat([q_nope, q_rope], dim=-1), torch.cat([k_rope, k_nope], dim=-1), v, mask)


def mixed_on_the_way_back(*parts):
    mixed = joined(*parts)
    B, H, T, v = mixed.shape
    return mixed.reshape(B, T, H, v).transpose(1, 2)


def summed(q_nope, q_rope, k_nope, k_rope, v, mask):
    """Two products in place of one longer one."""
    scores = (q_nope @ k_nope.mT + q_rope @ k_rope.mT) / (q_nope.shape[-1] + q_rope.shape[-1]) ** 0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v


def absorb_by_einsum(q_nope, q_rope, latent, rotary_key, key_up, value_up, mask):
    moved = torch.einsum("bhtn,hnr->bhtr", q_nope, key_up)
    scores = torch.einsum("bhtr,bsr->bhts", moved, latent) + torch.einsum("bhtr,bsr->bhts", q_rope, rotary_key)
    scores = scores / math.sqrt(q_nope.shape[-1] + q_rope.shape[-1])
    shares = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return torch.einsum("bhts,bsr,hvr->bhtv", shares, latent, value_up)


def absorb_explicitly(q_nope, q_rope, latent, rotary_key, key_up, value_up, mask):
    """The explicit form is the same function."""
    latent, rotary_key = latent.unsqueeze(1), rotary_key.unsqueeze(1)
    k = torch.cat([latent @ key_up.mT, rotary_key.expand(-1, key_up.shape[0], -1, -1)], dim=-1)
    return attend(torch.cat([q_nope, q_rope], dim=-1), k, latent @ value_up.mT, mask)


def absorb_with_explicit_values(q_nope, q_rope, latent, rotary_key, key_up, value_up, mask):
    q, k = torch.cat([q_nope @ key_up, q_rope], dim=-1), torch.cat([latent, rotary_key], dim=-1).unsqueeze(1)
    scale = (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5
    return attend(q, k, latent.unsqueeze(1) @ value_up.mT, mask, scale)


def absorb_head_by_head(q_nope, q_rope, latent, rotary_key, key_up, value_up, mask):
    keys, scale = torch.cat([rotary_key, latent], dim=-1), (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5
    heads = []
    for h in range(len(key_up)):
        queries = torch.cat([q_rope[:, h], q_nope[:, h] @ key_up[h]], dim=-1)
        heads.append(attend(queries, keys, latent, mask, scale) @ value_up[h].T)
    return torch.stack(heads, dim=1)


def absorb_without_values(q_nope, q_rope, latent, rotary_key, key_up, value_up, mask):
    q, k = torch.cat([q_nope @ key_up, q_rope], dim=-1), torch.cat([latent, rotary_key], dim=-1).unsqueeze(1)
    return attend(q, k, latent.unsqueeze(1), mask, (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5)


def with_absorb(**mistakes):
    return lambda *arguments: ours._absorb_wrongly(*arguments, **mistakes)


WRONG = {
    "1.1": [
        (lambda q, k, v, mask=None, scale=None: ours._attend_wrongly(q, k, v, mask, scale, power=0), "√d"),
        (lambda q, k, v, mask=None, scale=None: ours._attend_wrongly(q, k, v, mask, scale, power=-1), "it is √d"),
        (lambda q, k, v, mask=None, scale=None: ours._attend_wrongly(q, k, v, mask, scale, axis=-2), "sum to 1"),
        (lambda q, k, v, mask=None, scale=None: ours._attend_wrongly(q, k, v, mask, scale, inverted=True), "way round"),
        (lambda q, k, v, mask=None, scale=None: ours._attend_wrongly(q, k, v, mask, scale, late=True), "after"),
        (lambda q, k, v, mask=None, scale=None: attend(q, k, v), "mask is not used"),
        (lambda q, k, v, mask=None, scale=None: attend(q, k, v, mask), "scale=0.1"),
        (lambda q, k, v, mask, scale=None: attend(q, k, v, mask, scale), "raised TypeError"),
        (lambda q, k, v, mask=None, scale=None: attend(q, k, v, mask, scale or 5**-0.5), "off by"),
        (attend_by_exp, "ten thousands"),
        (attend_with_a_small_number, "for queries (2, 3, 4, 5), keys (2, 3, 6, 5) and the mask visible(4, 6, 3)"),
        (attend_filling_with(-1e2), "hide with −∞"),
        (attend_filling_with(-1e3), "hide with −∞"),
        (attend_filling_with(-1e4), "hide with −∞"),
        (attend_without_broadcasting, "keys (2, 1, 6, 5), values (2, 1, 6, 7), where the axis of length 1 serves"),
        (lambda q, k, v, mask=None, scale=None: attend(q, k, v, mask, scale).flatten(-2), "shape"),
        (lambda q, k, v, mask=None, scale=None: attend(q.detach(), k, v, mask, scale), "no gradient reaches q"),
        (attend_in_place, "raised RuntimeError"),
        (attend_in_numpy, "no gradient"),
        (lambda q, k, v, mask=None, scale=None: attend(q.double(), k.double(), v.double(), mask, scale), "float64"),
        (torch.ones(2), "without calling it"),
    ],
    "1.2": [
        (rotate_neighbours, "neighbours"),
        (lambda x, positions: rotate(x, -positions), "the other way round"),
        (lambda x, positions: rotate(x, positions + 1), "counted from 1"),
        (lambda x, positions: rotate(x, torch.arange(x.shape[-2])), "counted from 0"),
        (ours._rotate_slower, "10000^(−2i/d)"),
        (lambda x, positions: rotate(x, positions.double() + torch.zeros(1).double()), "float64"),
        (rotate_in_place, "changes x itself"),
        (rotate_wrong_sum, "length of a vector"),
        (lambda x, positions: rotate(x, positions).chunk(2, dim=-1)[0], "shape"),
        (lambda x, positions: rotate(x.detach(), positions), "no gradient"),
        (lambda x, positions: x, "at positions"),
        (lambda x, positions: rotate(x, positions[0] + torch.arange(len(positions))), "only the first position"),
        (lambda x, positions: rotate(x, positions % 1000), "1040"),
    ],
    "1.3": [
        (lambda *a: ours._grouped_wrongly(*a, tiled=True), "0, 1, 0, 1"),
        (lambda *a: ours._grouped_wrongly(*a, turned=""), "nothing is rotated"),
        (lambda *a: ours._grouped_wrongly(*a, turned="q"), "keys need their positions"),
        (lambda *a: ours._grouped_wrongly(*a, turned="qkv"), "values are rotated"),
        (lambda x, w, *a: grouped_attention(x, w | {"out": torch.eye(w["query"].shape[0])}, *a), "weights['out']"),
        (lambda *a: ours._grouped_wrongly(*a, mixed_up=True), "transpose before"),
        (lambda x, weights, H, K, mask: grouped_attention(x, weights, H, K, None), "mask is not used"),
        (grouped_for_one_batch, "off by"),
        (grouped_with_heads_of, "d = 4, which is read off the matrices"),
        (grouped_without_handing_out, "handed out to H/K query heads"),
        (lambda *a: ours._grouped_wrongly(*a, parted=ours._in_mixed_heads), "on the way in; unflatten, then"),
        (lambda *a: ours._grouped_wrongly(*a, parted=ours._in_mixed_heads, mixed_up=True), "and on the way back"),
        (lambda *a: ours._grouped_wrongly(*a, parted=ours._in_strewn_heads), "every H-th channel"),
        (grouped_in_place, "changes x itself"),
        (grouped_of_width_four, "raised"),
        (lambda x, weights, H, K, mask: grouped_attention(x, weights, H, K, mask)[:, -1], "shape"),
        (lambda x, weights, H, K, mask: grouped_attention(x.detach(), weights, H, K, mask), "no gradient"),
        (lambda x, weights, H, K, mask: grouped_attention(x, weights, 4, 2, mask), "raised"),
    ],
    "1.4": [
        (with_decode(start=lambda kept: 0), "start at 0"),
        (with_decode(mask=lambda t, s, window: torch.ones(t, s, dtype=torch.bool)), "no mask"),
        (with_decode(mask=lambda t, s, window: visible(t, s, None)), "window is not used"),
        (with_decode(mask=lambda t, s, window: visible(s, s, window)[:t]), "last T of all"),
        (decode_keeping_all_heads, "hand them out"),
        (decode_forgetting, "must join"),
        (decode_in_place, "leave the old as it is"),
        (decode_in_numpy, "no tensor"),
        (decode_from_scratch, "holds 72 numbers, where keys and values are 96"),
        (decode_zeroing, "changes x itself"),
        (lambda *a: decode(*a)[::-1], "return y, cache"),
        (lambda *a: (torch.stack(decode(*a)[1]), decode(*a)[0]), "the first thing returned"),
        (with_decode(mask=lambda t, s, window: visible(t, t, window)), "the mask is (T, S + T)"),
        (lambda *a: decode(*a)[0], "return y, cache"),
        (lambda *a: (decode(*a)[0][:, -1], decode(*a)[1]), "shape"),
    ],
    "1.5": [
        (compress_wrongly(bare_query=True), "query_norm"),
        (compress_wrongly(bare_latent=True), "kv_norm"),
        (compress_wrongly(still_key=True), "the rotary key: it is off by"),
        (compress_wrongly(swapped=True), "latent first"),
        (compress_wrongly(mixed_up=True), "unflatten, then transpose"),
        (compress_wrongly(split_first=True), "before the heads are parted"),
        (compress_wrongly(not_transposed=True), "q_rope is (B, H, T, r)"),
        (latent(compress=lambda self, x, p: [t.transpose(1, 2) for t in compress_parts(self, x, p)]), "before the pos"),
        (forward_wrongly(crossed), "different orders"),
        (forward_wrongly(mixed_on_the_way_back), "transpose before you flatten"),
        (forward_wrongly(lambda qn, qr, kn, kr, v, mask: kn @ kr), "H = 3, R = 8, n = 6, r = 4, v = 5"),
        (latent(compress=lambda self, x, p: compress_parts(self, x, torch.arange(len(p)))), "use the argument"),
        (latent(compress=lambda self, x, p: compress_parts(self, x, p)[:3]), "four tensors"),
        (latent(compress=lambda self, x, p: [t.unsqueeze(1) for t in compress_parts(self, x, p)]), "shape"),
        (forward_wrongly(lambda qn, qr, kn, kr, v, mask: attend(qn, kn, v, mask)), "rotary part"),
        (forward_wrongly(lambda qn, qr, kn, kr, v, mask: joined(qn, qr, kn, kr, v, None)), "mask is not used"),
        (forward_wrongly(lambda qn, qr, kn, kr, v, mask: joined(qn, qr * 1.2, kn, kr * 1.2, v, mask)), "off by"),
        (forward_wrongly(lambda qn, qr, kn, kr, v, mask: joined(qn, qr, kn.detach(), kr, v, mask)), "gradient"),
        (lambda config: nn.Linear(config.d_model, config.d_model), "raised RuntimeError"),
        (lambda config: 3, "no nn.Module"),
    ],
    "1.6": [
        (with_absorb(scale="R + r"), "1/√(n + r)"),
        (with_absorb(scale="one"), "not scaled"),
        (with_absorb(rope=False), "rotary part"),
        (lambda *a: absorb(*a[:-1], None), "mask is not used"),
        (lambda *a: absorb(*a[:-1], visible(a[0].shape[2], a[2].shape[1], None)), "but a causal one"),
        (with_absorb(crossed=True), "different orders"),
        (absorb_explicitly, "this is the explicit form"),
        (absorb_with_explicit_values, "this is the explicit form"),
        (absorb_without_values, "value_up makes values"),
        (lambda *a: absorb(a[0], *a[1:4], a[4].flip(0), *a[5:]), "off by"),
        (lambda *a: ours._absorb_wrongly(*a, turned=a[4].shape[1] == a[4].shape[2]), "wrong way round"),
        (with_absorb(turned=True), "n = 4, r = 2, R = 6"),
        (lambda *a: absorb(*a[:2], a[2].detach(), *a[3:]), "no gradient reaches latent"),
    ],
    "1.7": [
        (lambda distance, window: math.ceil(distance / window), "counts the token itself"),
        (lambda distance, window: distance // (window - 1), "a whole one"),
        (lambda distance, window: distance / (window - 1), "a whole one"),
        (lambda distance, window: math.ceil(distance / (window - 1)) + 1, "should be"),
        (lambda distance, window: distance // (window - 1) + 1, "do not add one"),
        (lambda distance, window: distance / window, "counts the token itself"),
        (lambda distance, window: round(distance / (window - 1)), "a whole one"),
        (lambda distance, window: "several", "a number"),
        (lambda distance, window: max(1, layers_needed(distance, window)), "distance=0"),
    ],
}
RIGHT = {
    "1.1": [
        lambda q, k, v, mask=None, scale=None: F.scaled_dot_product_attention(q, k, v, mask, scale=scale),
        lambda *a: attend_by_exp(*a, shift=True),
        attend_filling_with(-1e9),
        attend_filling_with(torch.finfo(torch.float32).min),
        lambda q, k, v, mask=None, scale=None: attend(*(t.double() for t in (q, k, v)), mask, scale).to(q.dtype),
        lambda queries, keys, values, seen=None, factor=None: torch.einsum(
            "...ts,...sv->...tv", scores_of(queries, keys, seen, factor).softmax(dim=-1), values
        ),
    ],
    "1.2": [
        rotate_as_complex,
        rotate_with_the_package,
        lambda x, positions: rotate(x.double(), positions.double()).float(),
    ],
    "1.3": [grouped_by_einsum, grouped_head_by_head, grouped_by_the_kernel],
    "1.4": [
        with_decode(start=lambda kept: kept + 1),  # rotary positions are relative: only differences count
        decode_turning_late,
        decode_with_an_object,
        lambda *a: list(decode(*a)),
    ],
    "1.5": [
        latent(),
        forward_wrongly(joined),
        forward_wrongly(summed),
        forward_wrongly(rotary_first),
        latent(compress=lambda self, x, positions: list(compress_parts(self, x, positions))),
    ],
    "1.6": [absorb_by_einsum, absorb_head_by_head],
    "1.7": [
        lambda distance, window: -(-distance // (window - 1)),
        lambda distance, window: np.ceil(distance / (window - 1)),
        lambda distance, window: torch.tensor([distance / (window - 1)]).ceil(),
        lambda distance, window: len(range(0, distance, window - 1)),
    ],
}
