"""Adapters: what they train, that merging keeps the logits, and the command from the file to the checkpoint."""

import copy
import itertools
import re
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from mythos_lite import ModelConfig, RecurrentDepthTransformer, TrainConfig
from mythos_lite.__main__ import build_parser, main
from mythos_lite.checks import NonFiniteError
from mythos_lite.files.checkpoint import open_checkpoint, shipped_names
from mythos_lite.interop import finetune as module
from mythos_lite.interop.csv_chains import encode_chains, read_chains, split_chains
from mythos_lite.interop.finetune import accuracy, adapt, finetune, merge, train_adapters
from mythos_lite.task.chains import ChainTask
from mythos_lite.task.loss import chain_loss
from mythos_lite.training.trainer import build_model

pytest.importorskip("peft")
TINY = ModelConfig(d_model=16, n_heads=2, n_kv_heads=1, d_ff=24)
WIDE = {"d_model": 64, "d_ff": 96}  # wide enough for blocks of 64 in some layers, not in all
VARIANTS = {
    "gqa": {},
    "latent attention and experts": {
        "attention": "mla", "n_kv_heads": None, "kv_lora_rank": 6, "q_lora_rank": 8, "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4, "v_head_dim": 6, "n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 1,
        "d_expert": 8,
    },
    "all extras": {"injection": "additive", "halting": "act", "depth_lora_rank": 3, "loop_index_embedding": True},
    "dilated": {"dilated": True, "injection": "none", "n_prelude_layers": 0, "n_coda_layers": 0},
    "whole context": {"window": None, "n_core_layers": 2},
    "few answers": {"output_size": 7},
}  # fmt: skip
no_bits = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
BITS = [32, pytest.param(4, marks=no_bits)]


@pytest.fixture(autouse=True)
def no_bar(monkeypatch):
    monkeypatch.setenv("CI", "1")


@pytest.fixture
def data(tmp_path):
    rows = [f"{''.join(map(str, c))},{sum(c) % 5}" for n in (1, 2, 3) for c in itertools.product(range(7), repeat=n)]
    (tmp_path / "my.csv").write_text("\n".join(["chain,answer", *rows]))
    return tmp_path / "my.csv"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def tiny(tmp_path):
    return build_model(TINY, 0).save_pretrained(tmp_path / "tiny")


def tokens(n_chains=20, n_digits=6):
    return encode_chains(
        ChainTask(), {tuple(torch.randint(7, (n_digits,)).tolist()): 0 for _ in range(n_chains)}
    ).token_ids


@torch.no_grad()
def logits(model, token_ids, n_loops=8):
    return model(token_ids, n_loops=n_loops).logits


@torch.no_grad()
def train_at_random(adapted):
    """Change all that is trained, as training would."""
    for p in adapted.parameters():
        if p.requires_grad:
            p.add_(0.1 * torch.randn_like(p))


# ---------------------------------------------------------------- adapters and their merging


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_keeps_the_logits_and_makes_an_ordinary_model(variant, bits, out):
    torch.manual_seed(0)
    model = build_model(ModelConfig(**{**TINY.to_dict(), **WIDE, **VARIANTS[variant]}), 0)
    shapes, ids = {name: tensor.shape for name, tensor in model.state_dict().items()}, tokens()
    before = logits(model, ids)
    adapted = adapt(model, bits, seed=1)
    if bits == 32:  # adapters begin as no change
        assert torch.equal(logits(model, ids), before)
    train_at_random(adapted)
    wanted = logits(model.train(), ids)
    assert (logits(model.eval(), ids) - wanted).abs().max() < 1e-6
    assert (wanted - before).abs().max() > 0.01
    merge(adapted).save_pretrained(out)
    merged = RecurrentDepthTransformer.from_pretrained(out)
    assert (logits(merged, ids) - wanted).abs().max() < 1e-5
    assert {name: tensor.shape for name, tensor in merged.state_dict().items()} == shapes
    assert {tensor.dtype for tensor in merged.state_dict().values()} == {torch.float32}


def test_merging_trained_adapters_is_exact_but_for_rounding(data):
    """In float64, since rounding alone moves logits of 20 by some 1e-5 in eight loops of float32."""
    model, task = RecurrentDepthTransformer.from_pretrained("mod7"), ChainTask()
    adapted, batch = adapt(model, 32, 0), encode_chains(task, read_chains(data, 7, 16))
    train_adapters(model, batch, TrainConfig(steps=15, loss="from_needed", lr=2e-2, warmup_steps=5))
    wanted = logits(copy.deepcopy(model).double(), batch.token_ids)
    merged = merge(adapted)
    assert (logits(merged.double(), batch.token_ids) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", [name for name in shipped_names() if name != "pointers"])
def test_at_most_a_twentieth_of_a_shipped_model_is_trained(name, bits):
    model = RecurrentDepthTransformer.from_pretrained(name)
    n_parameters = model.n_parameters()
    names = [key.removeprefix("base_model.model.") for key, p in adapt(model, bits, 0).named_parameters()
             if p.requires_grad]  # fmt: skip
    assert sum(model.get_parameter(key).numel() for key in names) <= 0.05 * n_parameters
    assert all("lora_" in key or key.startswith("embedding.") for key in names)
    adapted_layers = {key.partition(".lora_")[0] for key in names if "lora_" in key}
    original = RecurrentDepthTransformer.from_pretrained(name)
    assert adapted_layers == {key for key, part in original.named_modules() if isinstance(part, nn.Linear)}


@no_bits
def test_four_bits_hold_sixteen_values_of_each_block():
    model = RecurrentDepthTransformer.from_pretrained("mod7-experts")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    after = merge(adapt(model, 4, 0)).state_dict()
    linear = {
        f"{key}.weight" for key, part in build_model(model.config, 0).named_modules() if isinstance(part, nn.Linear)
    }
    for key, tensor in after.items():
        if key not in linear or tensor.shape[1] % 64:
            assert torch.equal(tensor, before[key]), key
            continue
        assert 0 < (tensor - before[key]).norm() < 0.12 * before[key].norm(), key
        assert max(len(block.unique()) for block in tensor.reshape(-1, 64)) <= 16


def test_torchs_own_generator_is_left_alone_and_adapters_follow_from_the_seed():
    torch.manual_seed(0)
    state, drawn = torch.get_rng_state(), []
    for seed in (1, 1, 2):
        adapted = adapt(build_model(TINY, 0), 32, seed)
        drawn.append(torch.cat([p.flatten() for key, p in adapted.named_parameters() if "lora_A" in key]))
        merge(adapted)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# ---------------------------------------------------------------- from the file to the checkpoint


def test_another_modulus_is_learned(data, out):
    said = []
    notes = finetune(data, out, steps=90, say=said.append)
    assert notes["accuracy"]["8"] >= 0.9
    assert notes["n_trained"] <= 0.05 * notes["n_parameters"]
    model = RecurrentDepthTransformer.from_pretrained(out)
    _, held_out = split_chains(read_chains(data, 7, 16), 0)
    assert {str(n): share for n, share in accuracy(model, encode_chains(ChainTask(), held_out)).items()} == notes[
        "accuracy"
    ]
    assert f"held-out accuracy at 8 loops: {notes['accuracy']['8']:.3f}; the longest chain needs 1" in said


@pytest.mark.parametrize("bits", BITS)
def test_command_writes_a_checkpoint_and_says_how_good_it_is(bits, data, out, capsys):
    command = ["finetune", "--data", str(data), "--out", str(out), "--bits", str(bits), "--steps", "3", "--seed", "5"]
    assert main([*command, "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^mod7( in NF4)?: 128,192 parameters; 3,904 are trained beside them, 3\.0%$", said, re.MULTILINE)
    assert ("in NF4" in said) == (bits == 4)
    assert "360 chains to learn from, 39 held out; 3 steps" in said
    assert re.search(
        r"by loops: 0\.\d{3} at 1, 0\.\d{3} at 2, 0\.\d{3} at 4, 0\.\d{3} at 8, 0\.\d{3} at 16$", said, re.M
    )
    assert re.search(r"^held-out accuracy at 8 loops: 0\.\d{3}; the longest chain needs 1$", said, re.MULTILINE)
    assert f"from_pretrained('{out}')" in said
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert RecurrentDepthTransformer.from_pretrained(out).config == open_checkpoint("mod7").config
    notes = open_checkpoint(out).notes
    assert (notes["base"], notes["bits"], notes["data"], notes["seed"]) == ("mod7", bits, "my.csv", 5)


def test_command_without_a_folder_names_one_after_file_and_seed(data, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "--data", "my.csv", "--base", "tiny", "--steps", "1", "--seed", "3"]) == 0
    assert (tmp_path / "runs/finetune-my-seed3/model.safetensors").exists()


@pytest.mark.parametrize("bits", BITS)
def test_the_same_seed_gives_the_same_weights(bits, data, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        finetune(data, tmp_path / name, bits=bits, steps=2, seed=seed)
        torch.rand(3)
    one, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other


def test_what_was_made_here_is_a_base_again_and_keeps_its_tokens(data, tmp_path):
    task = {"kind": "ChainTask", "modulus": 7, "n_symbols": 7, "start_token": False}
    base = build_model(TINY, 0).save_pretrained(tmp_path / "base", task=task)
    seen = []
    for name in ("first", "second"):
        finetune(data, tmp_path / name, base=base, steps=1)
        base = tmp_path / name
        seen.append(open_checkpoint(base).notes["task"])
    assert seen == [{"kind": "file", "start_token": False}] * 2


def test_a_base_in_bfloat16_is_adapted_in_float32(data, tmp_path, out):
    finetune(data, out, base=build_model(TINY, 0).bfloat16().save_pretrained(tmp_path / "half"), steps=1)
    assert RecurrentDepthTransformer.from_pretrained(out).embedding.weight.dtype == torch.float32


def test_shipped_checkpoints_and_the_callers_modes_are_as_before(data, out):
    before = RecurrentDepthTransformer.from_pretrained("mod7").state_dict()
    with torch.inference_mode():
        finetune(data, out, steps=1)
    after = RecurrentDepthTransformer.from_pretrained("mod7").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---------------------------------------------------------------- what is refused, and what breaks off

REFUSED = {
    "bits": ({"bits": 8}, r"bits=8 .* 4 or 32"),
    "steps": ({"steps": 0}, r"steps=0 .* 1 or more"),
    "seed": ({"seed": -1}, "seed=-1"),
    "base": ({"base": "nothing"}, "neither a folder nor a shipped checkpoint"),
    "base of graphs": ({"base": "pointers"}, "base='pointers' is not a model of digit chains"),
    "no folder": ({"out": ""}, "out='' .* no checkpoint yet"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_written(what, data, out):
    options, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        finetune(data, **{"out": out, **options})
    assert sorted(path.name for path in data.parent.iterdir()) == ["my.csv"]


@pytest.mark.parametrize(
    "rows", ["chain,answer\n351,9\n", "351,4\n", "chain,answer\n351,4\n", "chain,answer\n1234567890,1"]
)
def test_command_refuses_a_bad_file_and_writes_nothing(rows, data, out, capsys):
    data.write_text(rows)
    assert main(["finetune", "--data", str(data), "--out", str(out)]) == 2
    assert re.match(rf"error: {data} ", capsys.readouterr().err.partition("\nW")[0])
    assert not out.exists()


def test_a_chain_that_the_model_has_no_room_for_is_named(data, tmp_path, out):
    base = build_model(ModelConfig(**{**TINY.to_dict(), "max_seq_len": 4}), 0).save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match="line 58: the chain has 3 digits; 1 to 2 are accepted"):
        finetune(data, out, base=base)


@no_bits
def test_a_base_without_a_layer_for_four_bits_is_refused(data, tiny, out):
    with pytest.raises(ValueError, match=r"bits=4 .* no layer of this model has a multiple of 64 inputs"):
        finetune(data, out, base=tiny, bits=4)
    assert not out.exists()


@pytest.mark.parametrize("flaw", [{"pad_token_id": None}, {"output_size": 5}, {"window": 1}])
def test_a_base_without_the_tokens_or_the_reach_is_refused(flaw, data, tmp_path, out):
    base = build_model(ModelConfig(**{**TINY.to_dict(), **flaw}), 0).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"digit chains|output_size=5|window=1"):
        finetune(data, out, base=base)
    assert not out.exists()


def test_a_folder_with_a_checkpoint_is_left_alone(data, tiny):
    before = {path.name: path.read_bytes() for path in tiny.iterdir()}
    with pytest.raises(ValueError, match=r"out='.*tiny' .* no checkpoint yet"):
        finetune(data, tiny, base=tiny, steps=1)
    assert {path.name: path.read_bytes() for path in tiny.iterdir()} == before


def test_an_interruption_leaves_nothing_half_written(data, tiny, out, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "accuracy", interrupt)
    assert main(["finetune", "--data", str(data), "--base", str(tiny), "--out", str(out), "--steps", "1"]) == 130
    assert capsys.readouterr().err.endswith("interrupted; nothing was saved\n")
    assert list(out.iterdir()) == []


def test_a_training_that_blows_up_says_so_and_saves_nothing(data, tiny, out, monkeypatch):
    def endless(*arguments):
        loss, *others = chain_loss(*arguments)
        return loss * torch.inf, *others

    monkeypatch.setattr(module, "chain_loss", endless)
    with pytest.raises(NonFiniteError, match="not finite at step 1"):
        finetune(data, out, base=tiny, steps=2)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(("library", "bits"), [("peft", "32"), ("bitsandbytes", "4")])
def test_a_missing_library_is_named_with_what_installs_it(library, bits, data, out, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["finetune", "--data", str(data), "--out", str(out), "--bits", bits]) == 2
    message = f"error: {library} is needed for this and not installed: pip install {library}\n"
    assert capsys.readouterr().err.endswith(message)
    assert not out.exists()


def test_examples_of_the_help_can_be_run(capsys):
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    examples = re.findall(r"^  python -m mythos_lite (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [build_parser().parse_args(example.split()).data for example in examples] == ["my.csv"] * 2
    assert build_parser().parse_args(["finetune", "--data", "x"]).steps == module.STEPS
