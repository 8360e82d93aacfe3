"""The chain task: answers, token ids, the split, and which draws depend on what."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mythos_lite.config import ModelConfig
from mythos_lite.task.chains import SPLITS, Batch, ChainTask, PermutationTask, make_generator

TASK = ChainTask()
PROPERTY = settings(max_examples=40, deadline=None)

tasks = st.integers(2, 12).flatmap(
    lambda modulus: st.integers(modulus, 14).map(lambda symbols: ChainTask(modulus=modulus, n_symbols=symbols))
)
streams = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5).map(tuple)


def rows(chains):
    return set(map(tuple, chains.tolist()))


def binomial_sigma(n, share):
    return (n * share * (1 - share)) ** 0.5


# ---------------------------------------------------------------- answers and tokens


@PROPERTY
@given(task=tasks, data=st.data())
def test_answer_is_the_sum_of_the_digits_modulo_m(task, data):
    digits = st.lists(st.integers(0, task.n_symbols - 1), min_size=1, max_size=40)
    chain = data.draw(digits)
    assert task.answer(torch.tensor([chain])).tolist() == [sum(chain) % task.modulus]


def test_default_token_ids_are_those_of_the_design():
    assert (TASK.modulus, TASK.n_symbols) == (7, 7)
    assert (TASK.start_id, TASK.eq_id, TASK.pad_id, TASK.vocab_size) == (7, 8, 9, 10)
    batch = TASK.encode(torch.tensor([[3, 0, 6], [5, 5, 5]]))
    assert batch.token_ids.tolist() == [[7, 3, 0, 6, 8], [7, 5, 5, 5, 8]]
    assert batch.answers.tolist() == [2, 1]
    assert batch.answer_positions.tolist() == [4, 4]
    assert batch.n_digits.tolist() == [3, 3]


@PROPERTY
@given(task=tasks)
def test_special_tokens_follow_the_digits_of_any_alphabet(task):
    special = [task.start_id, task.eq_id, task.pad_id]
    assert special == list(range(task.n_symbols, task.vocab_size))
    assert task.modulus <= task.n_symbols


@PROPERTY
@given(task=tasks, seed=st.integers(0, 2**16), size=st.integers(1, 20), low=st.integers(2, 6), span=st.integers(0, 6))
def test_every_row_of_a_batch_reads_start_digits_eq_padding(task, seed, size, low, span):
    batch = task.batch(size, low, low + span, make_generator(seed))
    assert {len(column) for column in batch} == {size}
    assert batch.token_ids.shape[1] == batch.n_digits.max() + 2
    for tokens, position, answer, n in zip(*(column.tolist() for column in batch), strict=True):
        digits, padding = tokens[1 : n + 1], tokens[n + 2 :]
        assert low <= n <= low + span
        assert position == n + 1
        assert tokens[0] == task.start_id
        assert tokens[position] == task.eq_id
        assert all(digit < task.n_symbols for digit in digits)
        assert set(padding) <= {task.pad_id}
        assert answer == sum(digits) % task.modulus


def test_batch_goes_from_short_to_long_and_uses_every_length():
    n_digits = TASK.batch(400, 2, 5, make_generator(0)).n_digits
    assert (n_digits.diff() >= 0).all()
    counts = n_digits.bincount(minlength=6)[2:]
    assert ((counts - 100).abs() < 5 * binomial_sigma(400, 0.25)).all()


def test_join_keeps_every_chain_and_pads_on_the_right():
    parts = [TASK.encode(torch.tensor([[1] * n])) for n in (4, 1, 2)]
    joined = TASK.join(parts)
    assert joined.token_ids.tolist() == [[7, 1, 1, 1, 1, 8], [7, 1, 8, 9, 9, 9], [7, 1, 1, 8, 9, 9]]
    for name in ("answer_positions", "answers", "n_digits"):
        assert getattr(joined, name).tolist() == [getattr(part, name).item() for part in parts]


def test_join_of_equal_lengths_adds_no_padding():
    part = TASK.encode(torch.tensor([[1, 2]]))
    assert not (TASK.join([part, part]).token_ids == TASK.pad_id).any()


def test_batch_moves_to_a_device_as_a_whole():
    moved = TASK.batch(3, 2, 3, make_generator(0)).to("meta")
    assert isinstance(moved, Batch)
    assert {column.device.type for column in moved} == {"meta"}


# ---------------------------------------------------------------- the split


@pytest.mark.parametrize(
    ("task", "n"),
    [(TASK, 1), (TASK, 2), (TASK, 3), (TASK, 5), (ChainTask(modulus=2, n_symbols=2), 9), (ChainTask(n_symbols=10), 4)],
    ids=str,
)
def test_both_sides_together_hold_every_chain_exactly_once(task, n):
    sides = [task.enumerate(n, split) for split in SPLITS]
    every = list(itertools.product(range(task.n_symbols), repeat=n))
    listed = [tuple(chain) for side in sides for chain in side.tolist()]
    assert len(listed) == len(every)
    assert set(listed) == set(every)
    assert all(side.tolist() == sorted(side.tolist()) for side in sides)


@PROPERTY
@given(task=tasks, n=st.integers(4, 64), seeds=st.tuples(st.integers(0, 2**16), st.integers(0, 2**16)))
def test_no_chain_is_drawn_on_both_sides(task, n, seeds):
    train, held_out = (
        task.sample(60, n, make_generator(seed), split) for seed, split in zip(seeds, SPLITS, strict=True)
    )
    assert not task.is_held_out(train).any()
    assert task.is_held_out(held_out).all()
    assert not rows(train) & rows(held_out)


@PROPERTY
@given(seed=st.integers(0, 2**32 - 1), low=st.integers(1, 8), span=st.integers(0, 8))
def test_training_batches_hold_no_held_out_chain(seed, low, span):
    batch = TASK.batch(50, low, low + span, make_generator(seed))
    for tokens, n in zip(batch.token_ids, batch.n_digits.tolist(), strict=True):
        assert not TASK.is_held_out(tokens[1 : n + 1].unsqueeze(0)).any()


@PROPERTY
@given(task=tasks, n=st.integers(1, 30), seed=st.integers(0, 2**16))
def test_side_of_a_chain_depends_on_nothing_but_its_digits(task, n, seed):
    chains = torch.randint(task.n_symbols, (30, n), generator=make_generator(seed))
    side = task.is_held_out(chains)
    order = torch.randperm(30, generator=make_generator(seed, 1))
    assert torch.equal(task.is_held_out(chains[order]), side[order])
    assert torch.equal(task.is_held_out(chains[:1]), side[:1])
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(task.is_held_out(chains.to(dtype)), side)


def test_held_out_side_is_pinned():
    """A change here makes every published number incomparable."""
    pairs = [(0, 3), (0, 5), (1, 3), (1, 5), (2, 0), (2, 2), (3, 0), (3, 2), (4, 0), (5, 1), (6, 2)]
    assert list(map(tuple, TASK.enumerate(2, "held_out").tolist())) == pairs
    held_out = [
        [2, 1, 2, 6, 2, 4, 6, 5],
        [2, 5, 0, 5, 0, 3, 0, 3, 5, 3, 1, 5, 1, 4, 4, 1],
        [4, 4, 5, 0, 4, 5, 6, 3, 5, 5, 2, 3, 3, 2, 5, 4, 3, 2, 0, 2, 4, 6, 2, 1, 5, 6, 1, 4, 1, 1, 5, 2],
    ]
    train = [
        [1, 0, 6, 4, 2, 4, 3, 6],
        [2, 6, 5, 1, 0, 3, 6, 6, 6, 2, 4, 4, 0, 1, 6, 0],
        [1, 6, 1, 0, 0, 5, 1, 5, 2, 0, 0, 2, 4, 5, 2, 6, 0, 1, 3, 5, 1, 6, 3, 6, 4, 6, 1, 6, 4, 3, 4, 5],
    ]
    assert [len(TASK.enumerate(n, "held_out")) for n in range(1, 7)] == [1, 11, 65, 471, 3356, 23567]
    assert all(TASK.is_held_out(torch.tensor([chain])).item() for chain in held_out)
    assert not any(TASK.is_held_out(torch.tensor([chain])).item() for chain in train)


def some_chains(n):
    """All chains where they are few, 50,000 random ones otherwise."""
    if 7**n <= 50_000:
        return torch.cat([TASK.enumerate(n, split) for split in SPLITS])
    return torch.randint(7, (50_000, n), generator=make_generator(n))


@pytest.mark.parametrize("n", range(4, 9))
def test_one_chain_in_five_is_held_out_whatever_its_answer(n):
    chains = some_chains(n)
    held_out = TASK.is_held_out(chains)
    share = held_out.double().mean().item()
    assert 0.17 < share < 0.23
    for side, expected in ((held_out, share), (~held_out, 1 - share)):
        of_answer = TASK.answer(chains).bincount(minlength=7)
        on_side = TASK.answer(chains[side]).bincount(minlength=7)
        for count, total in zip(on_side.tolist(), of_answer.tolist(), strict=True):
            assert abs(count - total * expected) < 4 * binomial_sigma(total, expected)


@pytest.mark.parametrize("n", [6, 16, 64])
def test_every_digit_of_a_chain_decides_its_side(n):
    """Unrelated chains lie on different sides in 2 · .2 · .8 = 32 % of cases; 40 % is the most possible."""
    chains = torch.randint(7, (4000, n), generator=make_generator(n))
    side = TASK.is_held_out(chains)
    for position in {0, 1, n // 2, n - 2, n - 1}:
        changed = chains.clone()
        changed[:, position] = (changed[:, position] + 1) % 7
        moved = (TASK.is_held_out(changed) != side).double().mean().item()
        assert 0.25 < moved < 0.42


@pytest.mark.parametrize("split", SPLITS)
def test_sampling_reaches_every_chain_of_its_side(split):
    side = TASK.enumerate(3, split)
    assert rows(TASK.sample(20 * len(side), 3, make_generator(0), split)) == rows(side)


@pytest.mark.parametrize(
    "task", [TASK, ChainTask(n_symbols=10), PermutationTask(degree=4, n_symbols=5, even=True)], ids=str
)
def test_so_many_chains_there_are_on_both_sides(task):
    for n in (1, 2, 4):
        assert task.n_chains(n) == sum(len(task.enumerate(n, split)) for split in SPLITS)


# ---------------------------------------------------------------- randomness


@PROPERTY
@given(seed=st.integers(0, 2**32 - 1))
def test_draws_follow_the_generator_and_leave_the_global_one_alone(seed):
    before = torch.get_rng_state()
    drawn = [TASK.sample(20, 5, make_generator(seed), "held_out") for _ in range(2)]
    batches = [TASK.batch(20, 2, 5, make_generator(seed)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_generator_gives_other_chains_at_each_draw():
    generator = make_generator(0)
    first, second = (TASK.sample(20, 8, generator, "train") for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("one", "other"),
    [((0, 1), (1, 0)), ((0, 1), (1, 1)), ((0, 1, 2), (0, 2, 1)), ((3, 0, 5), (3, 1, 5)), ((1,), (2,)), ((0, 5), (5,))],
)
def test_streams_of_different_indices_differ(one, other):
    assert make_generator(*one).initial_seed() != make_generator(*other).initial_seed()


@PROPERTY
@given(one=streams)
def test_a_further_stream_index_gives_another_stream(one):
    assert make_generator(*one).initial_seed() != make_generator(*one, 0).initial_seed()


@PROPERTY
@given(numbers=streams)
def test_equal_indices_give_equal_streams(numbers):
    one, other = (torch.rand(3, generator=make_generator(*numbers)) for _ in range(2))
    assert torch.equal(one, other)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: ChainTask(modulus=1), "modulus=1"),
        (lambda: ChainTask(modulus=7.0), "modulus=7.0"),
        (lambda: ChainTask(n_symbols=True), "n_symbols=True"),
        (lambda: ChainTask(modulus=9, n_symbols=8), "n_symbols=8.*modulus=9"),
        (lambda: TASK.answer(torch.tensor([[0, 7]])), "0 … 6; found 0 … 7"),
        (lambda: TASK.answer(torch.tensor([[-1, 6]])), "found -1"),
        (lambda: TASK.answer(torch.tensor([1, 2])), r"\(2,\)"),
        (lambda: TASK.answer([[1, 2]]), r"tensor of whole numbers of shape \(B, n\) with n ≥ 1, not list"),
        (lambda: TASK.encode([[1, 2]]), "tensor of whole numbers.*not list"),
        (lambda: TASK.encode(None), "not NoneType"),
        (lambda: TASK.encode(torch.zeros(3, 0, dtype=torch.int64)), r"\(3, 0\)"),
        (lambda: TASK.is_held_out(torch.tensor([[1.0]])), "float32"),
        (lambda: TASK.enumerate(0, "train"), "n_digits=0"),
        (lambda: TASK.enumerate(2, "test"), "'test'.*'train', 'held_out'"),
        (lambda: TASK.enumerate(8, "train"), "n_digits=8 has 5,764,801"),
        (lambda: TASK.sample(-1, 2, make_generator(0), "train"), "count=-1"),
        (lambda: TASK.sample(1, 0, make_generator(0), "train"), "n_digits=0"),
        (lambda: TASK.sample(1, 2, make_generator(0), "both"), "'both'"),
        (lambda: TASK.batch(0, 2, 5, make_generator(0)), "size=0"),
        (lambda: TASK.batch(1, 0, 5, make_generator(0)), "min_digits=0"),
        (lambda: TASK.batch(1, 5, 4, make_generator(0)), "max_digits=4"),
        (lambda: make_generator(-1), "-1"),
        (lambda: make_generator(0, 0.5), "0.5"),
    ],
)
def test_errors_name_the_value(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_side_without_any_chain_is_an_error_instead_of_an_endless_search():
    task = ChainTask(modulus=2, n_symbols=2)
    assert len(task.enumerate(2, "held_out")) == 0
    with pytest.raises(ValueError, match=r"n_digits=2.*'held_out'"):
        task.sample(1, 2, make_generator(0), "held_out")


def test_no_chains_can_be_asked_for():
    assert TASK.sample(0, 4, make_generator(0), "train").shape == (0, 4)


# ---------------------------------------------------------------- without START


def test_without_start_the_chain_begins_with_its_first_digit():
    task = ChainTask(start_token=False)
    batch = task.encode(torch.tensor([[3, 0, 6]]))
    assert batch.token_ids.tolist() == [[3, 0, 6, 8]]
    assert batch.answer_positions.tolist() == [3]
    assert batch.answers.tolist() == [2]
    mixed = task.batch(40, 1, 4, make_generator(0))
    assert (mixed.token_ids[torch.arange(40), mixed.answer_positions] == task.eq_id).all()
    assert (mixed.token_ids != task.start_id).all()


# ---------------------------------------------------------------- permutations


def compose(first, then):
    return tuple(then[i] for i in first)


def transpositions_apart(degree):
    """Distance of every permutation from the identity, by breadth-first search."""
    swaps = [
        tuple(b if i == a else a if i == b else i for i in range(degree))
        for a, b in itertools.combinations(range(degree), 2)
    ]
    found, edge = {tuple(range(degree)): 0}, [tuple(range(degree))]
    while edge:
        edge = [
            q
            for p in edge
            for q in {compose(p, swap) for swap in swaps}
            if q not in found and not found.update({q: found[p] + 1})
        ]
    return found


@pytest.mark.parametrize("degree", [2, 3, 4, 5])
def test_permutations_are_numbered_by_their_distance_and_multiplied_in_order(degree):
    distance = transpositions_apart(degree)
    numbered = sorted(distance, key=lambda p: (distance[p], p))
    task = PermutationTask(degree=degree, n_symbols=len(numbered))
    chains = torch.randint(len(numbered), (50, 6), generator=make_generator(degree))
    for chain, answer in zip(chains.tolist(), task.answer(chains).tolist(), strict=True):
        product = numbered[0]
        for symbol in chain:
            product = compose(product, numbered[symbol])
        assert numbered[answer] == product


def test_order_matters_for_permutations_and_not_for_sums():
    there, back = torch.tensor([[1, 2]]), torch.tensor([[2, 1]])
    assert PermutationTask().answer(there) != PermutationTask().answer(back)
    assert ChainTask().answer(there) == ChainTask().answer(back)


def test_transpositions_alone_reach_all_of_s5_within_five():
    task = PermutationTask(degree=5, n_symbols=11)
    chains = torch.randint(11, (40_000, 5), generator=make_generator(0))
    assert task.answer(chains).unique().numel() == 120
    assert (task.start_id, task.vocab_size) == (120, 123)


def is_even(permutation):
    """Whether an even number of pairs stands in the wrong order."""
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


def alternating(degree):
    """The task of all even permutations, and them in the order in which they are numbered."""
    distance = transpositions_apart(degree)
    numbered = sorted(filter(is_even, distance), key=lambda p: (distance[p], p))
    return PermutationTask(degree=degree, n_symbols=len(numbered), even=True), np.array(numbered)


def products(task):
    """(N, N): the answer to each chain of two."""
    every = torch.arange(task.n_symbols)
    return task.answer(torch.cartesian_prod(every, every)).view(len(every), len(every))


@pytest.mark.parametrize(("degree", "size"), [(3, 3), (4, 12), (5, 60)])
def test_even_permutations_are_a_group(degree, size):
    task, _ = alternating(degree)
    table, every = products(task), torch.arange(size)
    assert (task.n_answers, task.n_symbols) == (size, size)
    assert torch.equal(table[0], every)  # 0 is the identity
    assert torch.equal(table[:, 0], every)
    assert torch.equal(table.sort(dim=1).values, every.expand(size, size))  # closed, and each has its inverse
    assert torch.equal(table.sort(dim=0).values, every.unsqueeze(1).expand(size, size))
    assert torch.equal(table[table], table[:, table])  # (a b) c = a (b c)
    assert torch.equal(table, table.T) == (degree == 3)  # where order begins to matter


@pytest.mark.parametrize("degree", [3, 4, 5])
def test_even_permutations_are_multiplied_in_order(degree):
    task, numbered = alternating(degree)
    chains = torch.randint(len(numbered), (50, 7), generator=make_generator(degree))
    for chain, answer in zip(chains.tolist(), task.answer(chains).tolist(), strict=True):
        points = np.arange(degree)
        for symbol in chain:
            points = numbered[symbol][points]
        assert numbered[answer].tolist() == points.tolist()


@pytest.mark.parametrize("degree", [3, 4, 5])
def test_even_permutations_multiply_as_they_do_among_all(degree):
    distance = transpositions_apart(degree)
    every = sorted(distance, key=lambda p: (distance[p], p))
    number = torch.tensor([every.index(tuple(p)) for p in alternating(degree)[1].tolist()])
    whole = products(PermutationTask(degree=degree, n_symbols=len(every)))
    assert torch.equal(number[products(alternating(degree)[0])], whole[number.unsqueeze(1), number])


def test_even_permutations_have_token_ids_of_their_own():
    task, _ = alternating(5)
    assert (task.start_id, task.eq_id, task.pad_id, task.vocab_size) == (60, 61, 62, 63)
    assert task.encode(torch.tensor([[1, 59, 0]])).token_ids.tolist() == [[60, 1, 59, 0, 61]]
    assert PermutationTask(degree=4, n_symbols=2, even=True).vocab_size == 15  # the answer can be any
    assert task != dataclasses.replace(task, even=False)
    assert PermutationTask() == PermutationTask(even=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"degree": 2, "n_symbols": 2, "even": True}, "degree=2 .*3 or more"),
        ({"degree": 7, "n_symbols": 2, "even": True}, "degree=7"),
        ({"degree": 3, "n_symbols": 4, "even": True}, "n_symbols=4 .*3 at most"),
        ({"degree": 5, "n_symbols": 61, "even": True}, "n_symbols=61 .*60 at most"),
        ({"degree": 5, "n_symbols": 1, "even": True}, "n_symbols=1 "),
        ({"even": 1}, "even=1 .*True or False"),
        ({"even": None}, "even=None"),
        ({"degree": 1}, "degree=1"),
        ({"degree": 7}, "degree=7"),
        ({"n_symbols": 7}, "n_symbols=7"),
        ({"n_symbols": 1}, "n_symbols=1"),
    ],
)
def test_impossible_groups_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        PermutationTask(**fields)


# ---------------------------------------------------------------- what chains may be made of, and where


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.bool])
@pytest.mark.parametrize("task", [TASK, ChainTask(modulus=2, n_symbols=2), PermutationTask()], ids=str)
def test_chains_of_any_whole_numbers_are_those_of_int64(task, dtype):
    """A sum of 60 sixes is beyond int8, and uint8 and bool index a table as masks."""
    chains = torch.full((3, 60), 1 if dtype == torch.bool else task.n_symbols - 1)
    narrow = chains.to(dtype)
    for got, wanted in zip(task.encode(narrow), task.encode(chains), strict=True):
        assert got.dtype == torch.int64
        assert torch.equal(got, wanted)
    assert torch.equal(task.is_held_out(narrow), task.is_held_out(chains))
    assert torch.equal(task.answer(narrow), task.answer(chains))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_chains_of_other_numbers_are_refused(dtype):
    with pytest.raises(ValueError, match="whole numbers"):
        TASK.encode(torch.ones(1, 3, dtype=dtype))


def test_numbers_of_numpy_make_the_same_task_and_the_same_chains():
    task = ChainTask(modulus=np.int64(7), n_symbols=np.int32(7))
    assert repr(task) == repr(TASK)
    assert PermutationTask(degree=np.int64(3)) == PermutationTask()
    draws = [one.batch(np.int64(5), 1, np.int64(4), make_generator(np.int64(3), np.int32(1))) for one in (task, TASK)]
    assert torch.equal(draws[0].token_ids, draws[1].token_ids)
    assert torch.equal(task.enumerate(np.int64(2), "train"), TASK.enumerate(2, "train"))


def test_chains_are_made_on_the_cpu_whatever_the_default_device_is():
    expected = TASK.batch(6, 1, 4, make_generator(3))
    permutations = PermutationTask(degree=4, n_symbols=7)
    listed, answers = TASK.enumerate(2, "train"), permutations.answer(TASK.enumerate(2, "train"))
    with torch.device("meta"):
        batch = TASK.batch(6, 1, 4, make_generator(3))
        assert torch.equal(batch.token_ids, expected.token_ids)
        assert torch.equal(TASK.enumerate(2, "train"), listed)
        assert torch.equal(permutations.answer(listed), answers)


def test_a_model_of_another_task_does_not_fit():
    TASK.check_fit(ModelConfig(), 1022)
    for task, config, n, named in (
        (ChainTask(modulus=5, n_symbols=5), ModelConfig(), 5, "pad_token_id=9 does not fit: the task pads with 7"),
        (ChainTask(n_symbols=8), ModelConfig(), 5, "vocab_size=10 is too small"),
        (TASK, ModelConfig(), 1023, "n_digits=1023 is too long"),
    ):
        with pytest.raises(ValueError, match=named):
            task.check_fit(config, n)


@pytest.mark.parametrize("make", [ChainTask, PermutationTask])
@pytest.mark.parametrize("value", [2, "no", None])
def test_a_start_token_is_there_or_not(make, value):
    with pytest.raises(ValueError, match=r"start_token=.* True or False"):
        make(start_token=value)
