"""What passes inside a model, and other values in its place."""

import pytest
import torch

from mythos_lite import ChainTask, ModelConfig, RecurrentDepthTransformer
from mythos_lite.measure.hooks import hook_names, patch, run_with_cache, run_with_hooks
from mythos_lite.measure.sweep import evaluation_chains

MLA = {
    "attention": "mla", "n_kv_heads": None, "kv_lora_rank": 6, "q_lora_rank": 6, "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4, "v_head_dim": 4,
}  # fmt: skip
EXPERTS = {"n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 1, "d_expert": 8}
VARIANTS = {
    "plain": {},
    "two blocks in each room": {"n_prelude_layers": 2, "n_core_layers": 2, "n_coda_layers": 2},
    "bare": {"n_prelude_layers": 0, "n_coda_layers": 0, "injection": "none"},
    "latent attention and experts": {**MLA, **EXPERTS},
    "additive, act": {"injection": "additive", "halting": "act", "window": None},
    "dilated": {"dilated": True},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def make_model(variant="plain"):
    torch.manual_seed(0)
    model = RecurrentDepthTransformer(ModelConfig(d_model=32, d_ff=32, **VARIANTS[variant]))
    return model.requires_grad_(False).eval()


def tokens(seed=0):
    return torch.randint(9, (2, 7), generator=torch.Generator().manual_seed(seed))


@each_variant
def test_what_passes_is_what_the_model_computes(variant):
    model, ids = make_model(variant), tokens()
    out, found = run_with_cache(model, ids, n_loops=3)
    assert list(found) == hook_names(model, 3)
    expected = model(ids, n_loops=3, trace=True)
    assert torch.equal(out.logits, expected.logits)
    assert torch.equal(found["logits"], expected.logits)
    states = torch.stack([found[f"loop.{t}.state"] for t in (1, 2, 3)])
    assert torch.equal(states, expected.trace.states)


@each_variant
def test_the_model_is_left_as_it_was(variant):
    model, ids = make_model(variant), tokens()
    before, names = model(ids, n_loops=3).logits, set(vars(model))

    def fail(value, hook):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        run_with_hooks(model, ids, n_loops=3, fwd_hooks=[("loop.2.state", fail)])
    run_with_hooks(model, ids, n_loops=3, fwd_hooks=[("loop.2.state", lambda value, hook: torch.zeros_like(value))])
    assert torch.equal(model(ids, n_loops=3).logits, before)
    assert set(vars(model)) == names
    assert not any(module._forward_hooks for module in model.modules())


@each_variant
def test_patching_everything_that_carries_the_input_gives_the_answer_of_the_other(variant):
    model, ids, other = make_model(variant), tokens(), tokens(1)
    theirs, found = run_with_cache(model, other, n_loops=3)
    hooks = [(name, patch(found[name])) for name in ("input", "loop.2.state")]
    assert torch.equal(run_with_hooks(model, ids, n_loops=3, fwd_hooks=hooks).logits, theirs.logits)
    logits = run_with_hooks(model, ids, n_loops=3, fwd_hooks=[("logits", patch(found["logits"]))]).logits
    assert torch.equal(logits, theirs.logits)


def test_attention_that_adds_nothing_is_a_block_without_it():
    model, ids = make_model(), tokens()
    name = "loop.2.core.0.attention"
    out, found = run_with_cache(model, ids, n_loops=2)
    without = run_with_hooks(model, ids, n_loops=2, fwd_hooks=[(name, lambda value, hook: torch.zeros_like(value))])
    assert not torch.allclose(without.logits, out.logits)
    hooks = [("loop.2.core.0", patch(found["loop.2.core.0"]))]  # later in the same pass, so it undoes the first
    both = run_with_hooks(
        model, ids, n_loops=2, fwd_hooks=[(name, lambda value, hook: torch.zeros_like(value)), *hooks]
    )
    assert torch.equal(both.logits, out.logits)


def test_one_position_in_one_loop_carries_the_sum():
    model, task = RecurrentDepthTransformer.from_pretrained("mod7"), ChainTask()
    batch = task.encode(evaluation_chains(task, 8, 100, seed=3))
    ids, others = batch.token_ids, batch.token_ids.roll(1, 0)
    sums = [x[:, 1:9].cumsum(1) % 7 for x in (ids, others)]
    # After seven loops position 6 holds the sum of the six digits up to there, and hands it on.
    _, found = run_with_cache(model, others, n_loops=12, names_filter=lambda name: name.endswith(".state"))
    hooks = [(f"loop.{t}.state", patch(found[f"loop.{t}.state"][:, 6], 6)) for t in range(1, 13)]
    logits = run_with_hooks(model, ids, n_loops=12, fwd_hooks=hooks).logits
    expected = (sums[1][:, 5] + sums[0][:, 7] - sums[0][:, 5]) % 7
    assert (logits[:, -1].argmax(-1) == expected).float().mean() > 0.97


def test_hooks_of_one_point_run_in_order_and_know_where_they_are():
    model, seen = make_model(), []

    def double(value, hook):
        seen.append((hook.name, hook.loop))
        return 2 * value

    def note(value, hook):
        seen.append(value)

    ids = tokens()
    _, found = run_with_cache(model, ids, n_loops=2, names_filter=lambda name: name == "loop.1.state")
    assert list(found) == ["loop.1.state"]
    run_with_hooks(model, ids, n_loops=2, fwd_hooks=[("loop.1.state", double), ("loop.1.state", note)])
    assert seen[0] == ("loop.1.state", 1)
    assert torch.equal(seen[1], 2 * found["loop.1.state"])


def test_a_hook_may_run_the_model_itself():
    model, ids, other = make_model(), tokens(), tokens(1)

    def from_another(value, hook):
        return run_with_cache(model, other, n_loops=hook.loop)[1][hook.name]

    out = run_with_hooks(model, ids, n_loops=3, fwd_hooks=[("loop.2.state", from_another)])
    state = run_with_cache(model, other, n_loops=3)[1]["loop.2.state"]
    expected = run_with_hooks(model, ids, n_loops=3, fwd_hooks=[("loop.2.state", patch(state))])
    assert torch.equal(out.logits, expected.logits)


@pytest.mark.parametrize("name", ["loop.4.state", "loop.0.state", "core.0", "coda.1", "loop.1.core.1", ""])
def test_points_that_a_pass_does_not_have_are_refused(name):
    with pytest.raises(ValueError, match=r"there is no point '.*' in this pass; there are prelude\.0\.attention"):
        run_with_hooks(make_model(), tokens(), n_loops=3, fwd_hooks=[(name, lambda value, hook: None)])


@pytest.mark.parametrize("new", [0.0, torch.zeros(2, 7), torch.zeros(1, 7, 32)], ids=["number", "narrow", "fewer"])
def test_values_of_another_shape_are_refused(new):
    with pytest.raises(ValueError, match=r"the hook at 'loop\.1\.state' must return shape \(2, 7, 32\), not"):
        run_with_hooks(make_model(), tokens(), n_loops=2, fwd_hooks=[("loop.1.state", lambda value, hook: new)])


def test_a_patch_goes_to_one_position_of_all_sequences():
    model, ids = make_model(), tokens()
    state = run_with_cache(model, ids, n_loops=2)[1]["loop.1.state"]
    for value, position in ((state[:, 3], 3), (state[:, 3], -4), (state[:, 3:5], slice(3, 5))):
        seen = []
        hooks = [
            ("loop.1.state", patch(10 + value, position)),
            ("loop.1.state", lambda now, hook, s=seen: s.append(now)),
        ]
        run_with_hooks(model, ids, n_loops=2, fwd_hooks=hooks)
        wanted = state.clone()
        wanted[:, position] = 10 + value
        assert torch.equal(seen[0], wanted)


def test_a_patch_that_would_go_elsewhere_is_refused():
    model, ids = make_model(), tokens()
    state = run_with_cache(model, ids, n_loops=2)[1]["loop.1.state"]
    for position in (torch.tensor([1, 2]), [1, 2], 1.0, None, True):
        with pytest.raises(ValueError, match="position"):
            patch(state, position)
    square = torch.zeros(7, 7, 32)  # as many sequences as positions, and the position forgotten
    for value, position, said in ((state[:, 3], 7, "position=7 is not in a sequence of 7"), (square[:, 3], slice(None),
                                  "value of shape"), (state[:1, 3], 3, "value of shape")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            run_with_hooks(model, ids, n_loops=2, fwd_hooks=[("loop.1.state", patch(value, position))])
