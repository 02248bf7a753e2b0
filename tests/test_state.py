"""States: captured, compared, saved, read back and restored."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import random
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.random.bit_generator as bit_generator
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoped_rng import (
    RestoreWarning,
    RngState,
    ScopedRngError,
    StateFormatError,
    StateMismatchError,
    capture,
    deterministic,
    isolated,
    register_stream,
    replay,
    unregister_stream,
)
from tests import kit

BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
DAMAGED = (
    "the state dict is damaged or foreign: {stream!r}: {what}; nothing was changed, load it from a whole checkpoint"
)


class Box:
    """An object for also= whose state is whatever it was given."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def seed(self, seed: int) -> None:
        self.value = seed

    def getstate(self) -> Any:
        return self.value

    def setstate(self, value: Any) -> None:
        self.value = value


class Fussy(Box):
    """One that refuses to be set, after it has changed already."""

    refuses = True

    def setstate(self, value: Any) -> None:
        super().setstate(value)
        if self.refuses:
            self.refuses = False
            raise RuntimeError("not today")


def saved_and_loaded(state: RngState) -> RngState:
    """Send a state through a checkpoint file."""
    file = io.BytesIO()
    torch.save({"epoch": 3, "rng": state.state_dict()}, file)
    file.seek(0)
    return RngState.from_state_dict(torch.load(file, weights_only=True)["rng"])


def through_dict(state: RngState) -> RngState:
    return RngState.from_state_dict(state.state_dict())


WAYS: dict[str, Callable[[RngState], RngState]] = {
    "itself": lambda state: state,
    "a dict": through_dict,
    "a file": saved_and_loaded,
}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request: pytest.FixtureRequest) -> Any:
    """Each of the ways that a state can go before it is used."""
    return request.param


# Capture and restore


@pytest.mark.parametrize("before", range(3))
def test_a_restored_state_goes_on_as_it_was_with_every_cached_gaussian(way: Any, before: int) -> None:
    kit.seed_everything(5)
    for _ in range(before):
        kit.draws()
    state = capture()
    expected = [kit.draws() for _ in range(3)]
    kit.seed_everything(6)
    kit.draws()
    way(state).restore()
    assert [kit.draws() for _ in range(3)] == expected


@pytest.mark.parametrize("before", range(2))
def test_numpys_own_function_tells_the_same_of_a_restored_state(way: Any, before: int) -> None:
    np.random.seed(5)
    np.random.standard_normal(before)
    expected = repr(np.random.get_state(legacy=False))
    state = way(capture())
    np.random.standard_normal(3)
    state.restore()
    assert repr(np.random.get_state(legacy=False)) == expected


def test_capturing_changes_nothing() -> None:
    kit.draws()
    before, asked = kit.everything(), bit_generator.randbits  # type: ignore[attr-defined]
    capture()
    assert kit.everything() == before
    assert bit_generator.randbits is asked  # type: ignore[attr-defined]


def test_the_state_of_an_untouched_process_can_be_restored_any_number_of_times() -> None:
    state = capture()
    drawn = []
    for _ in range(3):
        state.restore()
        drawn.append(kit.draws())
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_state_tells_torchs_initial_seed_too(way: Any) -> None:
    torch.manual_seed(5)
    state = capture()
    torch.manual_seed(6)
    way(state).restore()
    assert torch.initial_seed() == 5


@pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)
def test_replay_runs_a_block_from_a_state_and_puts_everything_back(way: Any, form: Any) -> None:
    kit.draws()
    state = capture()
    expected = [kit.draws() for _ in range(2)]
    before = kit.everything()
    scope = replay(way(state))
    for _ in range(2):
        assert form(scope, lambda: [kit.draws() for _ in range(2)]) == expected
        assert kit.everything() == before


def test_replay_shows_what_it_replays_and_has_no_seed() -> None:
    state = capture()
    assert replay(state).seed is None
    assert repr(replay(state)) == f"replay({state!r})"


@pytest.mark.parametrize("wrong", [None, {}, 0, "state"], ids=repr)
def test_replay_takes_nothing_but_a_state(wrong: Any) -> None:
    text = (
        f"replay takes the RngState that capture() gives, got {type(wrong).__name__}; "
        "read a saved dict back with RngState.from_state_dict(...)"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        replay(wrong)


@pytest.mark.parametrize("installed", BIT_GENERATORS)
@pytest.mark.parametrize("here", BIT_GENERATORS)
def test_a_bit_generator_that_the_user_has_installed_is_captured_and_restored(
    way: Any, installed: str, here: str
) -> None:
    np.random.set_bit_generator(getattr(np.random, installed)(1))
    np.random.standard_normal()  # leaves one behind
    state = capture()
    expected = [kit.draws() for _ in range(2)]
    np.random.set_bit_generator(getattr(np.random, here)(2))
    ambient = np.random.get_bit_generator(), kit.continuation()
    with replay(way(state)):
        assert [kit.draws() for _ in range(2)] == expected
    assert (np.random.get_bit_generator(), kit.continuation()) == ambient
    way(state).restore()
    assert type(np.random.get_bit_generator()).__name__ == installed
    assert [kit.draws() for _ in range(2)] == expected


def test_restoring_keeps_the_bit_generator_that_is_installed_if_it_is_of_the_kind() -> None:
    bits = np.random.PCG64(1)
    np.random.set_bit_generator(bits)
    state = capture()
    np.random.set_bit_generator(np.random.PCG64(2))
    here = np.random.get_bit_generator()
    state.restore()
    assert np.random.get_bit_generator() is here


def test_a_bit_generator_of_ones_own_is_refused_since_a_state_cannot_hold_it() -> None:
    class Mine(np.random.PCG64):
        pass

    def text(stream: str) -> str:
        told = "is of the bit generator Mine, which is not NumPy's own; a scope can hold it, but a state cannot"
        return f"^{re.escape(f'the state of {stream!r} {told}')}$"

    with pytest.raises(TypeError, match=text("also[0]")):
        capture(also=np.random.Generator(Mine(1)))
    np.random.set_bit_generator(Mine(1))
    with pytest.raises(TypeError, match=text("numpy")):
        capture()


# Comparing


def test_states_are_equal_when_nothing_was_drawn(way: Any) -> None:
    one, other = capture(), capture()
    assert one == way(other)
    assert hash(one) == hash(way(other))
    assert one.digest() == way(other).digest()
    assert one.diff(way(other)) == []
    assert len({one, other}) == 1


@pytest.mark.parametrize("stream", kit.STREAMS)
def test_one_draw_makes_a_state_differ_in_that_stream(stream: str) -> None:
    before = capture()
    kit.draw(stream)
    after = capture()
    assert before != after
    assert before.digest() != after.digest()
    assert before.diff(after) == after.diff(before) == [stream.split()[0]]


@pytest.mark.parametrize("stream", ["python gaussian", "numpy gaussian", "torch gaussian"])
def test_a_cached_gaussian_alone_makes_a_state_differ(stream: str) -> None:
    kit.draw(stream)
    one = capture()
    kit.draw(stream)  # takes the cached one: the engine stays where it is
    assert one.diff(capture()) == [stream.split()[0]]


def test_the_difference_names_every_stream_that_differs_or_is_on_one_side_only() -> None:
    generator, module = np.random.default_rng(1), torch.nn.BatchNorm1d(1)
    one = capture(also=[generator, module])
    kit.draws()
    generator.random()
    other = capture(also=[generator, module])
    assert one.diff(other) == ["python", "numpy", "torch", "also[0]"]
    assert capture().diff(other) == ["also[0]", "also[1]"]
    assert other.diff(capture()) == ["also[0]", "also[1]"]


def test_a_state_is_equal_to_nothing_else() -> None:
    state = capture()
    assert state != state.state_dict()
    assert state != state.digest()
    assert state is not None
    assert state.__eq__(3) is NotImplemented


@pytest.mark.parametrize(
    ("one", "other"),
    [(0.0, -0.0), (1, 1.0), (1, True), (0, False), (0, None), ("1", 1), (b"1", "1"), ((1,), [1]), ([], ()), ({}, [])],
    ids=repr,
)
def test_states_are_compared_by_kind_and_bits(one: Any, other: Any) -> None:
    assert capture(also=Box(one)) != capture(also=Box(other))
    assert capture(also=Box([one])) != capture(also=Box([other]))


@pytest.mark.parametrize(
    ("one", "other"),
    [(np.int32(1), np.int64(1)), (np.zeros(2), np.zeros((2, 1))), (np.array(1), np.int64(1)), (np.float32(1), 1.0)],
    ids=repr,
)
def test_arrays_are_compared_by_type_and_shape_too(one: Any, other: Any) -> None:
    assert capture(also=Box(one)) != capture(also=Box(other))


def test_a_nan_is_equal_to_itself() -> None:
    assert capture(also=Box(float("nan"))) == capture(also=Box(float("nan")))


def test_the_order_of_a_dict_that_was_loaded_does_not_matter() -> None:
    state = capture(also=[random.Random(1)])
    turned = state.state_dict()
    turned["streams"] = dict(reversed(turned["streams"].items()))
    assert RngState.from_state_dict(turned) == state
    assert RngState.from_state_dict(turned).digest() == state.digest()


def test_the_digest_is_short_hex() -> None:
    assert re.fullmatch("[0-9a-f]{16}", capture().digest())


def test_the_digest_is_the_same_in_every_process() -> None:
    program = (
        "import random, numpy as np\n"
        "from scoped_rng import capture\n"
        "from tests import kit\n"
        "kit.seed_everything(5)\n"
        "kit.draws()\n"
        "also = [random.Random(1), np.random.default_rng(1)]\n"
        "print(capture(also=also).digest(), hash(capture(also=also)), hash('a'))\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    kit.seed_everything(5)
    kit.draws()
    state = capture(also=[random.Random(1), np.random.default_rng(1)])
    assert done.stdout.split()[0] == state.digest()


def test_the_names_tell_what_a_state_holds(way: Any) -> None:
    assert way(capture()).names == ("python", "numpy", "torch")
    register_stream("dice", Box(1))
    try:
        with deterministic(0):
            state = capture(also=[random.Random(1), np.random.default_rng(1)])
    finally:
        unregister_stream("dice")
    assert way(state).names == ("python", "numpy", "torch", "numpy.entropy", "dice", "also[0]", "also[1]")


def test_a_state_shows_its_digest_and_names() -> None:
    state = capture()
    assert repr(state) == f"<RngState {state.digest()}: python, numpy, torch>"


# Immutable


def test_changing_a_state_dict_changes_neither_the_state_nor_the_next_dict() -> None:
    module = torch.nn.BatchNorm1d(2)
    state = capture(also=[Box([1, {"a": np.zeros(2)}]), module])
    digest = state.digest()

    def spoil(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            item.fill_(7)
        elif isinstance(item, list):
            for inner in item:
                spoil(inner)
            item.append("spoilt")
        elif isinstance(item, dict):
            for inner in item.values():
                spoil(inner)
            item["spoilt"] = True

    spoil(state.state_dict())
    assert state.digest() == digest
    assert through_dict(state) == state
    state.restore(also=[Box(), module])
    assert capture(also=[Box([1, {"a": np.zeros(2)}]), module]) == state


def test_changing_the_dict_that_a_state_was_read_from_does_not_change_it() -> None:
    original = capture()
    state_dict = original.state_dict()
    state = RngState.from_state_dict(state_dict)
    state_dict["streams"]["torch"]["bytes"].fill_(7)
    state_dict["streams"]["python"]["position"] = 3
    del state_dict["streams"]["numpy"]
    assert state == original


def test_what_an_object_does_with_its_state_does_not_change_the_captured_one() -> None:
    box = Box([1, {"a": np.zeros(2)}])
    state = capture(also=box)
    box.value[1]["a"] += 1
    box.value.append(2)
    state.restore(also=box)
    box.value[1]["a"] += 1  # what was restored is not the state's own either
    box.value.append(2)
    state.restore(also=box)
    assert box.value[0] == 1
    assert np.array_equal(box.value[1]["a"], np.zeros(2))
    assert len(box.value) == 2


def test_a_state_cannot_be_given_other_names_or_attributes() -> None:
    state = capture()
    with pytest.raises(AttributeError):
        state.names = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        state.note = "mine"  # type: ignore[attr-defined]


def test_a_copy_of_a_state_is_equal_to_it() -> None:
    state = capture(also=random.Random(1))
    assert copy.copy(state) == copy.deepcopy(state) == state


# The dict


def leaves(item: Any) -> Iterator[Any]:
    if type(item) is dict:
        assert all(type(key) is str for key in item)
        for inner in item.values():
            yield from leaves(inner)
    elif type(item) is list:
        for inner in item:
            yield from leaves(inner)
    else:
        yield item


def test_a_state_dict_holds_nothing_but_plain_values_and_cpu_tensors_of_bytes() -> None:
    also = [
        random.Random(1),
        *[np.random.Generator(getattr(np.random, name)(1)) for name in BIT_GENERATORS],
        *[np.random.RandomState(getattr(np.random, name)(1)) for name in BIT_GENERATORS],
        torch.Generator(),
        torch.nn.BatchNorm1d(2),
        Box((None, True, b"a", {1: 2}, np.zeros(2), np.float32(1))),
    ]
    kit.draws()
    with deterministic(0):
        state_dict = capture(also=also).state_dict()
    assert type(state_dict) is dict
    for leaf in leaves(state_dict):
        if isinstance(leaf, torch.Tensor):
            assert (type(leaf), leaf.dtype, leaf.device.type, leaf.dim()) == (torch.Tensor, torch.uint8, "cpu", 1)
        else:
            assert type(leaf) in (str, int, float)


def test_a_state_of_the_global_streams_is_small() -> None:
    file = io.BytesIO()
    torch.save(capture().state_dict(), file)
    assert sum(leaf.numel() for leaf in leaves(capture().state_dict()) if isinstance(leaf, torch.Tensor)) < 11_000
    assert file.tell() < 20_000


def test_a_state_dict_says_what_it_is_and_of_which_version() -> None:
    state_dict = capture().state_dict()
    assert (state_dict["format"], state_dict["version"]) == ("scoped_rng.RngState", 1)


@pytest.mark.parametrize("make", [OrderedDict, MappingProxyType], ids=["OrderedDict", "MappingProxyType"])
def test_any_mapping_is_read(make: Any) -> None:
    state = capture()
    assert RngState.from_state_dict(make(state.state_dict())) == state


def change_tensors(item: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    if isinstance(item, dict):
        return {key: change_tensors(inner, change) for key, inner in item.items()}
    if isinstance(item, list):
        return [change_tensors(inner, change) for inner in item]
    return change(item) if isinstance(item, torch.Tensor) else item


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16, torch.int64, torch.uint16],
    ids=str,
)
def test_tensors_that_a_cast_has_changed_are_brought_back(dtype: torch.dtype) -> None:
    state = capture(also=[np.random.default_rng(1), torch.nn.BatchNorm1d(2)])
    cast = change_tensors(state.state_dict(), lambda tensor: tensor.to(dtype))
    assert RngState.from_state_dict(cast) == state


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: torch.nn.Parameter(tensor.float()),
        lambda tensor: torch.stack([tensor, tensor], 1)[:, 0],
        lambda tensor: tensor.float().requires_grad_() * 1,
    ],
    ids=["parameter", "strided", "with a gradient"],
)
def test_tensors_that_were_wrapped_or_laid_out_in_another_way_are_brought_back(change: Any) -> None:
    state = capture()
    assert RngState.from_state_dict(change_tensors(state.state_dict(), change)) == state


@pytest.mark.parametrize("value", [0.5, 300.0, -1.0, 256.0, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_a_cast_that_has_lost_something_is_refused(value: float, dtype: torch.dtype) -> None:
    damaged = capture().state_dict()
    changed = damaged["streams"]["torch"]["bytes"].to(dtype)
    changed[3] = value
    damaged["streams"]["torch"]["bytes"] = changed
    refused(damaged, "streams", f"a tensor of {dtype} is not of whole bytes")


@pytest.mark.parametrize("value", [-1, 256, 2**40])
def test_whole_numbers_that_are_no_bytes_are_refused(value: int) -> None:
    damaged = capture().state_dict()
    changed = damaged["streams"]["torch"]["bytes"].to(torch.int64)
    changed[3] = value
    damaged["streams"]["torch"]["bytes"] = changed
    refused(damaged, "streams", "a tensor of torch.int64 is not of whole bytes")


def test_a_tensor_without_data_is_refused() -> None:
    refused(change_tensors(capture().state_dict(), lambda tensor: tensor.to("meta")))


@pytest.mark.parametrize("shape", [(1, -1), (-1, 1), (2, -1)], ids=repr)
def test_a_tensor_of_another_shape_is_refused(shape: Any) -> None:
    refused(
        change_tensors(capture().state_dict(), lambda tensor: tensor.reshape(shape)),
        "streams",
        "a tensor of 2 dimensions",
    )


def test_a_tensor_without_dimensions_is_refused() -> None:
    damaged = capture().state_dict()
    damaged["streams"]["python"]["key"] = torch.tensor(3, dtype=torch.uint8)
    refused(damaged, "streams", "a tensor of 0 dimensions")


# What a dict is refused for


def refused(damaged: Any, stream: str | None = None, what: str | None = None) -> None:
    """Check that a dict is refused, why, and that nothing was changed."""
    before = kit.everything()
    with pytest.raises(StateFormatError) as caught:
        RngState.from_state_dict(damaged)
    assert isinstance(caught.value, ScopedRngError)
    assert kit.everything() == before
    if what is not None:
        assert str(caught.value) == DAMAGED.format(stream=stream, what=what)
    elif stream is not None:
        assert str(caught.value).startswith(f"the state dict is damaged or foreign: {stream!r}: ")


class Equal:
    """Something that compares in a way of its own."""

    def __ne__(self, other: object) -> Any:
        return torch.ones(2, dtype=torch.bool)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "foreign",
    [
        None,
        3,
        "state",
        [],
        {},
        {"format": "another"},
        {"format": None, "version": 1, "streams": {}},
        {"python": (3, (), None)},
        torch.zeros(3),
        {"format": np.array([1, 2]), "version": 1, "streams": {}},
        {"format": Equal(), "version": 1, "streams": {}},
    ],
    ids=lambda value: type(value.get("format")).__name__ if isinstance(value, dict) else type(value).__name__,
)
def test_something_else_than_a_state_dict_is_refused(foreign: Any) -> None:
    text = "this is not the state_dict() of an RngState: 'format' is not 'scoped_rng.RngState'"
    with pytest.raises(StateFormatError, match=f"^{re.escape(text)}$"):
        RngState.from_state_dict(foreign)


@pytest.mark.parametrize("version", [0, 2, 1.0, True, "1", None, np.int64(1)], ids=repr)
def test_another_version_is_refused(version: Any) -> None:
    text = f"the state is of version {version!r}, this is for version 1; update scoped_rng"
    with pytest.raises(StateFormatError, match=f"^{re.escape(text)}$"):
        RngState.from_state_dict({**capture().state_dict(), "version": version})


def test_a_dict_without_a_version_is_refused() -> None:
    damaged = capture().state_dict()
    del damaged["version"]
    with pytest.raises(StateFormatError, match=re.escape("the state is of version None")):
        RngState.from_state_dict(damaged)


@pytest.mark.parametrize(
    ("streams", "what"),
    [
        (None, "a NoneType"),
        ([], "is not a dict"),
        (3, "is not a dict"),
        ("python", "is not a dict"),
        ({"python": True}, "a bool"),
        ({"python": {"kind": (1, 2)}}, "a tuple"),
        ({"python": np.zeros(3)}, "a ndarray"),
    ],
    ids=repr,
)
def test_streams_of_other_values_are_refused(streams: Any, what: str) -> None:
    refused({**capture().state_dict(), "streams": streams}, "streams", what)


@pytest.mark.parametrize("stream", [3, "python", [1.0], torch.zeros(3, dtype=torch.uint8)], ids=repr)
def test_a_stream_that_is_no_dict_is_refused(stream: Any) -> None:
    refused({**capture().state_dict(), "streams": {"python": stream}}, "python", "is not a dict")


def test_a_dict_without_streams_is_refused() -> None:
    damaged = capture().state_dict()
    del damaged["streams"]
    refused(damaged, "streams", "a NoneType")


def test_a_dict_that_holds_itself_is_refused() -> None:
    damaged = capture().state_dict()
    damaged["streams"]["python"] = damaged
    refused(damaged, "streams")


@pytest.mark.parametrize("depth", [50, 100, 200, 300, 400, 500, 600, 800, 1000, 2000])
def test_a_nesting_of_any_depth_is_refused_or_read(depth: int) -> None:
    nested: Any = 3
    for _ in range(depth):
        nested = [nested]
    state_dict = capture(also=Box()).state_dict()
    state_dict["streams"]["also[0]"]["state"] = nested
    try:
        state = RngState.from_state_dict(state_dict)
    except StateFormatError:
        return
    assert state == RngState.from_state_dict(state_dict)


@pytest.mark.parametrize("name", [3, None, ("also", 0)], ids=repr)
def test_a_stream_whose_name_is_no_str_is_refused(name: Any) -> None:
    damaged = capture().state_dict()
    damaged["streams"][name] = damaged["streams"]["python"]
    refused(damaged)


FIXED = {"python": "python", "numpy": "numpy", "torch": "torch", "numpy.entropy": "numpy.entropy"}


@pytest.fixture
def state_dict() -> Any:
    """A state dict with every global stream and an object of every kind."""
    kit.draws()
    also = [
        random.Random(1),
        np.random.default_rng(1),
        np.random.RandomState(1),
        torch.Generator().manual_seed(1),
        torch.nn.BatchNorm1d(2),
        Box({"a": [1, (2.5, None)]}),
    ]
    with deterministic(0):
        return capture(also=also).state_dict()


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("kind", ["python", "numpy", "torch", "numpy.entropy", "numpy.generator", "buffers", "object"])
def test_a_global_stream_of_another_kind_is_refused(state_dict: Any, name: str, kind: str) -> None:
    plain = next(plain for plain in state_dict["streams"].values() if plain["kind"] == kind)
    state_dict["streams"][name] = plain
    if kind == FIXED[name]:
        RngState.from_state_dict(state_dict)
    else:
        refused(state_dict, name, f"is of the kind {kind!r}")


@pytest.mark.parametrize("kind", [None, 3, "", "pickle", "Python", ["python"]], ids=repr)
def test_an_unknown_kind_is_refused(state_dict: Any, kind: Any) -> None:
    if kind is None:
        del state_dict["streams"]["also[0]"]["kind"]
    else:
        state_dict["streams"]["also[0]"]["kind"] = kind
    refused(state_dict, "also[0]", f"is of the kind {kind!r}")


def test_fresh_entropy_under_another_name_is_refused(state_dict: Any) -> None:
    state_dict["streams"]["also[0]"] = state_dict["streams"]["numpy.entropy"]
    refused(state_dict, "also[0]", "is of the kind 'numpy.entropy'")


def test_a_state_of_another_device_under_the_name_of_torchs_cpu_stream_is_refused(state_dict: Any) -> None:
    state_dict["streams"]["torch"]["device"] = "cuda"
    refused(state_dict, "torch", "is of the device 'cuda'")


EVERY_STREAM = ("python", "numpy", "torch", "numpy.entropy", *[f"also[{place}]" for place in range(6)])
KEYS = {
    "python": "version, key, position, gaussian",
    "numpy": "bits, gaussian",
    "torch": "device, bytes",
    "numpy.entropy": "seed, drawn",
    "numpy.generator": "bits, spawning",
    "buffers": "buffers, training",
    "object": "state",
}


@pytest.mark.parametrize("name", EVERY_STREAM)
def test_a_missing_key_is_refused(state_dict: Any, name: str) -> None:
    keys = KEYS[state_dict["streams"][name]["kind"]]
    for key in keys.split(", "):
        damaged = copy.deepcopy(state_dict)
        del damaged["streams"][name][key]
        refused(damaged, name, f"the keys are not {keys}")


@pytest.mark.parametrize("name", EVERY_STREAM)
def test_a_key_too_many_is_refused(state_dict: Any, name: str) -> None:
    state_dict["streams"][name]["more"] = 3
    refused(state_dict, name, f"the keys are not {KEYS[state_dict['streams'][name]['kind']]}")


@pytest.mark.parametrize("name", EVERY_STREAM)
@pytest.mark.parametrize("value", [[], {}, "", 3, -1, 2.5, torch.zeros(0, dtype=torch.uint8)], ids=repr)
def test_a_value_of_another_type_is_refused_or_harmless(state_dict: Any, name: str, value: Any) -> None:
    for key in KEYS[state_dict["streams"][name]["kind"]].split(", "):
        damaged = copy.deepcopy(state_dict)
        damaged["streams"][name][key] = value
        harmless_or_refused(damaged)


@pytest.mark.parametrize(
    ("names", "told"),
    [(["also[1]"], [1]), (["also[0]", "also[2]"], [0, 2]), (["also[5]"], [5]), (["also[00]", "also[0]"], [0, 0])],
    ids=repr,
)
def test_a_hole_among_the_positions_of_objects_is_refused(names: list[str], told: list[int]) -> None:
    damaged = capture().state_dict()
    for name in names:
        damaged["streams"][name] = damaged["streams"]["python"]
    refused(damaged, "also", f"has objects only at the positions {told}")


# Values out of range


def mersenne(words: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(words, dtype="<u4").view(np.uint8).copy())


ZEROS = np.zeros(624)
ALMOST_ZEROS = np.array([2**31 - 1, *[0] * 623])  # the low 31 bits of the first word do not count


@pytest.mark.parametrize("words", [ZEROS, ALMOST_ZEROS], ids=["zeros", "almost"])
@pytest.mark.parametrize("name", ["python", "also[0]"])
def test_pythons_mersenne_twister_of_zeros_is_refused(state_dict: Any, name: str, words: Any) -> None:
    state_dict["streams"][name]["key"] = mersenne(words)
    refused(state_dict, name, "the Mersenne Twister state is all zero")


def numpy_key(plain: Any) -> Any:
    """Return the place in a packed state where NumPy's 624 words are."""
    state = dict(plain["bits"]["items"])["state"]
    return dict(state["items"])["key"]


@pytest.mark.parametrize("words", [ZEROS, ALMOST_ZEROS], ids=["zeros", "almost"])
@pytest.mark.parametrize("name", ["numpy", "also[2]"])
def test_numpys_mersenne_twister_of_zeros_from_which_randn_never_returns_is_refused(
    state_dict: Any, name: str, words: Any
) -> None:
    numpy_key(state_dict["streams"][name])["bytes"] = mersenne(words)
    refused(state_dict, name, "the Mersenne Twister state is all zero")


TORCH_WORDS = slice(24, 24 + 8 * 624)


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(624),
        np.full(624, 2**32),  # of the 64 bits of a word the engine takes the low 32
        np.array([2**31 - 1, *[0] * 623]),  # and of the first one the top bit alone
        np.array([2**63, *[2**40] * 623]),
    ],
    ids=["zeros", "high halves", "low bits of the first", "both"],
)
@pytest.mark.parametrize("name", ["torch", "also[3]"])
def test_torchs_mersenne_twister_of_zeros_is_refused(state_dict: Any, name: str, words: Any) -> None:
    data = state_dict["streams"][name]["bytes"]
    data[TORCH_WORDS] = torch.from_numpy(words.astype("<u8").view(np.uint8).copy())
    refused(state_dict, name, "torch's Mersenne Twister state is all zero")


@pytest.mark.parametrize("bit", [0, 31])
def test_torchs_mersenne_twister_with_one_bit_that_counts_is_none_of_zeros(state_dict: Any, bit: int) -> None:
    words = np.zeros(624, dtype="<u8")
    words[0 if bit == 31 else 5] = 1 << bit
    state_dict["streams"]["torch"]["bytes"][TORCH_WORDS] = torch.from_numpy(words.view(np.uint8).copy())
    RngState.from_state_dict(state_dict)


@pytest.mark.parametrize("position", [-1, 625, 2**31, 2**64, 3.0, "3", [3]], ids=repr)
def test_a_position_out_of_range_is_refused_in_pythons_state(state_dict: Any, position: Any) -> None:
    state_dict["streams"]["python"]["position"] = position
    refused(state_dict, "python", f"the position {position!r} is not in [0, 624]")


@pytest.mark.parametrize("position", [0, 1, 623, 624])
def test_a_position_in_range_is_read(state_dict: Any, position: int) -> None:
    state_dict["streams"]["python"]["position"] = position
    harmless_or_refused(state_dict)
    assert RngState.from_state_dict(state_dict).state_dict()["streams"]["python"]["position"] == position


@pytest.mark.parametrize("position", [-1, 625, 2**31, 2**64, 2**128, 3.0, "3", [3]], ids=repr)
@pytest.mark.parametrize("name", ["numpy", "also[2]"])
def test_a_position_out_of_range_is_refused_in_numpys_state(state_dict: Any, name: str, position: Any) -> None:
    state = dict(state_dict["streams"][name]["bits"]["items"])["state"]["items"]
    state[[key for key, _ in state].index("pos")][1] = position
    refused(state_dict, name)


def torch_fields(data: torch.Tensor) -> tuple[Any, Any]:
    """Return views of how many words are left, and of the next one's place, in torch's state."""
    return data[8:12].view(torch.int32), data[16:24].view(torch.int64)


@pytest.mark.parametrize(
    ("left", "following"),
    [(0, 0), (-1, 0), (625, 0), (1, 625), (1, -1), (1, 2**32)],
    ids=repr,
)
def test_a_position_out_of_range_is_refused_in_torchs_state(state_dict: Any, left: int, following: int) -> None:
    for view, value in zip(torch_fields(state_dict["streams"]["torch"]["bytes"]), (left, following), strict=True):
        view.fill_(value)
    refused(state_dict, "torch")


@pytest.mark.parametrize(("left", "following"), [(624, 2), (600, 624), (2, 624)], ids=repr)
def test_a_torch_state_that_would_read_on_behind_its_last_word_is_refused(
    state_dict: Any, left: int, following: int
) -> None:
    # With n words left of 624, the place of the next one is 625 - n, or the block is made anew.
    for view, value in zip(torch_fields(state_dict["streams"]["torch"]["bytes"]), (left, following), strict=True):
        view.fill_(value)
    refused(state_dict, "torch")


@pytest.mark.parametrize("count", [0, 1, 2, 623, 624, 625])
def test_torchs_state_can_be_read_at_every_place_of_its_block(count: int) -> None:
    torch.manual_seed(5)
    torch.rand(count)
    state = through_dict(capture())
    expected = torch.rand(700)
    state.restore()
    assert torch.equal(torch.rand(700), expected)


@pytest.mark.parametrize("gaussian", [float("nan"), float("inf"), -float("inf")])
def test_a_cached_gaussian_that_is_no_number_is_refused(state_dict: Any, gaussian: float) -> None:
    for name in ("python", "numpy", "also[0]", "also[2]"):
        damaged = copy.deepcopy(state_dict)
        damaged["streams"][name]["gaussian"] = [gaussian]
        refused(damaged, name, f"the cached gaussian is [{gaussian!r}]")


@pytest.mark.parametrize("gaussian", [[1], [1.0, 2.0], ["1.0"], 1.0, {}, [[]]], ids=repr)
def test_a_cached_gaussian_of_another_form_is_refused(state_dict: Any, gaussian: Any) -> None:
    for name in ("python", "numpy"):
        damaged = copy.deepcopy(state_dict)
        damaged["streams"][name]["gaussian"] = gaussian
        refused(damaged, name, f"the cached gaussian is {gaussian!r}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gaussian", [float("nan"), float("inf")])
def test_a_cached_gaussian_of_torch_that_is_no_number_is_refused(dtype: torch.dtype, gaussian: float) -> None:
    torch.manual_seed(0)
    torch.randn((), dtype=dtype)
    torch.randn((), dtype=dtype)
    torch.randn((), dtype=dtype)  # leaves one behind
    damaged = capture().state_dict()
    data = damaged["streams"]["torch"]["bytes"]
    at = slice(5048, 5052) if dtype == torch.float32 else slice(5016, 5040)
    data[at].view(dtype).fill_(gaussian)
    refused(damaged, "torch")


@pytest.mark.parametrize("change", [-1, 1, -5056, -2500], ids=repr)
@pytest.mark.parametrize("name", ["torch", "also[3]"])
def test_a_torch_state_of_another_length_is_refused(state_dict: Any, name: str, change: int) -> None:
    data = state_dict["streams"][name]["bytes"]
    state_dict["streams"][name]["bytes"] = data[:change] if change < 0 else torch.cat([data, data[:change]])
    refused(state_dict, name)


@pytest.mark.parametrize("name", ["python", "also[0]"])
@pytest.mark.parametrize("count", [0, 1, 2495, 2492, 2500])
def test_a_mersenne_twister_of_another_length_is_refused(state_dict: Any, name: str, count: int) -> None:
    state_dict["streams"][name]["key"] = torch.ones(count, dtype=torch.uint8)
    refused(state_dict, name, "a Mersenne Twister has 624 words of 32 bits")


@pytest.mark.parametrize("count", [0, 2495, 2492, 2500])
@pytest.mark.parametrize("name", ["numpy", "also[2]"])
def test_numpys_words_of_another_number_are_refused(state_dict: Any, name: str, count: int) -> None:
    numpy_key(state_dict["streams"][name])["bytes"] = torch.ones(count, dtype=torch.uint8)
    refused(state_dict, name)
    numpy_key(state_dict["streams"][name])["shape"] = [count // 4]
    refused(state_dict, name)


@pytest.mark.parametrize("version", [2, 4, "3", []], ids=repr)
def test_another_version_of_pythons_state_is_refused(state_dict: Any, version: Any) -> None:
    state_dict["streams"]["python"]["version"] = version
    refused(state_dict, "python", "Python's state is not of version 3")


@pytest.mark.parametrize("number", [-1, 2**64, 1.0, "1"], ids=repr)
@pytest.mark.parametrize("key", ["seed", "drawn"])
def test_entropy_out_of_range_is_refused(state_dict: Any, key: str, number: Any) -> None:
    state_dict["streams"]["numpy.entropy"][key] = number
    refused(state_dict, "numpy.entropy", "the entropy's seed or count is out of range")


def bits_dict(name: str) -> Any:
    return capture(also=np.random.Generator(getattr(np.random, name)(1))).state_dict()


def put_into(packed: Any, path: str, value: Any) -> None:
    """Set a value in a packed dict, at keys that are joined by a dot."""
    *parents, last = path.split(".")
    for parent in parents:
        packed = dict(packed["items"])[parent]
    [pair] = [pair for pair in packed["items"] if pair[0] == last]
    pair[1] = value


KEYS_OF_BITS = {
    "": "bit_generator, state, has_uint32, uinteger",
    "state": "state, inc",
}


@pytest.mark.parametrize(
    ("name", "path", "value", "what"),
    [
        ("PCG64", "state.inc", 2, "an increment is even"),  # a shorter period
        ("PCG64DXSM", "state.inc", 0, "an increment is even"),
        ("PCG64", "state.inc", 2**128 + 1, f"{2**128 + 1} is out of range"),
        ("PCG64", "state.state", -1, "-1 is out of range"),
        ("PCG64", "state.state", 2**128, f"{2**128} is out of range"),
        ("PCG64", "state.state", 1.0, "1.0 is out of range"),
        ("PCG64", "has_uint32", 2, "a position is out of range"),
        ("PCG64", "has_uint32", -1, "-1 is out of range"),
        ("PCG64", "uinteger", 2**32, "a word is out of range"),
        ("PCG64", "uinteger", -1, "-1 is out of range"),
        ("PCG64", "bit_generator", "PCG65", "an unknown bit generator"),
        ("PCG64", "bit_generator", "Generator", "an unknown bit generator"),
        ("PCG64", "bit_generator", 3, "an unknown bit generator"),
        ("PCG64", "state", {"type": "None"}, "the keys are not state, inc"),
        ("Philox", "buffer_pos", 5, "a position is out of range"),
        ("Philox", "buffer_pos", -1, "-1 is out of range"),
        ("Philox", "buffer_pos", 2**40, "a position is out of range"),
        ("Philox", "buffer", {"type": "None"}, "an array is not of uint64 and (4,)"),
        ("Philox", "state.key", [1, 2], "an array is not of uint64 and (2,)"),
        ("SFC64", "state.state", 3, "an array is not of uint64 and (4,)"),
        ("SFC64", "has_uint32", 2**32 + 1, "a position is out of range"),
        ("MT19937", "state.pos", 625, "the position 625 is not in [0, 624]"),
        ("MT19937", "state.key", 3, "an array is not of uint32 and (624,)"),
    ],
)
def test_a_bit_generator_out_of_range_is_refused(name: str, path: str, value: Any, what: str) -> None:
    damaged = bits_dict(name)
    put_into(damaged["streams"]["also[0]"]["bits"], path, value)
    refused(damaged, "also[0]", what)


@pytest.mark.parametrize("bits", [3, "PCG64", [], {"type": "None"}, {"type": "dict", "items": []}], ids=repr)
def test_a_bit_generator_of_another_form_is_refused(bits: Any) -> None:
    damaged = bits_dict("PCG64")
    damaged["streams"]["also[0]"]["bits"] = bits
    refused(damaged, "also[0]", "an unknown bit generator")


@pytest.mark.parametrize(("path", "keys"), KEYS_OF_BITS.items(), ids=["outside", "inside"])
def test_a_key_too_many_in_a_bit_generator_is_refused(path: str, keys: str) -> None:
    damaged = bits_dict("PCG64")
    packed = damaged["streams"]["also[0]"]["bits"]
    (dict(packed["items"])[path] if path else packed)["items"].append(["more", 3])
    refused(damaged, "also[0]", f"the keys are not {keys}")


@pytest.mark.parametrize("dtype", ["<i4", "<f4"])
def test_numpys_words_of_another_type_are_refused(state_dict: Any, dtype: str) -> None:
    numpy_key(state_dict["streams"]["numpy"])["dtype"] = dtype
    refused(state_dict, "numpy", "an array is not of uint32 and (624,)")


@pytest.mark.parametrize("name", BIT_GENERATORS)
def test_a_bit_generator_under_the_name_of_another_is_refused(name: str) -> None:
    for other in BIT_GENERATORS:
        if {name, other} not in ({"PCG64", "PCG64DXSM"}, {name}):  # whose states look the same
            damaged = bits_dict(name)
            put_into(damaged["streams"]["also[0]"]["bits"], "bit_generator", other)
            refused(damaged, "also[0]")


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("n_children_spawned", -1, "-1 children"),
        ("n_children_spawned", 0.5, "0.5 children"),
        ("n_children_spawned", 2**32, f"{2**32} children"),
        ("pool_size", 0, "a pool of 0 words"),
        ("pool_size", -4, "a pool of -4 words"),
        ("pool_size", 3, "a pool of 3 words"),
        ("pool_size", 4.0, "a pool of 4.0 words"),
        ("pool_size", 1025, "a pool of 1025 words"),  # it takes the square of it in time
        ("spawn_key", 3, "a spawn key of 3"),
        ("spawn_key", [-1], None),
        ("entropy", -1, None),
        ("entropy", 0.5, None),
        ("entropy", {"type": "None"}, "a spawn key of ()"),  # which would ask the operating system, another time each
    ],
)
def test_a_spawn_state_out_of_range_is_refused(key: str, value: Any, what: str | None) -> None:
    damaged = bits_dict("PCG64")
    put_into(damaged["streams"]["also[0]"]["spawning"], key, value)
    refused(damaged, "also[0]", what)


@pytest.mark.parametrize("pool", [4, 1024])
@pytest.mark.parametrize("count", [0, 2**32 - 1])
def test_a_spawn_state_at_the_ends_of_its_range_is_read(pool: int, count: int) -> None:
    seeds = np.random.SeedSequence(1, pool_size=pool, n_children_spawned=count)
    generator = np.random.Generator(np.random.PCG64(seeds))
    state = capture(also=generator)
    assert through_dict(state) == state


@pytest.mark.parametrize("spawning", [3, [], {"type": "None"}, {"type": "dict", "items": [["more", 1]]}], ids=repr)
def test_a_spawn_state_of_another_form_is_refused(spawning: Any) -> None:
    damaged = bits_dict("PCG64")
    damaged["streams"]["also[0]"]["spawning"] = spawning
    refused(damaged, "also[0]")


BUFFER = {"dtype": "float32", "shape": [2], "bytes": torch.zeros(8, dtype=torch.uint8)}


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float33"},
        {"dtype": "Tensor"},
        {"dtype": 3},
        {"dtype": "float64"},
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": [2.0]},
        {"shape": [-1, -2]},
        {"shape": [-1, -1, 2]},
        {"shape": 2},
        {"shape": "2"},
        {"shape": [2**40]},
        {"bytes": torch.zeros(7, dtype=torch.uint8)},
        {"bytes": 8},
        {"bytes": "eight by"},
        {"bytes": [0] * 8},
        {"bytes": {str(place): 0 for place in range(8)}},
        {"more": 3},
    ],
    ids=repr,
)
def test_a_buffer_that_does_not_fit_itself_is_refused(state_dict: Any, change: Any) -> None:
    state_dict["streams"]["also[4]"]["buffers"]["running_mean"] = {**BUFFER, **change}
    refused(state_dict, "also[4]")


@pytest.mark.parametrize("dtype", ["float33", "Tensor", ""])
def test_a_buffer_of_no_dtype_is_refused(state_dict: Any, dtype: str) -> None:
    state_dict["streams"]["also[4]"]["buffers"]["running_mean"] = {**BUFFER, "dtype": dtype}
    refused(state_dict, "also[4]", f"the buffer 'running_mean' has the dtype {dtype!r}")


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("buffers", 3, "the buffers are not a dict"),
        ("buffers", {"a": 3}, "the buffer 'a' is not a dict"),
        ("training", 3, "the training modes are not a dict"),
        ("training", {"": 2}, "a training mode of 2"),
        ("training", {"": "yes"}, "a training mode of 'yes'"),
    ],
)
def test_buffers_and_training_modes_of_another_form_are_refused(
    state_dict: Any, key: str, value: Any, what: str
) -> None:
    state_dict["streams"]["also[4]"][key] = value
    refused(state_dict, "also[4]", what)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"type": "pickle"},
        {"type": ["None"]},
        {"type": "tuple"},
        {"type": "tuple", "items": 3},
        {"type": "dict", "items": [[1]]},
        {"type": "dict", "items": [[[1], 2]]},  # a list as a key
        {"type": "bytes"},
        {"type": "bytes", "bytes": 5},
        {"type": "bytes", "bytes": "five"},
        {"type": "None", "more": 3},
        {"type": "tuple", "items": [], "more": 3},
        {"type": "array"},
        {"type": "array", "dtype": "O", "shape": [0], "bytes": torch.zeros(0, dtype=torch.uint8)},
        {"type": "array", "dtype": "U1", "shape": [2], "bytes": torch.zeros(8, dtype=torch.uint8)},
        {"type": "array", "dtype": "M8[s]", "shape": [1], "bytes": torch.zeros(8, dtype=torch.uint8)},
        {"type": "array", "dtype": [["a", "<f8"]], "shape": [1], "bytes": torch.zeros(8, dtype=torch.uint8)},
        {"type": "array", "dtype": "<f8", "shape": [2], "bytes": torch.zeros(8, dtype=torch.uint8)},
        {"type": "array", "dtype": "<f8", "shape": [1], "bytes": torch.zeros(7, dtype=torch.uint8)},
        {"type": "array", "dtype": "<f8", "shape": [1], "bytes": "eight by"},
    ],
    ids=repr,
)
def test_an_objects_state_of_another_form_is_refused(state_dict: Any, state: Any) -> None:
    state_dict["streams"]["also[5]"]["state"] = state
    refused(state_dict, "also[5]")


@pytest.mark.parametrize("key", [1, None, 2.5, (1, 2)], ids=repr)
def test_a_key_that_is_no_str_is_refused_wherever_it_is(state_dict: Any, key: Any) -> None:
    changes: list[Callable[[Any], Any]] = [
        lambda streams: streams["python"],
        lambda streams: streams["also[4]"]["buffers"],
        lambda streams: streams["also[4]"]["buffers"]["running_mean"],
        lambda streams: streams["also[4]"]["training"],
        lambda streams: streams["also[5]"]["state"],
        lambda streams: streams["also[1]"]["bits"],
    ]
    for change in changes:
        damaged = copy.deepcopy(state_dict)
        change(damaged["streams"])[key] = 1
        refused(damaged)


# Any damage


JUNK = [
    None,
    True,
    -1,
    0,
    1,
    625,
    2**40,
    2**64,
    2**128,
    0.5,
    float("nan"),
    "",
    "python",
    "\ud800",
    b"bytes",
    (1, 2),
    [],
    [[]],
    {},
    {1: 2},
    {"type": "None"},
    {"type": "None", 1: 2},
    {"type": "tuple", "items": []},
    {"type": "bytes", "bytes": 3},
    np.zeros(3),
    np.array([1, 2]),
    torch.zeros(0, dtype=torch.uint8),
    torch.zeros(3, dtype=torch.uint8),
    torch.zeros(2496, dtype=torch.uint8),
    torch.zeros(5056, dtype=torch.uint8),
    torch.full((2496,), 255, dtype=torch.uint8),
    torch.full((5056,), 255, dtype=torch.uint8),
    torch.ones(2496) / 2,
    torch.ones(3, device="meta"),
    torch.tensor(1),
    torch.ones(2, 2),
    object(),
]


def places(item: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to everything in a state dict."""
    if path:
        yield path
    if isinstance(item, dict):
        for key, inner in item.items():
            yield from places(inner, (*path, key))
    elif isinstance(item, list):
        for place, inner in enumerate(item):
            yield from places(inner, (*path, place))


class Damage(NamedTuple):
    """Something done to a state dict at one place: its fields are reduced to what is there."""

    how: str
    place: int
    other: int
    value: int
    junk: Any

    def do(self, damaged: Any) -> None:
        paths = list(places(damaged))
        if not paths:
            return
        *parents, last = paths[self.place % len(paths)]
        parent = reach(damaged, parents)
        item, junk = parent[last], copy.deepcopy(self.junk)
        is_data = isinstance(item, torch.Tensor) and item.dim() == 1 and item.numel() > 0 and item.device.type == "cpu"
        if self.how == "drop":
            del parent[last]
        elif self.how == "swap":
            parent[last] = copy.deepcopy(reach(damaged, paths[self.other % len(paths)]))
        elif self.how == "add" and isinstance(parent, dict):
            parent["more"] = junk
        elif self.how == "cut" and is_data:
            parent[last] = item[: self.other % item.numel()]
        elif self.how == "byte" and is_data:
            item[self.other % item.numel()] = self.value
        elif self.how == "word" and is_data:
            item[8 * (self.other % item.numel() // 8) :][:8] = self.value
        else:
            parent[last] = junk


def reach(item: Any, path: Sequence[Any]) -> Any:
    for step in path:
        item = item[step]
    return item


damages = st.builds(
    Damage,
    how=st.sampled_from(["drop", "junk", "swap", "add", "cut", "byte", "word"]),
    place=st.integers(0, 10**6),
    other=st.integers(0, 10**6),
    value=st.sampled_from([0, 1, 127, 128, 255]),
    junk=st.sampled_from(JUNK),
)


def an_object_of_every_kind() -> list[Any]:
    return [
        random.Random(1),
        *[np.random.Generator(getattr(np.random, name)(1)) for name in BIT_GENERATORS],
        np.random.RandomState(1),
        torch.Generator().manual_seed(1),
        torch.nn.BatchNorm1d(2),
        Box({"a": [1, (2.5, None, b"a", np.zeros(2))]}),
    ]


def harmless_or_refused(damaged: Any, also: Any = None) -> None:
    """Check that a damaged dict is refused, or gives a state that can be put and drawn from."""
    before = kit.continuation(1)
    try:
        state = RngState.from_state_dict(damaged)
    except StateFormatError:
        assert kit.continuation(1) == before
        return
    assert through_dict(state) == state
    assert hash(state) == hash(through_dict(state))
    assert state.digest() in repr(state)
    held = an_object_of_every_kind() if also is None else also
    with isolated(also=held):
        expected = capture(also=held)
        try:
            state.restore(also=held, missing="skip")
        except StateMismatchError:
            assert capture(also=held) == expected
            return
        draw_from_everything(held)


def draw_from_everything(also: Any) -> None:
    kit.draws()
    np.random.randn(3)
    for held in also:
        if isinstance(held, random.Random):
            held.gauss(0, 1)
        elif isinstance(held, np.random.Generator):
            held.standard_normal(3)
            held.integers(3, dtype=np.uint32)
            held.spawn(1)[0].random()
        elif isinstance(held, np.random.RandomState):
            held.standard_normal(3)
        elif isinstance(held, torch.Generator):
            torch.randn(3, generator=held)
        elif isinstance(held, torch.nn.Module):
            with torch.no_grad():
                held(torch.zeros(4, 2))


@given(st.lists(damages, min_size=1, max_size=3))
def test_a_damaged_dict_is_refused_or_harmless(several: Any) -> None:
    with deterministic(0):
        damaged = capture(also=an_object_of_every_kind()).state_dict()
    for damage in several:
        damage.do(damaged)
    harmless_or_refused(damaged)


plain_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=4),
        st.binary(max_size=4),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=3), st.none(), st.booleans()), inner, max_size=3),
    ),
    max_leaves=12,
)


def with_types(value: Any) -> Any:
    """Return a value in a form in which 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    if isinstance(value, dict):
        return "dict", [(with_types(key), with_types(inner)) for key, inner in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [with_types(inner) for inner in value]
    return type(value), repr(value)


@given(plain_values)
def test_any_nesting_of_plain_values_comes_back_from_a_file(value: Any) -> None:
    box = Box(value)
    state = capture(also=box)
    box.value = "another"
    loaded = saved_and_loaded(state)
    assert loaded == state
    loaded.restore(also=box)
    assert with_types(box.value) == with_types(value)


# The user's objects


def drawn(held: Any) -> Any:
    if isinstance(held, random.Random):
        return [held.gauss(0, 1), held.random()]
    if isinstance(held, np.random.Generator):
        half_a_word = int(held.integers(10, dtype=np.uint32))
        return [*held.standard_normal(3), half_a_word, [child.random() for child in held.spawn(2)]]
    if isinstance(held, np.random.RandomState):
        return [*held.standard_normal(3), held.random_sample(), held.bytes(3)]
    return [float(torch.randn((), generator=held, dtype=torch.float64)), *torch.rand(2, generator=held).tolist()]


GENERATORS: dict[str, Callable[[], Any]] = {
    "random.Random": lambda: random.Random(1),
    **{
        f"Generator({name})": lambda name=name: np.random.Generator(getattr(np.random, name)(1))  # type: ignore[misc]
        for name in BIT_GENERATORS
    },
    **{
        f"RandomState({name})": lambda name=name: np.random.RandomState(getattr(np.random, name)(1))  # type: ignore[misc]
        for name in BIT_GENERATORS
    },
    "torch.Generator": lambda: torch.Generator().manual_seed(1),
    "unseeded Generator": np.random.default_rng,
    "Generator of several words": lambda: np.random.default_rng([1, 2**40]),
    "spawned Generator": lambda: np.random.default_rng(1).spawn(3)[2].spawn(2)[1],
    "legacy Generator": lambda: np.random.Generator(np.random.RandomState(1)._bit_generator),
}
CANNOT_SPAWN = ("legacy Generator",)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_users_generator_is_captured_and_restored(way: Any, name: str) -> None:
    held = GENERATORS[name]()
    draw = (lambda it: it.standard_normal(3).tolist()) if name in CANNOT_SPAWN else drawn
    for _ in range(2):
        draw(held)
    state = capture(also=held)
    expected = [draw(held) for _ in range(2)]
    way(state).restore(also=held)
    assert [draw(held) for _ in range(2)] == expected
    with replay(way(state), also=[held]):
        assert [draw(held) for _ in range(2)] == expected
    way(state).restore(also=(held,))
    assert capture(also=held) == state


@pytest.mark.parametrize("name", [name for name in GENERATORS if name not in ("unseeded Generator", *CANNOT_SPAWN)])
def test_the_state_of_one_generator_can_be_put_into_another_of_the_kind(way: Any, name: str) -> None:
    held = GENERATORS[name]()
    drawn(held)
    state = capture(also=held)
    another = GENERATORS[name]()
    way(state).restore(also=another)
    assert drawn(another) == drawn(held)


def test_objects_are_matched_by_position(way: Any) -> None:
    one, two = random.Random(1), random.Random(2)
    state = capture(also=[one, two])
    expected = one.random(), two.random()
    way(state).restore(also=[two, one])
    assert (two.random(), one.random()) == expected


def test_capturing_does_not_move_a_users_object() -> None:
    for make in GENERATORS.values():
        held = make()
        first = capture(also=held)
        assert capture(also=held) == first


def test_a_generator_whose_entropy_is_very_large_comes_back_from_a_file() -> None:
    generator = np.random.default_rng(2**3000 + 1)
    state = capture(also=generator)
    expected = drawn(generator)
    saved_and_loaded(state).restore(also=generator)
    assert drawn(generator) == expected


@pytest.mark.parametrize(
    "value", [2**2000, 2**2039, 2**2040, 2**5000, -(2**2040)], ids=lambda value: value.bit_length()
)
def test_an_object_whose_state_is_a_very_large_int_comes_back_from_a_file(value: int) -> None:
    box = Box(value)
    loaded = saved_and_loaded(capture(also=box))
    box.value = None
    loaded.restore(also=box)
    assert box.value == value


@pytest.mark.parametrize("value", [2**1024, 2**2039, 2**2040, -(2**2040)], ids=lambda value: value.bit_length())
def test_a_very_large_int_takes_no_more_bytes_than_it_needs(value: int) -> None:
    written = capture(also=Box(value)).state_dict()["streams"]["also[0]"]["state"]
    assert len(written["bytes"]) == value.bit_length() // 8 + 1  # with a bit for the sign


def test_a_subclass_of_random_with_a_state_of_its_own_is_captured_as_an_object(way: Any) -> None:
    class Counting(random.Random):
        count = 0

        def random(self) -> float:
            self.count += 1
            return super().random()

        def getstate(self) -> Any:
            return self.count, super().getstate()

        def setstate(self, state: Any) -> None:
            self.count, inner = state
            super().setstate(inner)

    held = Counting(1)
    held.random()
    state = capture(also=held)
    expected = held.random(), held.count
    way(state).restore(also=held)
    assert (held.random(), held.count) == expected


BUFFERS: dict[str, Callable[[], torch.Tensor]] = {
    "float32": lambda: torch.tensor([1.0, -0.0, 1e30]),
    "0-dim": lambda: torch.tensor(3),
    "bool": lambda: torch.tensor([True, False]),
    "float16": lambda: torch.tensor([1.5, 65504.0], dtype=torch.float16),
    "bfloat16": lambda: torch.tensor([1.5, 3e38], dtype=torch.bfloat16),
    "float8": lambda: torch.tensor([1.5, 448.0]).to(torch.float8_e4m3fn),
    "complex64": lambda: torch.tensor([1 + 2j]),
    "conjugated": lambda: torch.tensor([1 + 2j]).conj(),
    "uint8": lambda: torch.tensor([255], dtype=torch.uint8),
    "empty": lambda: torch.empty(0, 3),
    "transposed": lambda: torch.arange(6).reshape(2, 3).t(),
    "expanded": lambda: torch.arange(3).expand(2, -1),
}


class Holder(torch.nn.Module):
    def __init__(self, buffer: Any) -> None:
        super().__init__()
        self.register_buffer("held", buffer)
        self.register_buffer("none", None)
        self.register_buffer("passing", torch.ones(1), persistent=False)


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS)
def test_a_modules_buffers_are_captured_and_restored(way: Any, make: Any) -> None:
    module = Holder(make())
    state = capture(also=module)
    module.held = torch.empty_like(make(), memory_format=torch.contiguous_format).zero_()
    module.passing.zero_()
    module.eval()
    way(state).restore(also=module)
    assert torch.equal(module.held.double() if make().dtype == torch.float8_e4m3fn else module.held, bits_of(make()))
    assert module.none is None
    assert module.passing.item() == 1
    assert module.training
    assert capture(also=module) == state


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.dtype == torch.float8_e4m3fn else tensor


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS)
def test_a_buffer_is_restored_in_place(make: Any) -> None:
    module = Holder(make())
    buffer = module.held
    state = through_dict(capture(also=module))
    state.restore(also=module)
    assert module.held is buffer


def test_a_forward_in_training_mode_is_replayed_exactly(way: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout())
    values = torch.randn(8, 4)
    net(values)
    state = capture(also=net)
    first = net(values)
    moved = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with replay(way(state), also=net):
        assert torch.equal(net(values), first)
        assert all(torch.equal(buffer, moved[name]) for name, buffer in net.named_buffers())
    assert all(torch.equal(buffer, moved[name]) for name, buffer in net.named_buffers())
    way(state).restore(also=net)
    assert torch.equal(net(values), first)


def test_a_buffer_that_two_modules_share_is_captured_once() -> None:
    shared = torch.ones(2)
    net = torch.nn.ModuleList([Holder(shared), Holder(shared)])
    state = through_dict(capture(also=net))
    shared.zero_()
    state.restore(also=net)
    assert net[0].held is net[1].held is shared
    assert shared.tolist() == [1, 1]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2**200,
        -1.5,
        "é",
        b"\x00\xff",
        b"",
        (),
        (1, (2.0, [None, True], b"x")),
        [[], {}],
        {"a": 1, 2: "b", None: (3,), (1, 2): True},
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.arange(3, dtype=">u4"),
        np.zeros(0),
        np.zeros((2, 0)),
        np.array(3.5),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.arange(6).reshape(2, 3).T,
        np.float32(1.5),
        np.uint64(2**64 - 1),
        np.bool_(True),
    ],
    ids=repr,
)
def test_whatever_plain_state_an_object_has_comes_back_with_its_types(way: Any, value: Any) -> None:
    box = Box(value)
    state = capture(also=box)
    box.value = "another"
    way(state).restore(also=box)
    if isinstance(value, (np.ndarray, np.generic)):
        assert type(box.value) is type(value)
        assert box.value.dtype == value.dtype.newbyteorder("=")
        assert box.value.shape == value.shape
        assert np.array_equal(box.value, value)
    else:
        assert with_types(box.value) == with_types(value)
        assert box.value == value


def test_an_array_that_comes_back_can_be_written_to() -> None:
    box = Box(np.zeros(2))
    through_dict(capture(also=box)).restore(also=box)
    box.value += 1
    assert box.value.tolist() == [1, 1]


@pytest.mark.parametrize(
    "content",
    [
        {1, 2},
        object,
        bytearray(b"a"),
        1j,
        torch.zeros(1),
        np.array(["a"]),
        np.array([object], dtype=object),
        np.datetime64(0, "s"),
        range(3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: [1, ({"a": it},)]], ids=["bare", "nested"])
def test_a_state_that_is_not_plain_is_refused_on_capture(content: Any, wrap: Any) -> None:
    text = (
        f"the state of 'also[1]' holds {type(content).__name__} {content!r}, which cannot be written as plain data; "
        "its getstate() must give None, bool, int, float, str, bytes, tuple, list, dict or NumPy arrays of numbers"
    )
    before = kit.everything()
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        capture(also=[random.Random(1), Box(wrap(content))])
    assert kit.everything() == before


def test_a_scope_can_hold_an_object_whose_state_is_not_plain() -> None:
    box = Box({1, 2})
    with deterministic(0, also=box):
        assert box.value != {1, 2}
    assert box.value == {1, 2}


def test_an_object_that_cannot_be_read_lets_capture_fail_with_its_own_error() -> None:
    box = Box()
    box.getstate = lambda: 1 / 0  # type: ignore[method-assign]
    before = kit.everything()
    with pytest.raises(ZeroDivisionError):
        capture(also=box)
    assert kit.everything() == before


# Devices and objects that are not here


def here(state: RngState, also: Any, missing: Any) -> None:
    state.restore(also=also, missing=missing)


def in_a_block(state: RngState, also: Any, missing: Any) -> None:
    with replay(state, also=also, missing=missing):
        pass


@pytest.fixture(params=[here, in_a_block])
def use(request: pytest.FixtureRequest) -> Any:
    """Each of the ways to put a state."""
    return request.param


def mismatch(use: Any, state: RngState, also: Any, text: str) -> None:
    """Check that a state is refused, and that nothing was changed."""
    kit.draws()
    before, seen = kit.everything(), capture(also=also)
    with pytest.raises(StateMismatchError, match=f"^{re.escape(text)}$") as caught:
        use(state, also, "error")
    assert isinstance(caught.value, ScopedRngError)
    assert isinstance(caught.value, ValueError)
    assert kit.everything() == before
    assert capture(also=also) == seen


def not_here(names: str) -> str:
    return (
        f"the state holds {names}, which is not here; initialise the device, register the stream, or give the same "
        'objects as to capture(also=...), or leave it out with missing="skip"'
    )


def test_objects_that_are_not_here_are_an_error(use: Any) -> None:
    state = capture(also=[random.Random(1), random.Random(2)])
    mismatch(use, state, (), not_here("also[0], also[1]"))
    mismatch(use, state, [random.Random(3)], not_here("also[1]"))


def test_objects_that_are_not_in_the_state_are_an_error(use: Any) -> None:
    state = capture(also=random.Random(1))
    text = (
        "also[1], also[2] is not in the state, which holds python, numpy, torch, also[0]; capture it with the same "
        'also=, or leave it out with missing="skip"'
    )
    mismatch(use, state, [random.Random(1), random.Random(2), np.random.default_rng(1)], text)


def test_a_registered_stream_that_is_not_here_is_an_error(use: Any) -> None:
    register_stream("dice", Box(1))
    state = capture()
    unregister_stream("dice")
    mismatch(use, state, (), not_here("dice"))


def test_a_device_that_is_not_here_is_an_error_unless_it_is_skipped(use: Any) -> None:
    state_dict = capture().state_dict()
    state_dict["streams"]["cuda:7"] = {"kind": "torch", "device": "cuda", "bytes": torch.ones(16, dtype=torch.uint8)}
    state = RngState.from_state_dict(state_dict)
    mismatch(use, state, (), not_here("cuda:7"))
    use(state, (), "skip")


@pytest.mark.parametrize("length", [1, 2**16])
def test_a_devices_state_of_a_sensible_length_is_read(length: int) -> None:
    state_dict = capture().state_dict()
    data = torch.ones(length, dtype=torch.uint8)
    state_dict["streams"]["cuda:7"] = {"kind": "torch", "device": "cuda", "bytes": data}
    assert "cuda:7" in RngState.from_state_dict(state_dict).names


@pytest.mark.parametrize(
    ("device", "data"),
    [(7, torch.ones(16, dtype=torch.uint8)), ("cuda", "sixteen"), ("cuda", [1] * 16), ("cpu", "bytes")],
    ids=["an index", "a text", "a list", "of the CPU"],
)
def test_a_devices_state_of_another_form_is_refused(device: Any, data: Any) -> None:
    state_dict = capture().state_dict()
    state_dict["streams"]["cuda:7"] = {"kind": "torch", "device": device, "bytes": data}
    refused(state_dict, "cuda:7", "a torch state is not a device and bytes")


@pytest.mark.parametrize("bytes_", [torch.zeros(0, dtype=torch.uint8), torch.zeros(2**16 + 1, dtype=torch.uint8)])
def test_a_devices_state_of_no_sensible_length_is_refused(bytes_: torch.Tensor) -> None:
    state_dict = capture().state_dict()
    state_dict["streams"]["cuda:7"] = {"kind": "torch", "device": "cuda", "bytes": bytes_}
    refused(state_dict, "cuda:7", f"a state of 'cuda' of {len(bytes_)} bytes")


def test_what_is_missing_on_either_side_is_left_out_when_it_is_skipped(use: Any) -> None:
    one, two = random.Random(1), random.Random(2)
    both, none = capture(also=[one, two]), capture()
    one.random()
    two.random()
    moved = two.random()
    one_moved, two_moved = one.getstate(), two.getstate()
    expected = kit.continuation()
    use(none, [one, two], "skip")  # the caller has more
    assert (one.getstate(), two.getstate()) == (one_moved, two_moved)
    use(both, [one], "skip")  # the state has more
    assert two.getstate() == two_moved
    assert moved != two.random()
    if use is here:
        assert one.getstate() == random.Random(1).getstate()
        assert kit.continuation() == expected
    else:
        assert one.getstate() == one_moved


def test_an_object_that_a_replay_skips_is_put_back_behind_the_block() -> None:
    held, twin = random.Random(1), random.Random(1)
    with replay(capture(), also=held, missing="skip"):
        assert held.random() == random.Random(1).random()
    assert held.random() == twin.random()


def test_a_stream_that_only_this_process_has_registered_is_left_as_it_is(use: Any) -> None:
    state, box = capture(), Box(1)
    register_stream("dice", box)
    try:
        use(state, (), "error")
    finally:
        unregister_stream("dice")
    assert box.value == 1


@pytest.mark.parametrize("missing", ["ignore", None, True, "Error", ""], ids=repr)
def test_missing_is_one_of_two_words(missing: Any) -> None:
    state = capture()
    before = kit.everything()
    text = f'missing= is "error" or "skip", got {missing!r}'
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        state.restore(missing=missing)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        replay(state, missing=missing)
    assert kit.everything() == before


def other_kind(what: str, saved: Any, found: Any) -> str:
    return (
        f"'also[0]' is of another {what} in the state: {saved!r}, here it is {found!r}; "
        "give the same objects, in the same order, as when the state was captured"
    )


KINDS: dict[str, Callable[[], Any]] = {
    "python": lambda: random.Random(1),
    "numpy": lambda: np.random.RandomState(1),
    "numpy.generator": lambda: np.random.default_rng(1),
    "torch": torch.Generator,
    "buffers": lambda: torch.nn.BatchNorm1d(2),
    "object": Box,
}


@pytest.mark.parametrize("saved", KINDS)
@pytest.mark.parametrize("found", KINDS)
def test_an_object_of_another_kind_is_an_error(use: Any, saved: str, found: str) -> None:
    state = capture(also=KINDS[saved]())
    if saved == found:
        use(state, KINDS[found](), "error")
    else:
        mismatch(use, state, KINDS[found](), other_kind("kind", saved, found))


@pytest.mark.parametrize("make", [np.random.Generator, np.random.RandomState])
@pytest.mark.parametrize("saved", BIT_GENERATORS)
@pytest.mark.parametrize("found", BIT_GENERATORS)
def test_an_object_over_another_bit_generator_is_an_error(use: Any, make: Any, saved: str, found: str) -> None:
    state = capture(also=make(getattr(np.random, saved)(1)))
    held = make(getattr(np.random, found)(2))
    if saved == found:
        use(state, held, "error")
    else:
        mismatch(use, state, held, other_kind("bit generator", saved, found))


def test_a_state_of_another_device_is_an_error(use: Any) -> None:
    state_dict = capture(also=torch.Generator()).state_dict()
    state_dict["streams"]["also[0]"].update(device="cuda", bytes=torch.ones(16, dtype=torch.uint8))
    state = RngState.from_state_dict(state_dict)
    mismatch(use, state, torch.Generator(), other_kind("device", "cuda", "cpu"))


def test_other_buffers_are_an_error(use: Any) -> None:
    state = capture(also=torch.nn.BatchNorm1d(2))

    def buffers(size: int, dtype: str = "float32") -> Any:
        return [
            ("running_mean", dtype, [size]),
            ("running_var", dtype, [size]),
            ("num_batches_tracked", "int64", []),
        ]

    mismatch(use, state, torch.nn.BatchNorm1d(3), other_kind("buffers", buffers(2), buffers(3)))
    mismatch(use, state, torch.nn.BatchNorm1d(2).double(), other_kind("buffers", buffers(2), buffers(2, "float64")))
    mismatch(use, state, torch.nn.Flatten(), other_kind("buffers", buffers(2), []))


def test_other_modules_are_an_error(use: Any) -> None:
    state = capture(also=torch.nn.BatchNorm1d(2))
    other = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    mismatch(use, state, other, other_kind("modules", [""], ["", "0"]))


def test_what_can_be_skipped_is_what_is_missing_and_nothing_else(use: Any) -> None:
    state = capture(also=random.Random(1))
    with pytest.raises(StateMismatchError, match=re.escape("'also[0]' is of another kind in the state")):
        use(state, np.random.default_rng(1), "skip")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_restore_that_fails_half_way_puts_everything_back(use: Any, place: int) -> None:
    also: list[Any] = [random.Random(1), np.random.default_rng(1)]
    also.insert(place, Fussy(1))
    state = capture(also=also)
    kit.draws()
    for held in also:
        if isinstance(held, Fussy):
            held.value = 2
        else:
            held.random()
    before, seen = kit.everything(), capture(also=also)
    with pytest.raises(RuntimeError, match="not today"):
        use(state, also, "error")
    assert kit.everything() == before
    assert capture(also=also) == seen


def test_a_restore_that_fails_and_cannot_be_undone_tells_of_both() -> None:
    class Stuck(Box):
        def setstate(self, value: Any) -> None:
            raise RuntimeError("stuck")

    rng, stuck = random.Random(1), Stuck(1)
    state = capture(also=[rng, stuck])
    told = "also[1]: RuntimeError: stuck; everything else was"
    with pytest.warns(RestoreWarning, match=f"{re.escape(told)}$"), pytest.raises(RuntimeError, match=r"^stuck$"):
        state.restore(also=[rng, stuck])


def test_a_restore_that_is_interrupted_puts_everything_back() -> None:
    class Interrupted(Box):
        interrupts = 1

        def setstate(self, value: Any) -> None:
            super().setstate(value)
            if self.interrupts:
                self.interrupts -= 1
                raise KeyboardInterrupt

    held, box = random.Random(1), Interrupted(1)
    state = capture(also=[held, box])
    kit.draws()
    held.random()
    box.value = 2
    before, seen = kit.everything(), capture(also=[held, box])
    with pytest.raises(KeyboardInterrupt):
        state.restore(also=[held, box])
    assert kit.everything() == before
    assert capture(also=[held, box]) == seen


# Fresh entropy


def entropy(count: int = 3) -> list[float]:
    return [np.random.default_rng().random() for _ in range(count)]


def test_a_state_from_inside_a_seeded_scope_replays_the_fresh_entropy(way: Any) -> None:
    with deterministic(3):
        entropy(2)
        state = capture()
        expected = entropy()
    assert "numpy.entropy" in state.names
    asked = bit_generator.randbits  # type: ignore[attr-defined]
    for _ in range(2):
        with replay(way(state)):
            assert entropy() == expected
        assert bit_generator.randbits is asked  # type: ignore[attr-defined]
    with deterministic(4):
        other = entropy(1)
        with replay(way(state)):
            assert entropy() == expected
        other += entropy(2)
    with deterministic(4):
        assert entropy() == other


def test_restoring_inside_a_seeded_scope_puts_the_fresh_entropy(way: Any) -> None:
    with deterministic(3):
        entropy(2)
        state = capture()
        expected = entropy()
        way(state).restore()
        assert entropy() == expected
    asked = bit_generator.randbits  # type: ignore[attr-defined]
    with deterministic(4):
        way(state).restore()
        assert entropy() == expected
    assert bit_generator.randbits is asked  # type: ignore[attr-defined]


NO_ENTROPY = re.escape(
    "the state holds NumPy's fresh entropy (numpy.entropy), which is a stream only inside a seeded scope, and is left "
    "alone here, so unseeded generators do not go on from it; restore inside deterministic(seed), as it was captured, "
    'or leave it out with missing="skip"'
)


@pytest.mark.parametrize("scope", [contextlib.nullcontext, isolated], ids=["no scope", "isolated"])
def test_restoring_outside_of_a_seeded_scope_leaves_entropy_to_the_operating_system_and_says_so(
    way: Any, scope: Any
) -> None:
    with deterministic(3):
        state = capture()
        drawn_inside, expected = kit.draws(), entropy()
    asked = bit_generator.randbits  # type: ignore[attr-defined]
    with scope():
        with pytest.warns(RestoreWarning, match=NO_ENTROPY) as caught:
            way(state).restore()
        assert [warning.filename for warning in caught] == [__file__]
        assert kit.draws() == drawn_inside
        assert bit_generator.randbits is asked  # type: ignore[attr-defined]
        assert entropy() != expected
        way(state).restore(missing="skip")
        assert kit.draws() == drawn_inside


def test_where_that_warning_is_an_error_nothing_is_restored() -> None:
    with deterministic(3):
        state = capture()
    before = kit.everything()
    with pytest.raises(RestoreWarning, match=NO_ENTROPY):
        state.restore()
    assert kit.everything() == before


def test_a_state_from_outside_has_no_fresh_entropy_and_leaves_that_of_a_scope_as_it_is(way: Any) -> None:
    state = capture()
    assert "numpy.entropy" not in state.names
    with deterministic(3):
        expected = entropy(6)
    with deterministic(3):
        found = entropy(2)
        way(state).restore()
        found += entropy(2)
        with replay(way(state)):
            assert entropy(2) == expected[4:]
        found += entropy(2)
    assert found == expected


def test_drawing_fresh_entropy_makes_a_state_differ_in_it() -> None:
    with deterministic(3):
        before = capture()
        np.random.SeedSequence()
        assert capture().diff(before) == ["numpy.entropy"]


# Registered streams


def test_a_registered_stream_is_captured_and_restored(way: Any) -> None:
    box = Box((1, [2]))
    register_stream("dice", box)
    try:
        state = capture()
        box.value = 3
        way(state).restore()
        assert box.value == (1, [2])
        box.value = 3
        with replay(way(state)):
            assert box.value == (1, [2])
        assert box.value == 3
    finally:
        unregister_stream("dice")


@pytest.mark.parametrize("first", [1, "a", None])
def test_a_registered_stream_whose_state_is_not_plain_lets_capture_fail_and_scopes_work(first: Any) -> None:
    box = Box({first})
    register_stream("dice", box)
    try:
        with pytest.raises(TypeError, match=re.escape("the state of 'dice' holds set ")):
            capture()
        with deterministic(0):
            box.value = 1
        assert box.value == {first}
    finally:
        unregister_stream("dice")
