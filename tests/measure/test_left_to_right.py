"""The loop run token by token: what each state is made of, how many calls that takes, and that it answers alike."""

import pytest
import torch

from mythos_lite import ChainTask, ModelConfig, RecurrentDepthTransformer
from mythos_lite.measure.left_to_right import run_left_to_right
from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.model.attention import attention_context
from mythos_lite.training.trainer import build_model

TASK = ChainTask()
TINY = {"d_model": 16, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16}
LATENT = {"n_kv_heads": None, "attention": "mla", "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4,
          "qk_rope_head_dim": 4, "v_head_dim": 4}  # fmt: skip
EXPERTS = {"n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 1, "d_expert": 8}
MODELS = {
    "one layer": TINY, "three layers": {**TINY, "n_core_layers": 3},
    "latent attention, experts": TINY | LATENT | EXPERTS,
    "additive, no tanh, no prelude, no coda":
        {**TINY, "injection": "additive", "state_activation": "none", "n_prelude_layers": 0, "n_coda_layers": 0},
}  # fmt: skip
every_model = pytest.mark.parametrize("name", MODELS)


def chains(n_digits, n_chains):
    return TASK.encode(evaluation_chains(TASK, n_digits, n_chains, seed=1))


@pytest.mark.parametrize("calls", [1, 3])
@every_model
@torch.no_grad()
def test_each_state_is_that_of_the_loop_map_behind_all_frozen_ones(name, calls):
    model, ids = build_model(ModelConfig(**MODELS[name]), 0), chains(6, 3).token_ids
    e = model.encode(ids, attention_context(model.config, 8, None, ids.device))
    frozen = e[:, :0]
    for p in range(8):
        context, h = attention_context(model.config, p + 1, None, ids.device), e[:, p : p + 1]
        for _ in range(calls):
            h = model.loop_map(torch.cat([frozen, h], dim=1), e[:, : p + 1], 0, context)[0][:, -1:]
        frozen = torch.cat([frozen, h], dim=1)
    torch.testing.assert_close(run_left_to_right(model, ids, calls_per_token=calls), model.read_out(frozen))


@pytest.mark.parametrize("calls", [1, 2])
@every_model
def test_there_is_one_core_call_per_token_and_call(name, calls, monkeypatch):
    model, seen = build_model(ModelConfig(**MODELS[name]), 0), []
    real = model.loop_map
    monkeypatch.setattr(model, "loop_map", lambda h, *rest: seen.append(h.shape[1]) or real(h, *rest))
    run_left_to_right(model, chains(6, 3).token_ids, calls_per_token=calls)
    layers = model.config.n_core_layers
    assert seen == [min(p, layers) + 1 for p in range(8) for _ in range(calls)]


@torch.no_grad()
def test_with_many_calls_it_ends_where_the_loop_comes_to_rest():
    model, batch = RecurrentDepthTransformer.from_pretrained("mod7"), chains(12, 50)
    at_rest = model(batch.token_ids, n_loops=200).logits
    torch.testing.assert_close(
        run_left_to_right(model, batch.token_ids, calls_per_token=100), at_rest, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("name", ["mod7", "mod7-experts"])
@torch.no_grad()
def test_one_call_per_token_is_enough_for_the_shipped_models(name):
    model, batch = RecurrentDepthTransformer.from_pretrained(name), chains(64, 100)
    logits = run_left_to_right(model, batch.token_ids)
    assert logits.shape == (100, 66, 10)
    assert (logits[:, -1].argmax(-1) == batch.answers).float().mean() >= 0.99


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [({"window": 3}, {}, "window=3"), ({"window": None}, {}, "window=None"), ({"window": 1}, {}, "window=1"),
     ({"depth_lora_rank": 2}, {}, "turn to turn"), ({"loop_index_embedding": True}, {}, "turn to turn"),
     ({"halting": "act"}, {}, "halting='act'"), ({}, {"calls_per_token": 0}, "calls_per_token=0"),
     ({"max_seq_len": 7}, {}, "max_seq_len=7")],
)  # fmt: skip
def test_what_cannot_be_run_left_to_right_is_refused(fields, options, message):
    with pytest.raises(ValueError, match=message):
        run_left_to_right(build_model(ModelConfig(**TINY | fields), 0), chains(6, 1).token_ids, **options)


def test_a_dilated_window_cannot_be_run_left_to_right():
    with pytest.raises(ValueError, match=r"turn to turn|dilated"):
        run_left_to_right(build_model(ModelConfig(**TINY, dilated=True), 0), chains(6, 1).token_ids)
