"""Configurations: what is rejected and how, what survives a round trip, and the loop count a distance needs."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mythos_lite import ModelConfig, RecurrentDepthTransformer, TrainConfig, recipe
from mythos_lite.checks import check_choice, check_int, check_ints, check_number
from mythos_lite.training.recipes import RECIPES, published_model

MLA_FIELDS = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
MLA = {"attention": "mla", "n_kv_heads": None, **dict.fromkeys(MLA_FIELDS, 4)}
EXPERTS = {"n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 1, "d_expert": 8}
EXPERT_FIELDS = ("n_experts_per_token", "n_shared_experts", "d_expert")

NOT_NUMBERS = (True, False, "2", math.nan, None, [1])
NOT_WHOLE = (True, False, 2.0, "2", math.nan, [1])

MODEL_INTS = {  # field: (its smallest value, what must be set so that it is read)
    **dict.fromkeys(("vocab_size", "max_seq_len", "d_model", "n_heads", "d_ff", "n_core_layers", "n_loops"), (1, {})),
    **dict.fromkeys(("n_prelude_layers", "n_coda_layers", "depth_lora_rank", "n_experts"), (0, {})),
    **dict.fromkeys(("output_size", "window", "n_kv_heads"), (1, {})),
    "pad_token_id": (0, {}),
    **dict.fromkeys(MLA_FIELDS, (1, MLA)),
    "n_experts_per_token": (1, EXPERTS),
    "n_shared_experts": (0, EXPERTS),
    "d_expert": (1, EXPERTS),
}
TRAIN_INTS = {
    **dict.fromkeys(("steps", "batch_size", "min_digits", "max_digits", "min_loops", "max_loops"), 1),
    **dict.fromkeys(("log_every", "checkpoint_every", "n_train_chains"), 1),
    **dict.fromkeys(("warmup_steps", "seed"), 0),
}
NULLABLE = ("output_size", "pad_token_id", "window", "n_train_chains", "initializer_range")


def rejection(make, **changes) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        make(**changes)
    return str(caught.value)


def assert_names(message: str, field: str, value: object) -> None:
    """The message opens with the field and its value, and says what would be right."""
    opening = f"{field}={value!r} is not possible: "
    assert message.startswith(opening)
    assert len(message) > len(opening) + 10


# ---------------------------------------------------------------- rejections


@pytest.mark.parametrize("make", [ModelConfig, TrainConfig])
def test_no_field_takes_just_anything(make):
    for field in dataclasses.fields(make):
        anything = object()
        assert_names(rejection(make, **{field.name: anything}), field.name, anything)


@pytest.mark.parametrize("field", MODEL_INTS)
def test_model_whole_numbers_are_checked(field):
    low, context = MODEL_INTS[field]
    for value in (low - 1, *NOT_WHOLE, *(() if field in NULLABLE else (None,))):
        assert_names(rejection(ModelConfig, **{**context, field: value}), field, value)


@pytest.mark.parametrize("field", TRAIN_INTS)
def test_train_whole_numbers_are_checked(field):
    for value in (TRAIN_INTS[field] - 1, *NOT_WHOLE, *(() if field in NULLABLE else (None,))):
        assert_names(rejection(TrainConfig, **{field: value}), field, value)


@pytest.mark.parametrize(
    ("make", "field", "out_of_range"),
    [
        (ModelConfig, "rope_theta", (1.0, 0.5, -10.0, math.inf)),
        (ModelConfig, "act_threshold", (0.0, -0.1, 1.0001, math.inf)),
        (ModelConfig, "initializer_range", (0.0, -0.1, math.inf)),
        (TrainConfig, "lr", (0.0, -1e-3, math.inf)),
        (TrainConfig, "clip_norm", (0.0, -1.0, math.inf)),
        (TrainConfig, "eps", (0, 0.0, 1e-13, -1e-9, math.inf)),
        (TrainConfig, "weight_decay", (-1e-9, math.inf)),
        (TrainConfig, "ponder_cost", (-1e-9, -math.inf)),
        (TrainConfig, "router_bias_rate", (-1e-9, math.inf)),
        (TrainConfig, "beta1", (-0.1, 1.0, 1.5)),
        (TrainConfig, "beta2", (-0.1, 1.0, math.inf)),
        (TrainConfig, "ema_decay", (-0.1, 1.0, 2)),
    ],
)
def test_numbers_are_checked(make, field, out_of_range):
    for value in (*out_of_range, *(value for value in NOT_NUMBERS if value is not None or field not in NULLABLE)):
        assert_names(rejection(make, **{field: value}), field, value)


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["+", "-"])
def test_whole_numbers_beyond_every_float_are_rejected(value):
    assert_names(rejection(ModelConfig, rope_theta=value), "rope_theta", value)


@pytest.mark.parametrize(
    ("make", "field", "choices"),
    [
        (ModelConfig, "attention", ("gqa", "mla")),
        (ModelConfig, "injection", ("lti", "additive", "none")),
        (ModelConfig, "state_activation", ("tanh", "none")),
        (ModelConfig, "halting", ("none", "act")),
        (TrainConfig, "loss", ("last", "from_needed", "from_length")),
    ],
)
def test_choices_are_checked_and_listed(make, field, choices):
    for value in ("", "LTI", None, 1, ["lti"], True):
        message = rejection(make, **{field: value})
        assert_names(message, field, value)
        assert all(repr(choice) in message for choice in choices)


@pytest.mark.parametrize(
    ("changes", "field", "mentions"),
    [
        ({"pad_token_id": 10}, "pad_token_id", "9"),
        ({"vocab_size": 5}, "pad_token_id", "4"),
        ({"output_size": 11}, "output_size", "vocab_size=10"),
        ({"loop_index_embedding": 1}, "loop_index_embedding", "True or False"),
        ({"loop_index_embedding": None}, "loop_index_embedding", "True or False"),
        ({"loop_index_embedding": True, "d_model": 8}, "d_model", "16"),
        *(({"dilated": value}, "dilated", "True or False") for value in (1, 0, "yes", None)),
        *(({"dilated": True, "window": value}, "dilated", "window of 2 or more") for value in (1, None)),
        ({"dilated": True, **EXPERTS}, "dilated", "dense core"),
        ({"dilated": True, "window": 1, **EXPERTS}, "dilated", "pass False"),
        ({"n_heads": 5}, "n_heads", "d_model=64"),
        ({"d_model": 12}, "d_model", "even"),
        ({"n_kv_heads": 3}, "n_kv_heads", "n_heads=4"),
        ({"n_kv_heads": 8}, "n_kv_heads", "4"),
        ({"n_kv_heads": None}, "n_kv_heads", "4"),
        ({**MLA, "n_kv_heads": 2}, "n_kv_heads", "None"),
        ({**MLA, "qk_rope_head_dim": 5}, "qk_rope_head_dim", "even"),
        *(({**MLA, field: None}, field, "1 or more") for field in MLA_FIELDS),
        *(({field: 8}, field, "mla") for field in MLA_FIELDS),
        *(({field: value}, field, "n_experts") for field in EXPERT_FIELDS for value in (1, True, False, 0.0, None)),
        ({**EXPERTS, "n_experts": 1, "n_experts_per_token": 1}, "n_experts", "2"),
        ({**EXPERTS, "n_experts_per_token": 5}, "n_experts_per_token", "4"),
    ],
)
def test_model_fields_that_do_not_go_together_are_rejected(changes, field, mentions):
    message = rejection(ModelConfig, **changes)
    assert_names(message, field, {**ModelConfig().to_dict(), **changes}[field])
    assert mentions in message


@pytest.mark.parametrize(
    ("changes", "field", "mentions"),
    [
        ({"min_digits": 4, "max_digits": 3}, "max_digits", "4"),
        ({"min_loops": 5}, "max_loops", "5"),
        ({"seed": 2**32}, "seed", str(2**32 - 1)),
    ],
)
def test_train_fields_that_do_not_go_together_are_rejected(changes, field, mentions):
    message = rejection(TrainConfig, **changes)
    assert_names(message, field, {**TrainConfig().to_dict(), **changes}[field])
    assert mentions in message


NUMPY = {"steps": np.int64(7), "batch_size": np.uint8(9), "lr": np.float32(0.5), "clip_norm": np.float64(2)}


def test_numbers_of_numpy_and_torch_are_taken_as_pythons_own():
    train = TrainConfig(**NUMPY, seed=np.int64(1), max_loops=torch.tensor(4))
    assert (train.steps, train.batch_size, train.lr, train.clip_norm, train.seed) == (7, 9, 0.5, 2.0, 1)
    assert {type(value) for value in train.to_dict().values() if value is not None} == {int, float, str}
    assert TrainConfig.from_dict(json.loads(json.dumps(train.to_dict()))) == train
    model = ModelConfig(d_model=np.int32(32), loop_index_embedding=np.bool_(True), window=torch.tensor(3))
    assert model == ModelConfig(d_model=32, loop_index_embedding=True, window=3)
    assert hash(model) == hash(ModelConfig(d_model=32, loop_index_embedding=True, window=3))
    assert model.loops_needed(np.int64(9)) == model.loops_needed(9)
    for value in (np.bool_(True), np.float64(2.0), np.int64(0), np.array([1])):
        assert rejection(TrainConfig, steps=value).startswith("steps=")
    assert rejection(TrainConfig, lr=np.float32("nan")).startswith("lr=")


def test_numbers_that_overflow_before_anything_is_learned_are_rejected():
    for make, field, value in (
        (ModelConfig, "initializer_range", 1e300), (ModelConfig, "rope_theta", 1e308),
        (TrainConfig, "router_bias_rate", 1e308), (TrainConfig, "lr", 1e300), (TrainConfig, "weight_decay", 1e300),
    ):  # fmt: skip
        assert_names(rejection(make, **{field: value}), field, value)


@pytest.mark.parametrize("values", [[1, 2], (1, 2), range(1, 3), np.array([1, 2]), torch.tensor([1, 2]), {1: 0, 2: 0}])
def test_whole_numbers_in_a_row_may_come_in_any_row(values):
    assert check_ints("n", values, 1) == check_ints("n", iter(values), 1) == [1, 2]


@pytest.mark.parametrize(
    "values",
    [[], iter(()), np.array([]), "12", b"12", 3, np.array(3), torch.tensor(3), None, [0], [1.0], ["1"], [True]],
)
def test_what_is_no_row_of_whole_numbers_is_rejected(values):
    with pytest.raises(ValueError, match=r"^n=.* is not possible: n must"):
        check_ints("n", values, 1)


def test_checks_name_the_argument_they_are_given():
    assert_names(rejection(check_int, field="n_x", value=7, low=1, high=6), "n_x", 7)
    assert_names(rejection(check_number, field="x", value=2.5, low=0.0, high=2.0), "x", 2.5)
    assert_names(rejection(check_choice, field="x", value="c", choices=("a", "b")), "x", "c")


# ---------------------------------------------------------------- what is accepted


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 1, "pad_token_id": 0},
        {"pad_token_id": None, "window": None},
        {"window": 1, "n_prelude_layers": 0, "n_coda_layers": 0, "n_loops": 1},
        {"act_threshold": 1.0, "halting": "act"},
        {"act_threshold": 1, "rope_theta": 2},
        {"initializer_range": 0.02},
        {"d_model": 16, "loop_index_embedding": True},
        {"dilated": True, "window": 1000, "injection": "none"},
        {"dilated": True, "halting": "act", "n_prelude_layers": 0, "n_coda_layers": 0},
        {"n_heads": 32, "n_kv_heads": 32},
        {**MLA, "n_heads": 5},
        {**EXPERTS, "n_experts_per_token": 4, "n_shared_experts": 0},
    ],
)
def test_extreme_but_possible_models_are_accepted_and_run(changes):
    model = RecurrentDepthTransformer(ModelConfig(**changes))
    assert torch.isfinite(model(torch.zeros(1, 3, dtype=torch.long), n_loops=1).logits).all()


@pytest.mark.parametrize("make", [ModelConfig, TrainConfig])
def test_configurations_are_frozen_and_keyword_only(make):
    config = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 3)
    with pytest.raises(TypeError):
        make(10)
    assert hash(config) == hash(make())


@st.composite
def model_configs(draw) -> ModelConfig:
    n_heads = draw(st.integers(1, 4))
    vocab_size = draw(st.integers(1, 12))
    small, some = st.integers(1, 6), st.integers(0, 2)
    if draw(st.booleans()):
        kv_heads = [k for k in range(1, n_heads + 1) if n_heads % k == 0]
        attention = {"d_model": n_heads * 2 * draw(st.integers(1, 5)), "n_kv_heads": draw(st.sampled_from(kv_heads))}
    else:
        ranks = {field: draw(small) for field in MLA_FIELDS}
        ranks["qk_rope_head_dim"] *= 2
        attention = {**MLA, "d_model": draw(st.integers(1, 40)), **ranks}
    n_experts = draw(st.integers(2, 5))
    chosen = {"n_experts": st.just(n_experts), "n_experts_per_token": st.integers(1, n_experts)}
    experts = draw(st.just({}) | st.fixed_dictionaries({**chosen, "n_shared_experts": some, "d_expert": small}))
    window = draw(st.none() | small)
    can_be_dilated = window is not None and window > 1 and not experts
    return ModelConfig(
        **attention, **experts, n_heads=n_heads, vocab_size=vocab_size, max_seq_len=draw(st.integers(4, 99)),
        pad_token_id=draw(st.none() | st.integers(0, vocab_size - 1)), window=window,
        dilated=can_be_dilated and draw(st.booleans()),
        rope_theta=draw(st.floats(1.5, 1e6)), d_ff=draw(small), n_loops=draw(small),
        n_prelude_layers=draw(some), n_core_layers=draw(st.integers(1, 2)), n_coda_layers=draw(some),
        injection=draw(st.sampled_from(["lti", "additive", "none"])),
        state_activation=draw(st.sampled_from(["tanh", "none"])),
        loop_index_embedding=attention["d_model"] >= 16 and draw(st.booleans()), depth_lora_rank=draw(some),
        halting=draw(st.sampled_from(["none", "act"])), act_threshold=draw(st.floats(0.01, 1.0)),
    )  # fmt: skip


@st.composite
def train_configs(draw) -> TrainConfig:
    count, share = st.integers(1, 10**9), st.floats(0.0, 1.0, exclude_max=True)
    digits, loops = sorted([draw(count), draw(count)]), sorted([draw(count), draw(count)])
    return TrainConfig(
        steps=draw(count), batch_size=draw(count), n_train_chains=draw(st.none() | count),
        min_digits=digits[0], max_digits=digits[1], min_loops=loops[0], max_loops=loops[1],
        loss=draw(st.sampled_from(["last", "from_needed", "from_length"])), ponder_cost=draw(st.floats(0.0, 1e3)),
        lr=draw(st.floats(1e-9, 1e3)), warmup_steps=draw(st.integers(0, 10**6)), weight_decay=draw(share),
        beta1=draw(share), beta2=draw(share), clip_norm=draw(st.floats(1e-9, 1e9)), ema_decay=draw(share),
        router_bias_rate=draw(st.floats(0.0, 1.0)), eps=draw(st.floats(1e-12, 1.0)),
        seed=draw(st.integers(0, 2**32 - 1)),
        log_every=draw(count), checkpoint_every=draw(count),
    )  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(model_configs() | train_configs())
def test_round_trip_through_json_gives_the_same_configuration(config):
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@settings(max_examples=30, deadline=None)
@given(model_configs())
def test_every_accepted_model_runs(config):
    model = RecurrentDepthTransformer(config)
    out = model(torch.arange(4).unsqueeze(0) % config.vocab_size)
    assert out.logits.shape == (1, 4, config.vocab_size)
    assert out.n_loops == config.n_loops
    assert torch.isfinite(out.logits).all()


@settings(max_examples=40, deadline=None)
@given(model_configs())
def test_a_model_can_be_dilated_exactly_if_its_window_is_wide_and_its_core_dense(config):
    if config.window is not None and config.window > 1 and config.n_experts == 0:
        assert dataclasses.replace(config, dilated=True).dilated
    else:
        message = rejection(ModelConfig.from_dict, values={**config.to_dict(), "dilated": True})
        assert_names(message, "dilated", True)


ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([ModelConfig, TrainConfig]), st.data(), ANYTHING)
def test_any_value_in_any_field_is_kept_or_rejected(make, data, value):
    field = data.draw(st.sampled_from([f.name for f in dataclasses.fields(make)]))
    try:
        config = make.from_dict({**make().to_dict(), field: value})
    except ValueError:
        return
    assert getattr(config, field) == value


@example("n_layers")
@settings(max_examples=20, deadline=None)
@given(st.text(max_size=8).filter(lambda name: not hasattr(ModelConfig, name) and not hasattr(TrainConfig, name)))
def test_unknown_fields_are_rejected_by_name(name):
    for make in (ModelConfig, TrainConfig):
        message = rejection(make.from_dict, values={**make().to_dict(), name: 1})
        assert make.__name__ in message
        assert repr(name) in message


@pytest.mark.parametrize("make", [ModelConfig, TrainConfig])
def test_missing_fields_take_their_defaults(make):
    """What was stored before a field was added is still a configuration."""
    assert make.from_dict({}) == make()
    for field in dataclasses.fields(make):
        values = make().to_dict()
        del values[field.name]
        assert make.from_dict(values) == make()


def test_missing_fields_without_a_default_are_rejected_by_name():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Sized(TrainConfig):
        size: int
        names: list = dataclasses.field(default_factory=list)

    assert Sized.from_dict({"size": 3}) == Sized(size=3)
    message = rejection(Sized.from_dict, values=TrainConfig().to_dict())
    assert "Sized" in message
    assert "'size'" in message


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize(("attention", "count"), [("mla", 370_306), ("gqa", 437_698)])
def test_published_models_have_the_published_number_of_parameters(attention, count):
    model = RecurrentDepthTransformer(published_model(attention))
    assert model.n_parameters() == sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_published_model_is_the_published_one_field_by_field(attention):
    expected = {
        "vocab_size": 64, "output_size": None, "max_seq_len": 32, "pad_token_id": 9,
        "d_model": 128, "n_heads": 4, "attention": attention, "window": None, "dilated": False, "rope_theta": 500_000.0,
        "n_kv_heads": 2 if attention == "gqa" else None,
        **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 32 if attention == "mla" else None),
        **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16 if attention == "mla" else None),
        "d_ff": 170, "n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 2, "d_expert": 64,
        "n_prelude_layers": 1, "n_core_layers": 1, "n_coda_layers": 1, "n_loops": 8,
        "injection": "additive", "state_activation": "none", "loop_index_embedding": True, "depth_lora_rank": 8,
        "halting": "act", "act_threshold": 0.99, "initializer_range": 0.02,
    }  # fmt: skip
    found = published_model(attention).to_dict()
    assert found.keys() == expected.keys()
    assert [field for field in expected if found[field] != expected[field]] == []


def test_the_state_is_bounded_unless_a_model_says_otherwise():
    assert ModelConfig().state_activation == "tanh"


def test_published_model_rejects_other_attentions():
    assert_names(rejection(published_model, attention="mha"), "attention", "mha")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_differ_between_seeds_in_the_seed_alone(name):
    model, train = recipe(name)
    again, other = recipe(name, 7)
    assert train.seed == 0
    assert other.seed == 7
    assert model == again
    assert train == dataclasses.replace(other, seed=0)
    assert ModelConfig.from_dict(model.to_dict()) == model
    assert TrainConfig.from_dict(train.to_dict()) == train


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_reject_impossible_seeds(name):
    assert_names(rejection(recipe, name=name, seed=-1), "seed", -1)


def test_unknown_recipes_are_rejected_with_the_known_ones():
    message = rejection(recipe, name="fixd")
    assert_names(message, "recipe", "fixd")
    assert all(repr(name) in message for name in RECIPES)


# ---------------------------------------------------------------- loops_needed


def reached(config: ModelConfig, n_loops: int, length: int) -> torch.Tensor:
    """(L, T) bool: after which loops the logits at which positions depend on the first token."""
    torch.manual_seed(0)
    model = RecurrentDepthTransformer(config).double()
    with torch.no_grad():
        for name, p in model.named_parameters():  # flat and strong attention: what is far away does not round away
            if p.ndim > 1:
                p.normal_(std=0.1 if "query" in name else 0.5)
        tokens = torch.randint(1, config.vocab_size, (1, length))
        other = tokens.clone()
        other[0, 0] = 0
        logits = [model(ids, n_loops=n_loops, trace=True).trace.logits for ids in (tokens, other)]
    return (logits[0] != logits[1]).any(-1).squeeze(1)


@pytest.mark.parametrize("window", [1, 2, 3, 4, None])
@pytest.mark.parametrize(
    ("n_prelude", "n_core", "n_coda"), [(1, 1, 1), (0, 1, 0), (2, 1, 0), (0, 1, 2), (1, 2, 0), (0, 3, 1)]
)
@pytest.mark.parametrize("parts", [{}, {**MLA, "injection": "additive"}], ids=["gqa lti", "mla additive"])
def test_loops_needed_is_when_a_distant_token_first_matters(window, n_prelude, n_core, n_coda, parts):
    config = ModelConfig(
        d_model=16, n_heads=2, d_ff=8, window=window,
        n_prelude_layers=n_prelude, n_core_layers=n_core, n_coda_layers=n_coda,
        state_activation="none",  # through a tanh the smallest influences would round to nothing
        **{"n_kv_heads": 2, **parts},
    )  # fmt: skip
    n_loops, length = 8, 9
    found = reached(config, n_loops, length)
    for distance in range(length):
        if window == 1 and distance:
            assert not found[:, distance].any()
            assert_names(rejection(config.loops_needed, distance=distance), "window", 1)
            continue
        needed = config.loops_needed(distance)
        assert found[:, distance].tolist() == [loop >= needed for loop in range(1, n_loops + 1)]


@pytest.mark.parametrize("window", [2, 3, 5])
@pytest.mark.parametrize(
    ("n_prelude", "n_core", "n_coda"), [(1, 1, 1), (0, 1, 0), (2, 1, 0), (0, 1, 2), (1, 2, 0), (0, 3, 1)]
)
def test_loops_needed_of_a_dilated_window_is_the_first_at_which_steps_add_up_to_the_distance(
    window, n_prelude, n_core, n_coda
):
    config = ModelConfig(
        window=window, dilated=True, n_prelude_layers=n_prelude, n_core_layers=n_core, n_coda_layers=n_coda
    )
    longest = 200

    def moved(distances: set[int], apart: int, n_layers: int) -> set[int]:
        for _ in range(n_layers):
            distances = {d + k * apart for d in distances for k in range(window) if d + k * apart <= longest}
        return distances

    reached = moved({0}, 1, n_prelude)
    needed = {}
    for loop in range(1, 10):
        reached = moved(reached, window ** (loop - 1), n_core)
        for distance in moved(reached, 1, n_coda):
            needed.setdefault(distance, loop)
    assert [config.loops_needed(distance) for distance in range(longest + 1)] == [
        needed[distance] for distance in range(longest + 1)
    ]


def test_a_dilated_window_of_two_and_no_more_needs_the_logarithm():
    config = ModelConfig(dilated=True, n_prelude_layers=0, n_coda_layers=0)
    for n in (1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 1023, 1024):
        assert config.loops_needed(n) == math.ceil(math.log2(n + 1))
    assert config.loops_needed(0) == 1
    assert config.loops_needed(2**100 - 1) == 100


@pytest.mark.parametrize("distance", [-1, 1.5, True, "2", None])
def test_loops_needed_rejects_impossible_distances(distance):
    assert_names(rejection(ModelConfig().loops_needed, distance=distance), "distance", distance)
