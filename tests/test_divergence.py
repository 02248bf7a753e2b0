"""Where two runs part, and what is said about it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scoped_rng import deterministic
from scoped_rng.trace import Trace, record
from scoped_rng.trace.divergence import Divergence, first_divergence
from scoped_rng.trace.file import Source
from tests.test_tracefile import draft, written


def traced(body: Callable[[], Any]) -> Trace:
    with deterministic(0), record() as trace:
        body()
    return trace


def parted(one: Callable[[], Any], other: Callable[[], Any]) -> Divergence:
    found = first_divergence(traced(one), traced(other))
    assert found is not None
    return found


class Numbers:
    """Give another number each time, as what comes from outside does."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> int:
        self.count += 1
        return self.count


@pytest.fixture
def outside() -> Numbers:
    return Numbers()


def train() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        model(torch.rand(3, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_equal_runs_do_not_part() -> None:
    assert first_divergence(traced(train), traced(train)) is None


def test_paths_are_compared_as_traces_are(tmp_path: Path) -> None:
    for name in "ab":
        with deterministic(0), record(tmp_path / name):
            train()
    assert first_divergence(tmp_path / "a", str(tmp_path / "b")) is None


def test_the_op_whose_output_differs_while_its_inputs_agree_is_the_culprit(tmp_path: Path) -> None:
    rest = draft("aten::relu", inputs=[3], outputs=[4])
    one = written(tmp_path / "a", draft("aten::index_put_", outputs=[3]), rest)
    other = written(tmp_path / "b", draft("aten::index_put_", outputs=[5]), rest)
    found = first_divergence(one, other)
    assert found is not None
    assert (found.kind, found.record.op, found.streams) == ("op", "aten::index_put_", ())
    assert str(found) == (
        "the runs part at aten::index_put_ (record 0, forward, in encoder.0) at train.py:7 in main: its output differs "
        "while all its inputs agree, so the op itself brought the difference in. Ask for deterministic algorithms with "
        "deterministic(seed), which the program must not switch off, and give torch the same number of threads in "
        "every run: torch.set_num_threads(1), say."
    )


def test_a_compiled_region_is_said_to_be_opaque(tmp_path: Path) -> None:
    one = written(tmp_path / "a", draft("torch.compile", opaque=True))
    other = written(tmp_path / "b", draft("torch.compile", opaque=True, outputs=[9]))
    assert "It is a compiled region, which is opaque: run without torch.compile" in str(first_divergence(one, other))


def test_an_op_that_gives_something_else_each_time_is_the_op_itself(outside: Numbers) -> None:
    library = torch.library.Library("scoped_rng_divergence", "DEF")
    library.define("add_up(Tensor values) -> Tensor")
    library.impl("add_up", lambda values: values.sum() + outside(), "CPU")
    found = parted(
        lambda: torch.ops.scoped_rng_divergence.add_up(torch.ones(3)),
        lambda: torch.ops.scoped_rng_divergence.add_up(torch.ones(3)),
    )
    assert (found.kind, found.record.op) == ("op", "scoped_rng_divergence::add_up")


def test_one_weight_that_differs_by_one_bit_is_found_where_it_enters() -> None:
    def run(change: bool) -> Trace:
        with deterministic(0), record() as trace:
            layer = torch.nn.Linear(3, 3)
            weight = layer.weight.detach().numpy()
            for step in range(5):
                if change and step == 3:
                    weight[0, 0] = np.nextafter(weight[0, 0], np.float32(2))
                layer(torch.ones(2, 3))
        return trace

    found = first_divergence(run(False), run(True))
    assert found is not None
    assert (found.kind, found.record.op, found.streams) == ("input", "aten::addmm", ())
    assert "No random stream had parted by then: look for what was read from a file" in str(found)


@pytest.mark.parametrize(
    ("stream", "draw"),
    [
        ("python", lambda: random.random()),
        ("numpy", lambda: float(np.random.random_sample())),
        ("numpy.entropy", lambda: float(np.random.default_rng().random())),
    ],
)
def test_an_input_names_the_stream_that_had_parted(stream: str, draw: Callable[[], float]) -> None:
    def run(extra: bool) -> None:
        if extra:
            draw()
        torch.tensor([draw()]) + 1

    found = parted(lambda: run(False), lambda: run(True))
    assert (found.kind, found.streams, found.entropy) == ("input", (stream,), None)
    assert f"it came from outside torch. The random stream {stream} had parted by then." in str(found)


def test_entropy_of_the_operating_system_is_found_with_the_line_that_drew_it() -> None:
    def run() -> Trace:
        with record() as trace:
            generator = np.random.default_rng()
            torch.from_numpy(generator.random(3)) + 1
        return trace

    found = first_divergence(run(), run())
    assert found is not None
    assert (found.kind, found.streams) == ("input", ("numpy.entropy",))
    assert found.entropy is not None
    assert (found.entropy.file, found.entropy.function) == (__file__, "run")
    drew = f"NumPy drew entropy from the operating system at {found.entropy}: give that generator a seed."
    assert drew in str(found)


def test_scalars_count_as_inputs(outside: Numbers) -> None:
    def run() -> None:
        torch.ones(2) * (0.5 + outside())

    found = parted(run, run)
    assert (found.kind, found.record.op) == ("input", "aten::mul.Tensor")
    assert "It was called with (1.5) in the first run and with (2.5) in the second." in str(found)


def test_another_number_of_inputs_is_an_input_that_differs(outside: Numbers) -> None:
    parts = [torch.ones(2), torch.ones(2), torch.ones(2)]

    def run() -> None:
        torch.cat(parts[: outside()])

    found = parted(run, run)
    assert (found.kind, found.record.op) == ("input", "aten::cat")


def test_a_torch_stream_that_was_reseeded_is_named() -> None:
    def run() -> None:
        torch.rand(1)
        torch.seed()
        torch.rand(1)

    found = parted(run, run)
    assert (found.kind, found.record.op, found.record.index) == ("stream", "aten::rand", 1)
    assert found.streams == ("torch",)
    assert "it draws from a torch generator whose state differed before. Something reseeded it" in str(found)


def test_a_thread_that_draws_meanwhile_is_found_as_a_stream() -> None:
    def run(draws: int) -> None:
        thread = threading.Thread(target=lambda: [torch.rand(1) for _ in range(draws)])
        thread.start()
        thread.join()
        torch.nn.functional.dropout(torch.ones(10))

    found = parted(lambda: run(1), lambda: run(2))
    assert (found.kind, found.record.op) == ("stream", "aten::bernoulli_.float")


def test_threads_that_race_for_the_last_draw_are_found_as_a_stream(outside: Numbers) -> None:
    def run() -> None:
        first = threading.Thread(target=lambda: torch.rand(outside()))
        first.start()
        first.join()
        torch.randn(4)

    assert parted(run, run).kind == "stream"


def test_a_generator_that_is_handed_over_is_named(outside: Numbers) -> None:
    def run() -> None:
        torch.rand(3, generator=torch.Generator().manual_seed(outside()))

    found = parted(run, run)
    assert (found.kind, found.streams) == ("stream", ("generator",))


class Poisoned:
    """Fill what ``torch.empty`` gives with what was there before, another time something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.value = 0
        plain = torch.empty

        def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
            memory = plain(*args, **kwargs)
            self.value += 1
            memory.numpy().view(np.uint8)[...] = self.value
            return memory

        monkeypatch.setattr(torch, "empty", empty)


def test_memory_that_was_never_written_is_blamed_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Poisoned(monkeypatch)

    def run() -> None:
        memory = torch.empty(8)
        torch.ones(2)
        part = memory.view(2, 4)[1]
        part + 1

    found = parted(run, run)
    assert (found.kind, found.record.op) == ("uninitialised", "aten::add.Tensor")
    assert found.origin is not None
    assert found.origin.op == "aten::empty.memory_format"
    made = f"aten::empty.memory_format at {found.origin.source}"
    told = f"it reads what was left in memory that {made} had made and that no op had written whole. Use torch"
    assert told in str(found)


@pytest.mark.parametrize(
    "write",
    [
        lambda memory: memory.fill_(1),
        lambda memory: memory.zero_(),
        lambda memory: memory.normal_(),
        lambda memory: memory.uniform_(),
        lambda memory: memory.random_(),
        lambda memory: memory.bernoulli_(),
        lambda memory: memory.copy_(torch.ones(8)),
        lambda memory: torch.add(torch.ones(8), 1, out=memory),
        lambda memory: torch._foreach_zero_([memory]),
        lambda memory: [half.fill_(2) for half in memory.chunk(2)],
        lambda memory: (memory[:3].zero_(), memory[3:].fill_(1)),
        lambda memory: torch.nn.init.kaiming_uniform_(memory.view(2, 4)),
        lambda memory: torch.zeros_like(memory),
        lambda memory: memory.new_ones(3),
    ],
)
def test_memory_that_is_written_before_it_is_read_is_not_blamed(
    write: Callable[[torch.Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Poisoned(monkeypatch)
    read = write.__code__.co_names[0] not in ("new_ones", "zeros_like") and "zeros_like" not in write.__code__.co_names

    def run() -> None:
        memory = torch.empty(8)
        write(memory)
        if read:
            memory + 1

    assert first_divergence(traced(run), traced(run)) is None


def into(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return target.copy_(source)


MOVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "clone": lambda memory: memory.clone(),
    "to another dtype": lambda memory: memory.to(torch.float64),
    "reshape of what is transposed": lambda memory: memory.view(2, 4).t().reshape(8),
    "cat": lambda memory: torch.cat([torch.ones(2), memory]),
    "stack": lambda memory: torch.stack([torch.ones(8), memory]),
    "where": lambda memory: torch.where(torch.arange(8) > 3, memory, 1.0),
    "copy_": lambda memory: torch.zeros(8).copy_(memory),
    "copy_ to a part": lambda memory: into(torch.zeros(9)[1:], memory),
    "_foreach_copy_": lambda memory: (given := torch.zeros(8), torch._foreach_copy_([given], [memory]))[0],
    "index": lambda memory: memory[torch.tensor([1, 2])],
    "index_select": lambda memory: memory.index_select(0, torch.tensor([1, 2])),
    "gather": lambda memory: memory.gather(0, torch.tensor([1, 2])),
    "index_put_": lambda memory: torch.zeros(9).index_put_((torch.arange(8),), memory),
    "scatter": lambda memory: torch.zeros(8).scatter(0, torch.arange(8), memory),
    "flip": lambda memory: memory.flip(0),
    "pad": lambda memory: nn.functional.pad(memory, (1, 1)),
    "repeat": lambda memory: memory.repeat(2),
    "masked_fill": lambda memory: memory.masked_fill(torch.arange(8) > 3, 0.0),
    "copies of copies": lambda memory: memory.clone().flip(0).to(torch.float64),
    "a copy under vmap": lambda memory: torch.view_copy(memory, [2, 4]),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_copy_of_memory_that_nobody_has_written_is_not_blamed(
    move: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    Poisoned(monkeypatch)

    def run() -> None:
        move(torch.empty(8)).zero_() + 1

    assert first_divergence(traced(run), traced(run)) is None


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_what_reads_a_copy_of_memory_that_nobody_has_written_is_blamed(
    move: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    Poisoned(monkeypatch)

    def run() -> None:
        move(torch.empty(8)).nan_to_num()

    found = parted(run, run)
    assert (found.kind, found.record.op) == ("uninitialised", "aten::nan_to_num")
    assert found.origin is not None
    assert found.origin.op == "aten::empty.memory_format"


DECIDES: dict[str, Callable[[torch.Tensor], Any]] = {
    "a number": lambda memory: memory.clone()[0].item(),
    "a condition": lambda memory: torch.where(memory.view(torch.bool)[:8], torch.ones(8), torch.zeros(8)),
    "a place": lambda memory: torch.ones(1000)[memory.view(torch.uint8).long()],
    "what is added": lambda memory: torch.zeros(8).index_put_((torch.arange(8),), memory, accumulate=True),
    "a reduction": lambda memory: torch.zeros(8).scatter_reduce(0, torch.arange(8), memory, "sum"),
}


@pytest.mark.parametrize("decide", DECIDES.values(), ids=DECIDES)
def test_memory_that_nobody_has_written_is_blamed_where_it_decides(
    decide: Callable[[torch.Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Poisoned(monkeypatch)
    assert parted(*[lambda: decide(torch.empty(8))] * 2).kind == "uninitialised"


@pytest.mark.parametrize(
    "fill",
    [
        lambda memory, every: memory.index_put_((every,), torch.ones(8)),
        lambda memory, every: memory.index_copy_(0, every, torch.ones(8)),
        lambda memory, every: memory.index_fill_(0, every, 1.0),
        lambda memory, every: memory.scatter_(0, every, 1.0),
        lambda memory, every: memory.masked_fill_(every >= 0, 1.0),
        lambda memory, every: memory.masked_scatter_(every >= 0, torch.ones(8)),
    ],
)
def test_memory_that_is_filled_by_an_index_is_not_read_by_that(
    fill: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    Poisoned(monkeypatch)

    def run() -> None:
        fill(torch.empty(8), torch.arange(8)) + 1

    assert first_divergence(traced(run), traced(run)) is None


def test_the_workspace_of_a_recurrent_net_is_read_by_its_backward_alone() -> None:
    def run() -> None:
        nn.LSTM(28, 8)(torch.rand(7, 5, 28))[0].sum().backward()

    traces = traced(run), traced(run)
    assert first_divergence(*traces) is None
    (layer,) = (one for one in traces[0] if one.op == "aten::mkldnn_rnn_layer")
    (backward,) = (one for one in traces[0] if one.op == "aten::mkldnn_rnn_layer_backward")
    assert layer.outputs[3] in backward.inputs


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantized tensor creation:UserWarning")
def test_the_modules_that_quantizing_makes_and_replaces_are_not_blamed() -> None:
    def run() -> None:
        torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)), {nn.Linear}, dtype=torch.qint8)

    trace = traced(run)
    assert first_divergence(trace, traced(run)) is None
    packs = [one for one in trace if one.op == "quantized::linear_prepack"]
    assert len(packs) == 3
    assert not any(one.unwritten for one in trace)


def test_a_copy_that_is_written_whole_is_written(outside: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    Poisoned(monkeypatch)

    def run() -> None:
        copied = torch.empty(8).clone()
        copied.copy_(torch.ones(8))
        copied.numpy()[0] = outside()
        copied + 1

    assert parted(run, run).kind == "input"


def test_what_an_op_has_filled_whole_is_no_longer_blamed(outside: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    Poisoned(monkeypatch)

    def run() -> None:
        memory = torch.empty(8)
        memory.fill_(1)
        memory.numpy()[0] = outside()
        memory + 1

    assert parted(run, run).kind == "input"


def test_memory_that_numpy_has_filled_is_told_with_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(extra: int) -> None:
        memory = torch.empty(8)
        np.random.random(extra)
        memory.numpy()[:] = np.random.random(8)
        memory + 1

    found = parted(lambda: run(1), lambda: run(2))
    assert (found.kind, found.streams) == ("uninitialised", ("numpy",))
    told = "NumPy or another library has filled it, which is not recorded. The random stream numpy had parted by then."
    assert str(found).endswith(told)


def test_memory_that_is_written_in_pieces_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    Poisoned(monkeypatch)

    def run() -> None:
        memory = torch.empty(4, 2)
        for row in (0, 3, 1):
            memory[row] = 1.0
        memory[0:2] + 1  # these two are written, in one stretch
        memory[3] + 1
        memory[:, 0] = 2.0  # not known to reach all that is left
        memory[2, 1] = 2.0
        memory[2] = 3.0
        memory + 1

    assert first_divergence(traced(run), traced(run)) is None


def test_what_lies_between_the_pieces_that_are_written_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    Poisoned(monkeypatch)

    def run() -> None:
        memory = torch.empty(4, 2)
        memory[0] = 1.0
        memory[3] = 1.0
        memory[1:3] + 1

    found = parted(run, run)
    assert (found.kind, found.record.op) == ("uninitialised", "aten::add.Tensor")


def test_what_another_thread_changes_in_memory_that_was_written_in_pieces_comes_from_outside(outside: Numbers) -> None:
    def run() -> None:
        memory = torch.empty(2, 3)
        for row in range(2):
            memory[row] = 1.0
        thread = threading.Thread(target=lambda: memory[1].add_(outside()))
        thread.start()
        thread.join()
        memory.sum()

    found = parted(run, run)
    assert (found.kind, found.record.op) == ("input", "aten::sum")


def test_what_adds_into_memory_that_was_written_in_pieces_is_blamed_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with deterministic(0), record() as trace:
        memory = torch.empty(4)
        memory[:2] = 0.0
        memory[2:] = 0.0
        memory.index_put_((torch.tensor([1, 1]),), torch.ones(2), accumulate=True)
    written_by = next(one for one in trace if one.op == "aten::index_put_")
    with deterministic(0), record() as other:
        memory = torch.zeros(4)
        memory.index_put_((torch.tensor([1, 1]),), torch.ones(2), accumulate=True)
    assert written_by.outputs == next(one for one in other if one.op == "aten::index_put_").outputs


@pytest.mark.parametrize("training", [False, True])
def test_the_noise_of_a_leaky_unit_is_for_its_backward_alone(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    Poisoned(monkeypatch)

    def run() -> None:
        values = torch.ones(8, requires_grad=True)
        torch._C._nn.rrelu_with_noise(values - 2, torch.empty(8), 0.125, 0.3, training).sum().backward()

    assert first_divergence(traced(run), traced(run)) is None


def test_a_draw_that_only_one_run_makes_does_not_say_that_the_stream_had_parted_before() -> None:
    def run(more: bool) -> None:
        values = torch.rand(3)
        if more:
            values = values + torch.rand(3)
        values * 2

    found = parted(lambda: run(True), lambda: run(False))
    assert (found.kind, found.record.op, found.streams) == ("sequence", "aten::rand", ())


def test_memory_of_a_sparse_tensor_is_written_by_what_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        memory = torch.empty((2, 2), layout=torch.sparse_coo)
        memory.add_(torch.eye(2).to_sparse())
        memory.to_dense()

    assert first_divergence(traced(run), traced(run)) is None


def test_the_seed_of_a_loader_is_not_blamed() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(6.0))

    def run() -> None:
        for (batch,) in torch.utils.data.DataLoader(data, 2, shuffle=True):
            batch + 1

    assert first_divergence(traced(run), traced(run)) is None


def sequences(tmp_path: Path, one: str, other: str) -> Divergence | None:
    def trace(name: str, ops: str) -> Trace:
        return written(tmp_path / name, *(draft(op) for op in ops)) if ops else empty(tmp_path / name)

    return first_divergence(trace("a", one), trace("b", other))


def empty(path: Path) -> Trace:
    trace, _ = Trace.begin(path)
    trace.end()
    return trace


@pytest.mark.parametrize(
    ("one", "other", "first", "second"),
    [
        ("abcdef", "abxcdef", None, ("x", 2)),
        ("abxcdef", "abcdef", ("x", 2), None),
        ("abxcdef", "abycdef", ("x", 2), ("y", 2)),
        ("abc", "ab", ("c", 2), None),
        ("", "a", None, ("a", 0)),
        ("aab", "ab", ("a", 1), None),
        ("axyzb" + "c" * 9, "ab" + "c" * 9, ("x", 1), None),
    ],
)
def test_the_first_op_that_only_one_run_has_is_named(
    tmp_path: Path, one: str, other: str, first: tuple[str, int] | None, second: tuple[str, int] | None
) -> None:
    found = sequences(tmp_path, one, other)
    assert found is not None
    assert found.kind == "sequence"
    assert (found.first and (found.first.op, found.first.index)) == first
    assert (found.second and (found.second.op, found.second.index)) == second
    assert found.record is (found.first or found.second)


def test_what_is_said_of_an_op_that_only_one_run_has(tmp_path: Path) -> None:
    where = "(record 1, forward, in encoder.0) at train.py:7 in main"
    blame = "No random stream had parted by then: look for what was read from a file, the order of a directory or"
    texts = {
        ("ab", "a"): f"the runs part at b {where}: only the first run calls it; up to there both agree. {blame}",
        ("a", "ac"): f"the runs part at c {where}: only the second run calls it; up to there both agree. {blame}",
        ("ab", "ac"): f"the runs part at b {where}: the first run calls it where the second calls c at train.py:7 in "
        f"main; up to there both agree. {blame}",
    }
    for (one, other), text in texts.items():
        assert str(sequences(tmp_path, one, other)).startswith(text)


def test_of_two_ops_without_a_line_the_report_is_whole_sentences(tmp_path: Path) -> None:
    one, other = (written(tmp_path / op, draft(op, place=("", None))) for op in "ab")
    told = "the runs part at a (record 0, forward): the first run calls it where the second calls b; up to there both"
    assert str(first_divergence(one, other)).startswith(f"{told} agree. No random")


def test_several_streams_are_told_in_one_sentence(tmp_path: Path) -> None:
    traces = [written(tmp_path / str(n), draft(inputs=[n], streams={"python": n, "numpy": n})) for n in (1, 2)]
    assert str(first_divergence(*traces)).endswith("The random streams python and numpy had parted by then.")


STEP = [f"layer {place}" for place in range(200)]
OPTIMIZER = ["mul", "add"] * 150


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("size", [40, 511, 512, 513, 700, 5000])
@pytest.mark.parametrize("rest", [[], STEP, [*STEP, "more in the first"]])
def test_a_long_stretch_that_one_run_has_more_is_told_of_that_run(
    tmp_path: Path, size: int, swapped: bool, rest: list[str]
) -> None:
    stretch = [f"extra {place % 300}" for place in range(size)]
    following = [f"op {place}" for place in range(600)]
    one = [*STEP, *stretch, *following, *rest]
    other = [*STEP, *following, *rest[:200]]
    found = alike(tmp_path, other, one) if swapped else alike(tmp_path, one, other)
    only, absent = (found.second, found.first) if swapped else (found.first, found.second)
    assert absent is None
    assert only is not None
    assert (only.op, only.index) == ("extra 0", 200)


def test_a_step_more_is_told_of_the_run_that_has_it_though_all_steps_are_alike(tmp_path: Path) -> None:
    found = alike(tmp_path, (STEP + OPTIMIZER) * 2 + OPTIMIZER + STEP + OPTIMIZER, (STEP + OPTIMIZER) * 3)
    assert found.second is None
    assert found.first is not None
    assert (found.first.op, found.first.index) == ("mul", 1000)


def test_what_comes_again_in_the_next_step_is_not_what_one_run_has_more(tmp_path: Path) -> None:
    one = alike(tmp_path, ["flip", *STEP] * 3, ["rotate", *STEP, *["flip", *STEP] * 2])
    assert (one.first and one.first.op, one.second and one.second.op) == ("flip", "rotate")


def test_two_changes_close_to_each_other_are_told_apart(tmp_path: Path) -> None:
    found = alike(tmp_path, ["x", "layer 0", "z", *STEP[1:]], STEP)
    assert (found.first and found.first.op, found.second) == ("x", None)


def test_runs_that_never_meet_again_part_where_both_go_on(tmp_path: Path) -> None:
    one, other = ([*STEP, *(f"{run} {place}" for place in range(1500))] for run in "ab")
    found = alike(tmp_path, one, other)
    assert (found.first and found.first.op, found.second and found.second.op) == ("a 0", "b 0")


def alike(tmp_path: Path, one: list[str], other: list[str]) -> Divergence:
    traces = [written(tmp_path / name, *map(draft, ops)) for name, ops in (("one", one), ("other", other))]
    found = first_divergence(*traces)
    assert found is not None
    assert found.kind == "sequence"
    return found


def test_the_same_op_on_another_line_is_another_op() -> None:
    def run(branch: bool) -> None:
        ones = torch.ones(2)
        if branch:
            ones = ones + 1
        ones + 2

    found = parted(lambda: run(False), lambda: run(True))
    assert found.kind == "sequence"
    assert found.first is None
    assert found.second is not None
    assert found.second.scalars == "1"


def test_a_branch_on_a_random_number_names_its_stream() -> None:
    def run(extra: int) -> None:
        for _ in range(extra):
            random.random()
        torch.ones(2).relu() if extra == 1 else torch.ones(2).tanh()

    found = parted(lambda: run(1), lambda: run(2))
    assert (found.kind, found.streams) == ("sequence", ("python",))


def test_the_folder_of_the_program_does_not_matter(tmp_path: Path) -> None:
    here, there = (Source(f"{folder}/train.py", 7, "main") for folder in ("/here", "/there"))
    one = written(tmp_path / "a", draft(place=("", here)))
    assert first_divergence(one, written(tmp_path / "b", draft(place=("", there)))) is None
    found = first_divergence(one, written(tmp_path / "c", draft(place=("", there), inputs=[7, 7])))
    assert found is not None
    assert found.kind == "input"


def test_an_op_without_a_line_is_told_without(tmp_path: Path) -> None:
    nowhere = ("", None)
    one = written(tmp_path / "a", draft(place=nowhere))
    found = first_divergence(one, written(tmp_path / "b", draft(place=nowhere, inputs=[7, 7])))
    assert str(found).startswith("the runs part at aten::add (record 0, forward): something that it reads differs")


def test_a_run_that_begins_one_op_later_meets_the_other_at_once(tmp_path: Path) -> None:
    ops = [draft("a")] + [draft(f"op {index}") for index in range(3000)]
    found = first_divergence(written(tmp_path / "a", *ops), written(tmp_path / "b", *ops[1:]))
    assert found is not None
    assert found.first is not None
    assert (found.first.op, found.second) == ("a", None)
