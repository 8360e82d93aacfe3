"""Files for llama.cpp: what is in them, what comes back, what is refused, and what llama.cpp makes of them."""

import dataclasses
import struct
import sys

import numpy as np
import pytest
import torch

from mythos_lite import ChainTask, RecurrentDepthTransformer
from mythos_lite.__main__ import main
from mythos_lite.files.checkpoint import CheckpointError
from mythos_lite.interop.gguf import MAX_LAYERS, export_gguf, llama_cpp_profile, read_gguf

gguf = pytest.importorskip("gguf")
VARIANTS = {
    "one layer": {},
    "two layers": {"n_core_layers": 2},
    "grouped": {"n_kv_heads": 2, "n_core_layers": 2},
    "multi-query": {"n_kv_heads": 1},
    "one head": {"n_heads": 1, "n_kv_heads": 1},
    "wide": {"d_model": 96, "n_heads": 6, "n_kv_heads": 3, "d_ff": 40},
    "no padding, other base": {"pad_token_id": None, "vocab_size": 33, "rope_theta": 12345.678},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def make_model(variant="one layer", **changes):
    """A model in which every weight matters, the norms' too."""
    sizes = {"d_model": 32, "d_ff": 48, "max_seq_len": 64, "n_loops": 3}
    torch.manual_seed(0)
    model = RecurrentDepthTransformer(llama_cpp_profile(**{**sizes, **VARIANTS[variant], **changes}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.uniform_(0.5, 1.5) if "norm" in name else p.normal_(std=p.shape[-1] ** -0.5)
    return model.eval()


def token_ids(model, length=20):
    return torch.randint(9, (1, length), generator=torch.Generator().manual_seed(1))


def rewritten(path, target, keys=None, tensors=None, arch=None):
    """The file once more, with some of its values and tensors changed; None leaves one out."""
    reader = gguf.GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    writer = gguf.GGUFWriter(target, arch or values.pop("general.architecture"))
    values = {**values, **(keys or {})}
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
              list: writer.add_array}  # fmt: skip
    for key, value in values.items():
        if value is not None and key != "general.architecture":
            adders[type(value)](key, value)
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    for name, tensor in {**found, **(tensors or {})}.items():
        if tensor is not None:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


# ---------------------------------------------------------------- there and back


@every_variant
@torch.no_grad()
def test_what_is_written_comes_back_bit_by_bit(variant, tmp_path):
    model = make_model(variant)
    again = read_gguf(export_gguf(model, tmp_path / "model.gguf"))
    expected = dataclasses.replace(model.config, rope_theta=np.float32(model.config.rope_theta).item())
    assert again.config == expected
    assert not again.training
    assert all(torch.equal(p, again.state_dict()[name]) for name, p in model.state_dict().items())
    for n_loops in (1, 5):
        ids = token_ids(model)
        assert torch.equal(again(ids, n_loops=n_loops).logits, model(ids, n_loops=n_loops).logits)


def test_the_model_that_comes_back_can_be_trained(tmp_path):
    again = read_gguf(export_gguf(make_model(), tmp_path / "model.gguf"))
    again(token_ids(again)).logits.sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_the_file_says_what_llama_cpp_asks_for(tmp_path):
    model = make_model("grouped")
    reader = gguf.GGUFReader(export_gguf(model, str(tmp_path / "new" / "model.gguf"), n_loops=7))
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert values == {
        "general.architecture": "nanbeige", "general.name": "mythos-lite", "nanbeige.context_length": 64,
        "nanbeige.embedding_length": 32, "nanbeige.block_count": 2, "nanbeige.feed_forward_length": 48,
        "nanbeige.attention.head_count": 4, "nanbeige.attention.head_count_kv": 2,
        "nanbeige.attention.layer_norm_rms_epsilon": np.float32(1e-6), "nanbeige.rope.dimension_count": 8,
        "nanbeige.rope.freq_base": 10_000.0, "nanbeige.vocab_size": 10, "nanbeige.num_loops": 7,
        "nanbeige.skip_loop_final_norm": True, "tokenizer.ggml.model": "none", "tokenizer.ggml.padding_token_id": 9,
    }  # fmt: skip
    kinds = {"num_loops": "UINT32", "skip_loop_final_norm": "BOOL", "rope.freq_base": "FLOAT32"}
    assert {key: reader.fields[f"nanbeige.{key}"].types[0].name for key in kinds} == kinds
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * 9 + 2
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}
    assert torch.equal(torch.tensor(tensors["token_embd.weight"].data), model.embedding.weight)
    # llama.cpp turns neighbouring channels: in each head of 8, our channels 0, 4, 1, 5 and so on.
    rows = [8 * head + channel for head in range(2) for pair in range(4) for channel in (pair, pair + 4)]
    assert torch.equal(torch.tensor(tensors["blk.1.attn_k.weight"].data), model.core[1].attention.key.weight[rows])
    assert torch.equal(torch.tensor(tensors["blk.1.attn_v.weight"].data), model.core[1].attention.value.weight)


@pytest.mark.parametrize("start_token", [True, False])
def test_the_tokenizer_of_a_task_of_digits(start_token, tmp_path):
    task, model = ChainTask(modulus=3, n_symbols=4, start_token=start_token), make_model(vocab_size=9, pad_token_id=6)
    path = export_gguf(model, tmp_path / "model.gguf", task=task)
    values = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    found = {name.split(".", 2)[2]: value for name, value in values.items() if name.startswith("tokenizer.ggml.")}
    assert found == {
        "model": "gpt2", "pre": "default", "merges": ["= ="],
        "tokens": ["0", "1", "2", "3", "<s>", "=", "<pad>", "<7>", "<8>"],
        "token_type": [1, 1, 1, 1, 3, 1, 3, 3, 3], "bos_token_id": 4, "eos_token_id": 6,
        "padding_token_id": 6, "add_bos_token": start_token, "add_eos_token": False, "add_space_prefix": False,
    }  # fmt: skip
    assert read_gguf(path).config == model.config


@pytest.mark.parametrize("task", [ChainTask(n_symbols=11, modulus=11), ChainTask(n_symbols=5, modulus=5), "digits"])
def test_a_task_that_is_not_the_models_or_has_no_digits_is_refused(task, tmp_path):
    with pytest.raises(ValueError, match="task"):
        export_gguf(make_model(), tmp_path / "model.gguf", task=task)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_the_tokenizer_from_the_notes(tmp_path):
    kinds = {"digits": {"kind": "ChainTask"}, "tuned": {"kind": "file", "start_token": False}, "no": {"kind": "?"}}
    for name, notes in {**{name: {"task": kind} for name, kind in kinds.items()}, "nothing": {}}.items():
        make_model().half().save_pretrained(tmp_path / name, **notes)
        path = tmp_path / "model.gguf"
        assert main(["export", "gguf", str(tmp_path / name), str(path)]) == 0
        fields = gguf.GGUFReader(path).fields
        tokenizer = "gpt2" if name in ("digits", "tuned") else "none"
        assert fields["tokenizer.ggml.model"].contents() == tokenizer
        assert tokenizer == "none" or fields["tokenizer.ggml.add_bos_token"].contents() == (name == "digits")


# ---------------------------------------------------------------- what is not written


@pytest.mark.parametrize("name", ["mod7", "mod7-experts", "mod7-doubling", "pointers"])
def test_every_field_in_the_way_is_named(name, tmp_path):
    model = RecurrentDepthTransformer.from_pretrained(name)
    with pytest.raises(ValueError, match="cannot run this model") as error:
        export_gguf(model, tmp_path / "model.gguf")
    profile = llama_cpp_profile()
    for field in ("attention", "window", "dilated", "n_experts", "n_prelude_layers", "n_coda_layers", "injection",
                  "state_activation", "loop_index_embedding", "depth_lora_rank", "halting", "output_size"):  # fmt: skip
        value = getattr(model.config, field)
        assert (f"{field}={value!r} " in str(error.value)) == (value != getattr(profile, field)), field
    assert not list(tmp_path.iterdir())


def test_all_obstacles_are_named_at_once(tmp_path):
    changes = {"halting": "act", "depth_lora_rank": 2, "loop_index_embedding": True, "output_size": 7}
    with pytest.raises(ValueError, match=r"halting='act' \(not 'none'\), output_size=7 \(not None\)") as error:
        export_gguf(make_model(**changes), tmp_path / "model.gguf")
    assert "loop_index_embedding=True (not False), depth_lora_rank=2 (not 0)" in str(error.value)


@pytest.mark.parametrize("n_core_layers", [1, 2])
def test_more_layers_than_llama_cpp_has_room_for_are_refused(n_core_layers, tmp_path):
    model, most = make_model(n_core_layers=n_core_layers), MAX_LAYERS // n_core_layers
    assert read_gguf(export_gguf(model, tmp_path / "model.gguf", most)).config.n_loops == most
    with pytest.raises(ValueError, match=f"n_loops={most + 1} is too many.* {most} loops of {n_core_layers}"):
        export_gguf(model, tmp_path / "other.gguf", most + 1)
    assert not (tmp_path / "other.gguf").exists()


@pytest.mark.parametrize("n_loops", [0, -1, 1.5, True, "4"])
def test_what_is_no_loop_count_is_refused(n_loops, tmp_path):
    with pytest.raises(ValueError, match="n_loops"):
        export_gguf(make_model(), tmp_path / "model.gguf", n_loops)


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    with pytest.raises(ValueError, match="float16 and the file is float32"):
        export_gguf(make_model().half(), path)
    model = make_model()
    model.core[0].ffn.up.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"core.0.ffn.up.weight.*not finite"):
        export_gguf(model, path)
    model.core[0].ffn.up = torch.nn.Sequential(torch.nn.Linear(32, 48, bias=False))
    with pytest.raises(ValueError, match="merge adapters"):
        export_gguf(model, path)
    with pytest.raises(ValueError, match="not Linear"):
        export_gguf(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="max_seq_len"):
        export_gguf(make_model(max_seq_len=2**31), path)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = export_gguf(make_model(), tmp_path / "model.gguf")
    before = path.read_bytes()

    def stop(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", stop)
    with pytest.raises(OSError, match="No space"):
        export_gguf(make_model("wide"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- what is not read


@pytest.fixture
def path(tmp_path):
    return export_gguf(make_model("grouped"), tmp_path / "model.gguf")


def test_a_file_without_the_loop_count_is_refused_with_the_reason(path, tmp_path):
    other = rewritten(path, tmp_path / "other.gguf", {"nanbeige.num_loops": None})
    with pytest.raises(CheckpointError, match=r"does not say how many loops.*run a single one"):
        read_gguf(other)


REFUSED = {
    "between loops": ({"nanbeige.skip_loop_final_norm": False}, "skip_loop_final_norm is False, and this reads True"),
    "between loops, by default": ({"nanbeige.skip_loop_final_norm": None}, "skip_loop_final_norm is None"),
    "another epsilon": ({"nanbeige.attention.layer_norm_rms_epsilon": 1e-5}, "rms_epsilon is 9.99.*e-06"),
    "half of the channels turned": ({"nanbeige.rope.dimension_count": 4}, "rope.dimension_count is 4"),
    "scaled positions": ({"nanbeige.rope.scaling.factor": 2.0}, r"rope.scaling.factor is 2.0.* reads None alone"),
    "no width": ({"nanbeige.embedding_length": None}, "lacks the key 'nanbeige.embedding_length'"),
    "heads that do not divide": ({"nanbeige.attention.head_count": 5}, "n_heads=5"),
    "heads by layer": ({"nanbeige.attention.head_count_kv": [2, 2]}, r"n_kv_heads=\[2, 2\]"),
    "no loop": ({"nanbeige.num_loops": 0}, "n_loops=0"),
    "a count that is none": ({"nanbeige.num_loops": "four"}, "n_loops='four'"),
    "more layers than weights": ({"nanbeige.block_count": 4_000_000_000}, "more than it has weights"),
    "fewer layers than weights": ({"nanbeige.block_count": 1}, "'blk.1.attn_k.weight' is not part of this model"),
    "no tensor has that size": ({"nanbeige.vocab_size": 2**32 - 1, "nanbeige.embedding_length": 2**32 - 8,
                                 "nanbeige.rope.dimension_count": 2**30 - 2}, "cannot be built"),
    "padding outside": ({"tokenizer.ggml.padding_token_id": 10}, "pad_token_id=10"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_another_model_is_refused(case, path, tmp_path):
    keys, reason = REFUSED[case]
    with pytest.raises(CheckpointError, match=reason):
        read_gguf(rewritten(path, tmp_path / "other.gguf", keys))


def test_another_architecture_is_refused(path, tmp_path):
    with pytest.raises(CheckpointError, match="of the architecture 'llama'; this reads 'nanbeige' alone"):
        read_gguf(rewritten(path, tmp_path / "other.gguf", arch="llama"))


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("blk.0.attn_q.weight", None, "'core.0.attention.query.weight' is missing"),
        ("output.weight", np.zeros((10, 32), np.float32), "'output.weight' is not part of this model"),
        ("token_embd.weight", np.zeros((11, 32), np.float32), r"has shape \(11, 32\) instead of \(10, 32\)"),
        ("output_norm.weight", np.full(32, np.inf, np.float32), "not finite"),
        ("output_norm.weight", np.ones(32, np.float16), "output_norm.weight is F16, and this reads F32 alone"),
    ],
)
def test_other_tensors_are_refused(name, tensor, reason, path, tmp_path):
    with pytest.raises(CheckpointError, match=reason):
        read_gguf(rewritten(path, tmp_path / "other.gguf", tensors={name: tensor}))


def test_a_file_that_is_not_whole_is_refused(path, tmp_path):
    content, other = path.read_bytes(), tmp_path / "other.gguf"
    for length in [*range(0, 2000, 37), len(content) - 1]:
        other.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is not a whole GGUF file"):
            read_gguf(other)
    other.write_bytes(content[:4] + struct.pack("<I", 1) + content[8:])
    with pytest.raises(CheckpointError, match="version 1"):
        read_gguf(other)
    for absent in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="is missing"):
            read_gguf(absent)


def test_a_missing_library_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"gguf is needed .*: pip install gguf$"):
        read_gguf(path)


def announcing(value):
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + value + b"x" * 100


@pytest.mark.parametrize(
    "content",
    [
        announcing(struct.pack("<IIQ", 9, 0, 2**40)),
        announcing(struct.pack("<IIQ", 9, 8, 2**40)),
        announcing(struct.pack("<IQ", 8, 2**63)),
        announcing(struct.pack("<I", 9) + 5000 * struct.pack("<IQ", 9, 1)),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF",
    ],
    ids=["array", "texts", "text", "nested", "tensors", "keys", "nothing"],
)
def test_a_file_that_announces_more_than_it_holds_is_refused_at_once(content, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a whole GGUF file: it (announces more than it holds|has a value)"):
        read_gguf(tmp_path / "model.gguf")


def test_a_file_with_more_loops_than_can_be_run_is_refused(path, tmp_path):
    with pytest.raises(CheckpointError, match="asks for 4,294,967,295 loops"):
        read_gguf(rewritten(path, tmp_path / "other.gguf", {"nanbeige.num_loops": 2**32 - 1}))


# ---------------------------------------------------------------- llama.cpp itself


def open_in_llama_cpp(path, **options):
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False, **options)


def run_llama_cpp(path, ids, n_loops, **options):
    llama = open_in_llama_cpp(path, kv_overrides={"nanbeige.num_loops": n_loops}, logits_all=True, **options)
    llama.eval(ids[0].tolist())
    return torch.tensor(llama.scores[: ids.shape[1]])


@every_variant
@torch.no_grad()
def test_llama_cpp_computes_the_same(variant, tmp_path):
    model = make_model(variant)
    path, ids = export_gguf(model, tmp_path / "model.gguf"), token_ids(model)
    for n_loops in (1, 2, 4, 8):
        expected = model(ids, n_loops=n_loops).logits[0]
        assert (run_llama_cpp(path, ids, n_loops) - expected).abs().max() < 1e-2  # its cache is half precision
        assert (run_llama_cpp(path, ids, n_loops, type_k=0, type_v=0) - expected).abs().max() < 1e-4
        assert n_loops == 1 or (model(ids, n_loops=1).logits[0] - expected).abs().max() > 0.1


def test_llama_cpp_runs_as_many_loops_as_the_file_says_and_continues_as_we_do(tmp_path):
    model = make_model("two layers")
    path, ids = export_gguf(model, tmp_path / "model.gguf", n_loops=5), token_ids(model)
    llama = open_in_llama_cpp(path, type_k=0, type_v=0)
    answers = [token for token, _ in zip(llama.generate(ids[0].tolist(), temp=0.0), range(6), strict=False)]
    assert answers == model.generate(ids, n_loops=5, max_new_tokens=6)[0, ids.shape[1] :].tolist()


def test_llama_cpp_answers_a_text_as_we_answer_its_tokens(tmp_path):
    model, task = make_model("two layers"), ChainTask()
    llama = open_in_llama_cpp(export_gguf(model, tmp_path / "model.gguf", 5, task), type_k=0, type_v=0)
    chains = torch.tensor([[3, 5, 1], [0, 6, 6]])
    for chain, ids in zip(chains.tolist(), task.encode(chains).token_ids, strict=True):
        for text in ("".join(map(str, chain)) + "=", " ".join(map(str, chain)) + " =", "".join(map(str, chain)) + "x="):
            assert llama.tokenize(text.encode()) == ids.tolist()
        expected = model.generate(ids.unsqueeze(0), n_loops=5, max_new_tokens=1)[0, -1].item()
        llama.reset()
        assert next(llama.generate(ids.tolist(), temp=0.0)) == expected
        if expected < task.n_symbols:
            assert llama.create_completion(text, max_tokens=1, temperature=0.0)["choices"][0]["text"] == str(expected)
