"""What is inside a value, by name: one step of a walk through nested results."""

from __future__ import annotations

import argparse
import array
import copyreg
import dataclasses
import datetime
import functools
import random
import types
import weakref
from collections import UserList, defaultdict, deque
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple
from unittest.mock import NonCallableMock

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle

__all__ = [
    "PLAIN",
    "Label",
    "NoBits",
    "Parts",
    "Path",
    "are_mocks",
    "has_bits",
    "has_identity",
    "parts",
    "path_text",
    "state_parts",
]


class Label(NamedTuple):
    """One step of a path: a format, and what it shows."""

    form: str
    shown: Any

    def __str__(self) -> str:
        try:
            return self.form % (self.shown,)
        except Exception:  # of a repr, or an integer that is too long to be written
            return f"[<{type(self.shown).__name__}>]"


PLAIN = frozenset((int, str, bytes, bool, type(None)))  # whose == tells all, between two of the same type

Path = Any  # None, or a pair of a Path and a Label: linked, so that a step costs the same at any depth

# By keys that are equal for what belongs together on two sides.
Parts = dict[Hashable, tuple[Label, Any]]


class NoBits(TypeError):
    """Tell why a tensor cannot be compared."""


def path_text(path: Path) -> str:
    """Return a path as it is written, such as ``['model'].weight``."""
    labels = []
    while path is not None:
        path, label = path
        labels.append(str(label))
    return "".join(reversed(labels))


def has_bits(value: Any) -> bool:
    """Return whether ``value`` is a tensor, an array or a number whose elements are bits and nothing else.

    Raises:
        NoBits: it is a tensor that has none, nor parts that have.
    """
    if isinstance(value, torch.Tensor):
        if value.is_nested or value.layout not in (torch.strided, torch.sparse_coo, torch.sparse_csr):
            raise NoBits(
                f"the layout of the tensor is {'nested' if value.is_nested else value.layout}; strided, sparse_coo "
                "and sparse_csr are compared, so convert it first, with to_dense() say"
            )
        if value.layout is not torch.strided or value.is_quantized or hasattr(value, "__tensor_flatten__"):
            return False
        if value.untyped_storage().device.type == "meta":  # that of a fake tensor too, whose own device is not
            raise NoBits("a meta or fake tensor has a shape, but no bits; compare real ones")
        return True
    if isinstance(value, (np.ndarray, np.generic)):
        masked = isinstance(value, np.ma.MaskedArray)
        return not (masked or value.dtype.names is not None or value.dtype.kind in "OT")
    return isinstance(value, (float, complex))


def parts(value: Any, grad: bool = False) -> Parts | None:
    """Return what is inside ``value``, or None if nothing is known of its kind.

    Args:
        value: anything but a lazy tensor.
        grad: whether the gradient of a tensor is a part of it.
    """
    if isinstance(value, NonCallableMock):  # first, since one with a spec takes itself for an instance of that
        return _mock_parts(value)
    if isinstance(value, torch.Tensor):
        return _tensor_parts(value, grad)
    if isinstance(value, (np.ndarray, np.generic)):
        return _array_parts(value)
    if isinstance(value, (float, complex)):
        return _attributes(value)
    if isinstance(value, torch.nn.Module):
        return _module_parts(value)
    if isinstance(value, Mapping):
        made = [("default_factory", value.default_factory)] if isinstance(value, defaultdict) else []
        return {**_items(value), **_named(made), **_attributes(value)}
    fields = getattr(type(value), "_fields", None)
    if isinstance(value, tuple) and fields is not None:
        return {**_named(zip(fields, value, strict=True)), **_attributes(value)}
    if isinstance(value, (list, tuple, deque)):
        ends = [("maxlen", value.maxlen)] if isinstance(value, deque) else []
        return {**{i: (Label("[%d]", i), item) for i, item in enumerate(value)}, **_named(ends), **_attributes(value)}
    if isinstance(value, (set, frozenset)):
        return {**{exact(item): (Label("{%r}", item), item) for item in value}, **_attributes(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
        return {**_named((name, getattr(value, name)) for name in fields), **_attributes(value)}
    for kind, get in _KNOWN:
        if isinstance(value, kind):
            try:
                return _named(get(value).items())
            except Exception:  # an empty cell, or a generator of the operating system's, which has no state
                return None
    return None


def state_parts(value: Any) -> Parts | None:
    """Return the parts of what copy and pickle take for the state of any object, or None if they take none of it."""
    try:
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return _named((("__reduce__()", reduced),))
        make, args, state, *items = (*reduced, None, None, None)[:5]
        found: dict[str, Any] = {}
        if make is not copyreg.__newobj__ or len(args) > 1:  # type: ignore[attr-defined]
            found["__reduce__()"] = (make, args)
        slots: Any = {}
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # with __slots__
            state, slots = state
        if state is not None and not isinstance(state, dict):
            state = {"__getstate__()": state}
        return _named({**found, **(state or {}), **slots, "__reduce__()[3:]": [list(it or ()) for it in items]}.items())
    except Exception:
        return None


def _named(items: Any, form: str = ".%s") -> Parts:
    return {name: (Label(form, name), item) for name, item in items}


def _attributes(value: Any) -> Parts:
    return _named(getattr(value, "__dict__", {}).items())


def _items(mapping: Mapping[Any, Any]) -> Parts:
    found: Parts = {}
    for place, (key, item) in enumerate(mapping.items()):
        if has_identity(key):  # an optimizer's state is kept by parameter: another one in a copy, at the same place
            found["key", place] = (Label(".keys()[%d]", place), key)
            found["item", place] = (Label("[key %d]", place), item)
        else:
            found["item", exact(key)] = (Label("[%r]", key), item)
    return found


def has_identity(key: Any) -> bool:
    """Return whether ``key`` is equal to itself alone, and a copy of it another key."""
    if type(key) in PLAIN:
        return False
    if isinstance(key, torch.Tensor):
        return True
    is_atomic = isinstance(key, (type, types.FunctionType, types.ModuleType)) or not hasattr(key, "__dict__")
    own_hash: Any = type(key).__hash__
    return own_hash is object.__hash__ and not is_atomic


def exact(key: Any) -> Hashable:
    """Return what is equal for keys of the same type and bits: 1, True and 1.0 are equal themselves."""
    if type(key) in PLAIN:
        return type(key), key
    if isinstance(key, tuple):
        return (type(key), *map(exact, key))
    if isinstance(key, frozenset):
        return type(key), frozenset(map(exact, key))
    if isinstance(key, (float, complex, np.generic)):
        data = np.asarray(key)
        return type(key), data.dtype.str, data.tobytes()
    return type(key), key


def _tensor_parts(tensor: torch.Tensor, grad: bool) -> Parts:
    found: dict[str, Any] = {}
    if hasattr(tensor, "__tensor_flatten__"):  # by which a subclass tells torch.compile of the tensors that it wraps
        names, found[".__tensor_flatten__()[1]"] = tensor.__tensor_flatten__()
        found.update({f".{name}": getattr(tensor, name) for name in names})
    elif tensor.is_quantized:
        tensor = tensor.detach()
        names = ["qscheme", "int_repr", "q_scale", "q_zero_point"]
        if tensor.qscheme() not in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            names[2:] = ["q_per_channel_axis", "q_per_channel_scales", "q_per_channel_zero_points"]
        found = {f".{name}()": getattr(tensor, name)() for name in names}
    elif tensor.layout is torch.sparse_coo:
        data = tensor.detach()
        # The public indices() and values() are for coalesced ones alone.
        found = {".is_coalesced()": data.is_coalesced(), ".indices()": data._indices(), ".values()": data._values()}
    elif tensor.layout is torch.sparse_csr:
        data = tensor.detach()
        names = ["crow_indices", "col_indices", "values"]
        found = {f".{name}()": getattr(data, name)() for name in names}
    if grad:
        found[".grad"] = tensor.grad if tensor.is_leaf or tensor.retains_grad else None  # torch would warn
    return _named(found.items(), "%s")


def _array_parts(value: Any) -> Parts:
    if value.dtype.names is not None:
        return {name: (Label("[%r]", name), value[name]) for name in value.dtype.names}
    if isinstance(value, np.ma.MaskedArray):
        mask, data = np.ma.getmaskarray(value), np.array(value.data)
        data[mask] = np.zeros((), data.dtype)  # what is under a mask does not count
        return _named(((".mask", mask), (".data", data), (".fill_value", value.fill_value)), "%s")
    if value.dtype.kind not in "OT":
        return {}
    elements = np.asarray(value, object)
    return {index: (Label("%s", list(index)), elements[index]) for index in np.ndindex(elements.shape)}


def _module_parts(module: torch.nn.Module) -> Parts:
    found: dict[str, Any] = {"training": module.training}
    found.update(module.named_parameters(recurse=False, remove_duplicate=False))
    found.update(module.named_buffers(recurse=False, remove_duplicate=False))
    found.update((name, child) for name, child in module._modules.items() if child is not None)
    # All others but the tables that every module has, of hooks too, and what torch's compilers have made, which copies
    # do not have either: torch.compile() wraps a module in another, and that is how the compiled ones have it.
    if "_orig_mod" not in module._modules and not isinstance(module, torch.jit.ScriptModule):
        of_torch = {*vars(torch.nn.Module()), "_compiled_call_impl"}
        found.update((name, item) for name, item in vars(module).items() if name not in of_torch)
    return _named(found.items())


def _mock_parts(mock: NonCallableMock) -> Parts:
    # deepcopy asks each call for its __deepcopy__, and takes the "call" of that for the copy, with all it has in hand.
    calls = [tuple(call) for call in mock.mock_calls if not call[0].endswith("__deepcopy__")]
    attributes = {name: item for name, item in vars(mock).items() if name not in _of_mocks()}
    return _named({"mock_calls": calls, **attributes}.items())


@functools.cache
def _of_mocks() -> frozenset[str]:
    return frozenset(vars(NonCallableMock()))


def are_mocks(first: Any, second: Any) -> bool:
    """Return whether both are mocks of the same kind: ``unittest.mock`` makes a class of its own for each of them."""
    kinds = [dict.fromkeys(kind.__qualname__ for kind in type(it).__mro__) for it in (first, second)]
    return "NonCallableMock" in kinds[0] and list(kinds[0]) == list(kinds[1])


def _seeds(bits: np.random.BitGenerator) -> dict[str, Any]:
    found: dict[str, Any] = {"state": bits.state}
    if isinstance(bits.seed_seq, np.random.SeedSequence):  # how many children it has spawned
        found["seed_seq.state"] = bits.seed_seq.state
    return found


def _closure(function: types.FunctionType) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    names = ("__code__", "__defaults__", "__kwdefaults__", "__dict__")
    return {**{name: getattr(function, name) for name in names}, "__closure__": dict(cells)}


def _time(it: Any) -> dict[str, Any]:
    return {"isoformat()": it.isoformat(), "fold": it.fold, "tzinfo": it.tzinfo}


# Kinds whose state is neither in their __dict__ nor wholly told by an __eq__.
_KNOWN: tuple[tuple[type, Any], ...] = (
    (torch.optim.Optimizer, lambda it: {"param_groups": it.param_groups, "state": it.state}),
    (torch.Generator, lambda it: {"device": it.device, "get_state()": it.get_state()}),
    (np.random.Generator, lambda it: {"bit_generator": it.bit_generator}),
    (np.random.BitGenerator, _seeds),
    (np.random.RandomState, lambda it: {"get_state()": it.get_state(legacy=False)}),
    (random.Random, lambda it: {"getstate()": it.getstate(), **vars(it)}),
    (types.FunctionType, _closure),
    (types.CellType, lambda it: {"cell_contents": it.cell_contents}),
    (types.MethodType, lambda it: {"__func__": it.__func__, "__self__": it.__self__}),
    (functools.partial, lambda it: {"func": it.func, "args": it.args, "keywords": it.keywords, **vars(it)}),
    (BaseException, lambda it: {"args": it.args, **vars(it)}),
    (array.array, lambda it: {"typecode": it.typecode, "tobytes()": it.tobytes()}),
    (datetime.datetime, _time),
    (datetime.time, _time),
    (weakref.ref, lambda it: {"()": it()}),
    (RemovableHandle, lambda it: {}),  # its number counts all the hooks of the process
    (types.SimpleNamespace, vars),  # their own __eq__ takes 1 for True, and 0.0 for -0.0
    (argparse.Namespace, vars),
    (UserList, vars),
)
