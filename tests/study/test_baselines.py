"""The models to compare with: shapes, causality, the same batches, and that they learn."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from mythos_lite.config import TrainConfig
from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.study.baselines import (
    KINDS,
    BaselineConfig,
    RecallConvolution,
    answer_loss,
    build_baseline,
    count_correct,
)
from mythos_lite.study.plan import BASELINES, FINAL
from mythos_lite.task.chains import ChainTask
from mythos_lite.training.trainer import StepStream, build_model, train

TASK = ChainTask()
SMALL = {
    kind: BaselineConfig(kind=kind, d_model=32, d_ff=32 if kind in ("transformer", "tanh_rnn") else 0) for kind in KINDS
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "convolution"])
def test_output_depends_on_earlier_tokens_alone(kind):
    model = build_baseline(SMALL[kind], 0)
    ids = torch.tensor([[7, 1, 2, 3, 8], [7, 1, 2, 4, 8]])
    logits = model(ids)
    assert logits.shape == (2, 5, 10)
    torch.testing.assert_close(logits[0, :3], logits[1, :3])
    assert not torch.allclose(logits[0, 4], logits[1, 4])


def test_tanh_rnn_is_a_gated_feed_forward_and_a_tanh_along_the_chain():
    model, h = build_baseline(SMALL["tanh_rnn"], 0), torch.zeros(1, 32)
    ids = torch.tensor([[7, 1, 2, 8]])
    for position in range(4):
        h = torch.tanh(h + model.cells.ffn(model.cells.norm(h + model.embedding(ids[:, position]))))
        torch.testing.assert_close(model(ids)[:, position], model.head(h))


def test_convolution_sees_one_position_more_to_either_side_with_every_iteration():
    model = build_baseline(SMALL["convolution"], 0)
    ids = torch.full((1, 31), 3)
    other = ids.clone()
    other[0, 15] = 4
    for n_loops in (1, 2, 5):
        changed = (model(ids, n_loops) != model(other, n_loops)).any(dim=-1)[0].nonzero().flatten()
        assert changed.min() >= 15 - n_loops - 2
        assert changed.max() <= 15 + n_loops + 2
        assert len(changed) > n_loops


def test_convolution_ties_its_weights_and_recalls_the_input():
    model = build_baseline(SMALL["convolution"], 0)
    ids = torch.tensor([[7, 1, 2, 3, 8]])
    h = e = F.relu(model.project(model.embedding(ids).transpose(1, 2)))
    for n_loops in (1, 2, 3):
        u = F.relu(model.recall(torch.cat([h, e], dim=1)))
        h = F.relu(u + model.down(F.relu(model.up(u))))
        expected = model.head(F.relu(model.read(h)).transpose(1, 2))
        torch.testing.assert_close(model(ids, n_loops), expected)


def test_padding_changes_nothing_for_the_convolution_though_it_sees_to_the_right():
    model, parts = (
        build_baseline(SMALL["convolution"], 0),
        [TASK.encode(torch.tensor([[1, 2, 3, 4][:n]])) for n in (1, 4)],
    )
    together = model(TASK.join(parts).token_ids, 3)
    torch.testing.assert_close(together[0, 2], model(parts[0].token_ids, 3)[0, 2])
    torch.testing.assert_close(together[1], model(parts[1].token_ids, 3)[0])


def test_convolution_is_trained_and_asked_with_the_loops_that_are_said(monkeypatch):
    seen, real = [], RecallConvolution.forward
    monkeypatch.setattr(RecallConvolution, "forward", lambda self, ids, n: seen.append(n) or real(self, ids, n))
    model, config = build_baseline(SMALL["convolution"], 0), TrainConfig(steps=20, batch_size=8, min_loops=3)
    train(model, TASK, config, objective=answer_loss)
    assert seen == [StepStream(TASK, config).at(step)[1] for step in range(20)]
    count_correct(model, TASK, evaluation_chains(TASK, 4, 10), 7)
    assert seen[20:] == [7]


@every_kind
def test_weights_follow_from_the_seed_alone(kind):
    before = torch.get_rng_state()
    one, same, other = (build_baseline(SMALL[kind], seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


@every_kind
def test_training_sees_the_batches_of_a_looped_model_and_learns(kind, monkeypatch):
    config = TrainConfig(steps=300, batch_size=64, min_digits=1, max_digits=3, lr=1e-2, warmup_steps=10, ema_decay=0.9)
    asked, at = [], StepStream.at
    monkeypatch.setattr(StepStream, "at", lambda self, step: asked.append((self.config, step)) or at(self, step))
    model = build_baseline(SMALL[kind], 3)
    history = train(model, TASK, config, objective=answer_loss)
    assert asked == [(config, step) for step in range(300)]
    assert history[-1]["loss"] < 1.0 < math.log(7)
    chains = evaluation_chains(TASK, 3, 100)
    assert count_correct(model, TASK, chains, 4) > len(chains) / 4


def test_average_of_weights_is_what_training_returns():
    config = TrainConfig(steps=3, batch_size=8, ema_decay=0.0)
    last = build_baseline(SMALL["gru"], 0)
    train(last, TASK, config, objective=answer_loss)
    averaged = build_baseline(SMALL["gru"], 0)
    train(averaged, TASK, dataclasses.replace(config, ema_decay=0.9), objective=answer_loss)
    assert not torch.equal(last.head.weight, averaged.head.weight)


@pytest.mark.parametrize("name", [name for name, (config, _) in BASELINES.items() if config.n_layers < 10])
def test_baselines_have_the_parameters_of_the_final_model(name):
    wanted = build_model(FINAL, 0).n_parameters()
    assert n_parameters(build_baseline(BASELINES[name][0], 0)) == pytest.approx(wanted, rel=0.01)


def test_deep_baseline_has_the_matrix_products_of_eight_loops():
    """Multiplications by weights, per token; a routed token meets two of four experts and the shared one."""
    core = FINAL.d_model * (2 * FINAL.d_model + 2 * FINAL.n_kv_heads * FINAL.head_dim)
    dense = core + 3 * FINAL.d_model * FINAL.d_ff
    experts = FINAL.n_experts_per_token + FINAL.n_shared_experts
    loop = core + FINAL.d_model * (3 * experts * FINAL.d_expert + FINAL.n_experts + FINAL.d_model)
    deep = build_baseline(BASELINES["transformer, same FLOPs"][0], 0)
    weights = sum(p.numel() for name, p in deep.blocks.named_parameters() if p.ndim == 2)
    assert weights == pytest.approx(2 * dense + 8 * loop, rel=0.01)


def test_window_of_a_stack_is_as_long_as_its_layers():
    model = build_baseline(BaselineConfig(kind="transformer", d_model=16, d_ff=16, n_layers=3, window=2), 0)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [0, 2, 3, 4, 5, 6]])
    logits = model(ids)
    assert not torch.equal(logits[0, 3], logits[1, 3])
    torch.testing.assert_close(logits[0, 4:], logits[1, 4:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"kind": "mlp"}, "kind='mlp'"), ({"kind": "transformer"}, "d_ff=0"), ({"kind": "gru", "d_ff": 8}, "d_ff=8"),
     ({"kind": "gru", "n_layers": 0}, "n_layers=0"), ({"kind": "tanh_rnn"}, "d_ff=0"),
     ({"kind": "rnn", "window": 2}, "window=2"), ({"kind": "tanh_rnn", "d_ff": 8, "n_layers": 2}, "n_layers=2")],
)  # fmt: skip
def test_impossible_baselines_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        BaselineConfig(**fields)
