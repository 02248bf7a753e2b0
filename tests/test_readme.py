"""README.md: every block of code in it does what it says."""

from __future__ import annotations

import importlib.util
import random
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import scoped_rng
from scoped_rng import deterministic, unregister_stream
from tests import fake_frameworks, kit, test_recipes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


class Block(NamedTuple):
    """A fenced block: its language, what it stands under, the lines before its first, its code."""

    language: str
    title: str
    line: int
    code: str


def blocks() -> Iterator[Block]:
    title, language, code = "", "", []
    for line, text in enumerate(README.splitlines()):
        if not language:
            shown = re.match(r"(?:#+ |\*\*|- \*\*)([^*.]+)", text)
            title = shown[1].strip().replace("`", "") if shown else title
        if text.startswith("```") and not language:
            language, first, code = text[3:], line + 1, []
        elif text == "```":
            yield Block(language, title, first, "\n".join(code) + "\n")
            language = ""
        elif language:
            code.append(text)
    assert not language, "a block is not closed"


BLOCKS = list(blocks())


def of(language: str) -> Any:
    chosen = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", chosen, ids=[f"{block.title} (line {block.line})" for block in chosen])


def commands() -> list[Any]:
    lines = [line for block in BLOCKS if block.language == "bash" for line in block.code.splitlines()]
    return [pytest.param(shlex.split(command), id=command) for line in lines for command in line.split("&&")]


def test_every_block_is_of_a_kind_that_is_checked_here() -> None:
    assert {block.language for block in BLOCKS} == {"python", "text", "bash", "diff", "toml"}


def test_the_table_of_the_peers_is_the_one_that_was_run() -> None:
    assert (ROOT / "benchmarks" / "behaviour.md").read_text(encoding="utf-8").strip() in README


def is_for_pytest(block: Block) -> bool:
    return "@pytest." in block.code


@pytest.mark.parametrize("options", [(), ("--rng-seed=fresh", "--rng-leaks=error")], ids=["", "with the options"])
@pytest.mark.parametrize("block", [block for block in BLOCKS if is_for_pytest(block)], ids=lambda block: block.title)
def test_a_block_of_tests_passes_under_pytest(block: Block, options: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "test_block.py").write_text(block.code, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", *options]
    env = {**test_recipes.environment(), "PYTEST_ADDOPTS": ""}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@of("python")
def test_a_block_of_python_runs_as_it_stands(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, module in {"cupy": test_recipes.fake_cupy(), **fake_frameworks.modules()}.items():
        monkeypatch.setitem(sys.modules, name, module)
    namespace: dict[str, Any] = {"__name__": "readme"}
    # The lines that come before the block are empty, so that a traceback shows the line of the README.
    try:
        exec(compile("\n" * block.line + block.code, str(ROOT / "README.md"), "exec", dont_inherit=True), namespace)
        for name, value in namespace.items():
            if name.startswith("test") and not is_for_pytest(block):
                value()
    finally:
        for name in re.findall(r'^register_stream\("(\w+)"', block.code, re.MULTILINE):
            unregister_stream(name)
    behind = BLOCKS[BLOCKS.index(block) + 1]
    if behind.language == "text":  # what it prints
        assert capsys.readouterr().out == behind.code


@of("bash")
def test_a_block_of_bash_parses(block: Block) -> None:
    bash = shutil.which("bash")
    if bash is not None:
        subprocess.run([bash, "-n"], input=block.code, text=True, check=True)
    assert block.code.count("\n") == 1, "one line is copied at once"


@pytest.mark.parametrize("command", commands())
def test_a_command_names_what_is_there(command: list[str]) -> None:
    if command[:2] == ["pip", "install"]:
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        table = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
        extras = re.findall(r"^([\w-]+) = \[", table, re.MULTILINE)
        words = iter(command[2:])
        for word in words:
            if word == "-c":
                assert (ROOT / next(words)).is_file()
            elif word == "-e":
                folder, _, wanted = next(words).partition("[")
                assert folder == "."
                assert set(filter(None, wanted.rstrip("]").split(","))) <= set(extras)
            else:
                assert word == "scikit-learn"
    elif command[0] == "scoped-rng":
        help_page = subprocess.check_output([sys.executable, "-m", "scoped_rng", command[1], "--help"], text=True)
        assert all(word in help_page for word in command if word.startswith("--") and word != "--epochs")
        assert all((ROOT / word).is_file() for word in command if "/" in word)
    elif command[0] == "pytest":
        run = subprocess.run([sys.executable, "-m", *command, "--help"], capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, "")
    else:
        assert command[:2] == ["python", "-m"]
        assert importlib.util.find_spec(command[2])
        assert all((ROOT / word).is_file() for word in command if "/" in word)


@pytest.mark.parametrize("name", ["scoped_rng check", "scoped_rng run", "scoped_rng doctor", "benchmarks scope"])
def test_a_command_in_the_text_has_a_help_page(name: str) -> None:
    assert f"`python -m {name}" in README or f"`{name.replace('_', '-')}" in README
    run = subprocess.run([sys.executable, "-m", *name.split(), "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_block_draws_the_numbers_of_the_lines_that_it_replaces() -> None:
    (block,) = (block for block in BLOCKS if block.language == "diff")
    sides = [
        "".join(line[1:] + "\n" for line in block.code.splitlines() if line.startswith(sign)) for sign in ("-", "+")
    ]
    drawn: list[Any] = []
    for code in sides:
        with deterministic(1):  # the lines that are replaced put nothing back
            exec(
                compile(code, "README.md", "exec", dont_inherit=True),
                {
                    "random": random,
                    "np": np,
                    "torch": torch,
                    "deterministic": deterministic,
                    "seed": 5,
                    "main": lambda: drawn.append(kit.draws()),
                },
            )
    assert drawn == [kit.reference(5)[0]] * 2


def test_the_filter_for_warnings_as_errors_lets_a_nondeterministic_algorithm_pass(tmp_path: Path) -> None:
    (block,) = (block for block in BLOCKS if block.language == "toml")
    (tmp_path / "pyproject.toml").write_text(block.code, encoding="utf-8")
    (tmp_path / "test_warns.py").write_text(
        textwrap.dedent(
            """
            import warnings

            import pytest
            import torch
            from scoped_rng import fixed_seed


            @fixed_seed
            def test_put():
                torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))


            def test_other_warnings_are_errors():
                with pytest.raises(UserWarning):
                    warnings.warn("something else")
            """
        ),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-q"]
    env = {**test_recipes.environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "2 passed, 1 warning" in run.stdout, run.stdout + run.stderr


def test_the_filter_in_code_lets_a_nondeterministic_algorithm_pass() -> None:
    found = re.search(r"`(warnings\.filterwarnings\(.*?\))`", README)
    assert found
    code = f"import warnings\n{found[1]}\n" + textwrap.dedent(
        """
        import torch
        from scoped_rng import deterministic
        with deterministic(0):
            torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))
        """
    )
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    run = subprocess.run(command, env=test_recipes.environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "UserWarning: put_ does not have a deterministic implementation" in run.stderr


def test_every_public_name_is_in_the_summary() -> None:
    summary = README.partition("## API")[2]
    assert [name for name in scoped_rng.__all__ if not re.search(rf"`{name}\b", summary)] == []
