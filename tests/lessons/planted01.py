"""Lesson 1: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import math

import torch

WRONG = {
    "1.1": [
        (lambda n_layers, n_kv_heads, head_dim: n_layers * n_kv_heads * head_dim, "a key and a value"),
        (lambda n_layers, n_kv_heads, head_dim: 2 * n_kv_heads * head_dim, "one layer"),
        (lambda n_layers, n_kv_heads, head_dim: n_layers * 2 * head_dim, "should be"),
        (lambda n_layers, n_kv_heads, head_dim: "many", "a number"),
    ],
    "1.2": [
        (lambda kv, n_heads: kv.repeat(1, n_heads // kv.shape[1], 1, 1), "0, 1, 0, 1"),
        (lambda kv, n_heads: kv, "shape"),
        (lambda kv, n_heads: kv.repeat_interleave(n_heads // kv.shape[1], dim=1).flip(1), "off by"),
        (lambda kv, n_heads: None, "a tensor"),
    ],
    "1.3": [
        (lambda query, key_up: query @ key_up.transpose(1, 2), "raised"),
        (lambda query, key_up: query @ key_up[:1], "off by"),
        (lambda query, key_up: query, "shape"),
        (lambda query, key_up: query @ key_up if key_up.shape[1] != key_up.shape[2] else query @ key_up.mT, "turned"),
    ],
    "1.4": [
        (lambda distance, window: math.ceil(distance / window), "counts the token itself"),
        (lambda distance, window: distance // (window - 1), "a whole one"),
        (lambda distance, window: distance / (window - 1), "a whole one"),
        (lambda distance, window: math.ceil(distance / (window - 1)) + 1, "should be"),
    ],
}
RIGHT = {
    "1.1": lambda n_layers, n_kv_heads, head_dim: sum(2 * head_dim for _ in range(n_layers * n_kv_heads)),
    "1.2": lambda kv, n_heads: kv[:, torch.arange(n_heads) // (n_heads // kv.shape[1])],
    "1.3": lambda query, key_up: torch.einsum("bhtn,hnr->bhtr", query, key_up),
    "1.4": lambda distance, window: -(-distance // (window - 1)),
}
