"""Look at what passes inside a model, and put something else in its place, as with TransformerLens.

==========================  ================================================================
name                        value
==========================  ================================================================
``input``                   (B, T, D) e, what the prelude made of the tokens
``prelude.0``               (B, T, D) output of the prelude's block 0; ``coda.0`` likewise
``prelude.0.attention``     (B, T, D) what its attention adds; ``….ffn`` what its feed-forward adds
``loop.3.core.0``           (B, T, D) output of the core's block 0 in loop 3; ``….attention``, ``….ffn``
``loop.3.state``            (B, T, D) h_3, the state after three loops
``logits``                  (B, T, V)
==========================  ================================================================

Loops count from 1, blocks from 0. A hook is a function of a value and its point (``hook.name``, ``hook.loop``), as in
TransformerLens (Nanda & Bloom 2022); what it returns takes the value's place, ``None`` leaves it. To patch in a state
that another input made is the interchange intervention of Geiger et al. 2021, activation patching in Meng et al. 2022.
With a dilated window the blocks of the core see their positions folded (``model.dilation``); the state is as above.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import NamedTuple

from torch import Tensor, nn

from mythos_lite.checks import check_int
from mythos_lite.model.loop import ModelOutput, RecurrentDepthTransformer


class HookPoint(NamedTuple):
    """Where a value passes."""

    name: str
    loop: int | None  # from 1; None outside of the loop


Hook = Callable[[Tensor, HookPoint], Tensor | None]
WRAPPED = ("encode", "loop_map", "read_out")


def hook_names(model: RecurrentDepthTransformer, n_loops: int | None = None) -> list[str]:
    """The points that a pass of ``n_loops`` loops goes through, in order."""
    n_loops = check_int("n_loops", model.config.n_loops if n_loops is None else n_loops, 1)
    parts = ("attention", "ffn")

    def of(stage: str, prefix: str = "") -> list[str]:
        blocks = [f"{prefix}{stage}.{i}" for i in range(len(getattr(model, stage)))]
        return [name for block in blocks for name in (*(f"{block}.{part}" for part in parts), block)]

    turns = [name for t in range(1, n_loops + 1) for name in (*of("core", f"loop.{t}."), f"loop.{t}.state")]
    return [*of("prelude"), "input", *turns, *of("coda"), "logits"]


def run_with_hooks(
    model: RecurrentDepthTransformer, token_ids: Tensor, *, fwd_hooks: Sequence[tuple[str, Hook]],
    n_loops: int | None = None,
) -> ModelOutput:  # fmt: skip
    """``model(token_ids, n_loops=n_loops)`` with hooks at named points; those of one point run in the order given.

    Raises:
        ValueError: for a point that such a pass does not have, or a hook that returns a tensor of another shape.
    """
    known = hook_names(model, n_loops)
    if unknown := [name for name, _ in fwd_hooks if name not in known]:
        raise ValueError(f"there is no point {unknown[0]!r} in this pass; there are {', '.join(known)}")

    def visit(value: Tensor, point: HookPoint) -> Tensor:
        for name, hook in fwd_hooks:
            if name == point.name and (new := hook(value, point)) is not None:
                if not isinstance(new, Tensor) or new.shape != value.shape:
                    found = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
                    raise ValueError(f"the hook at {name!r} must return shape {tuple(value.shape)}, not {found}")
                value = new
        return value

    with _visiting(model, visit):
        return model(token_ids, n_loops=n_loops)


def run_with_cache(
    model: RecurrentDepthTransformer, token_ids: Tensor, *, n_loops: int | None = None,
    names_filter: Callable[[str], bool] = lambda name: True,
) -> tuple[ModelOutput, dict[str, Tensor]]:  # fmt: skip
    """The output, and the values at all points whose name ``names_filter`` lets through."""
    found: dict[str, Tensor] = {}
    names = [name for name in hook_names(model, n_loops) if names_filter(name)]
    out = run_with_hooks(
        model, token_ids, n_loops=n_loops,
        fwd_hooks=[(name, lambda value, point: found.update({point.name: value})) for name in names],
    )  # fmt: skip
    return out, found


def patch(value: Tensor, position: int | slice = slice(None)) -> Hook:
    """A hook that puts ``value`` in the place of what is at ``position``: (B, D), or (B, T, D) for a slice.

    Negative positions count from the end. They are the same in all sequences; where these are padded, patch each alone.

    Raises:
        ValueError: for a position that is no whole number or slice; in the hook, for one that the sequences do not have
            and for a value of another shape.
    """
    if not isinstance(position, slice):
        position = check_int("position", position, -(2**31), 2**31)

    def put(current: Tensor, point: HookPoint) -> Tensor:
        if isinstance(position, int) and not -current.shape[1] <= position < current.shape[1]:
            raise ValueError(f"position={position} is not in a sequence of {current.shape[1]}")
        new = current.clone()
        if (place := new[:, position]).shape != value.shape:
            raise ValueError(f"value of shape {tuple(value.shape)} where {point.name} has {tuple(place.shape)}")
        new[:, position] = value.to(current)
        return new

    return put


@contextlib.contextmanager
def _visiting(model: RecurrentDepthTransformer, visit: Callable[[Tensor, HookPoint], Tensor]) -> Iterator[None]:
    """While the context lasts every value goes through ``visit``. Methods are wrapped; weights are not touched."""
    now, handles = SimpleNamespace(loop=0, in_hook=False), []

    def pass_on(value: Tensor, name: str, in_loop: bool = False) -> Tensor:
        if now.in_hook:  # a hook runs the model itself
            return value
        now.in_hook = True
        try:
            return visit(value, HookPoint(f"loop.{now.loop}.{name}", now.loop) if in_loop else HookPoint(name, None))
        finally:
            now.in_hook = False

    def listen(module: nn.Module, name: str, in_loop: bool) -> None:
        def hook(_: nn.Module, __: object, out: Tensor | tuple) -> Tensor | tuple:
            return (pass_on(out[0], name, in_loop), *out[1:]) if isinstance(out, tuple) else pass_on(out, name, in_loop)

        handles.append(module.register_forward_hook(hook))

    for stage in ("prelude", "core", "coda"):
        for i, block in enumerate(getattr(model, stage)):
            for module, part in ((block.attention, ".attention"), (block.ffn, ".ffn"), (block, "")):
                listen(module, f"{stage}.{i}{part}", stage == "core")
    before = {name: model.__dict__[name] for name in WRAPPED if name in model.__dict__}  # in a hook that runs the model
    encode, loop_map, read_out = (getattr(model, name) for name in WRAPPED)

    def encode_and_pass_on(*given: object) -> Tensor:
        return pass_on(encode(*given), "input")

    def turn_and_pass_on(h: Tensor, e: Tensor, t: int, *given: object) -> tuple[Tensor, object]:
        now.loop = now.loop if now.in_hook else t + 1
        state, routing = loop_map(h, e, t, *given)
        return pass_on(state, "state", in_loop=True), routing

    def read_and_pass_on(*given: object) -> Tensor:
        return pass_on(read_out(*given), "logits")

    model.__dict__.update(zip(WRAPPED, (encode_and_pass_on, turn_and_pass_on, read_and_pass_on), strict=True))
    try:
        yield
    finally:
        for name in WRAPPED:
            del model.__dict__[name]
        model.__dict__.update(before)
        for handle in handles:
            handle.remove()
