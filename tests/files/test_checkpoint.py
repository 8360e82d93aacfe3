"""Files: a whole round trip, a named error for everything else, and no half-written state."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import pickle
import re
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import mythos_lite
from mythos_lite import CheckpointError, ModelConfig, RecurrentDepthTransformer
from mythos_lite.files import atomic
from mythos_lite.files import checkpoint as files
from mythos_lite.files.atomic import make_folder, only_writer, write_files
from mythos_lite.files.checkpoint import CONFIG_FILE, WEIGHTS_FILE, open_checkpoint
from mythos_lite.task.chains import make_generator
from mythos_lite.training.recipes import mod7_model, mod7_moe_model, published_model
from mythos_lite.training.trainer import build_model

TINY = ModelConfig(d_model=16, n_heads=2, n_kv_heads=1, d_ff=16)
CONFIGS = {
    "tiny": TINY,
    "additive, act, adapter": dataclasses.replace(
        TINY, injection="additive", halting="act", depth_lora_rank=2, loop_index_embedding=True
    ),
    "no prelude, no coda, no padding": dataclasses.replace(
        TINY, n_prelude_layers=0, n_coda_layers=0, n_core_layers=2, pad_token_id=None, window=None
    ),
    "dilated, no injection": dataclasses.replace(TINY, dilated=True, injection="none"),
    "mod7": mod7_model(),
    "mod7, experts": mod7_moe_model(),
    "published": published_model(),
}


def scrambled(config=TINY, seed=0):
    """A model with no weight or buffer at its initial value."""
    model, generator = build_model(config, seed), make_generator(seed, 9)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def load(folder):
    return RecurrentDepthTransformer.from_pretrained(folder)


@pytest.fixture
def saved(tmp_path):
    """A folder with a checkpoint."""
    return scrambled().save_pretrained(tmp_path / "saved", recipe="none", seed=3)


# ---------------------------------------------------------------- round trip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_loaded_model_computes_the_same_logits(config, dtype, tmp_path):
    model = scrambled(config).to(dtype)
    loaded = load(model.save_pretrained(tmp_path))
    assert loaded.config == config
    assert not loaded.training
    assert {name: t.dtype for name, t in loaded.state_dict().items()} == {
        name: t.dtype for name, t in model.state_dict().items()
    }
    ids = torch.randint(0, 9, (2, 6), generator=make_generator(1))
    for n_loops in (1, 3):
        assert torch.equal(loaded(ids, n_loops=n_loops).logits, model(ids, n_loops=n_loops).logits)


def test_notes_are_kept_and_the_folder_is_returned(tmp_path):
    folder = scrambled().save_pretrained(str(tmp_path / "a" / "b"), recipe="hold", seed=3, list=[1, 2.5, None])
    assert folder == tmp_path / "a" / "b"
    assert open_checkpoint(folder).notes == {"recipe": "hold", "seed": 3, "list": [1, 2.5, None]}
    assert sorted(contents(folder)) == [CONFIG_FILE, WEIGHTS_FILE]


def test_saving_again_replaces_the_old_checkpoint(saved):
    other = scrambled(CONFIGS["additive, act, adapter"], seed=1)
    other.save_pretrained(saved)
    assert load(saved).config == other.config
    assert open_checkpoint(saved).notes == {}
    assert sorted(contents(saved)) == [CONFIG_FILE, WEIGHTS_FILE]


def test_saving_does_not_change_the_model_and_the_file_does_not_follow_it(tmp_path):
    model = scrambled()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.norm.weight.zero_()
    loaded = load(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in before.items())


def test_files_are_as_readable_as_any_other(saved, monkeypatch):
    plain = saved / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in saved.iterdir()} == {plain.stat().st_mode}
    monkeypatch.setattr(os, "umask", None)  # it is the whole process's, other threads' files included
    scrambled(seed=1).save_pretrained(saved)


def test_the_same_weights_give_the_same_bytes(tmp_path):
    model = scrambled()
    saved = {
        tuple(contents(model.save_pretrained(tmp_path / str(i), recipe="none", seed=i // 9)).items()) for i in range(9)
    }
    assert len(saved) == 1


def test_shipped_checkpoints_load_by_name_and_unknown_names_list_them(saved, monkeypatch):
    monkeypatch.setattr(files, "SHIPPED", saved.parent)
    (saved.parent / "no checkpoint").mkdir()
    assert files.shipped_names() == ["saved"]
    assert load("saved").config == TINY
    with pytest.raises(CheckpointError, match=r"'mod8' is neither a folder nor a shipped checkpoint \('saved'\)"):
        load("mod8")


@pytest.mark.parametrize("name", files.shipped_names())
def test_every_shipped_checkpoint_loads(name):
    model = load(name)
    assert not model.training
    assert {p.device.type for p in model.parameters()} == {"cpu"}


# ---------------------------------------------------------------- what cannot be loaded


def tensors_of(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def with_weights(change):
    """Spoil the tensors but keep the metadata except the checksum, so that only a look at the tensors tells."""

    def spoil(folder):
        tensors, metadata = tensors_of(folder / WEIGHTS_FILE)
        del metadata["sha256"]
        change(tensors)
        save_file(tensors, folder / WEIGHTS_FILE, metadata)

    return spoil


def with_config(change):
    def spoil(folder):
        content = json.loads((folder / CONFIG_FILE).read_text())
        change(content)
        (folder / CONFIG_FILE).write_text(json.dumps(content))

    return spoil


def of_earlier_version(folder):
    """As before the weights carried the text of their configuration."""
    tensors, metadata = tensors_of(folder / WEIGHTS_FILE)
    del metadata[CONFIG_FILE]
    save_file(tensors, folder / WEIGHTS_FILE, metadata)


def in_turn(*changes):
    def spoil(folder):
        for change in changes:
            change(folder)

    return spoil


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def truncate(name, share):
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: int(share * (folder / name).stat().st_size)]
    )


def pickled(folder):
    torch.save({"embedding.weight": torch.zeros(2)}, folder / WEIGHTS_FILE)


def foreign(folder):
    save_file({"weight": torch.zeros(2)}, folder / WEIGHTS_FILE)


def other_model(folder):
    scrambled(CONFIGS["mod7"]).save_pretrained(folder.parent / "other")
    (folder.parent / "other" / CONFIG_FILE).replace(folder / CONFIG_FILE)


def nan(tensors):
    tensors["core.0.ffn.gate.weight"][3, 2] = torch.nan


SPOILT = {
    "weights are garbage": (write(WEIGHTS_FILE, b"\x80garbage" * 50), WEIGHTS_FILE),
    "weights are empty": (write(WEIGHTS_FILE, b""), WEIGHTS_FILE),
    "weights lack their end": (truncate(WEIGHTS_FILE, 0.9), WEIGHTS_FILE),
    "weights end in the header": (truncate(WEIGHTS_FILE, 0.01), WEIGHTS_FILE),
    "weights are a pickle": (pickled, WEIGHTS_FILE),
    "weights are a bare pickle": (write(WEIGHTS_FILE, pickle.dumps({"a": 1})), WEIGHTS_FILE),
    "weights are foreign": (foreign, f"{WEIGHTS_FILE} was not written by"),
    "weights are missing": (lambda folder: (folder / WEIGHTS_FILE).unlink(), f"{WEIGHTS_FILE} is missing"),
    "weight is missing": (with_weights(lambda t: t.pop("norm.weight")), r"saved.*'norm\.weight' is missing"),
    "weight is unknown": (with_weights(lambda t: t.update(other=torch.ones(1))), "saved.*'other' is not part"),
    "weight has another shape": (
        with_weights(lambda t: t.update({"norm.weight": torch.ones(3)})),
        r"saved.*'norm\.weight' has shape \(3,\) instead of \(16,\)",
    ),
    "weight is not a number": (with_weights(nan), f"{WEIGHTS_FILE}.*'core.0.ffn.gate.weight'.*not finite"),
    "weights are whole numbers": (
        with_weights(lambda t: t.update({name: tensor.long() for name, tensor in t.items()})),
        "saved.*int64",
    ),
    "weights are float64": (
        with_weights(lambda t: t.update({name: tensor.double() for name, tensor in t.items()})),
        f"{WEIGHTS_FILE}.*torch.float64, not one of torch.float32, torch.bfloat16, torch.float16",
    ),
    "weights are float8": (
        with_weights(lambda t: t.update({name: tensor.to(torch.float8_e4m3fn) for name, tensor in t.items()})),
        f"{WEIGHTS_FILE}.*float8_e4m3fn, not one of",
    ),
    "weights are of two types": (
        with_weights(lambda t: t.update({"norm.weight": t["norm.weight"].bfloat16()})),
        f"{WEIGHTS_FILE}.*weights must be of one type",
    ),
    "config is nested too deeply": (
        write(CONFIG_FILE, b'{"format": ' + b"[" * 100_000),
        f"{CONFIG_FILE} is not a configuration of .*nested too deeply",
    ),
    "notes are nested deeply": (
        with_config(lambda c: c["notes"].update(deep=json.loads("[" * 900 + "]" * 900))),
        f"{CONFIG_FILE} was changed|nested too deeply",
    ),
    "config is garbage": (
        write(CONFIG_FILE, b"\xff\xfe{"),
        f"{CONFIG_FILE} is not a configuration of .*can't decode.*; remove {CONFIG_FILE} to",
    ),
    "config is cut short": (truncate(CONFIG_FILE, 0.5), f"{CONFIG_FILE} is not a configuration of .*line"),
    "config is empty": (write(CONFIG_FILE, b""), f"{CONFIG_FILE} is not a configuration of .*line 1"),
    "config is a list": (write(CONFIG_FILE, b"[]"), f"{CONFIG_FILE} is not a configuration of .*another way"),
    "config is foreign": (write(CONFIG_FILE, b'{"model_type": "llama"}'), f"{CONFIG_FILE}.*was not written by"),
    "config is missing": (
        in_turn(of_earlier_version, lambda folder: (folder / CONFIG_FILE).unlink()),
        f"{CONFIG_FILE} is missing",
    ),
    "config is of a later version": (with_config(lambda c: c.update(version=2)), f"{CONFIG_FILE}.*has version 2"),
    "config has no version": (with_config(lambda c: c.pop("version")), f"{CONFIG_FILE}.*has version None"),
    "config has no model": (with_config(lambda c: c.pop("model")), f"{CONFIG_FILE}.*'model' is missing"),
    "config has no notes": (with_config(lambda c: c.update(notes=3)), f"{CONFIG_FILE}.*another way"),
    "config lacks a field": (with_config(lambda c: c["model"].pop("d_ff")), f"{CONFIG_FILE} was changed"),
    "config has an unknown field": (with_config(lambda c: c["model"].update(x=1)), f"{CONFIG_FILE}.*'x'"),
    "config is impossible": (with_config(lambda c: c["model"].update(d_model=17)), f"{CONFIG_FILE}.*d_model=17"),
    "config holds a number too large": (with_config(lambda c: c["model"].update(rope_theta=10**400)), CONFIG_FILE),
    "config was changed": (
        with_config(lambda c: c["model"].update(window=3)),
        f"{CONFIG_FILE} was changed, or does not belong to the weights in .*{WEIGHTS_FILE}; remove {CONFIG_FILE} to",
    ),
    "config of an earlier version was changed": (
        in_turn(of_earlier_version, with_config(lambda c: c["model"].update(window=3))),
        f"{CONFIG_FILE} was changed, or does not belong to the weights in .*{WEIGHTS_FILE}$",
    ),
    "config is another model's": (other_model, f"{CONFIG_FILE} was changed, or does not belong to .*{WEIGHTS_FILE}"),
}


@pytest.mark.parametrize(("spoil", "named"), SPOILT.values(), ids=SPOILT)
def test_spoilt_checkpoint_is_refused_by_name(spoil, named, saved):
    assert issubclass(CheckpointError, ValueError)
    spoil(saved)
    with pytest.raises(CheckpointError, match=named):
        load(saved)


def test_weights_alone_are_a_whole_checkpoint(saved):
    whole = load(saved)
    (saved / CONFIG_FILE).unlink()
    alone = load(saved)
    assert alone.config == whole.config
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in alone.state_dict().items())
    assert open_checkpoint(saved).notes == {"recipe": "none", "seed": 3}


def test_a_configuration_that_was_changed_can_be_removed(saved):
    with_config(lambda c: c["model"].update(window=3))(saved)
    with pytest.raises(CheckpointError, match=f"remove {CONFIG_FILE} to load the weights as saved"):
        load(saved)
    (saved / CONFIG_FILE).unlink()
    assert load(saved).config.window == TINY.window


def test_a_damaged_configuration_in_the_weights_is_found_out(saved):
    (saved / CONFIG_FILE).unlink()
    content = (saved / WEIGHTS_FILE).read_bytes()
    assert content.count(rb"\"window\": 2") == 1
    (saved / WEIGHTS_FILE).write_bytes(content.replace(rb"\"window\": 2", rb"\"window\": 3"))
    with pytest.raises(CheckpointError, match=f"{WEIGHTS_FILE} was changed.*{WEIGHTS_FILE}$"):
        load(saved)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterConfig(ModelConfig):
    """The configuration after its next field was added."""

    field_of_tomorrow: int = 3


@pytest.mark.parametrize("name", files.shipped_names())
def test_a_checkpoint_of_today_loads_after_the_next_field_was_added(name, monkeypatch):
    today = load(name)
    monkeypatch.setattr(files, "ModelConfig", LaterConfig)
    tomorrow = load(name)
    assert tomorrow.config.field_of_tomorrow == 3
    ids = torch.randint(0, 9, (2, 6), generator=make_generator(1))
    assert torch.equal(tomorrow(ids).logits, today(ids).logits)
    later = LaterConfig(field_of_tomorrow=4)
    assert LaterConfig.from_dict(later.to_dict()) == later
    with pytest.raises(ValueError, match="'field_of_tomorrow'"):
        ModelConfig.from_dict(later.to_dict())


def test_pickle_in_a_checkpoint_is_never_executed(saved, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    for name in (WEIGHTS_FILE, CONFIG_FILE):
        (saved / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(CheckpointError):
            load(saved)
    assert not (tmp_path / "executed").exists()


def test_package_source_has_no_way_to_unpickle():
    forbidden = re.compile(r"torch\.load\b|pickle|numpy\.load|np\.load|joblib|marshal|shelve|(?<!\.)\b(?:eval|exec)\(")
    for path in Path(mythos_lite.__file__).parent.rglob("*.py"):
        # "unpickled" in a sentence is fine; a method of an object is not the builtin.
        source = path.read_text(encoding="utf-8").replace("unpickled", "")
        assert not forbidden.search(source), path.name


# ---------------------------------------------------------------- nothing half-written


class Failure(OSError):
    """A disk that gives up."""


def fail_at(monkeypatch, function, nth):
    """Let the ``nth`` call (from 1) of ``os.function`` in this process fail."""
    real, calls = getattr(os, function), []

    def flaky(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise Failure("no space left")
        return real(*arguments)

    monkeypatch.setattr(os, function, flaky)


def assert_one_of(folder, *models):
    """The folder loads as one of these models, or says that its configuration must go, and then does.

    Nothing in it is half-written: a loaded file has passed its checksum.
    """
    try:
        loaded = load(folder)
    except CheckpointError as error:
        assert f"remove {CONFIG_FILE}" in str(error)  # noqa: PT017
        (folder / CONFIG_FILE).unlink()
        loaded = load(folder)
    assert any(
        loaded.config == model.config
        and all(torch.equal(loaded.state_dict()[k], v) for k, v in model.state_dict().items())
        for model in models
    )


before_the_first_move = pytest.mark.parametrize(("function", "nth"), [("fsync", 1), ("fsync", 2), ("replace", 1)])


@before_the_first_move
def test_failed_save_into_a_new_folder_leaves_no_file(function, nth, tmp_path, monkeypatch):
    model = scrambled()
    fail_at(monkeypatch, function, nth)
    with pytest.raises(Failure):
        model.save_pretrained(tmp_path / "new")
    assert contents(tmp_path) == {}


@before_the_first_move
def test_failed_save_over_a_checkpoint_leaves_the_old_one(function, nth, saved, monkeypatch):
    before = contents(saved)
    other = scrambled(seed=1)
    fail_at(monkeypatch, function, nth)
    with pytest.raises(Failure):
        other.save_pretrained(saved, seed=4)
    assert contents(saved) == before


@pytest.mark.parametrize("config", [TINY, CONFIGS["mod7"]], ids=["same", "another"])
@pytest.mark.parametrize("earlier", [False, True])
def test_failure_between_the_two_files_leaves_the_new_weights_whole(config, earlier, saved, monkeypatch):
    """Another configuration's weights beside the old configuration never run."""
    if earlier:
        of_earlier_version(saved)
    new = scrambled(config, seed=1)
    fail_at(monkeypatch, "replace", 2)
    with pytest.raises(Failure):
        new.save_pretrained(saved, seed=4)
    assert sorted(contents(saved)) == [CONFIG_FILE, WEIGHTS_FILE]
    with pytest.raises(CheckpointError, match=f"remove {CONFIG_FILE}"):
        load(saved)
    assert_one_of(saved, new)
    assert open_checkpoint(saved).notes == {"seed": 4}


def test_failure_between_the_two_files_of_a_new_folder_leaves_a_checkpoint(tmp_path, monkeypatch):
    model = scrambled()
    fail_at(monkeypatch, "replace", 2)
    with pytest.raises(Failure):
        model.save_pretrained(tmp_path)
    assert sorted(contents(tmp_path)) == [WEIGHTS_FILE]
    assert_one_of(tmp_path, model)


def test_a_folder_in_the_place_of_one_file_leaves_the_others_as_they_were(tmp_path):
    (tmp_path / "first").write_bytes(b"old")
    (tmp_path / "second").mkdir()
    with pytest.raises(IsADirectoryError, match="second"):
        write_files({tmp_path / "first": b"new", tmp_path / "second": b"new"})
    assert (tmp_path / "first").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["first", "second"]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_failed_write_leaves_the_old_content_and_no_temporary_file(function, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_files({path: b"old"})
    fail_at(monkeypatch, function, 1)
    with pytest.raises(Failure):
        write_files({path: b"new"})
    assert contents(tmp_path) == {"file": b"old"}
    write_files({path: b"new"})
    assert contents(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize("interrupted_after", [1, 2])
@pytest.mark.parametrize("old", [None, b"old"])
def test_interrupt_just_after_a_file_was_moved_leaves_whole_files_alone(old, interrupted_after, tmp_path, monkeypatch):
    paths = [tmp_path / "one", tmp_path / "two"]
    if old is not None:
        write_files(dict.fromkeys(paths, old))
    real, moved = os.replace, []

    def interrupted(*arguments):
        real(*arguments)
        moved.append(arguments)
        if len(moved) == interrupted_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_files(dict.fromkeys(paths, b"new"))
    expected = {"one": b"new", "two": old if interrupted_after == 1 else b"new"}
    assert contents(tmp_path) == {name: content for name, content in expected.items() if content is not None}


@pytest.mark.parametrize("convert", [lambda m: m.double(), lambda m: m.norm.bfloat16()], ids=["float64", "mixed"])
def test_types_that_could_not_be_loaded_are_not_saved(convert, saved):
    before = contents(saved)
    model = scrambled(seed=1)
    convert(model)
    with pytest.raises(ValueError, match=r"torch\.float64|torch\.bfloat16.*one type.*nothing was written"):
        model.save_pretrained(saved)
    assert contents(saved) == before


def test_weights_that_are_not_finite_are_not_saved(saved):
    before = contents(saved)
    model = scrambled(seed=1)
    with torch.no_grad():
        model.norm.weight[2] = torch.inf
    with pytest.raises(ValueError, match=r"'norm\.weight'.*nothing was written"):
        model.save_pretrained(saved)
    assert contents(saved) == before


def test_notes_that_are_not_json_are_refused_before_anything_is_written(saved):
    before = contents(saved)
    for note in ({1, 2}, math.nan, [1.0, math.inf], {(1, 2): 3}, object()):
        with pytest.raises(ValueError, match=r"notes must be values that JSON can hold .*nothing was written"):
            scrambled(seed=1).save_pretrained(saved, note=note)
    assert contents(saved) == before


def test_notes_may_be_whatever_json_can_say(tmp_path):
    numbers = {"loss": np.float32(0.5), "seed": np.int64(3), "curve": np.arange(3), "rate": torch.tensor(0.25)}
    folder = scrambled().save_pretrained(tmp_path, accuracy_by_length={8: 0.99, np.int64(16): 0.98}, **numbers)
    load(folder)
    assert open_checkpoint(folder).notes == {
        "accuracy_by_length": {"8": 0.99, "16": 0.98}, "loss": 0.5, "seed": 3, "curve": [0, 1, 2], "rate": 0.25
    }  # fmt: skip


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below"])
def test_folder_that_cannot_be_written_is_an_oserror_that_names_it(place, tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    for save in (make_folder, scrambled().save_pretrained):
        with pytest.raises(OSError, match=f"cannot write into this folder.*{place}"):
            save(tmp_path / place)
    assert contents(tmp_path) == {"file": b"kept"}


def test_weights_of_another_run_of_the_same_model_are_found_out(tmp_path):
    for seed in (0, 1):
        scrambled(seed=seed).save_pretrained(tmp_path / str(seed), seed=seed)
    (tmp_path / "0" / WEIGHTS_FILE).write_bytes((tmp_path / "1" / WEIGHTS_FILE).read_bytes())
    with pytest.raises(CheckpointError, match=f"{CONFIG_FILE} was changed, or does not belong to"):
        load(tmp_path / "0")


def test_no_writer_removes_what_another_one_has_staged(tmp_path, monkeypatch):
    """Not even where there are no locks, so that the two write at once."""
    monkeypatch.setattr(atomic, "fcntl", None)
    path, real = tmp_path / "file", os.replace

    def meanwhile(*arguments):
        monkeypatch.setattr(os, "replace", real)
        write_files({path: b"other"})
        real(*arguments)

    monkeypatch.setattr(os, "replace", meanwhile)
    write_files({path: b"new"})
    assert contents(tmp_path) == {"file": b"new"}


def test_loading_leaves_the_global_generator_alone(saved):
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- small files that ask for much


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"d_model": 4096, "n_core_layers": 4, "d_ff": 8192}, "missing|has shape"),
        ({"d_model": 20_000, "d_ff": 80_000}, "has shape"),
        ({"d_model": 2 * 10**12}, "cannot be built"),
        ({"vocab_size": 10**30}, "cannot be built"),
        ({"n_core_layers": 10**9}, "more layers in its configuration than weights"),
    ],
)
def test_a_configuration_takes_no_memory_before_its_weights_are_there(sizes, named, saved):
    content = json.loads((saved / CONFIG_FILE).read_text())
    content["model"].update(sizes)
    (saved / CONFIG_FILE).write_text(json.dumps(content))
    tensors, metadata = tensors_of(saved / WEIGHTS_FILE)
    save_file(tensors, saved / WEIGHTS_FILE, {**metadata, "config": files._fingerprint(content)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=named):
        load(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_a_flipped_bit_is_found_out(saved):
    content = bytearray((saved / WEIGHTS_FILE).read_bytes())
    content[-1000] ^= 1
    (saved / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{WEIGHTS_FILE} is damaged"):
        load(saved)


def test_a_weight_that_was_taken_out_is_found_out(saved):
    tensors, metadata = tensors_of(saved / WEIGHTS_FILE)
    del tensors["norm.weight"]
    save_file(tensors, saved / WEIGHTS_FILE, metadata)
    with pytest.raises(CheckpointError, match=f"{WEIGHTS_FILE} is damaged"):
        load(saved)


def test_a_model_can_be_loaded_in_any_mode_and_trained(saved):
    with torch.inference_mode(), torch.device("meta"):
        model = load(saved)
    assert {(p.is_inference(), p.device.type, p.requires_grad) for p in model.parameters()} == {(False, "cpu", True)}


def test_files_from_before_there_was_a_checksum_load(saved):
    tensors, metadata = tensors_of(saved / WEIGHTS_FILE)
    del metadata["sha256"]
    save_file(tensors, saved / WEIGHTS_FILE, metadata)
    assert load(saved).config == TINY


# ---------------------------------------------------------------- several writers, and the power going out


@contextlib.contextmanager
def another_writer(folder):
    """Another thread that holds the folder."""
    holds, done = threading.Event(), threading.Event()

    def hold():
        with only_writer(folder):
            holds.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_two_cannot_write_into_one_folder(saved, monkeypatch):
    monkeypatch.setattr(atomic, "PATIENCE", 0.1)
    before = contents(saved)
    with another_writer(saved), pytest.raises(OSError, match=f"another run is writing here.*{saved.name}"):
        scrambled(seed=1).save_pretrained(saved)
    assert contents(saved) == before
    with only_writer(saved), only_writer(saved):  # whoever holds it may go on
        scrambled(seed=1).save_pretrained(saved)
    assert contents(saved) != before


def test_writers_that_take_turns_leave_a_checkpoint_of_one_of_them(tmp_path):
    models = [scrambled(seed=seed) for seed in range(4)]
    threads = [threading.Thread(target=model.save_pretrained, args=(tmp_path,)) for model in models for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loaded = load(tmp_path).state_dict()
    assert any(all(torch.equal(loaded[k], v) for k, v in model.state_dict().items()) for model in models)
    assert sorted(contents(tmp_path)) == [CONFIG_FILE, WEIGHTS_FILE]


def in_a_child(act):
    """The exit code of a process that does nothing but ``act``."""
    if not (child := os.fork()):
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("before_it", [True, False])
def test_a_process_killed_while_it_saves_leaves_one_of_the_two_models(function, nth, before_it, saved):
    old, new = load(saved), scrambled(CONFIGS["additive, act, adapter"], seed=1)
    real, calls = getattr(os, function), []

    def last_act(*arguments):
        calls.append(arguments)
        if len(calls) < nth or not before_it:
            real(*arguments)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def save():
        setattr(os, function, last_act)
        new.save_pretrained(saved, seed=9)

    assert in_a_child(save) == -signal.SIGKILL
    assert_one_of(saved, old, new)
    scrambled().save_pretrained(saved)  # what the child left is in nobody's way
    assert load(saved).config == TINY
    staged = rf"\.({CONFIG_FILE}|{WEIGHTS_FILE})\.[0-9a-f]{{32}}\.tmp"
    assert all(re.fullmatch(staged, name) for name in contents(saved).keys() - {CONFIG_FILE, WEIGHTS_FILE})


@pytest.mark.parametrize("last", [1, 2])
def test_an_interrupt_while_the_files_are_moved_leaves_one_of_the_two_models(last, saved, monkeypatch):
    old, new = load(saved), scrambled(CONFIGS["additive, act, adapter"], seed=1)
    real, calls = os.replace, []

    def interrupted(*arguments):
        real(*arguments)
        calls.append(arguments)
        if len(calls) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new.save_pretrained(saved, seed=9)
    monkeypatch.undo()
    assert sorted(contents(saved)) == [CONFIG_FILE, WEIGHTS_FILE]
    assert_one_of(saved, old, new)
    scrambled().save_pretrained(saved)
    assert sorted(contents(saved)) == [CONFIG_FILE, WEIGHTS_FILE]


def test_a_forked_process_neither_has_the_lock_nor_keeps_it(saved, monkeypatch):
    monkeypatch.setattr(atomic, "PATIENCE", 0.1)
    (told, tell), (may_end, end) = os.pipe(), os.pipe()
    with only_writer(saved):
        if not (child := os.fork()):
            os.close(end)  # or it would wait for itself when its parent has ended without a word
            try:
                with only_writer(saved):
                    os.write(tell, b"in")
            except OSError:
                os.write(tell, b"refused")
            os.read(may_end, 1)
            os._exit(0)
        assert os.read(told, 9) == b"refused"
    with only_writer(saved):  # the child, which has the handle too, still lives
        os.write(end, b"x")
    os.waitpid(child, 0)


def test_loading_while_somebody_saves_waits_for_the_second_file(saved, monkeypatch):
    other = scrambled(CONFIGS["additive, act, adapter"], seed=1).save_pretrained(saved.parent / "other")
    weights, config = (contents(other)[name] for name in (WEIGHTS_FILE, CONFIG_FILE))
    (saved / WEIGHTS_FILE).write_bytes(weights)
    waited = []

    def wait(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            (saved / CONFIG_FILE).write_bytes(config)

    monkeypatch.setattr(files.time, "sleep", wait)
    assert load(saved).config == CONFIGS["additive, act, adapter"]
    assert len(waited) == 2
    assert all(waited)


def test_a_full_disk_is_named_with_the_file(saved, monkeypatch):
    before = contents(saved)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left.*{WEIGHTS_FILE}"):
        scrambled(seed=1).save_pretrained(saved)
    assert contents(saved) == before


def test_drives_without_locks_will_do(saved, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(atomic.fcntl, "flock", unsupported)
    before = contents(saved)
    scrambled(seed=1).save_pretrained(saved)
    assert contents(saved) != before
    with only_writer(saved), only_writer(saved):
        pass
