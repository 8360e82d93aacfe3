"""Exercises of lesson 1, attention variants: attention, rotary positions, shared heads, a cache, latent attention.

Shapes: B batch, T query positions, S key positions, D model width, H heads, K key/value heads, d width of a head,
R latent rank, n/r/v no-position, rotary and value widths of a latent head.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mythos_lite.config import ModelConfig
from mythos_lite.lessons.exercise import Exercise, as_answer, difference, fitting_hint, gradient_fault, same
from mythos_lite.model.attention import MultiHeadLatentAttention, attention_context, visible


def _drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _type_fault(got: Tensor, inputs: Tensor) -> str | None:
    """What is wrong with the type of an answer: the parts that are built on it multiply it with float32 weights."""
    if got.dtype == inputs.dtype:
        return None
    return f"its type is {got.dtype}, and that of the inputs is {inputs.dtype}; what comes next needs the same type"


class _Fault(Exception):
    """What is wrong with an answer, found on the way."""


@contextmanager
def _noting(note: str) -> Iterator[None]:
    """Add to an error that an answer raises for what it was raised: torch's own message names bare numbers."""
    try:
        yield
    except (NotImplementedError, _Fault):
        raise
    except Exception as error:
        error.args = (f"{error} [{note}]",)
        raise


# ---------------------------------------------------------------- 1.1


def attend(q, k, v, mask=None, scale=None):
    """Queries (..., T, d), keys (..., S, d), values (..., S, v): mixtures of the values (..., T, v)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ k.transpose(-1, -2) * scale  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)  # exp(−∞) = 0: no weight on what is hidden
    weights = scores.softmax(dim=-1)  # over the keys; softmax subtracts the largest score of a row first
    return weights @ v


def _attend_wrongly(q, k, v, mask=None, scale=None, *, axis=-1, power=-0.5, inverted=False, late=False):
    """``attend`` with one typical mistake."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** power if scale is None else scale)
    if mask is not None and not late:
        scores = scores.masked_fill(mask if inverted else ~mask, -torch.inf)
    weights = scores.softmax(dim=axis)
    return (weights * mask if late and mask is not None else weights) @ v


_ATTEND_HINTS = {
    "the scores are not scaled; divide them by √d": lambda *a: _attend_wrongly(*a, power=0),
    "the scores are divided by d; it is √d": lambda *a: _attend_wrongly(*a, power=-1),
    "the softmax runs over the queries; each query's weights over the keys must sum to 1": lambda *a: _attend_wrongly(
        *a, axis=-2
    ),
    "the mask is used the wrong way round; True means that the query may see the key": lambda *a: _attend_wrongly(
        *a, inverted=True
    ),
    "the mask comes after the softmax, so that rows no longer sum to 1; hide scores before it": lambda *a: (
        _attend_wrongly(*a, late=True)
    ),
    "the mask is not used": lambda q, k, v, mask, *rest: attend(q, k, v),
}


def _attend_case(seed: int, heads: tuple[int, ...] = (2, 3), kv: tuple[int, ...] = (2, 3), d: int = 5):
    return _drawn(seed, *heads, 4, d), _drawn(seed + 1, *kv, 6, d), _drawn(seed + 2, *kv, 6, 7)


def _shape_of_attend(answer: Callable) -> str | None:
    for heads, kv in (((), ()), ((2, 3), (2, 3)), ((2, 3), (2, 1))):
        q, k, v = _attend_case(0, heads, kv)
        where = f"for queries {tuple(q.shape)}, keys {tuple(k.shape)}, values {tuple(v.shape)}"
        if heads != kv:
            where += ", where the axis of length 1 serves all queries"
        with _noting(where):
            got, wanted = answer(q.clone(), k.clone(), v.clone()), attend(q, k, v)
        if not isinstance(got, Tensor) or got.shape != wanted.shape:
            return f"{where}: {difference(got, wanted)}"
        if fault := _type_fault(got, q):
            return fault
    return None


def _values_of_attend(answer: Callable) -> str | None:
    masks = (visible(4, 6, 3), visible(4, 6, 4))  # every row and every column has something seen and hidden
    cases = [(*_attend_case(seed, d=5 + 3 * seed), mask) for seed, mask in enumerate(masks)]
    answers = [answer(*(x.clone() for x in case)) for case in cases]
    if faults := [fault for case, got in zip(cases, answers, strict=True) if (fault := difference(got, attend(*case)))]:
        place = [same(got, attend(*case)) for case, got in zip(cases, answers, strict=True)].index(False)
        q, k, mask = cases[place][0], cases[place][1], ("visible(4, 6, 3)", "visible(4, 6, 4)")[place]
        where = f"for queries {tuple(q.shape)}, keys {tuple(k.shape)} and the mask {mask}"
        return fitting_hint(_ATTEND_HINTS, cases, answers) or f"{where}: {faults[0]}"
    q, k, v = _attend_case(5)
    if fault := difference(answer(q.clone(), k.clone(), v.clone()), attend(q, k, v)):
        return f"without a mask (mask=None): {fault}"
    if fault := difference(answer(q.clone(), k.clone(), v.clone(), None, 0.1), attend(q, k, v, None, 0.1)):
        return f"with scale=0.1: {fault}; a scale that is given takes the place of 1/√d"
    return _extremes_of_attend(answer, q, k, v)


def _extremes_of_attend(answer: Callable, q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """What goes wrong where scores are very large or very negative."""
    own = visible(4, 6, 1)  # each query sees the one key at its own place, and that fits it as badly as can be
    against = -1e4 * k[..., 2:, :]
    got = answer(against.clone(), k.clone(), v.clone(), own.clone())
    negative = difference(got, attend(against, k, v, own), 1e-4)
    if negative and "finite" not in negative:
        return f"a hidden key gets weight when all visible scores are very negative: {negative}; hide with −∞"
    got = answer(1e4 * q, k.clone(), v.clone(), visible(4, 6, None))
    if fault := difference(got, attend(1e4 * q, k, v, visible(4, 6, None)), 0.02):
        return f"for scores in the ten thousands: {fault}; subtract a row's largest score before exp, or use softmax"
    return f"when all visible scores are very negative: {negative}" if negative else None


def _gradient_of_attend(answer: Callable) -> str | None:
    return gradient_fault(answer, attend, *_attend_case(3), visible(4, 6, None))


# ---------------------------------------------------------------- 1.2


def rotate(x, positions):
    """Turn the channel pairs of x (..., T, d) by the angles of the positions (T,): (..., T, d)."""
    d = x.shape[-1]
    frequencies = 10_000.0 ** (-torch.arange(0, d, 2) / d)  # (d/2,): the first pair turns fastest
    angles = positions[:, None] * frequencies  # (T, d/2)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)  # channel i and its partner, channel i + d/2
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _rotate_adjacent(x: Tensor, positions: Tensor) -> Tensor:
    order = torch.cat([torch.arange(0, x.shape[-1], 2), torch.arange(1, x.shape[-1], 2)])
    return rotate(x[..., order], positions)[..., order.argsort()]


def _rotate_slower(x: Tensor, positions: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angles = positions[:, None] * 10_000.0 ** (-torch.arange(half) / x.shape[-1])
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)


_ROTATE_HINTS = {
    "channels are paired with their neighbours, 0 with 1; here channel i goes with channel i + d/2": _rotate_adjacent,
    "it turns the other way round; the first of a pair becomes x·cos − y·sin": lambda x, p: rotate(x, -p),
    "the frequencies are 10000^(−i/d), and 10000^(−2i/d) is asked for": _rotate_slower,
    "positions are counted from 0 whatever is given; use the argument positions": lambda x, p: rotate(
        x, torch.arange(len(p))
    ),
    "positions are counted from 1": lambda x, p: rotate(x, p + 1),
    "only the first position is used, and the rest counted on from it; positions may stand in any order": lambda x, p: (
        rotate(x, p[0] + torch.arange(len(p)))
    ),
    "only the first of each pair is turned": lambda x, p: torch.cat(
        [rotate(x, p).chunk(2, dim=-1)[0], x.chunk(2, dim=-1)[1]], dim=-1
    ),
}
_ROTATE_CASES = [
    (_drawn(11, 2, 3, 5, 8), torch.arange(5)),
    (_drawn(12, 4, 6), torch.tensor([7, 8, 9, 10])),
    (_drawn(13, 1, 1, 1, 4), torch.tensor([100])),
    (_drawn(15, 4, 6), torch.tensor([9, 2, 2, 1040])),  # neither in order nor small
]


def _shape_of_rotate(answer: Callable) -> str | None:
    for x, positions in _ROTATE_CASES:
        got = answer(x.clone(), positions.clone())
        if not isinstance(got, Tensor) or got.shape != x.shape:
            return f"for x {tuple(x.shape)} and positions {tuple(positions.shape)}: {difference(got, x)}"
        if fault := _type_fault(got, x):
            return fault
    return None


def _values_of_rotate(answer: Callable) -> str | None:
    for x, positions in _ROTATE_CASES:
        handed_over = x.clone()
        answer(handed_over, positions.clone())
        if not same(handed_over, x):
            return "it changes x itself; make a new tensor instead"
    answers = [answer(x.clone(), positions.clone()) for x, positions in _ROTATE_CASES]
    for (x, positions), got in zip(_ROTATE_CASES, answers, strict=True):
        if fault := difference(got, rotate(x, positions), 1e-4):
            hint = fitting_hint(_ROTATE_HINTS, _ROTATE_CASES, answers, 1e-4)
            if not hint and not same(got.norm(dim=-1), x.norm(dim=-1), 1e-3):
                hint = "a rotation leaves the length of a vector as it is, and these lengths have changed"
            return f"for x {tuple(x.shape)} at positions {positions.tolist()}: {fault}" + (f"; {hint}" if hint else "")
    return None


def _gradient_of_rotate(answer: Callable) -> str | None:
    weights = _drawn(14, 2, 3, 5, 8)  # without them the sum of squares would not depend on the angles

    def weighted(function: Callable) -> Callable:
        def result(x: Tensor) -> object:
            turned = function(x, torch.arange(5))
            return turned * weights if isinstance(turned, Tensor) else turned

        return result

    return gradient_fault(weighted(answer.raw), weighted(rotate), _ROTATE_CASES[0][0])


# ---------------------------------------------------------------- 1.3


def grouped_attention(x, weights, n_heads, n_kv_heads, mask):
    """Self-attention of x (B, T, D) with H query heads over K key/value heads: (B, T, D)."""
    # (B, T, heads·d) → (B, heads, T, d)
    q = (x @ weights["query"].T).unflatten(-1, (n_heads, -1)).transpose(1, 2)
    k = (x @ weights["key"].T).unflatten(-1, (n_kv_heads, -1)).transpose(1, 2)
    v = (x @ weights["value"].T).unflatten(-1, (n_kv_heads, -1)).transpose(1, 2)
    # Positions enter into queries and keys, not into values.
    positions = torch.arange(x.shape[1])
    q, k = rotate(q, positions), rotate(k, positions)
    # Each key/value head serves H/K query heads that stand side by side: 0, 0, …, 1, 1, …
    k, v = (t.repeat_interleave(n_heads // n_kv_heads, dim=1) for t in (k, v))
    mixed = attend(q, k, v, mask)  # (B, H, T, d)
    return mixed.transpose(1, 2).flatten(2) @ weights["out"].T


def _in_heads(made: Tensor, n: int) -> Tensor:
    """(B, T, n·d) → (B, n, T, d)."""
    return made.unflatten(-1, (n, -1)).transpose(1, 2)


def _in_mixed_heads(made: Tensor, n: int) -> Tensor:
    """(B, T, n·d) → (B, n, T, d), in which heads and positions are mixed up."""
    return made.reshape(len(made), n, made.shape[1], -1)


def _in_strewn_heads(made: Tensor, n: int) -> Tensor:
    """(B, T, n·d) → (B, n, T, d), where head h gets every n-th channel."""
    return made.unflatten(-1, (-1, n)).permute(0, 3, 1, 2)


def _grouped_wrongly(
    x, weights, n_heads, n_kv_heads, mask, *, turned="qk", tiled=False, mixed_up=False, parted=_in_heads
):
    """``grouped_attention`` with one typical mistake."""
    counts = {"query": n_heads, "key": n_kv_heads, "value": n_kv_heads}
    made = [parted(x @ weights[name].T, count) for name, count in counts.items()]
    groups, positions = n_heads // n_kv_heads, torch.arange(x.shape[1])
    q, k, v = (rotate(t, positions) if name in turned else t for name, t in zip("qkv", made, strict=True))
    k, v = (t.repeat(1, groups, 1, 1) if tiled else t.repeat_interleave(groups, dim=1) for t in (k, v))
    mixed = attend(q, k, v, mask)
    mixed = mixed.flatten(1).view(x.shape[0], x.shape[1], -1) if mixed_up else mixed.transpose(1, 2).flatten(2)
    return mixed @ weights["out"].T


_GROUPED_HINTS = {
    "heads are handed out in the order 0, 1, 0, 1, …; query heads of a group stand side by side: 0, 0, …, 1, 1, …": (
        lambda *a: _grouped_wrongly(*a, tiled=True)
    ),
    "nothing is rotated; queries and keys need their positions": lambda *a: _grouped_wrongly(*a, turned=""),
    "only the queries are rotated; the keys need their positions too": lambda *a: _grouped_wrongly(*a, turned="q"),
    "only the keys are rotated; the queries need their positions too": lambda *a: _grouped_wrongly(*a, turned="k"),
    "the values are rotated too; positions belong into queries and keys only": lambda *a: _grouped_wrongly(
        *a, turned="qkv"
    ),
    "heads and positions are mixed up on the way back; transpose before you flatten": lambda *a: _grouped_wrongly(
        *a, mixed_up=True
    ),
    "heads and positions are mixed up on the way in; unflatten, then transpose": lambda *a: _grouped_wrongly(
        *a, parted=_in_mixed_heads
    ),
    "heads and positions are mixed up on the way in and on the way back; unflatten, then transpose, and transpose "
    "before you flatten": lambda *a: _grouped_wrongly(*a, parted=_in_mixed_heads, mixed_up=True),
    "a head gets every H-th channel; its d channels stand side by side: unflatten into (heads, d)": lambda *a: (
        _grouped_wrongly(*a, parted=_in_strewn_heads)
    ),
    "the mask is not used": lambda x, weights, n_heads, n_kv_heads, mask: grouped_attention(
        x, weights, n_heads, n_kv_heads, None
    ),
}


def _grouped_case(
    seed: int, n_heads: int, n_kv_heads: int, d: int = 4, batch: int = 2, length: int = 5, window: int | None = None
) -> tuple:
    """Input, weights, head counts and mask; the model is 3·d wide."""
    d_model = 3 * d
    widths = {"query": n_heads * d, "key": n_kv_heads * d, "value": n_kv_heads * d}
    weights = {name: 0.5 * _drawn(seed + i, width, d_model) for i, (name, width) in enumerate(widths.items())}
    weights["out"] = 0.5 * _drawn(seed + 3, d_model, n_heads * d)
    return _drawn(seed + 4, batch, length, d_model), weights, n_heads, n_kv_heads, visible(length, length, window)


_GROUPED_CASES = [_grouped_case(21, 4, 2), _grouped_case(31, 6, 3, 6, 1, 4, 2), _grouped_case(41, 4, 2, 2, 3, 1)]


def _copied(case: tuple) -> list:
    """The case with tensors of its own, so that what an answer changes in place stays with the answer."""
    return [
        {name: tensor.clone() for name, tensor in part.items()}
        if isinstance(part, dict)
        else part.clone()
        if isinstance(part, Tensor)
        else part
        for part in case
    ]


def _note_on_heads(case: tuple) -> str:
    """What the numbers in an error may mean."""
    x, weights, n_heads, n_kv_heads, _ = case
    return (
        f"for x {tuple(x.shape)} with H = {n_heads}, K = {n_kv_heads} and d = {len(weights['query']) // n_heads}, "
        "which is read off the matrices and need not be D/H; each key/value head is handed out to H/K query heads"
    )


def _shape_of_grouped(answer: Callable) -> str | None:
    for case in _GROUPED_CASES:
        with _noting(_note_on_heads(case)):
            got, x = answer(*_copied(case)), case[0]
        if not isinstance(got, Tensor) or got.shape != x.shape:
            joined = isinstance(got, Tensor) and got.shape == (*x.shape[:2], len(case[1]["query"]))
            hint = "; the joined heads go through weights['out'] last" if joined else ""
            return f"for x {tuple(x.shape)} with {case[2]} heads over {case[3]}: {difference(got, x)}{hint}"
        if fault := _type_fault(got, x):
            return fault
    return None


def _values_of_grouped(answer: Callable) -> str | None:
    answers = [answer(*_copied(case)) for case in _GROUPED_CASES]
    for case, got in zip(_GROUPED_CASES, answers, strict=True):
        if fault := difference(got, grouped_attention(*case), 1e-4):
            hint = fitting_hint(_GROUPED_HINTS, _GROUPED_CASES, answers, 1e-4)
            return hint or f"with {case[2]} heads over {case[3]} key/value heads: {fault}"
    for n_kv_heads, name in ((4, "multi-head"), (1, "multi-query")):
        case = _grouped_case(51, 4, n_kv_heads)
        handed_over = _copied(case)
        with _noting(_note_on_heads(case)):
            got = answer(*handed_over)
        if fault := difference(got, grouped_attention(*case), 1e-4):
            return f"with n_kv_heads={n_kv_heads}, which is {name} attention: {fault}"
        if not same(handed_over[0], case[0]):
            return "it changes x itself; make new tensors instead"
    return None


def _gradient_of_grouped(answer: Callable) -> str | None:
    return gradient_fault(answer, grouped_attention, *_GROUPED_CASES[0])


# ---------------------------------------------------------------- 1.4


def decode(x, weights, n_heads, n_kv_heads, cache=None, window=None):
    """Attention of the next tokens x (B, T, D) after S cached ones: y (B, T, D), and the new cache."""
    q = (x @ weights["query"].T).unflatten(-1, (n_heads, -1)).transpose(1, 2)
    k = (x @ weights["key"].T).unflatten(-1, (n_kv_heads, -1)).transpose(1, 2)
    v = (x @ weights["value"].T).unflatten(-1, (n_kv_heads, -1)).transpose(1, 2)
    # The new tokens stand behind those in the cache.
    start = 0 if cache is None else cache[0].shape[2]
    positions = torch.arange(start, start + x.shape[1])
    q, k = rotate(q, positions), rotate(k, positions)
    # Join them to the past. What is kept are K heads; they are handed out to the H query heads after that.
    if cache is not None:
        k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
    mask = visible(x.shape[1], k.shape[2], window)  # rows: the new tokens; columns: all of them
    mixed = attend(q, *(t.repeat_interleave(n_heads // n_kv_heads, dim=1) for t in (k, v)), mask)
    return mixed.transpose(1, 2).flatten(2) @ weights["out"].T, (k, v)


_STEPS = (3, 1, 1, 2)
"""A prompt of three tokens, two more one by one, then two at once."""


def _in_steps(answer: Callable, case: tuple, window: int | None) -> tuple[list[Tensor], list[int]]:
    """What a decoder says of each stretch of tokens, and the numbers in its cache after it."""
    x, weights, n_heads, n_kv_heads, _ = case
    cache, outputs, sizes = None, [], []
    for part in x.split(_STEPS, dim=1):
        given, seen = _copied((part, weights)), sum(y.shape[1] for y in outputs)
        note = f"for T = {part.shape[1]} new tokens and S = {seen} in the cache: the mask is (T, S + T)"
        with _noting(f"{note}, keys (B, K, S + T, d)"):
            got = answer(*given, n_heads, n_kv_heads, cache, window)
        if got is ...:
            raise NotImplementedError
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise _Fault("it must return two things, the output and the new cache: return y, cache")
        y, cache = got
        if y is ... or cache is ...:
            raise NotImplementedError
        if not isinstance(y, Tensor):
            raise _Fault("the first thing returned is no tensor: return y, cache, where y is the output")
        if y.shape != part.shape:
            after = f"for {part.shape[1]} new tokens after {seen}, the first thing returned, the output"
            raise _Fault(f"{after}: {difference(y, part)}")
        if not same(given[0], part):
            raise _Fault("it changes x itself; make new tensors instead")
        outputs.append(y)
        sizes.append(_numbers_in(cache))
    return outputs, sizes


def _decode_case(seed: int, n_heads: int = 4, n_kv_heads: int = 2, d: int = 4, batch: int = 2) -> tuple:
    return _grouped_case(seed, n_heads, n_kv_heads, d, batch, sum(_STEPS))


def _numbers_in(cache: object) -> int:
    """Numbers in the tensors or arrays of a cache, whatever holds them."""
    cache = as_answer(cache)
    if isinstance(cache, Tensor):
        return cache.numel()
    cache = vars(cache) if hasattr(cache, "__dict__") else cache
    parts = cache.values() if isinstance(cache, dict) else cache if isinstance(cache, (tuple, list)) else ()
    return sum(_numbers_in(part) for part in parts)


def _shape_of_decode(answer: Callable) -> str | None:
    case = _decode_case(61)
    try:
        outputs, sizes = _in_steps(answer.raw, case, None)
    except _Fault as fault:
        return str(fault)
    seen = 0
    for y, got, part in zip(outputs, sizes, case[0].split(_STEPS, dim=1), strict=True):
        seen += part.shape[1]
        if fault := _type_fault(y, part):
            return fault
        wanted = 2 * 2 * 2 * seen * 4  # keys and values, batch, K, tokens, d
        if got != wanted:
            after = f"after {seen} tokens the cache holds {got} numbers"
            if seen == _STEPS[0] and got == case[0][:, :seen].numel():
                return (
                    f"{after}, where keys and values are {wanted} (2·B·K·S·d); keep keys and values, and not x, so "
                    "that they need not be computed again"
                )
            if got < wanted:
                what = f"{after}, and keys and values are {wanted} (2·B·K·S·d)"
                return what + ("; those of the new tokens must join those before" if seen > _STEPS[0] else "")
            what = f"{after}, and {wanted} are enough (2·B·K·S·d)"
            handed_out = "; keep the K key/value heads, and hand them out to the H heads after that"
            return what + (handed_out if got == 2 * wanted else "")
    return None


def _values_of_decode(answer: Callable) -> str | None:
    for case, window in ((_decode_case(71), None), (_decode_case(81, 6, 1, 6, 1), 3)):
        x, weights, n_heads, n_kv_heads, _ = case
        whole = grouped_attention(x, weights, n_heads, n_kv_heads, visible(x.shape[1], x.shape[1], window))
        try:
            outputs, _ = _in_steps(answer.raw, case, window)
        except _Fault as fault:
            return str(fault)
        seen = 0
        for y, wanted in zip(outputs, whole.split(_STEPS, dim=1), strict=True):
            if fault := difference(y, wanted, 1e-4):
                under = f" under a window of {window}" if window else ""
                where = (
                    f"{wanted.shape[1]} token{'s' * (wanted.shape[1] > 1)} after {seen} in the cache{under}: {fault}"
                )
                return f"{where}{_decode_hint(outputs, case, window)}"
            seen += wanted.shape[1]
    return None


def _decode_hint(outputs: list[Tensor], case: tuple, window: int | None) -> str:
    for hint, mistake in _DECODE_HINTS.items():
        wrong, _ = _in_steps(mistake, case, window)
        if all(same(got, bad, 1e-4) for got, bad in zip(outputs, wrong, strict=True)):
            return f"; {hint}"
    return ""


def _decode_wrongly(x, weights, n_heads, n_kv_heads, cache, window, *, start=None, mask=None):
    """``decode`` with another first position, as a function of the number of cached tokens, or another mask."""
    kept = 0 if cache is None else cache[0].shape[2]
    counts = {"query": n_heads, "key": n_kv_heads, "value": n_kv_heads}
    q, k, v = ((x @ weights[name].T).unflatten(-1, (count, -1)).transpose(1, 2) for name, count in counts.items())
    positions = torch.arange(x.shape[1]) + (start(kept) if start else kept)
    q, k = rotate(q, positions), rotate(k, positions)
    if cache is not None:
        k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
    seen = mask(x.shape[1], k.shape[2], window) if mask else visible(x.shape[1], k.shape[2], window)
    mixed = attend(q, *(t.repeat_interleave(n_heads // n_kv_heads, dim=1) for t in (k, v)), seen)
    return mixed.transpose(1, 2).flatten(2) @ weights["out"].T, (k, v)


_DECODE_HINTS = {
    "positions start at 0 in every call; the first new token stands at position S, the number of cached ones": (
        lambda *a: _decode_wrongly(*a, start=lambda kept: 0)
    ),
    "no mask is used, so that new tokens see later ones; visible(T, S + T, window) says who sees whom": (
        lambda *a: _decode_wrongly(*a, mask=lambda t, s, window: torch.ones(t, s, dtype=torch.bool))
    ),
    "the window is not used": lambda *a: _decode_wrongly(*a, mask=lambda t, s, window: visible(t, s, None)),
    "the mask counts the new tokens from position 0; they are the last T of all": (
        lambda *a: _decode_wrongly(*a, mask=lambda t, s, window: visible(s, s, window)[:t])
    ),
}


def _cache_of_decode(answer: Callable) -> str | None:
    x, weights, n_heads, n_kv_heads, _ = _decode_case(91)
    _, cache = answer.raw(*_copied((x[:, :3], weights)), n_heads, n_kv_heads, None, None)
    first, _ = answer.raw(*_copied((x[:, 3:4], weights)), n_heads, n_kv_heads, cache, None)
    again, _ = answer.raw(*_copied((x[:, 3:4], weights)), n_heads, n_kv_heads, cache, None)
    if not same(first, again, 1e-5):
        return "a second call with the same cache gives something else: return a new cache, and leave the old as it is"
    return None


# ---------------------------------------------------------------- 1.5


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, §2.1), in its explicit form."""

    def __init__(self, config):
        super().__init__()
        D, H, R = config.d_model, config.n_heads, config.kv_lora_rank
        n, r, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.n_heads, self.rank, self.nope, self.rope = H, R, n, r
        self.query_down = nn.Linear(D, config.q_lora_rank, bias=False)
        self.query_norm = nn.RMSNorm(config.q_lora_rank, eps=1e-6)
        self.query_up = nn.Linear(config.q_lora_rank, H * (n + r), bias=False)
        self.kv_down = nn.Linear(D, R + r, bias=False)  # the latent, and behind it the rotary key
        self.kv_norm = nn.RMSNorm(R, eps=1e-6)
        self.key_up = nn.Parameter(torch.empty(H, n, R))
        self.value_up = nn.Parameter(torch.empty(H, v, R))
        self.out = nn.Linear(H * v, D, bias=False)

    def compress(self, x, positions):
        """(B, T, D) → q_nope (B, H, T, n), q_rope (B, H, T, r), latent (B, T, R), rotary key (B, T, r)."""
        q = self.query_up(self.query_norm(self.query_down(x)))
        q = q.unflatten(-1, (self.n_heads, self.nope + self.rope)).transpose(1, 2)  # (B, H, T, n + r)
        q_nope, q_rope = q.split([self.nope, self.rope], dim=-1)
        latent, rotary_key = self.kv_down(x).split([self.rank, self.rope], dim=-1)
        # Only the r channels carry a position, in the queries as in the one key that all heads share.
        return q_nope, rotate(q_rope, positions), self.kv_norm(latent), rotate(rotary_key, positions)

    def forward(self, x, mask):
        """(B, T, D) → (B, T, D): every head's keys and values are built from the latent."""
        q_nope, q_rope, latent, rotary_key = self.compress(x, torch.arange(x.shape[1]))
        latent, rotary_key = latent.unsqueeze(1), rotary_key.unsqueeze(1)  # (B, 1, S, ·): one for all heads
        k_nope = latent @ self.key_up.transpose(1, 2)  # (B, 1, S, R) @ (H, R, n) → (B, H, S, n)
        v = latent @ self.value_up.transpose(1, 2)  # (B, H, S, v)
        k = torch.cat([k_nope, rotary_key.expand(-1, self.n_heads, -1, -1)], dim=-1)  # (B, H, S, n + r)
        mixed = attend(torch.cat([q_nope, q_rope], dim=-1), k, v, mask)  # scaled by 1/√(n + r)
        return self.out(mixed.transpose(1, 2).flatten(2))


_LATENT_CONFIGS = [
    ModelConfig(
        d_model=24, n_heads=heads, attention="mla", n_kv_heads=None, kv_lora_rank=rank, q_lora_rank=10,
        qk_nope_head_dim=nope, qk_rope_head_dim=rope, v_head_dim=v, window=None,
    )
    for heads, rank, nope, rope, v in ((3, 8, 6, 4, 5), (2, 7, 4, 2, 4))
]  # fmt: skip
_COMPRESSED = ("the queries without position", "the rotary queries", "the latent", "the rotary key")


def _latent_pair(answer: Callable, config: ModelConfig) -> tuple[nn.Module, MultiHeadLatentAttention, Tensor]:
    """The learner's layer with the weights of the package's, the package's, and an input."""
    reference, draws = MultiHeadLatentAttention(config), torch.Generator().manual_seed(config.n_heads)
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.5, generator=draws)
    layer = answer(config)
    if not isinstance(layer, nn.Module):
        raise TypeError("LatentAttention(config) is no nn.Module; keep the class and its __init__ as they are")
    layer.load_state_dict(reference.state_dict())
    return layer, reference, torch.randn(2, 5, config.d_model, generator=draws)


def _widths_of(config: ModelConfig) -> str:
    """The sizes of a latent layer, for reading the numbers in an error."""
    n, r, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    return f"H = {config.n_heads}, R = {config.kv_lora_rank}, n = {n}, r = {r}, v = {v}"


def _compressed(layer: nn.Module, x: Tensor, start: int, widths: str) -> tuple:
    with _noting(f"for x {tuple(x.shape)} and positions ({x.shape[1]},) with {widths}: q_rope is (B, H, T, r)"):
        parts = layer.compress(x.clone(), torch.arange(start, start + x.shape[1]))
    if parts is ... or (isinstance(parts, (tuple, list)) and any(part is ... for part in parts)):
        raise NotImplementedError
    if not isinstance(parts, (tuple, list)) or len(parts) != 4:
        raise _Fault("compress must return four tensors: q_nope, q_rope, latent, rotary_key")
    return tuple(part.detach() if isinstance(part, Tensor) else part for part in parts)


def _solved_layer(reference: MultiHeadLatentAttention, config: ModelConfig) -> LatentAttention:
    layer = LatentAttention(config)
    layer.load_state_dict(reference.state_dict())
    return layer


def _compress_fault(answer: Callable) -> str | None:
    for config in _LATENT_CONFIGS:
        layer, reference, x = _latent_pair(answer, config)
        wanted = _compressed(_solved_layer(reference, config), x, 3, _widths_of(config))
        try:
            parts = _compressed(layer, x, 3, _widths_of(config))
        except _Fault as fault:
            return str(fault)
        for name, part, right in zip(_COMPRESSED, parts, wanted, strict=True):
            if fault := difference(part, right, 1e-4):
                if isinstance(part, Tensor) and part.ndim == 4 and part.shape == right.transpose(1, 2).shape:
                    return f"{name}: {fault}; the heads come before the positions, so transpose(1, 2)"
                return f"{name}: {fault}{_compress_hint(reference, config, x, part)}"
    return None


def _compress_hint(layer: MultiHeadLatentAttention, config: ModelConfig, x: Tensor, got: object) -> str:
    """What a wrong part of ``compress`` looks like, if it is known."""
    rank, heads, widths = config.kv_lora_rank, config.n_heads, [config.qk_nope_head_dim, config.qk_rope_head_dim]
    with torch.no_grad():
        down, bare = layer.kv_down(x), layer.query_up(layer.query_down(x))
        side_by_side = layer.query_up(layer.query_norm(layer.query_down(x)))  # (B, T, H·(n + r))
        q, bare = _in_heads(side_by_side, heads), _in_heads(bare, heads)
        mixed_up = _in_mixed_heads(side_by_side, heads).split(widths, dim=-1)
        split_first = [_in_heads(part, heads) for part in side_by_side.split([heads * w for w in widths], dim=-1)]
        here, zero = torch.arange(3, 3 + x.shape[1]), torch.arange(x.shape[1])
        known = {
            "it is not normalised; query_norm comes between query_down and query_up": (
                bare.split(widths, dim=-1)[0], rotate(bare.split(widths, dim=-1)[1], here),
            ),
            "it is not normalised; kv_norm is for the latent": (down[..., :rank],),
            "heads and positions are mixed up: unflatten, then transpose": (
                mixed_up[0], rotate(mixed_up[1], here),
            ),
            "n and r are split before the heads are parted; n and r channels stand side by side in each head": (
                split_first[0], rotate(split_first[1], here),
            ),
            "it is not rotated": (q[..., widths[0] :], down[..., rank:]),
            "it is rotated, and these channels carry no position": (rotate(q[..., : widths[0]], here),),
            "positions are counted from 0; use the argument positions": (
                rotate(q[..., widths[0] :], zero), rotate(down[..., rank:], zero),
            ),
            "kv_down gives the latent first and the rotary key behind it": (
                layer.kv_norm(down[..., -rank:]), rotate(down[..., : widths[1]], here),
            ),
            "the r rotary channels of a head stand behind its n others": (
                q[..., widths[1] :], rotate(q[..., : widths[1]], here),
            ),
        }  # fmt: skip
    return next((f"; {hint}" for hint, wrong in known.items() if any(same(got, w, 1e-4) for w in wrong)), "")


def _forward_fault(answer: Callable) -> str | None:
    for config in _LATENT_CONFIGS:
        layer, reference, x = _latent_pair(answer, config)
        mask = visible(x.shape[1], x.shape[1], None)
        wanted = reference(x, attention_context(config, x.shape[1], None, x.device)).detach()
        with _noting(f"for x {tuple(x.shape)} with {_widths_of(config)}"):
            got = layer(x.clone(), mask)
        if fault := difference(got.detach() if isinstance(got, Tensor) else got, wanted, 1e-4):
            return f"forward: {fault}{_forward_hint(reference, config, x, mask, got)}"
    return None


def _forward_hint(
    reference: MultiHeadLatentAttention, config: ModelConfig, x: Tensor, mask: Tensor, got: object
) -> str:
    solved = _solved_layer(reference, config)
    with torch.no_grad():
        q_nope, q_rope, latent, rotary_key = solved.compress(x, torch.arange(x.shape[1]))
        latent, rotary_key = latent.unsqueeze(1), rotary_key.unsqueeze(1)
        k_nope, v = latent @ solved.key_up.transpose(1, 2), latent @ solved.value_up.transpose(1, 2)
        q, k = torch.cat([q_nope, q_rope], dim=-1), torch.cat([k_nope, rotary_key.expand_as(q_rope)], dim=-1)
        narrow, full = q_nope.shape[-1] ** -0.5, q.shape[-1] ** -0.5
        rotary_first = torch.cat([rotary_key.expand_as(q_rope), k_nope], dim=-1)
        known = {
            "the rotary part of queries and keys is left out": attend(q_nope, k_nope, v, mask, full),
            "the rotary part of queries and keys is left out, and the scale with it": attend(q_nope, k_nope, v, mask),
            "the scale is 1/√n; queries and keys are n + r wide": attend(q, k, v, mask, narrow),
            "the mask is not used": attend(q, k, v),
            "the two parts stand in different orders in queries and keys: the rotary one comes last in both": (
                attend(q, rotary_first, v, mask)
            ),
        }
        wrong = {hint: solved.out(mixed.transpose(1, 2).flatten(2)) for hint, mixed in known.items()}
        not_moved_back = attend(q, k, v, mask).reshape(x.shape[0], x.shape[1], -1)
        wrong["heads and positions are mixed up on the way back; transpose before you flatten"] = solved.out(
            not_moved_back
        )
    got = got.detach() if isinstance(got, Tensor) else got
    return next((f"; {hint}" for hint, output in wrong.items() if same(got, output, 1e-4)), "")


def _gradient_of_latent(answer: Callable) -> str | None:
    layer, reference, x = _latent_pair(answer.raw, _LATENT_CONFIGS[0])
    solved, mask = _solved_layer(reference, _LATENT_CONFIGS[0]), visible(5, 5, None)
    if fault := gradient_fault(layer, solved.forward, x, mask, tolerance=1e-3):
        return fault
    layer(x, mask).pow(2).sum().backward()
    missing = [name for name, parameter in layer.named_parameters() if parameter.grad is None]
    return f"no gradient reaches {', '.join(missing)}" if missing else None


# ---------------------------------------------------------------- 1.6


def absorb(q_nope, q_rope, latent, rotary_key, key_up, value_up, mask):
    """Queries (B, H, T, n) and (B, H, T, r) over latents (B, S, R), rotary keys (B, S, r): (B, H, T, v)."""
    scale = (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5  # that of the explicit form, whose keys are n + r wide
    q = torch.cat([q_nope @ key_up, q_rope], dim=-1)  # (B, H, T, n) @ (H, n, R), then (B, H, T, R + r)
    k = torch.cat([latent, rotary_key], dim=-1).unsqueeze(1)  # (B, 1, S, R + r): one key head for all
    mixed = attend(q, k, latent.unsqueeze(1), mask, scale)  # (B, H, T, R): the latents are the values
    return mixed @ value_up.transpose(1, 2)  # (H, R, v)


def _absorb_case(
    seed: int, batch: int, heads: int, T: int, S: int, nope: int, rank: int, v: int, window: int | None = None
) -> tuple:
    rope = 2
    return (
        _drawn(seed, batch, heads, T, nope), _drawn(seed + 1, batch, heads, T, rope), _drawn(seed + 2, batch, S, rank),
        _drawn(seed + 3, batch, S, rope), _drawn(seed + 4, heads, nope, rank), _drawn(seed + 5, heads, v, rank),
        visible(T, S, window),
    )  # fmt: skip


_ABSORB_CASES = [
    _absorb_case(101, 2, 3, 2, 5, 4, 6, 3),
    _absorb_case(111, 1, 2, 1, 4, 5, 5, 5),
    _absorb_case(131, 2, 2, 3, 6, 3, 4, 5, 2),
]


def _absorb_wrongly(
    q_nope, q_rope, latent, rotary_key, key_up, value_up, mask, *, rope=True, scale=None, turned=False, crossed=False
):
    """``absorb`` with one typical mistake."""
    widths = {None: q_nope.shape[-1] + q_rope.shape[-1], "R + r": latent.shape[-1] + q_rope.shape[-1], "one": 1}
    moved = q_nope @ (key_up.transpose(1, 2) if turned else key_up)
    q = torch.cat([moved, q_rope], dim=-1) if rope else moved
    parts = [rotary_key, latent] if crossed else [latent, rotary_key]
    k = (torch.cat(parts, dim=-1) if rope else latent).unsqueeze(1)
    return attend(q, k, latent.unsqueeze(1), mask, widths[scale] ** -0.5) @ value_up.transpose(1, 2)


_ABSORB_HINTS = {
    "the scale is 1/√(R + r), the width of these queries; it must stay that of the explicit form, 1/√(n + r)": (
        lambda *a: _absorb_wrongly(*a, scale="R + r")
    ),
    "the scores are not scaled; the scale is 1/√(n + r)": lambda *a: _absorb_wrongly(*a, scale="one"),
    "the rotary part of the scores is left out": lambda *a: _absorb_wrongly(*a, rope=False),
    "the two parts stand in different orders in queries and keys: the rotary one comes last in both": (
        lambda *a: _absorb_wrongly(*a, crossed=True)
    ),
    "the mask is not used": lambda *a: absorb(*a[:-1], None),
    "the mask that is given is not used, but a causal one; with a window it would be another": (
        lambda *a: absorb(*a[:-1], visible(*a[-1].shape, None))
    ),
}


def _absorb_fault(answer: Callable) -> str | None:
    answers = []
    for case in _ABSORB_CASES:
        widths = f"n = {case[0].shape[-1]}, r = {case[1].shape[-1]}, R = {case[2].shape[-1]}, v = {case[5].shape[1]}"
        with _noting(f"for B = {len(case[0])}, H = {case[0].shape[1]}, T = {case[0].shape[2]}, {widths}"):
            got = answer(*(part.clone() for part in case))
        wanted = absorb(*case)
        answers.append(got)
        if not isinstance(got, Tensor) or got.shape != wanted.shape:
            without = isinstance(got, Tensor) and got.shape[-1] == case[2].shape[-1]
            hint = "; mixtures of latents are R wide, and value_up makes values of them" if without else ""
            return f"for {case[0].shape[2]} queries over {case[2].shape[1]} latents: {difference(got, wanted)}{hint}"
        if fault := _type_fault(got, wanted):
            return fault
    if all(same(got, absorb(*case), 1e-4) for got, case in zip(answers, _ABSORB_CASES, strict=True)):
        return None
    hint = fitting_hint(_ABSORB_HINTS, _ABSORB_CASES, answers, 1e-4)
    if not hint and same(answers[1], _absorb_wrongly(*_ABSORB_CASES[1], turned=True), 1e-4):
        hint = "it is wrong where n = R: key_up is turned the wrong way round"
    faults = [difference(got, absorb(*case), 1e-4) for got, case in zip(answers, _ABSORB_CASES, strict=True)]
    return hint or next(fault for fault in faults if fault)


def _work_of_absorb(answer: Callable) -> str | None:
    """Building keys or values of many old tokens costs several times what absorbing one new query does."""
    case = _absorb_case(121, 1, 2, 1, 64, 8, 8, 8)
    spent = {}
    for name, function in (("answer", answer), ("solution", absorb)):
        with FlopCounterMode(display=False) as counter:
            function(*(part.clone() for part in case))
        spent[name] = counter.get_total_flops()
    if spent["answer"] > 2 * spent["solution"]:
        return "right, but keys or values of all S tokens are built: this is the explicit form"
    return None


def _gradient_of_absorb(answer: Callable) -> str | None:
    return gradient_fault(answer, absorb, *_ABSORB_CASES[0], tolerance=1e-3)


# ---------------------------------------------------------------- 1.7


def layers_needed(distance, window):
    """Attention layers until a token can depend on the one ``distance`` positions earlier."""
    return math.ceil(distance / (window - 1))


def _fault_in_layers_needed(answer: Callable) -> str | None:
    cases = ((1, 2), (5, 2), (1, 3), (1, 4), (4, 4), (6, 3), (11, 3), (4095, 4096), (8190, 4096), (0, 4))
    for distance, window in cases:
        got, wanted = answer(distance, window), layers_needed(distance, window)
        if fault := difference(got, wanted):
            where = f"for distance={distance}, window={window}: {fault}"
            if distance and any(same(got, wrong) for wrong in (math.ceil(distance / window), distance / window)):
                return f"{where}; a window counts the token itself, so it reaches back one position less"
            if same(got, distance // (window - 1) + 1):
                return f"{where}; a distance that full layers cover needs no further one: round up, do not add one"
            whole = distance / (window - 1)
            if any(same(got, wrong) for wrong in (whole, int(whole), round(whole))):
                return f"{where}; a layer begun counts as a whole one"
            return where
    return None


EXERCISES = (
    Exercise(
        number="1.1", title="attention", minutes=10, difficulty=1, solution=attend,
        stages={"shape": _shape_of_attend, "values": _values_of_attend, "gradient": _gradient_of_attend},
    ),
    Exercise(
        number="1.2", title="positions as angles", minutes=10, difficulty=2, solution=rotate,
        stages={"shape": _shape_of_rotate, "values": _values_of_rotate, "gradient": _gradient_of_rotate},
    ),
    Exercise(
        number="1.3", title="heads that share keys", minutes=15, difficulty=2, solution=grouped_attention,
        stages={"shape": _shape_of_grouped, "values": _values_of_grouped, "gradient": _gradient_of_grouped},
    ),
    Exercise(
        number="1.4", title="a cache of your own", minutes=15, difficulty=2, solution=decode,
        stages={"shape": _shape_of_decode, "values": _values_of_decode, "cache": _cache_of_decode},
    ),
    Exercise(
        number="1.5", title="latent attention, whole", minutes=30, difficulty=3, solution=LatentAttention,
        stages={"compress": _compress_fault, "forward": _forward_fault, "gradient": _gradient_of_latent},
    ),
    Exercise(
        number="1.6", title="absorb the matrices", minutes=10, difficulty=2, solution=absorb,
        stages={"values": _absorb_fault, "work": _work_of_absorb, "gradient": _gradient_of_absorb},
    ),
    Exercise(
        number="1.7", title="how far a window reaches", minutes=5, difficulty=1, solution=layers_needed,
        stages={"values": _fault_in_layers_needed},
    ),
)  # fmt: skip
