"""Tokens held at the experts of one loop, from outside of the model."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mythos_lite import ModelConfig, RecurrentDepthTransformer
from mythos_lite.lessons.holding import hold_experts
from mythos_lite.model.moe import SparseMoE
from mythos_lite.task.chains import make_generator
from mythos_lite.training.trainer import build_model

SPARSE = {"n_experts": 6, "n_experts_per_token": 2, "d_expert": 8}


@torch.no_grad()
def test_held_experts_are_those_of_the_given_loop_from_then_on():
    model = RecurrentDepthTransformer.from_pretrained("mod7-experts")
    ids = torch.tensor([[7, 3, 5, 0, 6, 2, 4, 1, 1, 8]])
    free = [turn.routing[0].chosen for turn in model.loop(ids, 12)]
    with hold_experts(model, 4):
        held = [turn.routing[0].chosen for turn in model.loop(ids, 12)]
    assert all(torch.equal(a, b) for a, b in zip(free[:4], held[:4], strict=True))
    assert all(torch.equal(a, held[3]) for a in held[4:])
    assert not all(torch.equal(a, free[3]) for a in free[4:])  # else nothing would have been held
    again = [turn.routing[0].chosen for turn in model.loop(ids, 12)]
    assert all(torch.equal(a, b) for a, b in zip(free, again, strict=True))


def experts_of(model, ids, n_loops=4):
    return [turn.routing[0].chosen for turn in model.loop(ids, n_loops)]


@pytest.fixture(scope="module")
def restless():
    """A model whose tokens change experts, and three batches of one shape."""
    model = build_model(ModelConfig(**SPARSE, state_activation="none"), 3)
    batches = torch.randint(0, 7, (3, 4, 9), generator=make_generator(5)).unbind()
    assert all(not torch.equal(*experts_of(model, ids)[:2]) for ids in batches)
    return model, batches


def test_each_pass_is_held_at_its_own_experts(restless):
    model, batches = restless
    free = [experts_of(model, ids) for ids in batches]
    with hold_experts(model, 1):
        for ids, alone in zip(batches, free, strict=True):
            held = experts_of(model, ids)
            assert all(torch.equal(chosen, alone[0]) for chosen in held)
        short = experts_of(model, batches[0][:1, :3])  # of another shape too
        assert torch.equal(short[0], short[-1])


def test_nested_holds_end_one_after_the_other(restless):
    model, (ids, *_) = restless
    free = experts_of(model, ids)
    with hold_experts(model, 1):
        with hold_experts(model, 2):
            inner = experts_of(model, ids)
        outer = experts_of(model, ids)
    assert torch.equal(inner[1], free[1])
    assert torch.equal(inner[3], free[1])
    assert torch.equal(outer[3], free[0])
    assert all(map(torch.equal, experts_of(model, ids), free))


def test_a_copy_made_while_experts_are_held_is_free(restless):
    model, (ids, *_) = restless
    free = experts_of(model, ids)
    with hold_experts(model, 1):
        experts_of(model, ids)
        doubles = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert all(map(torch.equal, experts_of(doubles[0], ids), free))
    for double in doubles:
        assert all(map(torch.equal, experts_of(double, ids), free))


def test_threads_that_share_a_hold_do_not_share_experts(restless):
    model, batches = restless
    with hold_experts(model, 1), ThreadPoolExecutor(3) as pool:
        for ids, held in zip(batches * 4, pool.map(lambda ids: experts_of(model, ids, 12), batches * 4), strict=True):
            assert all(torch.equal(chosen, held[0]) for chosen in held), ids


def test_passes_that_are_mixed_up_are_an_error_while_experts_are_held(restless):
    model, (one, other, _) = restless
    with hold_experts(model, 1), pytest.raises(ValueError, match="one batch after the other"):
        for _ in zip(model.loop(one, 3), model.loop(other, 3), strict=True):
            pass


def test_models_that_are_not_held_are_free_and_other_holds_may_end_first(restless):
    model, (ids, *_) = restless
    other = copy.deepcopy(model)
    free = experts_of(model, ids)
    first, second = hold_experts(model, 1), hold_experts(other, 2)
    first.__enter__()
    assert all(map(torch.equal, experts_of(other, ids), free))
    second.__enter__()
    assert torch.equal(experts_of(model, ids)[3], free[0])
    first.__exit__(None, None, None)
    assert all(map(torch.equal, experts_of(model, ids), free))
    assert torch.equal(experts_of(other, ids)[3], free[1])
    second.__exit__(None, None, None)
    assert all(map(torch.equal, experts_of(other, ids), free))


def test_the_model_is_left_as_it_was_also_when_a_pass_fails(restless):
    methods = SparseMoE.choose, RecurrentDepthTransformer.loop_map
    with pytest.raises(ValueError, match="n_loops=0"), hold_experts(restless[0], 1):
        restless[0].loop(restless[1][0], 0)
    assert (SparseMoE.choose, RecurrentDepthTransformer.loop_map) == methods


@pytest.mark.parametrize(("fields", "loop", "said"), [({}, 1, "has none"), (SPARSE, 0, "from_loop")])
def test_holding_experts_refuses(fields, loop, said):
    with pytest.raises(ValueError, match=said), hold_experts(build_model(ModelConfig(**fields), 3), loop):
        pass
