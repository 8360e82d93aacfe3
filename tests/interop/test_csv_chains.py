"""Files of chains and answers: what is read, and what is refused with its line."""

import itertools
import re

import pytest
import torch

from mythos_lite.interop.csv_chains import FEWEST_CHAINS, encode_chains, read_chains, split_chains, take
from mythos_lite.task.chains import ChainTask

CHAINS = {chain: sum(chain) % 5 for chain in itertools.product(range(7), repeat=3)}
ROWS = [f"{''.join(map(str, chain))},{answer}" for chain, answer in CHAINS.items()]


def write(path, *rows, header="chain,answer", end="\n", mark=""):
    path.write_bytes((mark + end.join([header, *rows]) + end).encode())
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "my.csv"


def read(path, n_symbols=7, most_digits=16):
    return read_chains(path, n_symbols, most_digits)


# ---------------------------------------------------------------- what is read


def test_chains_and_answers_are_read_in_their_order(path):
    found = read(write(path, *ROWS))
    assert found == CHAINS
    assert list(found) == list(CHAINS)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(end, mark, path):
    rows = [text for row in ROWS for text in (row, "", "  ", ",")]
    assert read(write(path, "", *rows, header=f"{end}chain , answer", end=end, mark=mark)) == CHAINS


def test_digits_may_stand_apart_and_cells_in_quotes(path):
    rows = [f'" {" ".join(map(str, chain))} ", "{answer}"' for chain, answer in CHAINS.items()]
    assert read(write(path, *(row.replace(', "', ',"') for row in rows))) == CHAINS
    assert read(write(path, *(f"{c[0]} {c[1]}{c[2]},{answer}" for c, answer in CHAINS.items()))) == CHAINS


def test_more_than_ten_digits_need_blanks_between_them(path):
    chains = {chain: sum(chain) % 12 for chain in itertools.product(range(12), repeat=2)}
    rows = [f"{a} {b},{answer}" for (a, b), answer in chains.items()]
    assert read(write(path, *rows), n_symbols=12) == chains


def test_a_row_that_is_there_twice_counts_once(path):
    assert read(write(path, *ROWS, *ROWS, "0 0 1,1")) == CHAINS
    with pytest.raises(ValueError, match=f"has {FEWEST_CHAINS - 1} different chains"):
        read(write(path, *ROWS[: FEWEST_CHAINS - 1], *ROWS[:50]))


# ---------------------------------------------------------------- what is refused

FLAWS = {
    "317,3": "the chain holds '7', which is none of the digits 0 to 6",
    "3 -1,2": "the chain holds '-', which",
    "3²,2": "the chain holds '²', which",
    "3 ٣,2": "the chain holds '٣', which",
    "3.5,1": "the chain holds '.', which",
    "351,7": "the answer holds '7', which is none of the digits 0 to 6",
    "351,": "the answer holds '', which",
    "351,four": "the answer holds 'four', which",
    "351,04": "the answer holds '04', which",
    "351,4.0": "the answer holds '4.0', which",
    ",4": "the chain has 0 digits; 1 to 16 are accepted",
    "33333333333333333,2": "the chain has 17 digits; 1 to 16 are accepted",
    "351": "1 columns in place of 2",
    "3,5,1,4": "4 columns in place of 2",
    "001,2": "answer 2 where line 3 has 1",
}


@pytest.mark.parametrize("row", FLAWS)
def test_a_row_that_cannot_be_used_is_named_by_its_line(row, path):
    with pytest.raises(ValueError, match=r"my\.csv has rows that cannot be used:") as caught:
        read(write(path, *ROWS[:200], row, *ROWS[200:]))
    assert re.fullmatch(rf".*used:\n  line 202: {re.escape(FLAWS[row])}.*", str(caught.value))


def test_lines_are_counted_as_an_editor_counts_them(path):
    with pytest.raises(ValueError, match=r"\n  line 5: "):
        read(write(path, "", "351,4", "x,1", header="\nchain,answer"))
    with pytest.raises(ValueError, match=r"\n  line 2: .*\n  line 5: "):  # a row in quotes begins where it begins
        read(write(path, '"3\n5\n1",9', "x,1"))


@pytest.mark.parametrize(("count", "rest"), [(10, ""), (13, "\n  and 3 more")])
def test_ten_flaws_are_listed_and_the_others_counted(count, rest, path):
    with pytest.raises(ValueError, match="cannot be used") as caught:
        read(write(path, *ROWS, *["9,9"] * count))
    listed = re.findall(r"\n  line (\d+): ", str(caught.value))
    assert [int(line) for line in listed] == [len(ROWS) + 2 + i for i in range(10)]
    assert str(caught.value).endswith("to 6" + rest)


@pytest.mark.parametrize("header", ["answer,chain", "chain;answer", "351,4", "Chain,Answer", "chain,answer,note", "﷽"])
def test_another_header_is_named(header, path):
    with pytest.raises(ValueError, match=rf"begins with '{header}'; its first line must be 'chain,answer'"):
        read(write(path, *ROWS, header=header))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" ,\r\n"])
def test_an_empty_file_is_named_so(content, path):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"my\.csv is empty; its first line must be 'chain,answer'"):
        read(path)


@pytest.mark.parametrize(
    "content",
    ["chain,answer\n351,4\n".encode("utf-16"), b"PK\x03\x04\xff\xfe\x00", b'chain,answer\n"351,4\n', b"\xff\xd8\xff"],
)
def test_a_file_that_is_no_text_or_no_csv_is_refused(content, path):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"my\.csv is not a CSV file in UTF-8: "):
        read(path)


def test_a_file_that_cannot_be_read_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read(tmp_path / "none.csv")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


# ---------------------------------------------------------------- what is held out, and batches


def test_a_tenth_is_held_out_by_seed_and_no_chain_is_on_both_sides():
    trained_on, held_out = split_chains(CHAINS, 0)
    assert {**trained_on, **held_out} == CHAINS
    assert not trained_on.keys() & held_out.keys()
    assert len(held_out) == len(CHAINS) // 10
    assert split_chains(CHAINS, 0) == (trained_on, held_out)
    assert split_chains(CHAINS, 1)[1].keys() != held_out.keys()


def test_batches_hold_the_answers_of_the_file():
    task = ChainTask()
    batch = encode_chains(task, {(3, 5, 1, 6): 2, (4,): 6, (0, 2): 0})
    assert batch.token_ids.tolist() == [[7, 4, 8, 9, 9, 9], [7, 0, 2, 8, 9, 9], [7, 3, 5, 1, 6, 8]]
    assert batch.answers.tolist() == [6, 0, 2]
    assert (batch.n_digits.tolist(), batch.answer_positions.tolist()) == ([1, 2, 4], [2, 3, 5])
    part = take(batch, torch.tensor([1, 0, 1]))
    assert part.token_ids.tolist() == [[7, 0, 2, 8], [7, 4, 8, 9], [7, 0, 2, 8]]
    assert part.answers.tolist() == [0, 6, 0]
