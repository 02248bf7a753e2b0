"""What to do about a difference: from the op, the streams that had parted, and what the source calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..trace.divergence import Divergence

__all__ = ["Suspect", "advise", "advise_on_text", "suspects"]

_MOST = 6

# Of ops that are the culprit themselves: what their names begin with, and what to do. A check has the deterministic
# algorithms on, so that the target has switched them off, or torch has none for that op.
_OPS = {
    r"_?(unsafe_)?index_put|index_add|scatter_add|scatter_reduce|put_|bincount|embedding_dense_backward": (
        "{op} adds in the order in which threads get to it, unless torch's deterministic algorithms are on: do not "
        "switch them off. If they are on, torch has none for this device (it warns, --strict raises): do it on the "
        "CPU, or on one thread, torch.set_num_threads(1)"
    ),
    r"mkldnn": (
        "{op} is oneDNN's, whose sums depend on the number of threads: have the same in each run, by OMP_NUM_THREADS "
        "or torch.set_num_threads; and leave torch.backends.mkldnn.deterministic on"
    ),
    r"cudnn|miopen": (
        "{op} may try its algorithms as it runs, and keep the fastest: leave torch.backends.cudnn.benchmark off and "
        "torch.backends.cudnn.deterministic on, as a check has them"
    ),
    r"_?(slow_|thnn_)?conv": (
        "{op} depends on the number of threads on a CPU: have the same in each run, by OMP_NUM_THREADS or "
        "torch.set_num_threads. On a GPU leave torch.backends.cudnn.benchmark off and cudnn.deterministic on"
    ),
    r"mm|addmm|bmm|baddbmm|matmul|linear|dot|mv|addmv|sum|mean|var|std|norm(?!al)|native_\w*norm|linalg_|_softmax|_log_softmax|cumsum|"
    r"cumprod|logsumexp|prod|_scaled_dot|nll_loss|mse_loss": (
        "{op} adds floats in an order that depends on the number of threads: have the same in each run, by "
        "OMP_NUM_THREADS or torch.set_num_threads"
    ),
}

_STREAMS = {
    "python": "Python's random had parted: look for random.seed() without a number, a thread that draws, or draws "
    "whose number depends on something else",
    "numpy": "NumPy's global stream had parted: look for a seed that is not the same in each run, a thread that draws, "
    "or draws whose number depends on something else",
    "numpy.entropy": "what unseeded NumPy generators start from had parted: one run has made more of them before",
    "torch": "torch's stream had parted: look for torch.seed() or another seed that is not the same in each run, a "
    "thread that draws, or draws whose number depends on something else",
    "generator": "a torch.Generator of your own had parted: look for its seed() (manual_seed takes a number), a "
    "thread that draws from it, or draws whose number depends on something else",
}


class _Cause(NamedTuple):
    calls: str  # how the dotted name of a call ends
    advice: str
    unseeded: bool = False  # only without arguments
    keyword: str = ""  # only with this one
    harmless: Container[object] = ()  # not with one of these as the first argument, or that keyword's

    def covers(self, call: ast.Call) -> bool:
        """Return whether such a call, of that name, is meant."""
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if (self.unseeded and (call.args or given)) or (self.keyword and self.keyword not in given):
            return False
        first = given.get(self.keyword) if self.keyword else next(iter((*call.args, *given.values())), None)
        return not (isinstance(first, ast.Constant) and first.value in self.harmless)


_SWITCHED = "lets torch use algorithms that add in any order: leave it as a check has set it"
_THREADS = "sets the number of threads that share a sum: give it the same number in each run"
_UNFILLED = "keeps memory as it was, under --strict as well: leave it on"
_COMPUTES = (_SWITCHED, _THREADS, _UNFILLED)
_FILES = "gives files in the order of the file system: sort them"
_UNORDERED = "has an order that PYTHONHASHSEED decides where it holds str (try --hash-seed 0): sort it"
_CAUSES = (
    _Cause(
        r"(os\.|^)(urandom|getrandom)|secrets\.\w+|token_(bytes|hex|urlsafe)|uuid[14]|SystemRandom",
        "draws from the operating system, which no seed reaches: draw from a seeded stream",
    ),
    # NumPy's take theirs from the scope, which a whole program is in.
    _Cause(
        r"(?<=\.)(?<!np\.random\.)(?<!numpy\.random\.)(seed|seed_all)|Random",
        "takes its seed from the operating system: give it a number",
        unseeded=True,
    ),
    _Cause(
        r"time\.(time|perf_counter|monotonic|process_time)(_ns)?|perf_counter|(datetime|date)\.(now|utcnow|today)",
        "reads the clock: keep it out of seeds, conditions and results",
    ),
    _Cause(
        r"os\.(listdir|scandir|walk)|listdir|scandir|i?glob|rglob|iterdir",
        _FILES,
    ),
    _Cause(
        r"os\.(getpid|getppid)|getpid|mkdtemp|mkstemp|TemporaryDirectory|NamedTemporaryFile|(?<!\.)id",
        "gives something else in each process: keep it out of seeds, conditions and results",
    ),
    _Cause(
        r"Thread|ThreadPoolExecutor|ThreadPool|Process|ProcessPoolExecutor|Pool|to_thread|as_completed",
        "runs at the same time as the rest: give each a generator of its own, and put what they give in a fixed order",
    ),
    _Cause(
        r"DataLoader",
        "has workers that draw from streams of their own: scoped_rng.data.seeded_loader, or worker_init_fn=seed_worker",
        keyword="num_workers",
        harmless=(0,),
    ),
    _Cause(
        r"torch\.empty|empty_(like|strided)|new_empty|(?<!\.)empty",
        "returns memory as it was: use zeros, or --strict, which fills it",
    ),
    _Cause(r"(np|numpy)\.empty", "returns memory as it was: use zeros"),
    _Cause(
        r"subprocess\.\w+|Popen|os\.(system|popen)",
        "starts a process that the seed of this one does not reach: give it one of its own",
    ),
    _Cause(r"use_deterministic_algorithms", _SWITCHED, harmless=(True,)),
    _Cause(r"set_deterministic_debug_mode", _SWITCHED, harmless=("warn", "error", 1, 2)),
    _Cause(r"cudnn\.flags", _SWITCHED),
    _Cause(r"set_num_threads", _THREADS, harmless=range(1 << 16)),
    _Cause(r"(?<!\.)(set|frozenset)", _UNORDERED),
    _Cause(r"(?<!\.)hash", "is another number in each process for str and bytes: use hashlib"),
)
_PATTERNS = tuple((re.compile(rf"(^|\.)({cause.calls})$"), cause) for cause in _CAUSES)
_SWITCH = re.compile(r"(^|\.)((cudnn|mkldnn)\.(deterministic|benchmark)|fill_uninitialized_memory)$")
_ORDERLESS = re.compile(r"(sorted|len|any|all|min|max)$")  # what does not mind in which order it is given something
_ORDERS = (_FILES, _UNORDERED)


class Suspect(NamedTuple):
    """A call in the source that can bring a difference in."""

    line: int
    name: str
    advice: str


def suspects(source: str) -> list[Suspect]:
    """Return the calls in a program that can bring a difference in, by line."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    found: list[Suspect] = []
    orderless: set[ast.AST] = set()
    for node in ast.walk(tree):  # which comes to a node before what is in it
        if isinstance(node, (ast.Set, ast.SetComp)) and node not in orderless:
            found.append(Suspect(node.lineno, "{...}", _UNORDERED))
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            orderless.update(node.comparators)
        elif isinstance(node, ast.Assign):
            found += _switched(node)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if _ORDERLESS.match(name):
                orderless.update(node.args)
            for pattern, cause in _PATTERNS:
                is_order = cause.advice in _ORDERS and node in orderless
                if pattern.search(name) and cause.covers(node) and not is_order:
                    found.append(Suspect(node.lineno, name, cause.advice))
    return sorted(set(found))


def _switched(node: ast.Assign) -> Iterator[Suspect]:
    """Return the switches of torch that are set to what is not deterministic, as far as one can see."""
    for name in map(ast.unparse, node.targets):
        is_safe = isinstance(node.value, ast.Constant) and node.value.value is not name.endswith("benchmark")
        if _SWITCH.search(name) and not is_safe:
            yield Suspect(node.lineno, name, _UNFILLED if name.endswith("memory") else _SWITCHED)


def _suspects_in(*files: str | None, line: int | None = None, only: Container[str] = ()) -> list[str]:
    """Tell one suspect of each kind, that on the line in the first file before all others.

    Args:
        files: the sources.
        line: the one to look at first.
        only: what to tell; else all that does not change how torch computes.
    """
    kinds: dict[str, tuple[bool, str]] = {}
    for number, file in enumerate(dict.fromkeys(str(Path(file).absolute()) for file in files if file)):
        try:
            source = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for suspect in suspects(source):
            is_there = number == 0 and suspect.line == line
            is_meant = suspect.advice in only if only else suspect.advice not in _COMPUTES
            if is_meant and (is_there or suspect.advice not in kinds):
                told = f"{Path(file).name}:{suspect.line}: {suspect.name} {suspect.advice}"
                kinds[suspect.advice] = not is_there, told
    return [told for _, told in sorted(kinds.values(), key=lambda kind: kind[0])]


def advise(divergence: Divergence, script: str | None) -> list[str]:
    """Return what to do about runs that part, most likely first.

    Args:
        divergence: where they part.
        script: the file of the program, where it is one.
    """
    return list(_advise(divergence, script))[:_MOST]


def _advise(divergence: Divergence, script: str | None) -> Iterator[str]:
    found, streams = divergence.record, divergence.streams
    file = found.source.file if found.source is not None else None
    if divergence.kind == "op":
        yield _on_op(found.op, found.opaque)
        yield from _suspects_in(file or script, script, only=(_SWITCHED, _THREADS))
        return
    if divergence.kind == "uninitialised":
        yield (
            f"{divergence.origin.op if divergence.origin else 'an op'} gave memory as it was, and {found.op} read it: "
            "use torch.zeros, or --strict, which fills it"
        )
        yield from _suspects_in(file or script, script, only=(_UNFILLED,))
        return
    if divergence.entropy is not None and "numpy.entropy" in streams:
        at = divergence.entropy
        yield (
            f"np.random.default_rng() or another unseeded generator at {Path(at.file).name}:{at.line} drew entropy of "
            "the operating system: give it a seed, or make it inside the scope"
        )
    for stream in streams:
        yield _STREAMS.get(stream, f"{stream} had parted")
    found_in_source = _suspects_in(file or script, script, line=found.source.line if found.source is not None else None)
    yield from found_in_source
    if not streams and not found_in_source:
        yield "look for a file, the clock, the order of a set, another thread or process: no random stream had parted"
        yield "try --hash-seed 0: if the runs agree then, it is the order of a set of str"


def _on_op(op: str, opaque: bool) -> str:
    if opaque:
        return "a compiled region is opaque: run without torch.compile to see the op inside"
    space, _, name = op.partition("::")
    if space != "aten":
        return (
            f"{op} is none of torch's own kernels, which a check makes deterministic: ask who wrote it for one that is"
        )
    for pattern, advice in _OPS.items():
        if re.match(rf"({pattern})", name):
            return advice.format(op=op)
    return (
        f"{op} gave something else for the same inputs: leave deterministic algorithms on (--strict tells where torch "
        "has none), or use one thread, torch.set_num_threads(1)"
    )


def advise_on_text(first: str, second: str, script: str | None, only_times: bool) -> list[str]:
    """Return what to do about two lines of output that differ."""
    told = [*_on_text(first, second, only_times), *_suspects_in(script)][:_MOST]
    return told or (
        [f"nothing in {Path(script).name} itself is a usual cause: look in what it imports"] if script else []
    )


def _on_text(first: str, second: str, only_times: bool) -> Iterator[str]:
    if re.search(r"0x[0-9a-f]{6,}", first) and _without_addresses(first) == _without_addresses(second):
        yield "an object is shown by its address: give its class a __repr__, or print something else"
    elif only_times:
        yield "only times, addresses or process numbers differ: print them to stderr, where they do not count"
    elif first != second and sorted(re.findall(r"\w+", first)) == sorted(re.findall(r"\w+", second)):
        yield "the same words in another order: a set of str (try --hash-seed 0), threads, or files that are not sorted"


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "", text)
