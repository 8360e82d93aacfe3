"""A checkpoint in transformers: the same numbers, its cache, padding, generation, and what is refused."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

transformers = pytest.importorskip("transformers")

from mythos_lite import CheckpointError, ModelConfig, RecurrentDepthTransformer  # noqa: E402
from mythos_lite.files.checkpoint import CONFIG_FILE, WEIGHTS_FILE, open_checkpoint, shipped_names  # noqa: E402
from mythos_lite.interop import hf  # noqa: E402
from mythos_lite.interop.hf import (  # noqa: E402
    CACHE,
    CODE_FILE,
    MythosLiteConfig,
    MythosLiteForCausalLM,
    export_transformers,
)

PAD, LENGTH, LOOPS = 9, 9, [1, 2, 3, 8]
MLA = {
    "attention": "mla", "n_kv_heads": None, "kv_lora_rank": 6, "q_lora_rank": 8,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 6,
}  # fmt: skip
EXPERTS = {"n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 1, "d_expert": 8}
CACHED = {
    "gqa, window": {"n_kv_heads": 2},
    "mqa, all in sight": {"n_kv_heads": 1, "window": None},
    "mla, window": MLA,
    "mla, all in sight": {**MLA, "window": None, "n_prelude_layers": 0, "n_coda_layers": 0},
    "experts, fewer answers than tokens": {**EXPERTS, "output_size": 7},
    "act, deep": {"halting": "act", "n_prelude_layers": 2, "n_core_layers": 3, "n_coda_layers": 2},
    "everything": {**MLA, **EXPERTS, "halting": "act", "depth_lora_rank": 3, "loop_index_embedding": True},
}
VARIANTS = {**CACHED, "dilated": {"dilated": True}, "no padding token": {"pad_token_id": None, "injection": "additive"}}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
cached_variant = pytest.mark.parametrize("variant", CACHED)


@functools.cache
def make_model(variant: str = "gqa, window") -> RecurrentDepthTransformer:
    """A model in which every weight matters, so that nothing hides behind a small initial value."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_ff": 24, "max_seq_len": 24, "n_loops": 3, "window": 3}
    model = RecurrentDepthTransformer(ModelConfig(**{**sizes, **VARIANTS[variant]}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("injection.") and "norm" not in name:
                p.normal_(std=p.shape[-1] ** -0.5)
        for block in model.core if model.config.n_experts else ():
            block.ffn.bias.normal_(std=0.1)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory):
    """The same model in transformers, through a folder."""

    @functools.cache
    def load(variant: str = "gqa, window") -> MythosLiteForCausalLM:
        folder = export_transformers(make_model(variant), tmp_path_factory.mktemp("model"))
        return transformers.AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)

    return load


@pytest.fixture
def folder(tmp_path) -> Path:
    return export_transformers(make_model(), tmp_path / "model", seed=3)


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(7, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_close(got: Tensor, expected: Tensor) -> None:
    """Equal within rounding, and of a size at which a difference would show."""
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- the same model


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_checkpoints_have_the_same_logits_in_both(name, tmp_path):
    model = RecurrentDepthTransformer.from_pretrained(name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export_transformers(model, tmp_path, name=name))
    ours = RecurrentDepthTransformer.from_pretrained(tmp_path)
    assert open_checkpoint(tmp_path).notes == {"name": name}
    assert (type(theirs), theirs.training, ours.config) == (MythosLiteForCausalLM, False, model.config)
    for n_loops in (None, 1, 8):
        expected = model(tokens(), n_loops=n_loops).logits
        assert torch.equal(ours(tokens(), n_loops=n_loops).logits, expected)
        assert_close(theirs(tokens(), n_loops=n_loops).logits, expected)


@every_variant
def test_random_models_have_the_same_logits_at_every_loop_count(variant, wrapped):
    for n_loops in LOOPS:
        expected = make_model(variant)(tokens(), n_loops=n_loops).logits
        assert_close(wrapped(variant)(tokens(), n_loops=n_loops).logits, expected)


def test_a_folder_holds_each_weight_once_and_the_code_is_one_import(folder):
    assert {path.name for path in folder.iterdir()} == {
        CONFIG_FILE, WEIGHTS_FILE, CODE_FILE, "generation_config.json",
    }  # fmt: skip
    assert set(open_checkpoint(folder).tensors) == set(make_model().state_dict())
    code = (folder / CODE_FILE).read_text()
    assert code.count("import ") == 1
    assert len(code.splitlines()) < 10


@every_variant
def test_what_transformers_saves_it_loads(variant, wrapped, tmp_path):
    wrapped(variant).save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.model == make_model(variant).config.to_dict()
    assert again.generation_config.use_cache is not again.model.config.dilated
    assert torch.equal(again(tokens(), n_loops=4).logits, wrapped(variant)(tokens(), n_loops=4).logits)
    assert (tmp_path / CODE_FILE).is_file()
    ours = again.model.save_pretrained(tmp_path / "ours")  # and back
    assert RecurrentDepthTransformer.from_pretrained(ours).config == make_model(variant).config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_fewer_bits(dtype, tmp_path):
    model = RecurrentDepthTransformer(make_model().config).to(dtype).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export_transformers(model, tmp_path), dtype="auto")
    assert theirs.dtype == dtype
    assert torch.equal(theirs(tokens()).logits, model(tokens()).logits)


def test_a_model_that_is_built_begins_as_ours_does():
    config = MythosLiteConfig(make_model().config.to_dict())
    torch.manual_seed(5)
    expected = RecurrentDepthTransformer(make_model().config).state_dict()
    for build in (MythosLiteForCausalLM, transformers.AutoModelForCausalLM.from_config):
        torch.manual_seed(5)
        found = build(config).model.state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    with torch.device("meta"):
        assert transformers.AutoModelForCausalLM.from_config(config).device.type == "meta"


def test_the_configuration_says_what_transformers_asks(wrapped):
    config = wrapped("act, deep").config
    assert (config.hidden_size, config.num_attention_heads, config.max_position_embeddings) == (32, 4, 24)
    assert config.num_hidden_layers == 2 + 3 * 3 + 2
    assert wrapped("experts, fewer answers than tokens").config.vocab_size == 7  # as many columns as the logits have
    assert wrapped().get_input_embeddings().weight.shape == (10, 32)


# ---------------------------------------------------------------- the cache


def in_pieces(model, ids: Tensor, sizes: list[int], cache=None, mask: Tensor | None = None, **options) -> Tensor:
    logits, seen = [], 0
    for piece in ids.split(sizes, dim=1):
        seen += piece.shape[1]
        given = None if mask is None else mask[:, :seen]
        out = model(piece, given, **{CACHE: cache}, use_cache=True, **options)
        cache = out[CACHE]
        logits.append(out.logits)
    assert isinstance(cache, transformers.DynamicCache)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("n_loops", LOOPS)
@cached_variant
def test_pieces_with_a_cache_equal_the_whole(variant, n_loops, wrapped):
    model = wrapped(variant)
    expected = make_model(variant)(tokens(), n_loops=n_loops).logits
    for sizes in ([5, 1, 3], [1] * LENGTH):
        for cache in (None, transformers.DynamicCache(config=model.config)):
            assert_close(in_pieces(model, tokens(), sizes, cache, n_loops=n_loops), expected)


@cached_variant
def test_a_cache_has_one_slot_for_each_stage_layer_and_loop(variant, wrapped):
    model, config = wrapped(variant), make_model(variant).config
    cache = model(tokens(), n_loops=5, use_cache=True)[CACHE]
    assert len(cache.layers) == config.n_prelude_layers + 5 * config.n_core_layers + config.n_coda_layers
    assert {layer.get_seq_length() for layer in cache.layers} == {LENGTH}


@pytest.mark.parametrize("n_loops", [2, 4])
@cached_variant
def test_a_cache_is_refused_at_another_loop_count(variant, n_loops, wrapped):
    model = wrapped(variant)
    cache = model(tokens(), n_loops=3, use_cache=True)[CACHE]
    with pytest.raises(ValueError, match=rf"filled at n_loops=3 and cannot be used at n_loops={n_loops}"):
        model(tokens(length=1), n_loops=n_loops, past_key_values=cache)
    whole = make_model(variant)(torch.cat([tokens(), tokens(length=1)], dim=1), n_loops=3).logits
    assert_close(model(tokens(length=1), n_loops=3, past_key_values=cache).logits, whole[:, -1:])  # it is as it was


def test_other_caches_are_refused(wrapped):
    model = wrapped()
    for cache in (transformers.StaticCache(config=model.config, max_cache_len=8), ((), ()), {}):
        with pytest.raises(ValueError, match="must be a DynamicCache, not"):
            model(tokens(), past_key_values=cache)
    cache = model(tokens(length=20), use_cache=True)[CACHE]
    with pytest.raises(ValueError, match="25 tokens are more than max_seq_len=24"):
        model(tokens(length=5), past_key_values=cache)


def test_a_dilated_window_keeps_no_cache(wrapped):
    model = wrapped("dilated")
    for call in (
        lambda: model(tokens(), use_cache=True),
        lambda: model(tokens(), past_key_values=transformers.DynamicCache()),
        lambda: model.generate(tokens(), use_cache=True, max_new_tokens=2),
    ):
        with pytest.raises(ValueError, match="use_cache=False"):
            call()
    expected = make_model("dilated").generate(tokens(), max_new_tokens=4, n_loops=5)
    assert torch.equal(model.generate(tokens(), max_new_tokens=4, n_loops=5, do_sample=False), expected)


# ---------------------------------------------------------------- padding


def padded(side: str) -> tuple[list[Tensor], Tensor, Tensor, list[slice]]:
    """Three sequences, as a batch with mask, and where each stands."""
    sequences = [tokens(1, length, seed=length) for length in (4, 9, 1)]
    ids, mask, places = torch.full((3, 9), PAD), torch.zeros(3, 9, dtype=torch.long), []
    for row, sequence in enumerate(sequences):
        n = sequence.shape[1]
        places.append(slice(9 - n, 9) if side == "left" else slice(0, n))
        ids[row, places[-1]], mask[row, places[-1]] = sequence[0], 1
    return sequences, ids, mask, places


@pytest.mark.parametrize("side", ["left", "right"])
@every_variant
def test_padding_changes_nothing(variant, side, wrapped):
    model, (sequences, ids, mask, places) = wrapped(variant), padded(side)
    for given in (mask, mask.bool()):
        logits = model(ids, given, n_loops=4).logits
        assert torch.isfinite(logits).all()
        for row, (sequence, place) in enumerate(zip(sequences, places, strict=True)):
            assert_close(logits[row : row + 1, place], make_model(variant)(sequence, n_loops=4).logits)


@pytest.mark.parametrize("side", ["left", "right"])
@cached_variant
def test_what_follows_padding_in_a_cache_is_as_without_it(variant, side, wrapped):
    model, (sequences, ids, mask, _) = wrapped(variant), padded(side)
    more = tokens(3, 5, seed=7)
    ids, mask = torch.cat([ids, more], dim=1), F.pad(mask, (0, 5), value=1)
    for sizes in ([9, 1, 3, 1], [3, 11]):
        logits = in_pieces(model, ids, sizes, mask=mask, n_loops=4)[:, -5:]
        for row, sequence in enumerate(sequences):
            alone = torch.cat([sequence, more[row : row + 1]], dim=1)
            assert_close(logits[row : row + 1], make_model(variant)(alone, n_loops=4).logits[:, -5:])


@every_variant
def test_prompts_of_different_lengths_are_continued_as_alone(variant, wrapped):
    model, (sequences, ids, mask, _) = wrapped(variant), padded("left")
    options = {"max_new_tokens": 6, "n_loops": 4}
    given = {} if variant != "no padding token" else {"attention_mask": mask, "pad_token_id": PAD}  # else it is found
    found = model.generate(ids, do_sample=False, **given, **options)
    for row, sequence in enumerate(sequences):
        expected = make_model(variant).generate(sequence, **options)[0, sequence.shape[1] :]
        assert found[row, 9:].tolist() == expected.tolist()


# ---------------------------------------------------------------- generation and training


@pytest.mark.parametrize("n_loops", LOOPS)
@every_variant
def test_generation_is_ours_at_every_loop_count(variant, n_loops, wrapped):
    options = {"max_new_tokens": 8, "n_loops": n_loops}
    expected = make_model(variant).generate(tokens(), **options)
    assert torch.equal(wrapped(variant).generate(tokens(), do_sample=False, **options), expected)


@cached_variant
def test_beams_are_reordered_in_the_cache(variant, wrapped):
    model, options = wrapped(variant), {"max_new_tokens": 6, "n_loops": 4, "do_sample": False}
    report = {"return_dict_in_generate": True, "output_scores": True}
    (with_cache, without), greedy = (
        [model.generate(tokens(), num_beams=4, use_cache=use, **options, **report) for use in (True, False)],
        model.generate(tokens(), **options),
    )
    assert torch.equal(with_cache.sequences, without.sequences)
    torch.testing.assert_close(with_cache.sequences_scores, without.sequences_scores, atol=1e-5, rtol=1e-5)
    likelihood = [
        make_model(variant)(ids, n_loops=4).logits[:, LENGTH - 1 : -1].log_softmax(-1)
        .gather(2, ids[:, LENGTH:, None]).sum((1, 2))
        for ids in (with_cache.sequences, greedy)
    ]  # fmt: skip
    torch.testing.assert_close(with_cache.sequences_scores * 6, likelihood[0], atol=1e-4, rtol=1e-4)
    assert likelihood[0].sum() >= likelihood[1].sum() - 1e-4


def test_sampling_draws_the_same_with_and_without_a_cache(wrapped):
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        options = {"do_sample": True, "num_return_sequences": 8, "use_cache": use_cache}
        drawn.append(wrapped().generate(tokens(1), n_loops=4, max_new_tokens=6, **options))
    assert torch.equal(*drawn)
    assert len({tuple(row) for row in drawn[0].tolist()}) > 1


def test_the_loss_compares_each_token_with_the_logits_before_it():
    model = MythosLiteForCausalLM(MythosLiteConfig(make_model().config.to_dict()))
    labels = tokens().clone()
    labels[:, :3] = -100
    out = model(tokens(), labels=labels, n_loops=2)
    expected = F.cross_entropy(out.logits[:, 2:-1].flatten(0, 1), tokens()[:, 3:].flatten())
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_trainer_trains_saves_and_goes_on(tmp_path, folder):
    pytest.importorskip("accelerate")
    rows = [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)} for ids in tokens(8)]
    options = {"max_steps": 4, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 4, "disable_tqdm": True}
    arguments = transformers.TrainingArguments(str(tmp_path / "run"), report_to=[], use_cpu=True, **options)
    ends = []
    for resumed in (None, str(tmp_path / "run" / "checkpoint-2")):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train(resume_from_checkpoint=resumed)
        ends.append(model.model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not torch.equal(ends[0]["embedding.weight"], make_model().embedding.weight)
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-4").model
    assert torch.equal(saved.embedding.weight, ends[0]["embedding.weight"])


# ---------------------------------------------------------------- code from a folder


PROGRAM = """
import sys, torch
from transformers import AutoModelForCausalLM
folder, again, wanted = sys.argv[1:]

def refused(error, **options):
    try:
        AutoModelForCausalLM.from_pretrained(folder, **options)
    except error as raised:
        return str(raised)
    sys.exit("nothing was refused")

assert "trust_remote_code" in refused(ValueError, trust_remote_code=False)
assert "mythos_lite" not in sys.modules

sys.modules["mythos_lite"] = None  # as if it were not installed
message = refused(ImportError, trust_remote_code=True)
assert message.startswith("this model needs the package mythos-lite: in a clone of it, pip install ."), message
del sys.modules["mythos_lite"]

ids, logits = torch.load(wanted)
for path in (folder, again):
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    torch.testing.assert_close(model(ids, n_loops=5).logits, logits, atol=1e-5, rtol=1e-5)
    assert model.generate(ids, n_loops=8, max_new_tokens=2).shape == (2, ids.shape[1] + 2)
    model.save_pretrained(again)
"""


def test_a_process_that_does_not_know_the_package_loads_it_with_trust(tmp_path, folder):
    again, wanted = tmp_path / "again", tmp_path / "wanted.pt"
    torch.save((tokens(), make_model()(tokens(), n_loops=5).logits), wanted)
    path = os.pathsep.join([str(Path(hf.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", PROGRAM, folder, again, wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [file.read_text() for file in again.glob("*.py")] == [(folder / CODE_FILE).read_text()]


def poison(folder: Path) -> None:
    (folder / CODE_FILE).write_text("raise SystemExit('the code of a folder was run')\n")


def test_loading_runs_no_code_of_the_folder(folder):
    poison(folder)
    assert RecurrentDepthTransformer.from_pretrained(folder).config == make_model().config
    assert transformers.AutoModelForCausalLM.from_pretrained(folder).model.config == make_model().config
    assert open_checkpoint(folder).notes == {"seed": 3}


# ---------------------------------------------------------------- what is refused


def rewrite(folder: Path, change) -> None:
    content = json.loads((folder / CONFIG_FILE).read_text())
    change(content)
    (folder / CONFIG_FILE).write_text(json.dumps(content))


HOSTILE = {
    "a path out of the folder": lambda f: rewrite(
        f, lambda c: c["auto_map"].update(AutoModelForCausalLM="../../../tmp/evil.Model")
    ),
    "other architecture": lambda f: rewrite(f, lambda c: c.update(architectures=["LlamaForCausalLM"])),
    "nested": lambda f: (f / CONFIG_FILE).write_text('{"format": "mythos-lite", "auto_map": ' + "[" * 200_000),
    "nested and closed": lambda f: rewrite(f, lambda c: c.update(notes=functools.reduce(lambda x, _: [x], range(900)))),
    "cut": lambda f: (f / CONFIG_FILE).write_text((f / CONFIG_FILE).read_text()[:100]),
    "empty": lambda f: (f / CONFIG_FILE).write_text(""),
    "a list": lambda f: (f / CONFIG_FILE).write_text("[]"),
    "no text": lambda f: (f / CONFIG_FILE).write_bytes(b"\xff\xfe\x00"),
    "a header of 2**60 bytes": lambda f: (f / WEIGHTS_FILE).write_bytes((2**60).to_bytes(8, "little") + b"{}"),
    "a header longer than the file": lambda f: (f / WEIGHTS_FILE).write_bytes((10**6).to_bytes(8, "little") + b"{}"),
    "a nested header": lambda f: (f / WEIGHTS_FILE).write_bytes((10**5).to_bytes(8, "little") + b"[" * 10**5),
    "no weights": lambda f: (f / WEIGHTS_FILE).unlink(),
}


@pytest.mark.parametrize("harm", HOSTILE)
def test_our_loader_refuses_damaged_and_hostile_folders(harm, folder):
    poison(folder)
    HOSTILE[harm](folder)
    with pytest.raises(CheckpointError):
        RecurrentDepthTransformer.from_pretrained(folder)


def test_a_path_in_auto_map_that_belongs_to_the_weights_is_never_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "_auto_map", lambda: dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "../evil.Model"))
    folder = export_transformers(make_model(), tmp_path / "model")
    (tmp_path / "evil.py").write_text("raise SystemExit('the code of a folder was run')\n")
    assert RecurrentDepthTransformer.from_pretrained(folder).config == make_model().config
    assert "../evil.Model" in (folder / CONFIG_FILE).read_text()
    transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n_loops": 0}, "n_loops=0.*whole number, 1 or more"),
        ({"n_loops": 2.5}, "n_loops=2.5"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask must have shape \(B, S\) = \(2, 9\), not \(2, 4\)"),
        ({"attention_mask": torch.ones(2, 1, 9, 9)}, r"not \(2, 1, 9, 9\)"),
        ({"output_attentions": True}, "this model has no output_attentions"),
        ({"position_ids": tokens()}, "this model has no position_ids"),
        ({"return_dict": False}, "this model has no return_dict"),
        ({"n_loop": 8}, "this model has no n_loop"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(options, reason, wrapped):
    with pytest.raises(ValueError, match=reason):
        wrapped()(tokens(), **options)


def test_what_callers_hand_to_every_model_is_taken(wrapped):
    options = {"return_dict": True, "output_attentions": False, "inputs_embeds": None, "cache_position": tokens()}
    assert torch.equal(wrapped()(tokens(), **options).logits, wrapped()(tokens()).logits)


def test_generation_refuses_misspelt_arguments(wrapped):
    with pytest.raises(ValueError, match="n_loop"):
        wrapped().generate(tokens(), n_loop=8, max_new_tokens=2)
    with pytest.raises(ValueError, match="n_loops=0"):
        wrapped().generate(tokens(), n_loops=0, max_new_tokens=2)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("norm.weight", "core.0.attention.out.weight", "core.0.ffn.bias"):
        folder = export_transformers(make_model("experts, fewer answers than tokens"), tmp_path / name)
        weights = load_file(folder / WEIGHTS_FILE)
        del weights[name]
        save_file(weights, folder / WEIGHTS_FILE, {"format": "pt"})
        with pytest.raises(ValueError, match=f"the weight '{name}' is missing"):
            transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("wrong", [{"n_heads": 3}, {"no_such_field": 1}, {"n_loops": True}])
def test_an_impossible_configuration_is_refused(wrong, folder):
    rewrite(folder, lambda content: content["model"].update(wrong))
    with pytest.raises(ValueError, match=next(iter(wrong))):
        transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_a_refused_export_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="nothing was written"):
        export_transformers(make_model(), tmp_path / "model", loss=float("nan"))
    assert not list(tmp_path.iterdir())
