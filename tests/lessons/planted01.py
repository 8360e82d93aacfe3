"""Lesson 1: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import math

import numpy as np
import torch

WRONG = {
    "1.1": [
        (lambda n_layers, n_kv_heads, head_dim: n_layers * n_kv_heads * head_dim, "a key and a value"),
        (lambda n_layers, n_kv_heads, head_dim: 2 * n_kv_heads * head_dim, "one layer"),
        (lambda n_layers, n_kv_heads, head_dim: n_layers * 2 * head_dim, "should be"),
        (lambda n_layers, n_kv_heads, head_dim: "many", "a number"),
        (lambda n_layers, n_kv_heads, head_dim: torch.ones(n_layers), "a tensor of shape (3,)"),
        (lambda n_layers, n_kv_heads, head_dim: 2 * 2 * n_layers * n_kv_heads * head_dim, "bytes"),
        (480, "without calling it"),
    ],
    "1.2": [
        (lambda kv, n_heads: kv.repeat(1, n_heads // kv.shape[1], 1, 1), "0, 1, 0, 1"),
        (lambda kv, n_heads: kv, "shape"),
        (lambda kv, n_heads: kv.repeat_interleave(n_heads // kv.shape[1], dim=1).flip(1), "off by"),
        (lambda kv, n_heads: None, "a tensor"),
        (lambda kv, n_heads: np.tile(kv.double(), (1, n_heads // kv.shape[1], 1, 1)), "0, 1, 0, 1"),
    ],
    "1.3": [
        (lambda query, key_up: query @ key_up.transpose(1, 2), "raised"),
        (lambda query, key_up: query @ key_up[:1], "off by"),
        (lambda query, key_up: query, "shape"),
        (lambda query, key_up: query @ key_up if key_up.shape[1] != key_up.shape[2] else query @ key_up.mT, "turned"),
        (lambda query, key_up: query @ key_up + (key_up.shape[1] == key_up.shape[2]), "off by"),
        (lambda query, key_up: query @ key_up / key_up.shape[1] ** 0.5, "√n"),
    ],
    "1.4": [
        (lambda distance, window: math.ceil(distance / window), "counts the token itself"),
        (lambda distance, window: distance // (window - 1), "a whole one"),
        (lambda distance, window: distance / (window - 1), "a whole one"),
        (lambda distance, window: math.ceil(distance / (window - 1)) + 1, "should be"),
        (lambda distance, window: distance // (window - 1) + 1, "do not add one"),
        (lambda distance, window: distance / window, "counts the token itself"),
        (lambda distance, window: "several", "a number"),
        (lambda distance, window: max(1, math.ceil(distance / (window - 1))), "distance=0"),
    ],
}
RIGHT = {
    "1.1": [
        lambda n_layers, n_kv_heads, head_dim: sum(2 * head_dim for _ in range(n_layers * n_kv_heads)),
        lambda n_layers, n_kv_heads, head_dim: np.prod([2, n_layers, n_kv_heads, head_dim]),
        lambda n_layers, n_kv_heads, head_dim: np.array(2.0 * n_layers * n_kv_heads * head_dim, dtype=np.float32),
        lambda *sizes: 2 * torch.tensor(sizes).prod(),
    ],
    "1.2": [
        lambda kv, n_heads: kv[:, torch.arange(n_heads) // (n_heads // kv.shape[1])],
        lambda kv, n_heads: np.repeat(kv.numpy(), n_heads // kv.shape[1], axis=1),
        lambda kv, n_heads: [[one[h // (n_heads // len(one))].tolist() for h in range(n_heads)] for one in kv],
    ],
    "1.3": [
        lambda query, key_up: torch.einsum("bhtn,hnr->bhtr", query, key_up),
        lambda query, key_up: query.double().numpy() @ key_up.double().numpy(),
        lambda query, key_up: torch.stack([q @ up for q, up in zip(query.unbind(1), key_up, strict=True)], dim=1),
    ],
    "1.4": [
        lambda distance, window: -(-distance // (window - 1)),
        lambda distance, window: np.ceil(distance / (window - 1)),
        lambda distance, window: torch.tensor([distance / (window - 1)]).ceil(),
        lambda distance, window: len(range(0, distance, window - 1)),
    ],
}
