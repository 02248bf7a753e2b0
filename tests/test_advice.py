"""What to do about a difference: for each cause, the line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scoped_rng.cli.advice import advise, advise_on_text, suspects
from scoped_rng.trace.divergence import Divergence
from scoped_rng.trace.file import Record, Source


def record(op: str = "aten::add", source: Source | None = None, **changes: Any) -> Record:
    values = {
        "index": 0,
        "op": op,
        "inputs": (),
        "scalars": "",
        "outputs": (),
        "module": "",
        "phase": "forward",
        "source": source,
        "streams": {},
        "entropy": None,
        "unwritten": {},
        "opaque": False,
        **changes,
    }
    return Record(**values)


def on(kind: Any, op: str = "aten::add", script: str | None = None, *, source: Any = None, **more: Any) -> list[str]:
    opaque = more.pop("opaque", False)
    found = record(op, source, opaque=opaque)
    return advise(Divergence(kind, found, found, **more), script)


@pytest.mark.parametrize(
    ("op", "told"),
    [
        ("aten::index_put_", "aten::index_put_ adds in the order in which threads get to it"),
        ("aten::_index_put_impl_", "aten::_index_put_impl_ adds in the order in which threads get to it"),
        ("aten::scatter_add_", "or on one thread, torch.set_num_threads(1)"),
        ("aten::index_add", "If they are on, torch has none for this device (it warns, --strict raises)"),
        ("aten::cudnn_convolution", "leave torch.backends.cudnn.benchmark off"),
        ("aten::convolution_backward", "depends on the number of threads on a CPU"),
        ("aten::_slow_conv2d_forward", "On a GPU leave torch.backends.cudnn.benchmark off"),
        ("aten::mkldnn_convolution", "is oneDNN's, whose sums depend on the number of threads"),
        ("aten::mkldnn_rnn_layer", "leave torch.backends.mkldnn.deterministic on"),
        ("aten::mm", "aten::mm adds floats in an order that depends on the number of threads"),
        ("aten::native_layer_norm", "adds floats in an order that depends on the number of threads"),
        ("aten::sum.dim_IntList", "OMP_NUM_THREADS or torch.set_num_threads"),
        ("aten::sort", "aten::sort gave something else for the same inputs"),
        ("aten::normal_", "aten::normal_ gave something else for the same inputs"),
        ("vision::nms", "is none of torch's own kernels, which a check makes deterministic: ask who wrote it"),
    ],
)
def test_an_op_that_is_the_culprit_is_advised_on_by_its_name(op: str, told: str) -> None:
    (advice,) = on("op", op)
    assert told in advice


def test_a_compiled_region_is_to_be_run_without_the_compiler() -> None:
    (advice,) = on("op", "torch.compile", opaque=True)
    assert "run without torch.compile to see the op inside" in advice


def test_unwritten_memory_is_advised_on_with_the_op_that_made_it() -> None:
    (advice,) = on("uninitialised", "aten::add", origin=record("aten::empty"))
    assert advice.startswith("aten::empty gave memory as it was, and aten::add read it: use torch.zeros, or --strict")
    assert on("uninitialised")[0].startswith("an op gave memory as it was")


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        ("python", "look for random.seed() without a number"),
        ("numpy", "look for a seed that is not the same in each run"),
        ("numpy.entropy", "what unseeded NumPy generators start from had parted"),
        ("torch", "look for torch.seed()"),
        ("generator", "look for its seed() (manual_seed takes a number)"),
        ("cupy", "cupy had parted"),
    ],
)
def test_a_stream_that_had_parted_is_advised_on(stream: str, told: str) -> None:
    (advice,) = on("input", streams=(stream,))
    assert told in advice


def test_entropy_is_advised_on_with_the_line_that_drew_it() -> None:
    advice = on("input", streams=("numpy.entropy",), entropy=Source("/x/data.py", 17, "load"))
    assert advice[0] == (
        "np.random.default_rng() or another unseeded generator at data.py:17 drew entropy of the operating system: "
        "give it a seed, or make it inside the scope"
    )


def test_where_no_stream_had_parted_it_is_something_else() -> None:
    assert on("sequence") == [
        "look for a file, the clock, the order of a set, another thread or process: no random stream had parted",
        "try --hash-seed 0: if the runs agree then, it is the order of a set of str",
    ]


@pytest.mark.parametrize(
    ("line", "name", "told"),
    [
        ("os.urandom(4)", "os.urandom", "draws from the operating system"),
        ("urandom(4)", "urandom", "draws from the operating system"),
        ("secrets.token_hex()", "secrets.token_hex", "draws from the operating system"),
        ("uuid.uuid4()", "uuid.uuid4", "draws from the operating system"),
        ("random.SystemRandom()", "random.SystemRandom", "draws from the operating system"),
        ("torch.seed()", "torch.seed", "takes its seed from the operating system"),
        ("random.seed()", "random.seed", "takes its seed from the operating system"),
        ("random.Random()", "random.Random", "takes its seed from the operating system"),
        ("time.time()", "time.time", "reads the clock"),
        ("datetime.datetime.now()", "datetime.datetime.now", "reads the clock"),
        ("os.listdir('.')", "os.listdir", "sort them"),
        ("Path('.').glob('*')", "Path('.').glob", "sort them"),
        ("x = [sorted(os.urandom(3))]", "os.urandom", "draws from the operating system"),
        ("torch.cuda.seed_all()", "torch.cuda.seed_all", "takes its seed from the operating system"),
        ("generator.seed()", "generator.seed", "takes its seed from the operating system"),
        ("x < time.time()", "time.time", "reads the clock"),
        ("os.getpid()", "os.getpid", "gives something else in each process"),
        ("tempfile.mkdtemp()", "tempfile.mkdtemp", "gives something else in each process"),
        ("id(x)", "id", "gives something else in each process"),
        ("threading.Thread(target=f)", "threading.Thread", "runs at the same time"),
        ("DataLoader(x, num_workers=2)", "DataLoader", "seeded_loader"),
        ("torch.empty(3)", "torch.empty", "use zeros"),
        ("x.new_empty(3)", "x.new_empty", "use zeros"),
        ("torch.empty_like(x)", "torch.empty_like", "use zeros"),
        ("np.empty(3)", "np.empty", "returns memory as it was: use zeros"),
        ("torch.set_num_threads(n)", "torch.set_num_threads", "give it the same number in each run"),
        ("torch.use_deterministic_algorithms(x)", "torch.use_deterministic_algorithms", "leave it as a check has set"),
        ("torch.set_deterministic_debug_mode(0)", "torch.set_deterministic_debug_mode", "lets torch use algorithms"),
        ("cudnn.benchmark = True", "cudnn.benchmark", "lets torch use algorithms that add in any order"),
        ("cudnn.deterministic = False", "cudnn.deterministic", "lets torch use algorithms that add in any order"),
        ("with cudnn.flags(enabled=True): x", "cudnn.flags", "lets torch use algorithms that add in any order"),
        ("a.fill_uninitialized_memory = x", "a.fill_uninitialized_memory", "under --strict as well: leave it on"),
        ("subprocess.run([])", "subprocess.run", "starts a process that the seed of this one does not reach"),
        ("set(names)", "set", "has an order that PYTHONHASHSEED decides"),
        ("{'a', 'b'}", "{...}", "has an order that PYTHONHASHSEED decides"),
        ("{x for x in y}", "{...}", "has an order that PYTHONHASHSEED decides"),
        ("hash('a')", "hash", "use hashlib"),
    ],
)
def test_a_call_that_can_bring_a_difference_in_is_a_suspect(line: str, name: str, told: str) -> None:
    (found,) = suspects(f"import x\n{line}\n")
    assert (found.line, found.name) == (2, name)
    assert told in found.advice


@pytest.mark.parametrize(
    "line",
    [
        "np.random.default_rng()",  # which the scope seeds
        "np.random.seed()",
        "random.seed(0)",
        "Random(x=3)",
        "DataLoader(x, batch_size=2)",
        "# os.urandom(3)",
        "'os.urandom(3)'",
        "valid(x)",
        "event.set()",
        "tensor.hash()",
        "queue.empty()",
        "model.reset(3)",
        "torch.set_num_threads(1)",  # the cure
        "torch.set_num_threads(4)",  # the same in each run
        "torch.use_deterministic_algorithms(True)",
        "torch.set_deterministic_debug_mode('error')",
        "torch.backends.cudnn.deterministic = True",
        "torch.backends.cudnn.benchmark = False",
        "torch.utils.deterministic.fill_uninitialized_memory = True",
        "numpy.random.seed()",
        "seed()",
        "DataLoader(x, num_workers=0)",
        "sorted(os.listdir(path))",
        "len(set(x))",
        "x in {'a', 'b'}",
        "socket.gethostname()",
        "{'a': 1}",
        "def (",
        "\0",
    ],
)
def test_what_is_harmless_or_no_program_has_no_suspects(line: str) -> None:
    assert suspects(line) == []


def test_one_suspect_of_each_kind_is_told_and_first_that_on_the_line(tmp_path: Path) -> None:
    module, script = tmp_path / "data.py", tmp_path / "train.py"
    module.write_text("time.time()\nos.urandom(3)\nos.urandom(4)\n")
    script.write_text("os.urandom(5)\nhash(6)\n")
    told = on("input", script=str(script), source=Source(str(module), 3, "load"))
    assert [advice.partition(" ")[0] for advice in told[:3]] == ["data.py:3:", "data.py:1:", "train.py:2:"]
    assert on("input", script=str(script))[0].startswith("train.py:1: os.urandom")


def test_what_changes_how_torch_computes_is_told_of_ops_alone(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("os.urandom(3)\ntorch.use_deterministic_algorithms(False)\n")
    _, told = on("op", script=str(script))
    assert told.startswith("s.py:2: torch.use_deterministic_algorithms lets torch use algorithms that add in any order")
    (told,) = on("input", script=str(script))
    assert told.startswith("s.py:1: os.urandom")


def test_that_memory_is_not_filled_is_told_where_it_is_read_alone(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "from torch.utils import deterministic\ndeterministic.fill_uninitialized_memory = False\nhash(3)\n"
    )
    _, told = on("uninitialised", script=str(script))
    assert told == (
        "s.py:2: deterministic.fill_uninitialized_memory keeps memory as it was, under --strict as well: leave it on"
    )
    assert len(on("op", script=str(script))) == 1


def test_a_source_that_cannot_be_read_has_no_suspects(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"os.urandom('\xff')")
    for name in ("latin.py", "nowhere.py"):
        assert len(on("input", script=str(tmp_path / name))) == 2


def test_no_more_is_told_than_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("time.time(); id(1); hash(2); set(3); torch.seed(); os.urandom(4); empty(5)\n")
    assert len(on("input", script=str(tmp_path / "s.py"))) == 6


@pytest.mark.parametrize(
    ("first", "second", "only_times", "told"),
    [
        ("<A at 0x7f00aabb11>", "<A at 0x7f00aabb22>", True, "an object is shown by its address"),
        ("took 3 s", "took 4 s", True, "print them to stderr, where they do not count"),
        ("{'a', 'b'}", "{'b', 'a'}", False, "the same words in another order"),
    ],
)
def test_lines_that_differ_are_advised_on(first: str, second: str, only_times: bool, told: str) -> None:
    (advice,) = advise_on_text(first, second, None, only_times)
    assert told in advice


def test_where_nothing_in_the_script_is_a_usual_cause_it_is_said_so(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("import mine\nprint(mine.loss())\n")
    told = ["nothing in s.py itself is a usual cause: look in what it imports"]
    assert advise_on_text("loss 1", "loss 2", str(script), False) == told


def test_lines_that_differ_by_their_numbers_are_not_advised_on() -> None:
    assert advise_on_text("loss 1", "loss 2", None, False) == []
    assert advise_on_text("A 0x7f00aabb11 1", "A 0x7f00aabb22 2", None, False) == []
