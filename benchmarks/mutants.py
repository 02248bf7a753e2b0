"""Change the core in one place at a time, and see that the tests notice: ``python -m benchmarks.mutants [ROOM ...]``.

Needs ``pip install cosmic-ray``, whose operators make the mutants, and the extra ``test``; POSIX only. One operator of
our own drops a statement, since what matters most here is that nothing is left out. A mutant is written into a copy of
the checkout and tested in a fork of this process, which has imported torch and NumPy already, but nothing of the
package: that saves seconds for each. With ``--results FILE`` what is in the file is not run again.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

# No plugins but those named below: an entry point would import the package here, before it is changed.
os.environ.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", HYPOTHESIS_NO_PLUGINS="1", HYPOTHESIS_PROFILE="ci")

import cosmic_ray.plugins
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from parso.python.tree import Keyword

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ("no:cacheprovider", "anyio.pytest_plugin", "pytest_asyncio.plugin")
PYTEST = ["-x", "-q", "--tb=no", "-o", "addopts=", *(f"-p{name}" for name in PLUGINS)]
SLOW_IMPORTS = ("torch._subclasses.fake_tensor", "hypothesis.extra.numpy")
# By room: its files, the tests that ask it directly, and those that are run where the first let a mutant live.
ROOMS = {
    "seeds": ("seeds.py", "seeds", "flags"),
    "scope": ("scope", "scope asyncio threads", "decorators flags state initialize compile interrupts"),
    "decorators": ("decorators.py", "decorators asyncio", "seeds scope threads compile interrupts"),
    "state": ("state", "state", "streams checkpoint compile"),
    "compare": ("compare", "compare", "testing"),
}
# Each operator becomes its opposite, and one of order its neighbour too: most others would raise on every call.
OPERATORS = re.compile(
    r"AddNot|Replace(True|False|And|Or|Break|Continue)With\w+|ExceptionReplacer|NumberReplacer|RemoveDecorator"
    r"|ZeroIterationForLoop|ReplaceUnaryOperator_(Delete_\w+|USub_UAdd)"
    r"|ReplaceComparisonOperator_(Is_IsNot|IsNot_Is|Eq_NotEq|NotEq_Eq|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt"
    r"|GtE_Lt)"
    r"|ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_FloorDiv|FloorDiv_Mul|Mod_FloorDiv|LShift_RShift|RShift_LShift"
    r"|BitOr_BitAnd|BitAnd_BitOr)"
)
SECONDS = 100  # for the direct tests, which take 20 at most; five times as much for the others


class DropStatement:
    """Put ``pass`` for a call, raise, return, del or global, and for an assignment to something's attribute or item."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Tell where: the operators of cosmic-ray have the same two methods."""
        if node.type != "simple_stmt":
            return
        statement = node.children[0]
        if statement.type == "expr_stmt":
            counts = statement.children[0].type == "atom_expr" or getattr(statement.children[1], "value", "=") != "="
        else:
            counts = statement.type in ("atom_expr", "raise_stmt", "return_stmt", "del_stmt", "global_stmt") or (
                statement.type == "keyword" and statement.value in ("raise", "return")
            )
        if counts:
            yield statement.start_pos, statement.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Do it."""
        first = node.get_first_leaf()
        node.children[0] = Keyword("pass", first.start_pos, first.prefix)
        return node


class Mutant(NamedTuple):
    """One change of one file."""

    room: str
    path: str
    operator: str
    occurrence: int
    line: int

    @property
    def name(self) -> str:
        """What it is kept by in the file of results."""
        return f"{self.path}:{self.line}:{self.operator}:{self.occurrence}"

    def code(self, source: str) -> str:
        """Return the changed source."""
        return (
            source if self.operator == "none" else str(mutate_code(source, operators()[self.operator], self.occurrence))
        )


def operators() -> dict[str, Any]:
    """Return the operators by name."""
    chosen = [name for name in cosmic_ray.plugins.operator_names() if OPERATORS.fullmatch(name.partition("/")[2])]
    found = {name.partition("/")[2]: cosmic_ray.plugins.get_operator(name)() for name in chosen}
    return {**found, "DropStatement": DropStatement()}


def what_never_runs(source: str) -> set[tuple[int, int]]:
    """Return the lines and columns of annotations, overloads, what only type checkers read, and stars of arguments."""
    places: set[tuple[int, int]] = set()
    for node in ast.walk(ast.parse(source)):
        skipped: list[Any] = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if any(getattr(decorator, "id", "") == "overload" for decorator in getattr(node, "decorator_list", ())):
            skipped += [*node.decorator_list, *node.args.defaults, *node.args.kw_defaults, *node.body]
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            skipped.append(node)
        for it in filter(None, skipped):
            for line in range(it.lineno, it.end_lineno + 1):
                begin, end = (
                    it.col_offset if line == it.lineno else 0,
                    it.end_col_offset if line == it.end_lineno else 200,
                )
                places.update((line, column) for column in range(begin, end))
    # A decorator begins at its @, which the tree leaves out.
    places |= {(line, column - 1) for line, column in places}
    # A star without a blank behind it does not multiply.
    lines = enumerate(source.splitlines(), 1)
    return places | {(number, star.start()) for number, line in lines for star in re.finditer(r"\*(?! )", line)}


def mutants(room: str) -> list[Mutant]:
    """Return the mutants of a room."""
    place = ROOT / "scoped_rng" / ROOMS[room][0]
    found = []
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        source = file.read_text()
        nodes, skipped = list(ast_nodes(get_ast(source))), what_never_runs(source)
        for name, operator in operators().items():
            starts = (start for node in nodes for start, _ in operator.mutation_positions(node))
            path = str(file.relative_to(ROOT))
            found += [Mutant(room, path, name, i, at[0]) for i, at in enumerate(starts) if at not in skipped]
    return found


def run(slot: Path, tests: str, seconds: float, *options: str) -> str:
    """Run tests in a fork; return "" where they pass, else the first that fails, or "timeout"."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            os.chdir(slot)
            log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.path.insert(0, str(slot))
            os.environ["PYTHONPATH"] = str(slot)
            sys.argv = ["pytest"]
            code = int(pytest.main([*PYTEST, *options, *(f"tests/test_{name}.py" for name in tests.split())]))
        finally:
            os._exit(code)
    ended, status, until = 0, 0, time.monotonic() + seconds
    while not ended:
        time.sleep(0.02)
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended and time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout"
    log_text = (slot / "log").read_text(errors="replace")
    told = re.search(r"^(FAILED|ERROR) .*", log_text, re.MULTILINE)
    return "" if status == 0 else told[0] if told else f"status {status}: {log_text[-200:]}"


def own_copy(work: Path) -> Path:
    """Return this process's copy of what is tested, with the tests compiled."""
    slot = work / str(os.getpid())
    if not slot.exists():
        for name in ("scoped_rng", "tests", "benchmarks"):
            shutil.copytree(ROOT / name, slot / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "setup.cfg", "README.md"):
            shutil.copy(ROOT / name, slot)
        everything = {name for _, *stages in ROOMS.values() for tests in stages for name in tests.split()}
        run(slot, " ".join(sorted(everything)), 5 * SECONDS, "--collect-only")
        sys.dont_write_bytecode = True  # two mutants of one second and one size would pass for each other
    return slot


def check(mutant: Mutant, work: Path) -> dict[str, Any]:
    """Test one mutant."""
    slot, begin, told = own_copy(work), time.monotonic(), ""
    file = slot / mutant.path
    source = file.read_text()
    code = mutant.code(source)
    try:
        file.write_text(code)
        told = run(slot, ROOMS[mutant.room][1], SECONDS) or run(slot, ROOMS[mutant.room][2], 5 * SECONDS)
    finally:
        file.write_text(source)
    return {
        "room": mutant.room,
        "name": mutant.name,
        "result": told if told == "timeout" else "killed" if told else "survived",
        "by": told[:160],
        "diff": list(difflib.unified_diff(source.split("\n"), code.split("\n"), n=0, lineterm=""))[3:],
        "seconds": round(time.monotonic() - begin, 1),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run, tell of each mutant that lives, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("rooms", nargs="*", default=list(ROOMS), metavar="ROOM", help=", ".join(ROOMS))
    parser.add_argument("--sample", type=int, help="so many of each room; a larger sample has the smaller one in it")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=Path(os.devnull), help="a file to go on with")
    parser.add_argument("--again", action="store_true", help="run those again that have lived")
    options = parser.parse_args(arguments)
    known: dict[str, Any] = {}
    if options.results.is_file():
        known = {it["name"]: it for it in map(json.loads, options.results.read_text().splitlines())}
    chosen: dict[str, list[Mutant]] = {}
    for room in options.rooms:
        made = mutants(room)
        random.Random(options.seed).shuffle(made)
        chosen[room] = made[: options.sample]
    todo = [
        it
        for made in chosen.values()
        for it in made
        if it.name not in known or (options.again and known[it.name]["result"] == "survived")
    ]
    for name in SLOW_IMPORTS:
        import_module(name)
    gc.freeze()  # some tests collect garbage hundreds of times, and need not go through all of torch
    with (
        tempfile.TemporaryDirectory() as work,
        ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool,
        options.results.open("a") as file,
    ):
        for room in sorted({it.room for it in todo}):
            unchanged = Mutant(room, chosen[room][0].path, "none", 0, 0)
            if (told := pool.submit(check, unchanged, Path(work)).result())["result"] != "survived":
                parser.exit(1, f"the tests of {room} fail where nothing is changed: {told['by']}\n")
        for done in as_completed([pool.submit(check, it, Path(work)) for it in todo]):
            result = known[done.result()["name"]] = done.result()
            print(json.dumps(result), file=file, flush=True)
            if result["result"] == "survived":
                print(result["name"], *result["diff"], sep="\n  ", flush=True)
    print("| room | mutants | killed | timed out | survived |\n|---|---|---|---|---|")
    for room, made in chosen.items():
        counts = Counter(known[it.name]["result"] for it in made)
        told = [len(made), *(counts[it] for it in ("killed", "timeout", "survived"))]
        print(f"| {room} | {' | '.join(map(str, told))} |")


if __name__ == "__main__":
    main()
