"""The small layers against their formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mythos_lite.model.layers import NORM_EPS, SwiGLU, apply_rotary, rms_norm, rotary_tables

DIMS = st.sampled_from([2, 4, 6, 16])
THETAS = st.sampled_from([2.0, 10_000.0, 500_000.0])
POSITIONS = st.integers(0, 500)
SEEDS = st.integers(0, 2**16)
several = settings(max_examples=40, deadline=None)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def turned(x: torch.Tensor, position: int, theta: float) -> torch.Tensor:
    """A vector (dim,) at one position."""
    cos, sin = rotary_tables(torch.tensor([position]), len(x), theta)
    return apply_rotary(x.view(1, 1, 1, -1), cos, sin).flatten()


@several
@given(DIMS, THETAS, POSITIONS, POSITIONS, POSITIONS, SEEDS)
def test_rotary_inner_product_depends_on_the_distance_alone(dim, theta, m, n, shift, seed):
    q, k = randn(2, dim, seed=seed)
    here = turned(q, m, theta) @ turned(k, n, theta)
    there = turned(q, m + shift, theta) @ turned(k, n + shift, theta)
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)


@several
@given(DIMS, THETAS, POSITIONS, SEEDS)
def test_rotary_keeps_the_norm(dim, theta, position, seed):
    x = randn(dim, seed=seed)
    torch.testing.assert_close(turned(x, position, theta).norm(), x.norm())


@several
@given(DIMS, THETAS, SEEDS)
def test_rotary_turns_pairs_half_a_head_apart_like_complex_numbers(dim, theta, seed):
    x = randn(2, 5, 3, dim, seed=seed)
    positions = torch.tensor([0, 1, 2, 7, 30])
    first, second = x.double().chunk(2, dim=-1)
    frequencies = torch.tensor([theta ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)
    expected = torch.complex(first, second) * torch.exp(1j * positions.view(-1, 1, 1) * frequencies)
    got = apply_rotary(x, *rotary_tables(positions, dim, theta))
    torch.testing.assert_close(got.double(), torch.cat([expected.real, expected.imag], dim=-1), atol=1e-5, rtol=1e-5)


def test_rotary_leaves_position_zero_alone():
    x = randn(8)
    assert torch.equal(turned(x, 0, 10_000.0), x)


def test_rotary_tables_of_later_positions_are_rows_of_the_whole_table():
    whole = rotary_tables(torch.arange(20), 8, 10_000.0)
    part = rotary_tables(torch.arange(13, 20), 8, 10_000.0)
    for table, rows in zip(whole, part, strict=True):
        assert torch.equal(table[13:], rows)


def test_rotary_tables_of_several_sequences_are_those_of_each():
    positions = torch.tensor([[0, 1, 2], [5, 3, -1]])
    for together, *each in zip(*(rotary_tables(at, 8, 10_000.0) for at in (positions, *positions)), strict=True):
        assert torch.equal(together, torch.stack(each))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotary_keeps_the_dtype_and_exact_angles(dtype):
    x = randn(1, 3, 2, 16).to(dtype)
    cos, sin = rotary_tables(torch.tensor([0, 999, 1023]), 16, 10_000.0)
    assert cos.dtype == sin.dtype == torch.float32
    got = apply_rotary(x, cos, sin)
    assert got.dtype == dtype
    assert got.shape == x.shape
    # One rounding at the end, none of the angles: at position 1000 a bfloat16 angle would be off by radians.
    torch.testing.assert_close(
        got.float(), apply_rotary(x.float(), cos, sin), atol=1e-6, rtol=torch.finfo(torch.bfloat16).eps
    )


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_swiglu_is_its_formula(shape):
    layer = SwiGLU(5, 7)
    x = randn(*shape)
    gate, up, down = layer.gate.weight, layer.up.weight, layer.down.weight
    gated = x @ gate.T
    expected = (gated / (1 + torch.exp(-gated)) * (x @ up.T)) @ down.T
    torch.testing.assert_close(layer(x), expected)


def test_swiglu_has_three_matrices_and_no_bias():
    assert [tuple(p.shape) for p in SwiGLU(5, 7).parameters()] == [(7, 5), (7, 5), (5, 7)]


@pytest.mark.parametrize("scale", [1.0, 1e-3, 0.0])
def test_rms_norm_is_its_formula(scale):
    norm = rms_norm(6)
    torch.nn.init.normal_(norm.weight)
    x = randn(3, 6) * scale
    expected = [
        [
            weight * value / math.sqrt(sum(v * v for v in row) / 6 + 1e-6)
            for weight, value in zip(norm.weight.tolist(), row, strict=True)
        ]
        for row in x.tolist()
    ]
    assert NORM_EPS == 1e-6
    torch.testing.assert_close(norm(x), torch.tensor(expected))
