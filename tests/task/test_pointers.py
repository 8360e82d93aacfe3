"""Following pointers: graphs, the paths through them, and which graphs are drawn for whom."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mythos_lite.config import ModelConfig
from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.study.depth import pointers
from mythos_lite.study.run import Run
from mythos_lite.task.chains import SPLITS, ChainTask, make_generator
from mythos_lite.task.pointers import PointerTask
from mythos_lite.training.recipes import Sweep

TASK = PointerTask()
PINNED = [
    *(54, 332, 310, 524, 463, 109, 383, 351, 449, 155, 199, 536),
    *(75, 564, 413, 278, 577, 216, 403, 28, 257, 489, 124, 186, 21),
]
PROPERTY = settings(max_examples=40, deadline=None)
FITTING = ModelConfig(vocab_size=TASK.vocab_size, pad_token_id=TASK.pad_id)

tasks = st.integers(2, 5).flatmap(
    lambda ends: st.integers(2 * ends, 14).map(lambda nodes: PointerTask(n_nodes=nodes, n_ends=ends))
)


def edges_of(task, graph):
    """Edges (from, to) in the order of the text, and the node to start from."""
    *tokens, start = graph
    assert all(task.n_nodes <= token < task.n_nodes * (task.n_nodes + 1) for token in tokens)
    return [divmod(token - task.n_nodes, task.n_nodes) for token in tokens], start


def walk(task, graph):
    """Where the path ends, and after how many steps; a path has fewer steps than there are nodes."""
    edges, node = edges_of(task, graph)
    follows = dict(edges)
    for n_steps in range(task.n_nodes):
        if follows[node] == node:
            return node, n_steps
        node = follows[node]
    raise AssertionError("the path goes round in circles")


def drawn(task, count, n_steps, seed=0, split="train"):
    return task.sample(count, n_steps, make_generator(seed), split)


# ---------------------------------------------------------------- answers and tokens


@PROPERTY
@given(task=tasks, data=st.data())
def test_answer_and_steps_are_those_of_a_walk(task, data):
    n_steps = data.draw(st.integers(1, task.n_nodes - task.n_ends))
    graphs = drawn(task, 8, n_steps, data.draw(st.integers(0, 2**16)), data.draw(st.sampled_from(SPLITS)))
    batch = task.encode(graphs)
    ends, steps = zip(*(walk(task, graph) for graph in graphs.tolist()), strict=True)
    assert batch.answers.tolist() == task.answer(graphs).tolist() == list(ends)
    assert batch.n_digits.tolist() == list(steps) == [n_steps] * 8
    assert torch.equal(batch.token_ids, graphs)
    assert {column.dtype for column in batch} == {torch.int64}


def test_a_graph_written_out():
    """2 → 0 → 3 → 3, and 1 → 1: from 2 it takes two steps to 3."""
    task = PointerTask(n_nodes=4, n_ends=2)
    graph = [4 + 4 * 3 + 3, 4 + 4 * 0 + 3, 4 + 4 * 1 + 1, 4 + 4 * 2 + 0, 2]
    batch = task.encode(torch.tensor([graph, [*graph[:-1], 3], [*graph[:-1], 1], [*graph[:-1], 0]]))
    assert batch.answers.tolist() == [3, 3, 1, 3]
    assert batch.n_digits.tolist() == [2, 0, 0, 1]
    assert batch.answer_positions.tolist() == [4] * 4


@PROPERTY
@given(task=tasks, seed=st.integers(0, 2**16))
def test_the_answer_does_not_depend_on_the_order_of_the_edges(task, seed):
    graphs, order = drawn(task, 5, 2, seed), torch.randperm(task.n_nodes, generator=make_generator(seed))
    shuffled = torch.cat([graphs[:, order], graphs[:, -1:]], dim=1)
    assert torch.equal(task.answer(shuffled), task.answer(graphs))


def test_token_ids_are_nodes_edges_and_padding():
    assert (TASK.n_nodes, TASK.n_ends, TASK.n_answers) == (24, 4, 24)
    assert (TASK.n_symbols, TASK.pad_id, TASK.vocab_size) == (600, 600, 601)
    graphs = drawn(TASK, 400, 3)
    assert graphs.shape == (400, 25)
    assert graphs[:, -1].unique().tolist() == list(range(24))
    assert (graphs[:, :-1].min().item(), graphs[:, :-1].max().item()) == (24, 599)


# ---------------------------------------------------------------- graphs


@PROPERTY
@given(task=tasks, data=st.data())
def test_every_node_has_one_edge_and_so_many_are_ends(task, data):
    n_steps = data.draw(st.integers(1, task.n_nodes - task.n_ends))
    for graph in drawn(task, 6, n_steps, data.draw(st.integers(0, 2**16))).tolist():
        edges, start = edges_of(task, graph)
        assert sorted(a for a, _ in edges) == list(range(task.n_nodes))
        assert sum(a == b for a, b in edges) == task.n_ends
        others = [b for a, b in edges if a != b]
        assert len(set(others)) == len(others)  # no two paths meet
        assert start not in others
        assert {walk(task, [*graph[:-1], node])[0] for node in range(task.n_nodes)} == {a for a, b in edges if a == b}


def test_a_path_may_take_all_nodes_but_the_other_ends():
    for task in (TASK, PointerTask(n_nodes=4, n_ends=2), PointerTask(n_nodes=9, n_ends=3)):
        longest = task.n_nodes - task.n_ends
        assert task.encode(drawn(task, 20, longest)).n_digits.tolist() == [longest] * 20


def even(counts, share):
    """Within five standard deviations of evenly spread."""
    n = int(counts.sum())
    return bool(((counts - n * share).abs() < 5 * (n * share * (1 - share)) ** 0.5).all())


def test_edges_stand_in_random_order():
    """Neither a node nor the first or last edge of the path has a place of its own."""
    graphs = drawn(TASK, 4800, 4)
    sources = (graphs[:, :-1] - 24) // 24
    for node in (0, 11, 23):
        assert even((sources == node).nonzero()[:, 1].bincount(minlength=24), 1 / 24)
    for wanted in (graphs[:, -1:], TASK.answer(graphs).unsqueeze(1)):
        assert even((sources == wanted).nonzero()[:, 1].bincount(minlength=24), 1 / 24)
    second = (graphs[:, :-1] - 24)[(sources == graphs[:, -1:])] % 24  # whether it comes behind the first
    places = [(sources == node.unsqueeze(1)).nonzero()[:, 1] for node in (graphs[:, -1], second)]
    assert even((places[0] < places[1]).long().bincount(minlength=2), 1 / 2)


def test_start_and_answer_may_be_any_node():
    graphs = drawn(TASK, 4800, 2)
    for nodes in (graphs[:, -1], TASK.answer(graphs)):
        assert even(nodes.bincount(minlength=24), 1 / 24)


def test_other_paths_have_all_lengths_that_there_is_room_for():
    task, found = PointerTask(n_nodes=8, n_ends=3), set()
    for graph in drawn(task, 500, 3).tolist():
        edges, _ = edges_of(task, graph)
        heads = set(range(8)) - {b for a, b in edges if a != b}  # no edge leads to them; ends that stand alone too
        found.add(tuple(sorted(walk(task, [*graph[:-1], head])[1] for head in heads)))
    assert found == {(0, 2, 3), (1, 1, 3)}


# ---------------------------------------------------------------- the split


def test_no_graph_is_drawn_on_both_sides():
    train, held_out = (drawn(TASK, 300, 3, split=split) for split in SPLITS)
    assert not TASK.is_held_out(train).any()
    assert TASK.is_held_out(held_out).all()
    assert not set(map(tuple, train.tolist())) & set(map(tuple, held_out.tolist()))


def test_one_graph_in_five_is_held_out_however_long_its_path():
    for n_steps in (1, 8, 20):
        graphs = TASK._draw(4000, n_steps, make_generator(n_steps))
        assert 0.17 < TASK.is_held_out(graphs).double().mean().item() < 0.23


def test_training_batches_hold_no_held_out_graph():
    assert not TASK.is_held_out(TASK.batch(500, 1, 6, make_generator(0)).token_ids).any()


def test_evaluation_takes_held_out_graphs_of_its_seed():
    graphs = evaluation_chains(TASK, 5, 50, seed=3)
    assert TASK.is_held_out(graphs).all()
    assert TASK.encode(graphs).n_digits.tolist() == [5] * 50
    assert torch.equal(graphs, evaluation_chains(TASK, 5, 50, seed=3))
    assert not torch.equal(graphs, evaluation_chains(TASK, 5, 50, seed=4))


def test_held_out_side_is_pinned():
    """A change here makes every published number incomparable."""
    graphs = TASK._draw(8, 3, make_generator(0))
    assert TASK.is_held_out(graphs).tolist() == [True, False, False, False, True, False, False, False]
    assert graphs[0].tolist() == PINNED


# ---------------------------------------------------------------- batches


@PROPERTY
@given(task=tasks, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_batch_has_paths_from_the_shortest_to_the_longest_asked_for(task, seed, data):
    low = data.draw(st.integers(1, task.n_nodes - task.n_ends))
    high = data.draw(st.integers(low, task.n_nodes - task.n_ends))
    before = torch.get_rng_state()
    batch, again = (task.batch(20, low, high, make_generator(seed)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert batch.token_ids.shape == (20, task.n_nodes + 1)
    assert ((batch.n_digits >= low) & (batch.n_digits <= high)).all()
    assert (batch.n_digits.diff() >= 0).all()
    assert batch.answer_positions.tolist() == [task.n_nodes] * 20
    assert not (batch.token_ids == task.pad_id).any()
    for graph, answer, n in zip(batch.token_ids.tolist(), batch.answers.tolist(), batch.n_digits.tolist(), strict=True):
        assert walk(task, graph) == (answer, n)


def test_a_batch_uses_every_number_of_steps_alike():
    n_steps = TASK.batch(900, 2, 4, make_generator(0)).n_digits
    assert even(n_steps.bincount(minlength=5)[2:], 1 / 3)


def test_one_generator_gives_other_graphs_at_each_draw():
    generator = make_generator(0)
    first, second = (TASK.sample(20, 4, generator, "train") for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(drawn(TASK, 20, 4, seed=1), drawn(TASK, 20, 4, seed=2))


def test_no_graphs_can_be_asked_for():
    assert drawn(TASK, 0, 4).shape == (0, 25)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_graphs_of_any_whole_numbers_are_those_of_int64(dtype):
    graphs = drawn(TASK, 5, 4)
    for got, wanted in zip(TASK.encode(graphs.to(dtype)), TASK.encode(graphs), strict=True):
        assert got.dtype == torch.int64
        assert torch.equal(got, wanted)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: PointerTask(n_ends=1), "n_ends=1"),
        (lambda: PointerTask(n_nodes=7), "n_nodes=7 .*8 or more"),
        (lambda: PointerTask(n_nodes=9, n_ends=5), "n_nodes=9 .*10 or more"),
        (lambda: PointerTask(n_nodes=24.0), r"n_nodes=24\.0"),
        (lambda: PointerTask(n_ends=True), "n_ends=True"),
        (lambda: drawn(TASK, 1, 21), "n_digits=21 .*20 at most"),
        (lambda: drawn(TASK, 1, 0), "n_digits=0"),
        (lambda: drawn(TASK, 1, 2.0), r"n_digits=2\.0"),
        (lambda: TASK.batch(400, 1, 21, make_generator(0)), "n_digits=21"),
        (lambda: TASK.batch(0, 1, 2, make_generator(0)), "size=0"),
        (lambda: TASK.batch(1, 3, 2, make_generator(0)), "max_digits=2"),
        (lambda: evaluation_chains(TASK, 21, 5), "n_digits=21"),
        (lambda: TASK.enumerate(2, "held_out"), r"use sample\(\)"),
        (lambda: TASK.encode(torch.zeros(1, 25)), "float32"),
        (lambda: TASK.encode(torch.full((1, 25), 600)), "0 … 599; found 600"),
        (lambda: TASK.encode(torch.zeros(25, dtype=torch.int64)), r"\(25,\)"),
        (lambda: TASK.answer([[1, 2]]), "not list"),
        (lambda: TASK.is_held_out(torch.full((1, 25), -1)), "found -1"),
    ],
)
def test_errors_name_the_value(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize(("count", "split"), [(1, "both"), (1, "test"), (-1, "train"), (1.5, "train")])
def test_samples_of_other_counts_and_sides_are_refused(count, split):
    with pytest.raises(ValueError, match=r"count=|split="):
        TASK.sample(count, 2, make_generator(0), split)


@pytest.mark.parametrize("n_nodes", [4, 6])
def test_what_is_asked_of_a_small_task_are_graphs(n_nodes):
    task = PointerTask(n_nodes=n_nodes, n_ends=2)
    assert evaluation_chains(task, 2, 200).shape == (200, n_nodes + 1)


@pytest.mark.parametrize("graph", [[0, 0, 0], [24] * 24 + [599], [30] * 3])
def test_what_is_no_graph_is_refused(graph):
    with pytest.raises(ValueError, match=r"edge|graph|node"):
        TASK.encode(torch.tensor([graph]))


def test_graphs_are_made_on_the_cpu_whatever_the_default_device_is():
    expected = TASK.batch(6, 1, 4, make_generator(3)).token_ids
    with torch.device("meta"):
        assert torch.equal(TASK.batch(6, 1, 4, make_generator(3)).token_ids, expected)


def test_a_model_of_another_task_does_not_fit():
    TASK.check_fit(FITTING, 20)
    TASK.check_fit(dataclasses.replace(FITTING, max_seq_len=25), 20)
    for changes, n, named in (
        ({"vocab_size": 600, "pad_token_id": 9}, 4, "vocab_size=600 is too small: the task has 601 tokens"),
        ({"pad_token_id": 9}, 4, "pad_token_id=9 does not fit: the task pads with 600"),
        ({"pad_token_id": None}, 4, "pad_token_id=None"),
        ({"max_seq_len": 24}, 1, "max_seq_len=24"),  # however short the path: the whole graph is in sight
        ({}, 21, "n_digits=21 is too long: paths of this task have at most 20 steps"),
    ):
        with pytest.raises(ValueError, match=named):
            TASK.check_fit(dataclasses.replace(FITTING, **changes), n)


# ---------------------------------------------------------------- the task itself


def test_numbers_of_numpy_make_the_same_task():
    assert repr(PointerTask(n_nodes=np.int64(24), n_ends=np.int32(4))) == repr(TASK)
    assert hash(PointerTask(n_nodes=np.int64(24))) == hash(TASK)


def test_there_are_too_many_graphs_to_list():
    assert TASK.n_chains(1) == TASK.n_chains(20) > 10**30
    assert ChainTask().n_chains(3) == 343


@pytest.mark.parametrize("task", [TASK, PointerTask(n_nodes=10, n_ends=3)], ids=str)
def test_a_run_on_pointers_is_rebuilt_from_what_it_says(task):
    run = dataclasses.replace(pointers(3)[0], task=task, sweeps=(Sweep(lengths=(2,), loops=(1,), n_chains=5),))
    again = Run.from_dict(run.to_dict())
    assert again == run
    assert again.task == task
    assert run.to_dict()["task"] == {"kind": "PointerTask", "n_nodes": task.n_nodes, "n_ends": task.n_ends}
