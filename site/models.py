"""The playground's models as ONNX files, and what the page says of them.

``mod7`` is written in three parts, so that the page runs the loop by itself: it can then read out after every loop, and
at the end of every shorter chain, without beginning anew. The others are whole, as ``mythos_lite.interop.onnx`` writes
them: the model of the doubling window, which reads out its running sums at the digits themselves, and the published
one, of which only the answer is asked.

Shapes: B batch, T positions, D width, V vocabulary.
"""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from mythos_lite import ChainTask, RecurrentDepthTransformer, recipe
from mythos_lite.files.checkpoint import open_checkpoint
from mythos_lite.files.provenance import PACKAGE, source_hash
from mythos_lite.interop.onnx import export_onnx
from mythos_lite.model.attention import AttentionContext, attention_context
from mythos_lite.training.trainer import build_model, train

LONGEST = 64
"""Digits that the page takes."""


def make_models(folder: Path) -> None:
    """Write all models and ``models.json`` into ``folder``, unless it holds those of this code already."""
    facts, source = folder / "models.json", _source()
    if facts.is_file() and json.loads(facts.read_text(encoding="utf-8"))["source"] == source:
        return
    folder.mkdir(parents=True, exist_ok=True)
    facts.unlink(missing_ok=True)
    torch.set_num_threads(1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses another library, which nothing here needs
    told = {"source": source, "longest": LONGEST}
    for name in ("mod7", "mod7-doubling"):
        model, trained = RecurrentDepthTransformer.from_pretrained(name), open_checkpoint(name).notes["train"]
        told[name] = _told(model, trained) | {"needed": [model.config.loops_needed(n) for n in range(LONGEST + 1)]}
        if model.config.dilated:
            export_onnx(model, folder / f"{name}.onnx")
        else:
            export_parts(model, folder)
    print("Training the published model (a minute)", flush=True)
    shape, training = recipe("published")
    model = build_model(shape, training.seed)
    train(model, ChainTask(), training, progress=False)
    path = export_onnx(model.eval(), folder / "published.onnx")
    path.write_bytes(halve(path.read_bytes()))
    told["published"] = _told(model, training.to_dict())
    facts.write_text(json.dumps(told), encoding="utf-8")


def _source() -> str:
    """A hash of what the models are made of."""
    digest = hashlib.sha256(source_hash("config.py", "model/", "task/", "training/", "interop/onnx.py").encode())
    for path in (Path(__file__), *sorted(PACKAGE.glob("checkpoints/mod7*/*"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _told(model: RecurrentDepthTransformer, trained: dict) -> dict:
    """What the page says of a model."""
    digits = model.config.max_seq_len - 2  # START and EQ aside
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "longest": min(LONGEST, digits),
        "trained_digits": [trained["min_digits"], trained["max_digits"]],
        "trained_loops": [trained["min_loops"], trained["max_loops"]],
    }


class Part(nn.Module):
    """A function of a model and its inputs as a module."""

    def __init__(self, model: RecurrentDepthTransformer, function: Callable) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs of shape (B, T, …) → what the function makes of them."""
        context = attention_context(self.model.config, inputs[0].shape[1], None, inputs[0].device)
        return self.function(self.model, context, *inputs)


def encode(model: RecurrentDepthTransformer, context: AttentionContext, token_ids: Tensor) -> Tensor:
    """Tokens (B, T) → e (B, T, D)."""
    return model.encode(token_ids, context)


def turn(model: RecurrentDepthTransformer, context: AttentionContext, h: Tensor, e: Tensor) -> Tensor:
    """State and input (B, T, D) → the state after one more loop. The loop map is the same in every loop."""
    return model.loop_map(h, e, 0, context)[0]


def read_out(model: RecurrentDepthTransformer, context: AttentionContext, h: Tensor) -> Tensor:
    """State (B, T, D) → logits (B, T, V)."""
    return model.read_out(h, context)


def export_parts(model: RecurrentDepthTransformer, folder: Path) -> None:
    """``encode.onnx``, ``turn.onnx`` and ``read_out.onnx``, each for any B and T, with one output, ``out``."""
    tokens, states = torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 5, model.config.d_model)
    free = {0: torch.export.Dim("B"), 1: torch.export.Dim("T", max=model.config.max_seq_len)}
    inputs = {encode: {"token_ids": tokens}, turn: {"h": states, "e": states.clone()}, read_out: {"h": states}}
    for function, given in inputs.items():
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of what torch says about its own exporter
            program = torch.onnx.export(
                Part(model, function).eval(), tuple(given.values()), input_names=list(given), output_names=["out"],
                dynamic_shapes=(tuple(free for _ in given),), dynamo=True, verbose=False,
            )  # fmt: skip
        onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
        content = onnx_ir.to_proto(program.model).SerializeToString()
        (folder / f"{function.__name__}.onnx").write_bytes(content)


def halve(content: bytes) -> bytes:
    """The model with its larger weights in float16, which it makes float32 again when it is loaded."""
    model = onnx.load_from_string(content)
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.raw_data) > 1024:
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype("float16"), f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model.SerializeToString()
