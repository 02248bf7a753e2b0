"""Initialise the modules of a model, each from a seed of its own name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple, SupportsIndex

import torch
import torch.utils._python_dispatch as python_dispatch
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from .dynamo import never_compile
from .errors import DeterminismWarning, warn
from .seeds import check_seed, fold_in
from .streams.buffers import copies_of, put_copies

__all__ = ["Initialized", "initialize"]


class Initialized(NamedTuple):
    """Tell what `initialize` has done."""

    seeds: dict[str, int]
    """The modules that were initialised, in that order, and the seed of each."""
    missed: list[str]
    """The parameters that nothing was written to: they are as they were."""
    kept: list[str]
    """The buffers that nothing was written to: after ``to_empty`` they have no values yet, and are to be filled in."""
    tied: list[str]
    """Where a module or ``init`` has written to what a module before it had initialised: that has stayed."""


@never_compile
def initialize(
    model: torch.nn.Module, seed: SupportsIndex, init: Callable[[str, torch.nn.Module], Any] | None = None
) -> Initialized:
    """Initialise every module of a model anew, each from a seed of its own that is derived from its qualified name.

    So adding, removing or reordering layers leaves the weights of all others as they were. A module is initialised by
    its own ``reset_parameters``, or else ``_reset_parameters``, under the seed ``fold_in(seed, name)``; the name is
    that of ``model.named_modules()``, ``""`` for the model itself. What is constructed under that seed is the same:

    >>> from torch import nn
    >>> from scoped_rng import deterministic, fold_in
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> initialize(model, 0).missed
    []
    >>> with deterministic(fold_in(0, "2")):
    ...     layer = nn.Linear(8, 2)
    >>> torch.equal(model[2].weight, layer.weight)
    True

    What a constructor has set by other means is replaced. Children come first, so a module whose method reaches into
    its children overrides them; but where it calls a child's method, that draws from the child's own seed. What belongs
    to several modules (tied parameters) is initialised by the first of them that writes to it, ``init`` included, and
    left alone by the others; a module with several names goes by the first. Parameters stay the same objects, with
    their ``requires_grad`` and ``grad``. Where ``torch.compile`` has wrapped a module, names are those without it; of
    other wrappers, give what they wrap. No random stream outside moves. As ever in torch, an accelerator draws other
    numbers than the CPU.

    Whether a parameter was reached is known from what torch writes to. Written means at least partly, and a write past
    torch (through a NumPy view of it) is not seen. The methods of a parametrised module (weight norm, spectral norm)
    write to a temporary, so its parameters are missed: let ``init`` reach them, by assigning to ``module.weight``.
    Reading that weight leaves its buffers as they were.

    Args:
        model: a module with everything in memory: after ``model.to_empty(...)``, tie again what was tied, and fill in
            the buffers that are ``kept``.
        seed: an int in [0, 2**64).
        init: called as ``init(name, module)`` for every module after its own method, under ``torch.no_grad()``, with
            the streams at the module's seed again: what it draws does not depend on what the method has drawn.

    Returns:
        The seed of each module that was initialised, the parameters that were not reached, of which a
        `DeterminismWarning` tells as well, the buffers that were not, and what was tied.

    Raises:
        TypeError: an argument is wrong; nothing was touched.
        ValueError: something has no shape yet (a lazy module) or is on the meta device; nothing was touched.
        Exception: what a module's method or ``init`` raises, with a note of the module's name; what was initialised
            before it stays so.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"initialize takes a torch.nn.Module, got {type(model).__name__} {model!r}")
    seed = check_seed(seed)
    if init is not None and not callable(init):
        raise TypeError(f"init= is a function of a name and a module, got {type(init).__name__} {init!r}")
    writes = _Writes(_with_memory(model), seed)
    writes.initialize(model, init)
    missed = [_plain(name) for name, parameter in model.named_parameters() if not writes.has_reached(parameter)]
    kept = [_plain(name) for name, buffer in model.named_buffers() if not writes.has_reached(buffer)]
    if missed:
        warn(
            f"initialize has not reached {', '.join(missed)}: no reset_parameters writes to them, so they are as they "
            "were; give their modules one, or set them in init=",
            DeterminismWarning,
        )
    elif not writes.seeds:
        warn(
            "initialize has found nothing to do: the model has no parameters, and no module a reset_parameters (that "
            "of quantised layers is lost)",
            DeterminismWarning,
        )
    return Initialized(writes.seeds, missed, kept, writes.tied)


# Modules that only wrap another one, under these names, which torch leaves out of its own names as well.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def _children_first(module: torch.nn.Module, name: str, seen: set[int]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Go through the modules, each once under its first name, those with children after these."""
    only_wraps = False
    for key, child in module.named_children():
        only_wraps = only_wraps or key in _WRAPPED
        if id(child) not in seen:
            seen.add(id(child))
            yield from _children_first(child, _plain(f"{name}.{key}" if name else key), seen)
    if not only_wraps:
        yield name, module


def _reset_of(module: torch.nn.Module) -> str | None:
    """Return the name of the method that initialises a module, if it has one itself."""
    for name in ("reset_parameters", "_reset_parameters"):
        # getattr alone would find that of another module, which the __getattr__ of wrappers goes on to.
        if inspect.getattr_static(module, name, None) is not None and callable(getattr(module, name)):
            return name
    return None


def _with_memory(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return the parameters and buffers, or refuse what cannot be written to."""
    named = [*model.named_parameters(), *model.named_buffers()]
    lazy = [_plain(name) for name, tensor in named if is_lazy(tensor)]
    if lazy:
        raise ValueError(f"the model has no shape yet for {', '.join(lazy)}; run one forward pass before initialize")
    on_meta = [_plain(name) for name, tensor in named if tensor.is_meta]
    if on_meta:
        raise ValueError(
            f"the model has no memory for {', '.join(on_meta)}, on the meta device; call model.to_empty(device=...), "
            "tie again what was tied, and then initialize"
        )
    return [tensor for _, tensor in named]


def _kept(tensors: list[torch.Tensor]) -> Any:
    """Return something by which a scope holds tensors."""
    copies = functools.partial(copies_of, tensors)
    return SimpleNamespace(getstate=copies, setstate=put_copies, seed=lambda seed: None) if tensors else ()


class _Writes(python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Initialise modules, and know which tensors torch writes to, and for which module.

    Version counters do not know of a write through ``.data``, nor values of a zero that replaces a zero; every
    operation that writes says so in its schema.
    """

    def __init__(self, tensors: list[torch.Tensor], seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed = seed
        self.seeds: dict[str, int] = {}
        self.tied: list[str] = []
        self._tensors: dict[int, torch.Tensor] = {}  # kept alive, so that an id is of one tensor only
        self._places: dict[int, tuple[int, int, int]] = {}
        self._in_storage: dict[int, set[int]] = {}
        self._reached: set[int] = set()
        self._writer: dict[int, str] = {}  # the first module that has written to a parameter of its own
        # Of the module that is being initialised: its name, its parameters, and what of them stays as it is.
        self._now: tuple[str, set[int], dict[int, str]] = "", set(), {}
        self._reading: list[Any] = []
        self._undo: list[Callable[[], Any]] = []
        for tensor in tensors:
            self._add(tensor)

    def initialize(self, model: torch.nn.Module, init: Callable[[str, torch.nn.Module], Any] | None) -> None:
        """Initialise each module under its own name, by whatever method it is."""
        try:
            try:
                modules = list(_children_first(model, "", set()))  # `init` may change the structure
                resets = {name: self._name_calls(name, module) for name, module in modules}
                for module in model.modules():
                    if isinstance(module, ParametrizationList):
                        self._undo.append(module.register_forward_pre_hook(self._begin_read).remove)
                        self._undo.append(module.register_forward_hook(self._end_read, always_call=True).remove)
                for name, module in modules:
                    reset = resets[name]
                    if reset is not None:
                        reset()
                    if init is not None:
                        self._run(name, module, "init(name, module)", functools.partial(init, name, module))
            finally:
                self._put_back()
        finally:
            self._put_back()

    def _name_calls(self, name: str, module: torch.nn.Module) -> Callable[[], Any] | None:
        """Have a module's method run in the module's own scope from now on, whoever calls it, and return it."""
        key = _reset_of(module)
        if key is None:
            return None
        method, table, is_own = getattr(module, key), vars(module), key in vars(module)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._run(name, module, f"its {key}()", functools.partial(method, *args, **kwargs))

        def put_back() -> None:
            if table.get(key) is call:
                table.update({key: method}) if is_own else table.pop(key)

        self._undo.append(put_back)
        table[key] = call
        return call

    def _put_back(self) -> None:
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def _run(self, name: str, module: torch.nn.Module, what: str, step: Callable[[], Any]) -> Any:
        """Run one step of a module's initialisation, in a scope of its own."""
        from .scope import isolated  # which is above this module

        self.seeds[name] = fold_in(self._seed, name)
        held = self._of_others(name, module)
        scope = isolated(self.seeds[name], also=_kept([self._tensors[each] for each in held]))
        before, self._now = self._now, (name, set(map(id, module.parameters())), held)
        try:
            return scope(self._watch)(module, step)
        except Exception as error:
            note = f"raised while {name or 'the model'!r} ({type(module).__name__}) was initialised by {what}"
            if isinstance(error, TypeError) and what.startswith("its "):
                note += "; arguments that it needs can be bound to it before, with functools.partial"
            setattr(error, "__notes__", [*getattr(error, "__notes__", ()), note])  # noqa: B010  add_note is of 3.11
            raise
        finally:
            self._now = before

    def _watch(self, module: torch.nn.Module, step: Callable[[], Any]) -> Any:
        for hook in module._forward_pre_hooks.values():
            # Until the first forward, its temporary is a view of the parameter, which a write goes through to: the one
            # write that would be reached or not, depending on whether the model was used.
            if isinstance(hook, SpectralNorm):
                setattr(module, hook.name, getattr(module, hook.name).detach().clone())
        with torch.no_grad(), self:
            result = step()
        self._now[1].update(map(id, module.parameters()))
        for tensor in (*module.parameters(), *module.buffers()):
            if self._places.get(id(tensor)) != _place(tensor):  # replaced, or its .data
                self._add(tensor)
                self._wrote(id(tensor))
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write and not self._reading:
                written = args[position] if position < len(args) else kwargs.get(argument.name)
                for tensor in written if isinstance(written, (list, tuple)) else [written]:
                    for identity in self._overlapping(_place(tensor)):
                        self._wrote(identity)
        return func(*args, **kwargs)

    def _begin_read(self, parametrization: torch.nn.Module, _: Any) -> None:
        # A parametrised weight is computed when it is read; in training mode, that of spectral norm moves its buffers.
        self._reading.append(copies_of(parametrization.buffers()))

    def _end_read(self, *_: Any) -> None:
        put_copies(self._reading.pop())

    def _add(self, tensor: torch.Tensor) -> None:
        identity, place = id(tensor), _place(tensor)
        self._in_storage.get(self._places.get(identity, place)[0], set()).discard(identity)
        self._in_storage.setdefault(place[0], set()).add(identity)
        self._tensors[identity], self._places[identity] = tensor, place

    def _overlapping(self, place: tuple[int, int, int]) -> list[int]:
        storage, begin, end = place
        there = [(each, *self._places[each]) for each in self._in_storage.get(storage, ())]
        return [each for each, _, other_begin, other_end in there if begin < other_end and other_begin < end]

    def _wrote(self, identity: int) -> None:
        name, own, held = self._now
        self._reached.add(identity)
        if identity not in held:
            if identity in own:
                self._writer.setdefault(identity, name)
        elif held[identity] not in self.tied:
            self.tied.append(held[identity])

    def _of_others(self, name: str, module: torch.nn.Module) -> dict[int, str]:
        """Return what a module that is not part of this one has initialised, with its name here."""
        inside, found = f"{name}." if name else "", {}
        for key, parameter in module.named_parameters():
            for identity in self._overlapping(_place(parameter)):
                by = self._writer.get(identity, name)
                if by != name and not by.startswith(inside):
                    found[identity] = _plain(inside + key)
        return found

    def has_reached(self, tensor: torch.Tensor) -> bool:
        return tensor.numel() == 0 or id(tensor) in self._reached


def _place(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Return where a tensor's memory is: its storage, and from which byte to which in it."""
    try:
        # Not the address of the data, which fake tensors and wrappers of tensors do not have.
        storage: int = tensor.untyped_storage()._cdata
    except NotImplementedError:  # sparse
        return -id(tensor), 0, 1
    begin, size = int(tensor.storage_offset()), tensor.element_size()
    last = begin + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return storage, begin * size, (last + 1) * size
