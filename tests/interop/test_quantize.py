"""Weights of 8 and 4 bits: torchao's numbers, the answers that are left, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize

from mythos_lite import ChainTask, ConvergenceExit, ModelConfig, RecurrentDepthTransformer
from mythos_lite.interop.quantize import _gptq, _nearest, _second_moments, quantize
from mythos_lite.measure.sweep import sweep
from mythos_lite.task.chains import make_generator
from mythos_lite.training.recipes import mod7_model, mod7_moe_model

GRANULARITIES = ("tensor", "channel", 16)
TASK = ChainTask()


@pytest.fixture(scope="module")
def mod7() -> RecurrentDepthTransformer:
    return RecurrentDepthTransformer.from_pretrained("mod7")


def training_tokens(n_digits: int = 16, count: int = 32) -> torch.Tensor:
    return TASK.encode(TASK.sample(count, n_digits, make_generator(0, 90), "train")).token_ids


def fresh(config: ModelConfig) -> RecurrentDepthTransformer:
    torch.manual_seed(0)
    return RecurrentDepthTransformer(config).eval()


def weights_of(model: RecurrentDepthTransformer) -> dict[str, torch.Tensor]:
    """Matrices by name, quantised ones as floats."""
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return {path: module.weight for path, module in layers} | {"injection": model.injection.b}


def n_bytes(model: RecurrentDepthTransformer) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_weights_are_those_of_torchao(mod7, bits, granularity):
    intx = pytest.importorskip("torchao.quantization").IntxUnpackedToInt8Tensor
    found, originals = weights_of(quantize(mod7, bits, granularity, injection_bits=bits)), weights_of(mod7)
    for path, weight in originals.items():
        n, m = weight.shape
        block = {"tensor": (n, m), "channel": (1, m)}.get(granularity, (1, granularity))
        theirs = intx.from_hp(weight.detach(), block, torch.int8 if bits == 8 else torch.int4).dequantize()
        torch.testing.assert_close(found[path], theirs, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("config", [mod7_model(), mod7_moe_model()], ids=["gqa", "mla experts"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_matrix_in_the_blocks_is_off_by_half_a_step_at_most(config, bits, granularity):
    model = fresh(config)
    quantized = quantize(model, bits, granularity, injection_bits=bits)
    for path, module in quantized.named_modules():
        if parametrize.is_parametrized(module):
            for name, held in module.parametrizations.items():
                exact, step = getattr(model.get_submodule(path), name), held.original1.max()
                assert (getattr(module, name) - exact).abs().max() <= 0.5001 * step
                assert held.original1.numel() < exact.numel() / 8
    left = {name for name, p in quantized.named_parameters() if p.ndim > 1 and "parametrizations" not in name}
    assert left == {"embedding.weight"} | ({"core.0.ffn.router.weight"} if config.n_experts else set())


def test_two_weights_of_four_bits_share_a_byte(mod7):
    eight, four = quantize(mod7, 8), quantize(mod7, 4, injection_bits=4)
    blocks = 4 * 4 * 64 * 64 + 3 * 3 * 64 * 128 - 3 * 64 * 64  # seven matrices in each of three blocks, and B
    assert n_bytes(eight) - n_bytes(four) == blocks / 2
    assert n_bytes(eight) < 0.28 * n_bytes(mod7)


def test_calibration_lessens_the_error_of_what_a_layer_gives(mod7):
    moments = _second_moments(mod7, training_tokens(), 16)
    assert set(moments) == set(weights_of(mod7))
    for path, weight in weights_of(mod7).items():
        weight, half = weight.detach(), 8
        scale = (weight.abs().amax(1, keepdim=True) / (half - 0.5)).expand_as(weight)
        errors = [
            weight - scale * codes
            for codes in (_nearest(weight, scale, half), _gptq(weight, scale, half, moments[path]))
        ]
        plain, calibrated = (((error @ moments[path]) * error).sum() for error in errors)
        assert calibrated < 0.8 * plain, path


def test_uncorrelated_inputs_leave_nothing_to_make_up_for():
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.full_like(weight, 0.3)
    assert torch.equal(_gptq(weight, scale, 8, torch.eye(8)), _nearest(weight, scale, 8))


# ---------------------------------------------------------------- its use


def accuracy(model: RecurrentDepthTransformer, n_digits: int) -> float:
    n_loops = model.config.loops_needed(n_digits)
    return sweep(model, TASK, [n_digits], [n_loops], n_chains=200)[0]["accuracy"]


@pytest.mark.parametrize(("bits", "granularity"), [(8, "tensor"), (8, "channel"), (4, "channel")])
def test_the_shipped_model_keeps_its_answers(mod7, bits, granularity):
    assert accuracy(quantize(mod7, bits, granularity), 16) == accuracy(mod7, 16) == 1.0


def test_four_bits_of_the_injection_lose_answers_and_calibration_brings_them_back(mod7):
    plain = quantize(mod7, 4, injection_bits=4)
    calibrated = quantize(mod7, 4, injection_bits=4, calibration=training_tokens(), n_loops=16)
    assert accuracy(plain, 16) < 0.6
    assert accuracy(calibrated, 16) > 0.99


@pytest.mark.parametrize(
    "changes",
    [{}, {"injection": "additive", "halting": "act"}, {"injection": "none", "dilated": True}, {"depth_lora_rank": 4}],
    ids=str,
)
@pytest.mark.parametrize("base", [mod7_model(), mod7_moe_model()], ids=["gqa", "mla experts"])
def test_a_quantised_model_is_used_like_any_other(base, changes):
    if base.n_experts and changes.get("dilated"):
        pytest.skip("no such model")
    model, ids = fresh(dataclasses.replace(base, **changes)), training_tokens(6, 4)
    quantized = quantize(model, 8)
    logits = model(ids, n_loops=3).logits
    assert (quantized(ids, n_loops=3).logits - logits).norm() < 0.05 * logits.norm()
    assert quantized.generate(ids, max_new_tokens=2, n_loops=5, exit_policy=ConvergenceExit()).shape == (4, 10)
    with parametrize.cached():
        assert torch.equal(quantized(ids, n_loops=3).logits, quantized(ids, n_loops=3).logits)


def test_the_original_is_left_as_it_was(mod7):
    before = {name: tensor.clone() for name, tensor in mod7.state_dict().items()}
    quantize(mod7, 4, calibration=training_tokens(), n_loops=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mod7.state_dict().items())
    assert not any(map(parametrize.is_parametrized, mod7.modules()))
    assert not any(module._forward_pre_hooks for module in mod7.modules())


@pytest.mark.parametrize(("name", "bits", "most"), [("mod7", 8, 0.35), ("mod7-experts", 4, 0.28)])
def test_a_quantised_model_is_a_small_onnx_file(tmp_path, name, bits, most):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from mythos_lite.interop.onnx import export_onnx

    model = RecurrentDepthTransformer.from_pretrained(name)
    quantized = quantize(model, bits)
    path = export_onnx(quantized, tmp_path / "small.onnx")
    assert path.stat().st_size < most * n_bytes(model)
    ids = training_tokens(8, 3)
    (got,) = runtime.InferenceSession(path).run(None, {"token_ids": ids.numpy(), "n_loops": np.array(7)})
    torch.testing.assert_close(torch.from_numpy(got), quantized(ids, n_loops=7).logits, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "options", "reason"),
    [
        ((6,), {}, "bits=6.*8 or 4 bits"),
        ((16,), {}, "bits=16"),
        ((True,), {}, "bits=True"),
        ((8, "row"), {}, "'tensor', 'channel'"),
        ((8, 0), {}, "granularity=0"),
        ((8, 24), {}, r"granularity=24.*prelude\.0\..* has 64 inputs"),
        ((4,), {"injection_bits": 2}, "injection_bits=2"),
        ((4,), {"calibration": torch.zeros(1, 2)}, "token_ids must be an int64 tensor"),
        ((4,), {"calibration": torch.zeros(1, 2, dtype=torch.int64), "n_loops": 0}, "n_loops=0"),
    ],
)
def test_impossible_options_are_refused_by_name(mod7, arguments, options, reason):
    with pytest.raises(ValueError, match=reason):
        quantize(mod7, *arguments, **options)


def test_models_that_cannot_be_quantised_are_refused(mod7, tmp_path):
    quantized = quantize(mod7, 8)
    with pytest.raises(ValueError, match="quantised already"):
        quantize(quantized, 4)
    with pytest.raises(ValueError, match="float32"):
        quantize(fresh(ModelConfig()).to(torch.bfloat16), 8)
    with pytest.raises(ValueError, match=r"int8.*nothing was written"):
        quantized.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
