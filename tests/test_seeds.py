"""What a seed may be, the numbers that it gives, and how one seed gives others."""

from __future__ import annotations

import enum
import os
import random
import re
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from scoped_rng import deterministic, fixed_seed, fold_in, isolated
from tests import kit

SEEDS = (0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
MAKERS = {"deterministic": deterministic, "isolated": isolated, "fixed_seed": fixed_seed}

seeds = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from(SEEDS))
elements = st.one_of(st.integers(), st.text(st.characters(), max_size=8))
paths = st.lists(elements, max_size=4).map(tuple)


class Index:
    """Something that counts as an integer, and does nothing else."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __index__(self) -> Any:
        return self.value

    def __repr__(self) -> str:
        return f"Index({self.value})"


class Colour(enum.IntEnum):
    RED = 5


WRONG_TYPES = [
    (True, "got bool True; give a whole number, such as 0"),
    (False, "got bool False; give a whole number, such as 0"),
    (np.bool_(True), f"got {type(np.bool_(True)).__name__} {np.bool_(True)!r}; give a whole number, such as 0"),
    (torch.tensor(True), "got Tensor tensor(True); give a whole number, such as 0"),
    (1.0, "got float 1.0; give a whole number, such as 0"),
    (float("nan"), "got float nan; give a whole number, such as 0"),
    (np.float64(3), f"got float64 {np.float64(3)!r}; give a whole number, such as 0"),
    (torch.tensor(1.5), "got Tensor tensor(1.5000); give a whole number, such as 0"),
    (torch.tensor([1, 2]), "got Tensor tensor([1, 2]); give a whole number, such as 0"),
    (np.array([3]), "got ndarray array([3]); give a whole number, such as 0"),
    (Fraction(2), "got Fraction Fraction(2, 1); give a whole number, such as 0"),
    (b"0", "got bytes b'0'; give a whole number, such as 0"),
    ([0], "got list [0]; give a whole number, such as 0"),
    ("zero", "got str 'zero'; derive one from the name: fold_in(0, 'zero')"),
    ("7", "got str '7'; derive one from the name: fold_in(0, '7')"),
    (None, "got NoneType None; give a number, or use isolated() for a scope that does not seed"),
]
OUT_OF_RANGE = [-1, -(2**70), 2**64, np.int64(-1), Index(-1), Index(2**64), torch.tensor(-1)]


# What a seed may be


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    "seed",
    [
        5,
        np.int64(5),
        np.uint64(5),
        np.uint8(5),
        np.array(5),
        torch.tensor(5),
        torch.tensor(5, dtype=torch.uint8),
        torch.tensor(5, dtype=torch.int32),
        Index(5),
        Colour.RED,
    ],
    ids=repr,
)
def test_whatever_counts_as_an_integer_is_a_seed(make: Any, seed: Any) -> None:
    scope = make(seed)
    assert type(scope.seed) is int
    with scope:
        assert kit.draws() == kit.reference(5)[0]


@pytest.mark.parametrize("seed", [2**64 - 1, np.uint64(2**64 - 1), Index(2**64 - 1)], ids=repr)
def test_the_largest_seed_is_one_below_two_to_the_64_whatever_its_type(seed: Any) -> None:
    assert deterministic(seed).seed == 2**64 - 1


def test_a_tensor_can_hold_a_seed_that_is_too_large_for_its_own_index() -> None:
    child = torch.tensor(2**64 - 1, dtype=torch.uint64)
    with pytest.raises(RuntimeError, match="without overflow"):
        child.__index__()
    assert deterministic(child).seed == 2**64 - 1


def test_a_seed_that_can_be_called_is_a_seed_to_the_bare_decorator() -> None:
    class Callable(Index):
        def __call__(self) -> None:
            raise AssertionError("a seed is not called")

    assert fixed_seed(Callable(3)).seed == 3


def test_isolated_takes_none_for_no_seed() -> None:
    assert isolated().seed is None
    assert isolated(None).seed is None


def test_the_seed_of_the_bare_and_of_the_empty_decorator_is_zero() -> None:
    def numbers() -> tuple[float, ...]:
        return kit.draws()

    assert fixed_seed(numbers)() == fixed_seed()(numbers)() == kit.reference(0)[0]


@pytest.mark.parametrize(
    ("make", "seed", "told"),
    [
        pytest.param(make, seed, told, id=f"{name}-{seed!r}")
        for name, make in MAKERS.items()
        for seed, told in WRONG_TYPES
        if not (make is isolated and seed is None)
    ],
)
def test_what_is_no_integer_is_refused_when_the_scope_is_made(make: Any, seed: Any, told: str) -> None:
    before = kit.everything()
    with pytest.raises(TypeError, match=f"^{re.escape(f'a seed must be an int in [0, 2**64), {told}')}$"):
        make(seed)
    assert kit.everything() == before


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("seed", OUT_OF_RANGE, ids=repr)
def test_an_integer_out_of_range_is_refused_when_the_scope_is_made(make: Any, seed: Any) -> None:
    value = seed.__index__()
    text = f"a seed must be in [0, 2**64), got {value}; take it modulo 2**64 or derive one: fold_in(0, {value})"
    before = kit.everything()
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        make(seed)
    assert kit.everything() == before


def test_the_hints_of_the_messages_work() -> None:
    assert 0 <= fold_in(0, "zero") < 2**64
    assert 0 <= fold_in(0, -1) < 2**64
    assert 0 <= fold_in(0, 2**64) < 2**64


@pytest.mark.parametrize("strict", [1, 0, None, "yes", np.bool_(True)], ids=repr)
def test_strict_is_a_bool_and_nothing_like_one(strict: Any) -> None:
    text = f"strict= is True or False, got {type(strict).__name__} {strict!r}"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        deterministic(0, strict=strict)
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        fixed_seed(0, strict=strict)


def test_making_a_scope_changes_nothing() -> None:
    before = kit.everything()
    deterministic(3, strict=True)
    isolated(3)
    fixed_seed(3, strict=True)(kit.draws)
    assert kit.everything() == before


# The numbers that a seed gives


@pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_deterministic_gives_the_numbers_of_the_three_seed_calls(seed: int, form: Any) -> None:
    numbers = form(deterministic(seed), lambda: [kit.draws() for _ in range(3)])
    assert numbers == kit.reference(seed, 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_isolated_with_a_seed_gives_the_numbers_of_the_three_seed_calls(seed: int) -> None:
    with isolated(seed):
        assert [kit.draws() for _ in range(3)] == kit.reference(seed, 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_torch_tells_the_seed_inside_and_its_own_outside(seed: int) -> None:
    torch.manual_seed(77)
    with deterministic(seed):
        assert torch.initial_seed() == seed
    assert torch.initial_seed() == 77


@pytest.mark.parametrize("seed", [2**32, 2**32 + 5, 2**63, 2**64 - 1])
def test_numpy_gets_both_words_of_a_large_seed_the_low_one_first(seed: int) -> None:
    with deterministic(seed):
        assert np.random.random_sample() == np.random.RandomState([seed % 2**32, seed // 2**32, 1]).random_sample()


def test_large_seeds_do_not_collide_in_numpy_nor_in_python() -> None:
    several = (0, 2**32 - 1, 2**32, 2**33, 2**63, 2**64 - 1)
    drawn = []
    for seed in several:
        with deterministic(seed):
            drawn.append((random.random(), np.random.random_sample()))
    assert len({python for python, _ in drawn}) == len(several)
    assert len({numpy for _, numpy in drawn}) == len(several)


def test_torch_uses_the_low_32_bits_of_a_seed_as_under_its_own_manual_seed() -> None:
    with deterministic(5):
        low = torch.rand(3)
    with deterministic(2**32 + 5):
        assert torch.equal(torch.rand(3), low)


def test_gaussians_that_were_cached_before_do_not_show_inside() -> None:
    kit.draws()  # leaves one of each behind
    with deterministic(3):
        assert kit.draw("python gaussian") == random.Random(3).gauss(0, 1)
        assert kit.draw("numpy gaussian") == np.random.RandomState(3).standard_normal()
        expected = torch.randn((), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        assert kit.draw("torch gaussian") == float(expected)


@given(seeds)
@example(2**32)
def test_any_seed_gives_the_numbers_of_the_three_seed_calls_and_leaves_no_trace(seed: int) -> None:
    before = kit.continuation(1)
    for scope in (deterministic(seed), isolated(seed)):
        with scope:
            assert kit.draws() == kit.reference(seed)[0]
    assert kit.continuation(1) == before


# fold_in


GOLDEN = [
    ((0,), 13481771980935679850),
    ((0, "dropout", 3), 11677103923939262369),
    ((0, 1, 2), 14604258385342465794),
    ((0, 12), 13620580461857588692),
    ((2**64 - 1, "also", 0), 958510677378186800),
    ((7, "stream", "dice"), 11889368248582930141),
    ((0, -1, 2**70), 10918960736184404783),
    ((0, "é", ""), 2291908394850543957),
]


@pytest.mark.parametrize(("arguments", "child"), GOLDEN, ids=[repr(arguments) for arguments, _ in GOLDEN])
def test_a_child_seed_is_the_same_for_ever(arguments: Any, child: int) -> None:
    assert fold_in(*arguments) == child


def test_a_child_seed_is_the_same_in_every_process() -> None:
    program = (
        "import sys\n"
        "from scoped_rng import fold_in\n"
        f"print([fold_in(*arguments) for arguments in {[arguments for arguments, _ in GOLDEN]!r}])\n"
        "print(hash('é'))\n"
    )
    told, path = [], os.pathsep.join(filter(None, sys.path))
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed, "PYTHONUTF8": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        )
        told.append(done.stdout.splitlines())
    assert told[0][0] == told[1][0] == repr([child for _, child in GOLDEN])
    assert told[0][1] != told[1][1]  # else the two processes prove nothing


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 2), (12,)),
        ((1, 2), (2, 1)),
        (("a", "b"), ("ab",)),
        (("ab", "c"), ("a", "bc")),
        (("a", ""), ("a",)),
        (("",), ()),
        ((0,), ()),
        ((0,), (0, 0)),
        ((1,), ("1",)),
        ((-1,), (1,)),
        ((-1,), (2**64 - 1,)),
        (("a", 1), ("a1",)),
        (("é",), ("e\u0301",)),
        (("s\x01",), ("s", "\x01")),
        (("a",), (97,)),
        (("\x00",), ("",)),
    ],
    ids=repr,
)
def test_paths_that_look_alike_give_different_children(one: Any, other: Any) -> None:
    assert fold_in(0, *one) != fold_in(0, *other)


def test_an_empty_path_is_another_seed_than_the_parent() -> None:
    assert fold_in(0) != 0
    assert fold_in(fold_in(0)) != fold_in(0)


def test_a_path_is_not_the_same_as_folding_in_twice() -> None:
    assert fold_in(fold_in(0, 1), 2) != fold_in(0, 1, 2)


@pytest.mark.parametrize("element", [np.int64(3), np.uint8(3), torch.tensor(3), Index(3), np.array(3)], ids=repr)
def test_an_element_counts_by_its_value_and_not_its_type(element: Any) -> None:
    assert fold_in(0, element) == fold_in(0, 3)
    assert fold_in(element, "a") == fold_in(3, "a")


@pytest.mark.parametrize(
    "element", [None, 1.0, True, np.bool_(True), torch.tensor(False), b"a", (1, 2), ["a"], {}], ids=repr
)
def test_an_element_of_another_kind_is_refused(element: Any) -> None:
    text = (
        f"fold_in takes ints and strings, got {type(element).__name__} {element!r}; "
        "turn it into one of them first, for instance with str()"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        fold_in(0, "a", element)


def test_the_parent_is_checked_as_a_seed() -> None:
    with pytest.raises(TypeError, match=re.escape("a seed must be an int in [0, 2**64), got bool True")):
        fold_in(True, "a")
    with pytest.raises(ValueError, match=re.escape("a seed must be in [0, 2**64), got -1; ")):
        fold_in(-1, "a")


def test_children_of_neighbouring_seeds_and_numbers_spread_over_the_whole_range() -> None:
    children = [fold_in(seed, number) for seed in range(64) for number in range(64)]
    assert len(set(children)) == 64 * 64
    for bit in range(64):  # each bit is a coin thrown 4096 times: 2048, and 7 standard deviations of 32
        assert abs(sum(child >> bit & 1 for child in children) - 2048) < 7 * 32


@given(seeds, paths)
def test_a_child_is_a_seed_and_always_the_same(seed: int, path: Any) -> None:
    child = fold_in(seed, *path)
    assert type(child) is int
    assert 0 <= child < 2**64
    assert fold_in(seed, *path) == child


@given(seeds, st.lists(paths, min_size=2, max_size=8, unique=True))
def test_different_paths_give_different_children(seed: int, several: Any) -> None:
    assert len({fold_in(seed, *path) for path in several}) == len(several)


@given(st.lists(seeds, min_size=2, max_size=8, unique=True), paths)
def test_different_parents_give_different_children(several: Any, path: Any) -> None:
    assert len({fold_in(seed, *path) for seed in several}) == len(several)


@given(st.text(st.characters(codec=None, categories=["Cs"]), min_size=1, max_size=3))
def test_lone_surrogates_can_be_folded_in(text: str) -> None:
    assert fold_in(0, text) != fold_in(0, text + "\ud800")


def test_a_decorator_without_its_brackets_is_told_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"with no seed to give, decorate with @fixed_seed or @isolated\(\)$"):

        @isolated  # type: ignore[arg-type]
        def drawing() -> None: ...


def test_a_meta_tensor_is_no_seed() -> None:
    with pytest.raises(TypeError, match=r"^a seed must be an int in \[0, 2\*\*64\), got Tensor"):
        deterministic(torch.tensor(1, device="meta"))


def test_what_fails_to_be_an_integer_in_its_own_way_is_no_seed() -> None:
    class Unready:
        def __index__(self) -> int:
            raise RuntimeError("not yet")

    with pytest.raises(TypeError, match=r"^a seed must be an int in \[0, 2\*\*64\), got Unready"):
        deterministic(Unready())


def test_a_number_of_any_length_can_be_folded_in() -> None:
    assert fold_in(0, 1 << 20000) != fold_in(0, 1 << 20001)


@pytest.mark.parametrize(("bits", "child"), [(2047, 11980593313590856899), (2048, 14416931064322472172)])
def test_the_child_of_a_number_where_decimals_end_is_the_same_for_ever(bits: int, child: int) -> None:
    assert fold_in(0, (1 << bits) - 1) == child
