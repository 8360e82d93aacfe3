"""A model as one ONNX file whose loop count is an input.

===============  =======  ===========  ============================================================
name             kind     shape        what it is
===============  =======  ===========  ============================================================
``token_ids``    input    (B, T)       int64, padded on the right where lengths differ
``n_loops``      input    ()           int64, 1 or more
``logits``       output   (B, T, V)    float32, of the next token at every position
===============  =======  ===========  ============================================================

The core is the body of ONNX's ``Loop`` (operator specification, ``Loop``, opset 16), so the file is as large as the
model, whatever the loop count; batch and length are free too. A runtime checks only what it looks up. So the loop count
and the tokens are looked up, by nodes whose names say what was expected (``MUST_BE``): outside of that onnxruntime ends
with an error on a CPU, WebAssembly included. Beyond ``max_seq_len`` it computes on without a word.

A window is a mask over all pairs of positions here, so that time and memory grow with T². So is a dilated one, since
the fold of ``model.dilation`` has a shape that depends on the loop number: each position sees itself and those d, 2d, …
back, and a copy of the first position, put before all, where one of these is missing.

Where a model is asked what it was not trained for, rounding can grow from loop to loop, here as in torch.

Shapes: B batch, T positions, V vocabulary, D width.
"""

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mythos_lite.files.atomic import make_folder, write_files
from mythos_lite.files.checkpoint import FORMAT, find_flaw
from mythos_lite.interop.extras import need
from mythos_lite.model.attention import AttentionContext
from mythos_lite.model.halting import spend
from mythos_lite.model.layers import rotary_tables
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.model.moe import Routing

OPSET = 20
"""Of ONNX 1.15; later ones bring nothing that is needed here, and fewer runtimes know them."""
FOLDED = 64
"""Size of the largest constant that is computed with while exporting. Weights stay as they are, quantised ones too."""
MUST_BE = {"node_index_select": "n_loops_must_be_1_or_more", "node_embedding": "token_ids_must_be_in_the_vocabulary"}
"""Names of nodes, as traced and as written: what runtimes say where a lookup fails."""


def export_onnx(model: RecurrentDepthTransformer, path: str | os.PathLike) -> Path:
    """Write ``model`` to ``path`` as one ONNX file, weights inside, whole or not at all; return the path.

    ``metadata_props`` hold ``format``, ``config`` (the configuration as JSON) and ``n_loops`` (its default).

    Raises:
        ImportError: where the libraries onnx and onnxscript are missing.
        ValueError: for what is no model of this package, a path that does not end in ``.onnx``, or weights that are not
            finite float32.
        OSError: for a path that cannot be written.
        RuntimeError: where the exporter of this torch knows no loops, as that of 2.9; that of 2.13 does.
    """
    if not isinstance(model, RecurrentDepthTransformer):
        raise ValueError(f"model must be a RecurrentDepthTransformer, not {type(model).__name__}")
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path={str(path)!r} is not possible: its name must end in .onnx")
    if (kind := model.embedding.weight.dtype) != torch.float32:
        raise ValueError(f"the weights are {kind}; only float32 runs everywhere, so convert them first: model.float()")
    if flaw := find_flaw({name: x for name, x in model.state_dict().items() if x.is_floating_point()}):
        raise ValueError(f"{flaw}; nothing was written")
    for library in ("onnx", "onnxscript"):
        need(library)
    folder = make_folder(path.parent)
    twin = copy.deepcopy(model).requires_grad_(False).eval().cpu()
    twin.__class__ = _WithLoop
    config = model.config.to_dict()
    about = {"format": FORMAT, "config": json.dumps(config), "n_loops": str(config["n_loops"])}
    write_files({folder / path.name: _onnx_bytes(twin, about)})
    return path


class _WithLoop(RecurrentDepthTransformer):
    """The model as a function of tokens and loop count, both tensors, for tracing.

    ``t``, the loop number, is a tensor () too, whose value cannot be read.
    """

    def forward(self, token_ids: Tensor, n_loops: Tensor) -> Tensor:
        """Tokens (B, T) and loop count () → logits (B, T, V)."""
        token_ids = token_ids.where(token_ids >= 0, self.config.vocab_size)  # Gather would count from the end
        context = self._context(token_ids, None)
        e = self.encode(token_ids, context)
        given = self.injection.given(e)
        # Looks up entry 0 of a single one for a count of 1 or more, and an entry that is not there for any below.
        first = torch.zeros(1, dtype=torch.int64).index_select(0, (2 * (n_loops.clamp(max=1) - 1)).view(1)).view(())

        def step(t: Tensor, h: Tensor, *act: Tensor) -> tuple[Tensor, ...]:
            h, _ = self.loop_map(h, e, t, context, given)
            if self.halting is not None:
                before, left, _ = act
                weight, left_then = spend(self.halting(h), left, self.config.act_threshold)
                output = before + left.unsqueeze(-1) * h  # if this loop is the last
                act = before + weight.unsqueeze(-1) * h, left_then, output
            return t + 1, h.clone(), *act

        act = (torch.zeros_like(e), torch.ones_like(e[..., 0]), torch.zeros_like(e)) if self.halting is not None else ()
        carried = first, e.clone(), *act
        *_, h = torch._higher_order_ops.while_loop(lambda t, *_: t < n_loops, step, carried)
        return self.read_out(h, context)

    def _adapt(self, x: Tensor, t: Tensor) -> Tensor:
        if not self.config.depth_lora_rank:
            return x
        last = len(self.depth_lora_scale) - 1
        scale = self.depth_lora_scale.index_select(0, t.clamp(max=last).view(1))
        return x + self.depth_lora_up(self.depth_lora_down(x) * scale)

    def _run_core(self, x: Tensor, t: Tensor, context: AttentionContext) -> tuple[Tensor, Routing]:
        if not self.config.dilated:
            return super()._run_core(x, t, context)
        x = torch.cat([x[:, :1], x], dim=1)  # (B, 1 + T, D)
        return self._run_blocks("core", x, self._dilated_context(x.shape[1], t))[0][:, 1:], ()

    def _dilated_context(self, n: int, t: Tensor) -> AttentionContext:
        """Who sees whom in loop t among the copy of the first position and, behind it, n − 1 positions."""
        window, top = self.config.window, 0
        while window**top < self.config.max_seq_len:  # that far apart, each stands alone behind the copy
            top += 1
        dilation = window ** t.clamp(max=top)
        index = torch.arange(n)
        place = (index + dilation - 1) // dilation  # in its folded sequence, where the copy stands at 0
        back = place.unsqueeze(1) - place
        together = ((index.unsqueeze(1) - index) % dilation == 0) | (index == 0)
        cos, sin = rotary_tables(place, self.config.rotary_dim, self.config.rope_theta)
        return AttentionContext(cos, sin, together & (back >= 0) & (back < window), causal=False)


def _onnx_bytes(twin: _WithLoop, about: dict[str, str]) -> bytes:
    """The file, without what tracing noted about this machine, and without shapes that runtimes work out themselves."""
    names = {"input_names": ["token_ids", "n_loops"], "output_names": ["logits"]}
    free = {"token_ids": {0: "batch", 1: "length"}, "n_loops": {}}
    with _quiet(), torch.no_grad():
        found = torch.onnx.export(
            twin, (torch.zeros(2, 3, dtype=torch.int64), torch.tensor(2)), dynamo=True, opset_version=OPSET,
            dynamic_shapes=free, verbose=False, optimize=False, **names,
        ).model  # fmt: skip
        need("onnxscript.optimizer").optimize_ir(found, input_size_limit=FOLDED)
    need("onnx_ir").passes.common.ClearMetadataAndDocStringPass()(found)
    found.metadata_props.update(about)
    for node in found.graph:
        node.name = MUST_BE.get(node.name, node.name)
    written = need("onnx_ir").to_proto(found)
    bodies = [part.g for node in written.graph.node for part in node.attribute if part.HasField("g")]
    for graph in (written.graph, *bodies):
        graph.ClearField("value_info")
    return written.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter has to say about other libraries and its own future."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
