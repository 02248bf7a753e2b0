"""A digest is the same where nothing differs, and another one wherever `first_difference` finds something."""

from __future__ import annotations

import copy
import enum
import random
import re
import subprocess
import sys
import threading
import types
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scoped_rng.compare import first_difference
from scoped_rng.distributed.digests import Digests


def digest(value: Any) -> bytes:
    return Digests().of(value, "it")


def rows(value: Any) -> dict[str, str]:
    digests = Digests()
    digests.of(value, "it")
    return {row.path: row.shown for row in digests.rows()}


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Thing:
    def __init__(self, value: Any) -> None:
        self.value = value


Pair = namedtuple("Pair", "x y")


def adder(step: int) -> Any:
    return lambda number: number + step


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.integers(10**5000, 10**5000 + 1)
    | st.sampled_from([0.0, -0.0, 1.0, float("nan"), 1j, "", "a", "b\ud800", b"", b"a"])
    | st.sampled_from([np.float32(1), np.int64(1), torch.float32, torch.int8, Colour.RED, Colour.BLUE, int, re])
    | st.sampled_from([(), (0,), (2,), (1, 2)]).map(torch.zeros)
    | st.sampled_from([torch.int32, torch.bfloat16, torch.complex128, torch.bool]).map(
        lambda it: torch.ones(2, dtype=it)
    )
    | st.sampled_from([np.zeros(2), np.zeros(2, np.float32), np.array(["a"]), np.array([1, "a"], object)])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["a", "b", 1, True, 1.0]), inner, max_size=3)
        | st.dictionaries(st.sampled_from("ab"), inner).map(OrderedDict)
        | st.frozensets(st.sampled_from(["a", "b", 1, 2.5]))
        | inner.map(Thing)
        | st.tuples(inner, inner).map(Pair._make)
    ),
    max_leaves=5,
)


@given(VALUES, VALUES)
def test_digests_are_equal_just_where_nothing_differs(first: Any, second: Any) -> None:
    assert (digest(first) == digest(second)) == (first_difference(first, second) is None)


@given(VALUES)
def test_a_copy_has_the_same_digest(value: Any) -> None:
    assert digest([value, value]) == digest([copy.deepcopy(value), value])


def test_a_digest_does_not_depend_on_the_process() -> None:
    code = "from tests.test_digests import digest, many; print(digest(many()).hex())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {digest(many()).hex()}


class Slotted:  # no __dict__, and so for copies the same key; its repr is an address
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Named:
    """A key by its name, whose repr is an address."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.friends = {self}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Named) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def friends() -> Named:
    """Return one of three, in whose sets the order depends on the hashes of texts."""
    every = [Named(name) for name in "abc"]
    for each in every:
        each.friends.update(every)
    every[2].friends.remove(every[1])
    return every[0]


def many() -> list[Any]:
    return [
        {"b", "a", "c"},
        {"x": {1: "y"}, "z": None},
        Thing(Pair(1, [2])),
        adder(3),
        torch.ones(2),
        nn.ReLU(),
        random,
        {adder(1): 1, adder(2): 2, digest: 3, len: 4, Thing: 5, Colour.RED: 6, [].append: 7},
        {adder(1), adder(2), Slotted(1), Slotted("b"), object(), re.compile("a")},
        {(Slotted(3), frozenset("abc")): 1, frozenset({"a", ("b", adder(3))}): 2},
        {Thing(1): 1, torch.ones(1): 2},
        types.SimpleNamespace(key={Named("a"): adder}),
        friends(),
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({adder(1): 0}, {adder(2): 0}),
        ({adder(1)}, {adder(2)}),
        ({adder(1)}, {adder(1), adder(2)}),
        ({Slotted(1): 0}, {Slotted(2): 0}),
        ({(Slotted(1), 0)}, {(Slotted(2), 0)}),
        ({10**5000: 0}, {10**5001: 0}),
        ({Thing(1): 0}, {Thing(2): 0}),
        ({re.compile("a")}, {re.compile("b")}),
    ],
)
def test_keys_and_items_are_digested_as_values_are(first: Any, second: Any) -> None:
    assert digest(first) == digest(copy.deepcopy(first))
    assert digest(first) != digest(second)


def test_a_key_that_cannot_be_read_is_refused_by_its_path() -> None:
    with pytest.raises(
        TypeError, match=re.escape("it[1][<unlocked _thread.lock object>] cannot be read: lock objects")
    ):
        digest([0, {threading.Lock(): 1}])


TRAINED = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it[0].weight.data.view(torch.int32)[1, 1].add_(1),
        lambda it: it[1].running_mean[2:].neg_(),
        lambda it: it[2].eval(),
        lambda it: setattr(it[2], "p", 0.25),
    ],
)
def test_a_model_with_one_thing_changed_has_another_digest(change: Any) -> None:
    changed = copy.deepcopy(TRAINED)
    assert digest(changed) == digest(TRAINED)
    change(changed)
    assert digest(changed) != digest(TRAINED)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (adder(1), adder(2)),
        (adder(1), lambda number: number - 1),
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
        (np.random.default_rng(1), np.random.default_rng(2)),
        (torch.zeros(2).to_sparse(), torch.ones(2).to_sparse()),
        (nn.parameter.UninitializedParameter(), nn.parameter.UninitializedParameter(dtype=torch.float64)),
        (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
        ({1: 0, 2: 0}, {1: 0, 2: 0, 3: 0}),
        (np.longdouble(1), np.longdouble(2)),
    ],
)
def test_other_values_have_other_digests(first: Any, second: Any) -> None:
    assert digest(first) == digest(first)
    assert digest(first) != digest(second)


def test_devices_do_not_count() -> None:
    assert digest(torch.device("cuda:0")) == digest(torch.device("cuda:1")) != digest(torch.device("cpu"))


def test_views_are_read_as_what_they_show() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert digest(matrix.t()) == digest(matrix.t().contiguous())
    assert digest(torch.tensor([1j]).conj()) == digest(torch.tensor([complex(0, -1)]))


def test_what_contains_itself_has_a_digest() -> None:
    def ring(value: int) -> list[Any]:
        inner: list[Any] = [value]
        outer: list[Any] = [inner, 1]
        inner.append(outer)
        return outer

    assert digest(ring(1)) == digest(ring(1)) != digest(ring(2))
    assert digest([ring(1), ring(1)]) == digest([ring(1)] * 2)
    assert digest(ring(1)) == digest([[1, ring(1)], 1])  # entered elsewhere


def test_the_order_of_dicts_that_lead_back_does_not_count() -> None:
    def family(names: str) -> dict[str, Any]:
        parent: dict[str, Any] = {}
        for name in names:
            parent[name] = {"name": name, "parent": parent}
        parent["a"]["other"], parent["b"]["other"] = parent["b"], parent["a"]
        return parent

    assert digest(family("ab")) == digest(family("ba"))


GRAPHS = st.lists(
    st.tuples(st.sampled_from([list, dict, Thing]), st.lists(st.integers(0, 4), max_size=2)), min_size=5, max_size=5
)


def built(graph: list[tuple[type, list[int]]]) -> list[Any]:
    """Return containers that hold each other, each as told of its number."""
    made = [kind([]) if kind is Thing else kind() for kind, _ in graph]
    for each, (_, inside) in zip(made, graph, strict=True):
        held = [made[number] for number in inside]
        if isinstance(each, list):
            each.extend(held)
        elif isinstance(each, dict):
            each.update(enumerate(held))
        else:
            each.value = held
    return made


@given(GRAPHS)
def test_digests_tell_whether_values_that_lead_back_differ(graph: list[tuple[type, list[int]]]) -> None:
    first, *others = built(graph)
    for other in [*others, copy.deepcopy(first), built(graph)[1]]:
        assert (digest(first) == digest(other)) == (first_difference(first, other) is None)


@given(GRAPHS)
def test_what_was_digested_before_does_not_count(graph: list[tuple[type, list[int]]]) -> None:
    digests = Digests()
    for each in built(graph):
        assert digests.of(each, "it") == digest(each)


def test_a_deep_nesting_has_a_digest() -> None:
    def deep(value: int) -> Any:
        nesting: Any = value
        for _ in range(5000):
            nesting = [nesting]
        return nesting

    assert digest(deep(1)) != digest(deep(2))


def test_what_is_shared_many_times_is_read_once() -> None:
    shared: list[Any] = [0]
    for _ in range(200):  # 2**200 ways to the zero
        shared = [shared, shared]
    assert digest(shared) == digest(copy.deepcopy(shared))


def test_a_lock_that_a_module_keeps_is_passed_over() -> None:
    def locked() -> nn.Module:
        module = nn.Linear(1, 1)
        module.weight.data.zero_(), module.bias.data.zero_()
        module.lock = threading.Lock()
        return module

    assert digest(locked()) == digest(locked())
    with pytest.raises(TypeError, match=re.escape("it cannot be read")):
        digest(threading.Lock())


def test_rows_name_every_value_and_what_it_is_in_last() -> None:
    value = {"w": torch.zeros(2, 3), "n": [1, "x"], "lazy": nn.parameter.UninitializedParameter()}
    assert rows(value) == {
        "it['w']": "torch.float32 of [2, 3]",
        "it['n'][0]": "1",
        "it['n'][1]": "'x'",
        "it['n']": "list",
        "it['lazy']": "torch.float32 of []",
        "it": "dict",
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            [iter([]), (i for i in ())],
            "process; pass a list of what it gives, or the model itself in place of model.parameters()",
        ),
        (threading.Lock(), "it cannot be read: lock objects have no state that is the same in every process; leave it"),
        ({"x": {Thing(1)}}, "it['x'] cannot be read: set objects have no state"),
        ([torch.empty(1, device="meta")], "it[0] cannot be read: a meta or fake tensor has a shape, but no bits"),
        (torch.zeros(2, 2).to_mkldnn(), "it cannot be read: the layout of the tensor is torch._mkldnn"),
    ],
)
def test_what_has_no_bits_is_refused_by_its_path(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        digest(value)
