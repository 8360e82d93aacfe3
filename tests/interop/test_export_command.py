"""``python -m mythos_lite export``."""

import subprocess
import sys

import pytest

from mythos_lite import RecurrentDepthTransformer
from mythos_lite.__main__ import main
from mythos_lite.files.checkpoint import open_checkpoint


def run(capsys, *arguments):
    status = main(["export", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_a_folder_for_transformers(tmp_path, capsys):
    pytest.importorskip("transformers")
    assert run(capsys, "transformers", "mod7", tmp_path / "hf") == (0, f"written to {tmp_path / 'hf'}\n", "")
    assert RecurrentDepthTransformer.from_pretrained(tmp_path / "hf").config.window == 2


def test_a_folder_for_transformers_keeps_the_notes_and_takes_no_other_models_place(tmp_path, capsys):
    pytest.importorskip("transformers")
    notes = {**open_checkpoint("mod7").notes, "task": {"kind": "ChainTask", "start_token": False}}
    RecurrentDepthTransformer.from_pretrained("mod7").save_pretrained(tmp_path / "own", **notes)
    assert run(capsys, "transformers", tmp_path / "own", tmp_path / "hf")[0] == 0
    assert open_checkpoint(tmp_path / "hf").notes == notes
    for target, said in ((tmp_path / "own", "holds a checkpoint; name another folder"), ("", "OUT is empty")):
        before = (tmp_path / "own" / "config.json").read_bytes()
        status, out, err = run(capsys, "transformers", "mod7-experts", target)
        assert (status, out) == (2, "")
        assert said in err
        assert (tmp_path / "own" / "config.json").read_bytes() == before


def test_weights_in_half_precision_are_exported_in_float32(tmp_path, capsys):
    for library in ("onnx", "onnxscript"):
        pytest.importorskip(library)
    RecurrentDepthTransformer.from_pretrained("mod7").bfloat16().save_pretrained(tmp_path / "half")
    assert run(capsys, "onnx", tmp_path / "half", tmp_path / "half.onnx")[0] == 0


def test_an_onnx_file(tmp_path, capsys):
    for library in ("onnx", "onnxscript"):
        pytest.importorskip(library)
    path = tmp_path / "mod7.onnx"
    assert run(capsys, "onnx", "mod7", path) == (0, f"written to {path}\n", "")
    assert path.stat().st_size > 100_000


def test_a_gguf_file_with_a_loop_count(tmp_path, capsys):
    pytest.importorskip("gguf")
    from mythos_lite.interop.gguf import llama_cpp_profile, read_gguf

    RecurrentDepthTransformer(llama_cpp_profile()).save_pretrained(tmp_path / "bare")
    path = tmp_path / "bare.gguf"
    assert run(capsys, "gguf", tmp_path / "bare", path, "--loops", 9) == (0, f"written to {path}\n", "")
    assert read_gguf(path).config.n_loops == 9
    status, out, err = run(capsys, "gguf", "mod7", tmp_path / "mod7.gguf")
    assert (status, out) == (2, "")
    assert "state_activation" in err
    assert not (tmp_path / "mod7.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pickle", "mod7", "x"], "error: FORMAT='pickle' is not possible"),
        (["onnx", "mod7", "x", "--loops", "3"], "error: --loops is for gguf"),
        (["onnx", "mod8", "x"], "error: 'mod8' is neither a folder nor a shipped checkpoint"),
    ],
)
def test_what_is_not_possible_is_said(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())


def test_other_libraries_say_nothing(tmp_path):
    pytest.importorskip("transformers")
    command = [sys.executable, "-m", "mythos_lite", "export", "transformers", "mod7", str(tmp_path / "hf")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == (f"written to {tmp_path / 'hf'}\n", "")
