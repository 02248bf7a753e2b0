"""The command line: ``scoped-rng check | run | doctor``. It parses; what is to be done is done elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..seeds import check_seed
from .children import Plan
from .launch import Target, launch, parse

__all__ = ["app", "main"]

app = typer.Typer(
    help="Find out whether a program repeats, and where its runs part.",
    rich_markup_mode=None,  # whose help pages take longer to import than all the rest
    pretty_exceptions_enable=False,
    add_completion=False,
)
_ANY = {"ignore_unknown_options": True}
# typer reads these annotations, and has to understand them on Python 3.10 as well.
_Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="A script, -m package.module, or package.module:function.")
]
_Args = Annotated[Optional[list[str]], typer.Argument(metavar="ARGS", help="Its own arguments.")]  # noqa: UP045
_Seed = Annotated[str, typer.Option(metavar="N", help="An int in [0, 2**64).")]
_Strict = Annotated[bool, typer.Option("--strict", help="Raise where torch has only a nondeterministic algorithm.")]
_File = Optional[str]  # noqa: UP045


def _seed(text: str) -> int:
    try:
        value: Any = int(text) if text.removeprefix("-").isdecimal() else text
        return check_seed(value)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--seed") from None


def _target(target: str, args: list[str] | None) -> Target:
    try:
        return parse(target, *(args or ()))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="TARGET") from None


def _check_file(path: str | None, name: str) -> None:
    """Refuse a file that cannot be written, before anything has run."""
    if path is not None and (not Path(path).absolute().parent.is_dir() or Path(path).is_dir()):
        raise typer.BadParameter(f"{path!r} is not a file in a folder that exists", param_hint=name)


@app.callback()
def _top() -> None:
    pass  # so that there is a help page for all


@app.command(context_settings=_ANY)
def check(
    context: typer.Context,
    target: _Target,
    args: _Args = None,
    seed: _Seed = "0",
    runs: Annotated[int, typer.Option(min=2, metavar="N", help="How many, all compared with the first.")] = 2,
    strict: _Strict = False,
    trace: Annotated[bool, typer.Option(help="Compare every torch op.")] = True,
    hash_seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, max=2**32 - 1, metavar="N", help="PYTHONHASHSEED of all runs; else as it is."),
    ] = None,
    output: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="FILE", help="A file that TARGET writes, to be compared; may be given again."),
    ] = None,
    as_json: Annotated[_File, typer.Option("--json", metavar="FILE", help="Write what was found for machines.")] = None,
    svg: Annotated[_File, typer.Option("--svg", metavar="FILE", help="Write what is shown as a picture.")] = None,
) -> None:
    """Run TARGET several times, each in a fresh interpreter under the same seed, and say where the runs differ.

    Compared are torch's ops, stdout, stderr (but for times, addresses and process numbers), what a function returns,
    and each --output, bit for bit. A function is called without arguments and finds ARGS in sys.argv; stdin is empty.

    Options may also stand behind TARGET. What comes after -- goes to it alone: check SCRIPT -- --seed 1

    Exit code: 0 reproducible, 1 not, 2 TARGET failed, something could not be compared, or the call was wrong,
    130 interrupted.
    """
    if trace and importlib.util.find_spec("xxhash") is None:
        raise typer.BadParameter(
            "a trace needs xxhash: pip install 'scoped-rng[cli]'; or --no-trace", param_hint="--trace"
        )
    for file in output or ():
        _check_file(file, "--output")
    _check_file(as_json, "--json")
    _check_file(svg, "--svg")
    files = tuple(dict.fromkeys(output or ()))
    plan = Plan(_target(target, args), _seed(seed), runs, strict, trace, hash_seed, files)
    context.obj.append(lambda: _check(plan, as_json, svg))


def _check(plan: Plan, as_json: str | None, svg: str | None) -> int:
    from . import checking, show

    _end_on_signals()
    try:
        with show.progress(plan.runs) as started:
            report = checking.check(plan, started)
    except KeyboardInterrupt:
        _write("interrupted; no run is left behind\n", sys.stderr)
        return 130
    except OSError as error:
        _write(f"the runs could not be made or compared: {error}\n", sys.stderr)
        return 2
    code = report.exit_code
    try:
        if as_json is not None:
            found = {**dataclasses.asdict(report), "exit_code": code}
            Path(as_json).write_text(json.dumps(found, indent=2), encoding="utf-8")
        if svg is not None:
            show.save_svg(show.reported(report), svg, f"scoped-rng check {' '.join((report.target, *report.args))}")
    except OSError as error:
        _write(f"what was found could not be written: {error}\n", sys.stderr)
        code = 2
    _write(report.failure, sys.stderr)
    _show(lambda plain: show.reported(report, plain))
    return code


def _end_on_signals() -> None:
    """Have what would end this process end its children first."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # not under nohup
            signal.signal(number, interrupt)


def _show(shown: Callable[[bool], Any]) -> None:
    """Print what is shown, in ASCII where that is all that can be printed."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(shown(not console.encoding.lower().startswith("utf")))
    _write(captured.get(), sys.stdout)


def _write(text: str, stream: Any) -> None:
    """Print a text. Where nobody reads on (``| head``), that is no failure: the exit code is what was found."""
    if stream is None:  # which was closed before it all began
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python fails as it flushes at its end


@app.command(context_settings={"allow_interspersed_args": False, **_ANY})
def run(
    context: typer.Context, target: _Target, args: _Args = None, seed: _Seed = "0", strict: _Strict = False
) -> None:
    """Run TARGET in this interpreter under a seed, as Python itself would run it.

    Options stand before TARGET; what comes after it is its own.
    """
    what, number = _target(target, args), _seed(seed)
    context.obj.append(lambda: launch(what, number, strict=strict))


@app.command()
def doctor(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Write it for machines, to stdout.")] = False,
) -> None:
    """Tell what decides here whether runs repeat, what it means, and whether scopes do what they promise.

    Exit code: 0 all live checks pass, 1 not.
    """
    context.obj.append(lambda: _doctor(as_json))


def _doctor(as_json: bool) -> int:
    from . import show
    from .doctor import examine, is_well

    findings = examine()
    if as_json:
        _write(json.dumps([finding._asdict() for finding in findings], indent=2) + "\n", sys.stdout)
    else:
        _show(lambda plain: show.examined(findings))
    return 0 if is_well(findings) else 1


def main() -> int | None:
    """Run the command line and return the exit code."""
    actions: list[Callable[[], int | None]] = []
    try:
        app(prog_name="scoped-rng", obj=actions)
    except SystemExit:
        if not actions:
            raise
    # typer has its own way with exceptions, so what was asked for is done when it is out of the way.
    return actions[0]()
