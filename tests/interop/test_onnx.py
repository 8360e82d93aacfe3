"""A model as an ONNX file: the same logits at any loop count, batch and length, and what is refused."""

import json
import sys

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from torch.nn import functional as F  # noqa: E402

from mythos_lite import ChainTask, ModelConfig, RecurrentDepthTransformer  # noqa: E402
from mythos_lite.interop.onnx import MUST_BE, OPSET, export_onnx  # noqa: E402
from mythos_lite.measure.sweep import evaluation_chains  # noqa: E402
from mythos_lite.task.pointers import PointerTask  # noqa: E402

SHIPPED = ("mod7", "mod7-experts", "mod7-doubling", "pointers")
LOOPS = (1, 2, 3, 8, 32, 100)


def all_extras() -> RecurrentDepthTransformer:
    """What no shipped model has, in one: additive injection, no tanh, ACT, loop number, depth LoRA, groups of heads."""
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=32, d_ff=24, n_kv_heads=2, window=5, n_core_layers=2, n_loops=3, injection="additive",
        state_activation="none", halting="act", loop_index_embedding=True, depth_lora_rank=3,
    )  # fmt: skip
    model = RecurrentDepthTransformer(config)
    with torch.no_grad():
        model.depth_lora_up.weight.normal_()
        model.halting.unit.bias.fill_(-4.0)  # spreads ACT's weights over dozens of loops
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Name → the model and its file, exported once."""
    folder, done = tmp_path_factory.mktemp("onnx"), {}

    def of(name: str):
        if name not in done:
            model = all_extras() if name == "all extras" else RecurrentDepthTransformer.from_pretrained(name)
            done[name] = model.train(), export_onnx(model, folder / f"{name}.onnx")
        return done[name]

    return of


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


@torch.no_grad()
def logits_of(model: RecurrentDepthTransformer, ids: torch.Tensor, n_loops: int) -> torch.Tensor:
    return model(ids, n_loops=n_loops).logits


def run(running, ids: torch.Tensor, n_loops: int) -> torch.Tensor:
    (logits,) = running.run(["logits"], {"token_ids": ids.numpy(), "n_loops": np.array(n_loops)})
    return torch.from_numpy(logits)


def tokens(name: str, batch: int, length: int) -> torch.Tensor:
    """What the model is for; it may be cut off anywhere. On other tokens rounding can grow from loop to loop."""
    task = PointerTask() if name == "pointers" else ChainTask()
    chains = evaluation_chains(task, min(length + 4, 18), batch)
    return task.encode(chains).token_ids[:batch, :length]


@pytest.mark.parametrize("name", [*SHIPPED, "all extras"])
def test_any_loop_count_batch_and_length_gives_the_logits_of_torch(exported, name):
    model, path = exported(name)
    running = session(path)
    for batch, length in ((2, 3), (1, 1), (1, 2), (3, 1), (5, 17), (1, 64)):
        ids = tokens(name, batch, length)
        for n_loops in LOOPS:
            got, expected = run(running, ids, n_loops), logits_of(model, ids, n_loops)
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["mod7-experts", "mod7-doubling", "all extras"])
def test_padding_on_the_right_changes_nothing(exported, name):
    model, path = exported(name)
    ids = tokens(name, 2, 9)
    padded = F.pad(ids, (0, 4), value=model.config.pad_token_id)
    got = run(session(path), padded, 6)[:, :9]
    torch.testing.assert_close(got, logits_of(model, ids, 6), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["mod7", "all extras"])
def test_the_file_is_whole_and_holds_a_loop_whose_count_is_an_input(exported, name):
    model, path = exported(name)
    onnx.checker.check_model(path, full_check=True)
    found = onnx.load(path, load_external_data=False)
    assert [entry.version for entry in found.opset_import if entry.domain == ""] == [OPSET]
    assert [entry.domain for entry in found.opset_import] == [""]
    assert [node.op_type for node in found.graph.node].count("Loop") == 1
    assert not found.functions
    assert not any(tensor.data_location for tensor in found.graph.initializer)
    inputs = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in found.graph.input}
    assert inputs == {"token_ids": ["batch", "length"], "n_loops": []}
    assert len(path.read_bytes()) < 4 * model.n_parameters() + 60_000
    assert b"site-packages" not in path.read_bytes()


def test_the_file_says_which_model_it_is(exported):
    model, path = exported("mod7")
    told = session(path).get_modelmeta().custom_metadata_map
    assert told["format"] == "mythos-lite"
    assert int(told["n_loops"]) == model.config.n_loops
    assert ModelConfig.from_dict(json.loads(told["config"])) == model.config


@pytest.mark.parametrize("n_loops", [0, -1, -5])
def test_a_loop_count_below_one_fails_and_says_so(exported, n_loops):
    running = session(exported("mod7")[1])
    with pytest.raises(Exception, match=MUST_BE["node_index_select"]):
        run(running, tokens("mod7", 1, 4), n_loops)


@pytest.mark.parametrize("token", [-1, 10, -10])
def test_a_token_outside_the_vocabulary_fails_and_says_so(exported, token):
    running = session(exported("mod7")[1])
    with pytest.raises(Exception, match=MUST_BE["node_embedding"]):
        run(running, torch.tensor([[7, token]]), 2)


def test_the_model_is_left_as_it_was(exported):
    model, path = exported("mod7")
    fresh = RecurrentDepthTransformer.from_pretrained("mod7").state_dict()
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in model.state_dict().items())
    assert path in list(path.parent.iterdir())
    assert all(file.suffix == ".onnx" for file in path.parent.iterdir())


def damaged() -> RecurrentDepthTransformer:
    model = RecurrentDepthTransformer(ModelConfig())
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (lambda: torch.nn.Linear(2, 2), "a.onnx", "must be a RecurrentDepthTransformer, not Linear"),
        (lambda: RecurrentDepthTransformer(ModelConfig()), "a.pt", r"must end in \.onnx"),
        (lambda: RecurrentDepthTransformer(ModelConfig()).half(), "a.onnx", "float16.*float32"),
        (damaged, "a.onnx", "not finite; nothing was written"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path, model, name, reason):
    with pytest.raises(ValueError, match=reason):
        export_onnx(model(), tmp_path / "folder" / name)
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_leaves_the_file_of_before(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("half-way")

    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(RuntimeError, match="half-way"):
        export_onnx(RecurrentDepthTransformer(ModelConfig()), path)
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_path_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        export_onnx(RecurrentDepthTransformer(ModelConfig()), tmp_path / "file" / "a.onnx")


def test_a_missing_library_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"onnxscript is needed .*: pip install onnxscript$"):
        export_onnx(RecurrentDepthTransformer(ModelConfig()), tmp_path / "folder" / "a.onnx")
    assert not list(tmp_path.iterdir())
