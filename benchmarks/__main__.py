"""``python -m benchmarks [NAME ...]``: all of it, or some."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from . import figures
from .table import Row, write
from .timing import processor

# The name on the command line, and the module.
COMMANDS = {
    "scope": "scope",
    "decorators": "decorators",
    "state": "state",
    "growth": "growth",
    "compare": "compare",
    "data": "data",
    "trace": "trace",
    "pytest": "plugin",
    "distributed": "distributed",
    "behaviour": "behaviour",
}
FOLDER = Path(__file__).parent
# Enough to see that it works, and no more.
QUICK = {"rounds": 2, "ranks": [2]}


def module(name: str) -> Any:
    """Return the module of a benchmark."""
    return import_module(f"{__package__}.{COMMANDS[name]}")


def parse(arguments: list[str]) -> tuple[list[str], argparse.Namespace, dict[str, argparse.Namespace]]:
    """Return which benchmarks to run, the options for all of them, and those of each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        usage="%(prog)s [NAME ...] [--quick] [--json FILE] [--figures FOLDER] [options of a NAME: NAME --help]",
        description="Measure scoped_rng, each benchmark in a process of its own.\n"
        "Without a NAME: all of them, and the results, figures and table of the peers are written into benchmarks/.",
        epilog=f"The NAMEs: {', '.join(COMMANDS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("--quick", action="store_true", help="only see that it works: the numbers mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="draw the figures of what was measured")
    asked = [word for word in arguments if word in COMMANDS]
    names = list(dict.fromkeys(asked)) or list(COMMANDS)
    given, rest = parser.parse_known_args([word for word in arguments if word not in COMMANDS])
    if not asked:
        if {"-h", "--help"} & set(rest):
            parser.print_help()
            parser.exit()
        if not given.quick:
            given.json = given.json or FOLDER / "results.json"
            given.figures = given.figures or FOLDER / "figures"
            rest = ["--markdown", str(FOLDER / "behaviour.md"), *rest]
    options, foreign = {}, []
    for name in names:
        its = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=module(name).__doc__)
        module(name).add_arguments(its)
        if given.quick:
            its.set_defaults(**{option: value for option, value in QUICK.items() if its.get_default(option)})
        options[name], unknown = its.parse_known_args(rest)
        foreign.append(set(unknown))
    nobodys = set.intersection(*foreign)
    if nobodys:
        parser.error(f"nobody knows {' '.join(sorted(nobodys))}; the names are {', '.join(COMMANDS)}")
    return names, given, options


def measure(names: list[str], options: dict[str, argparse.Namespace]) -> dict[str, Any]:
    """Run each benchmark in a fresh interpreter, since some set switches for their whole process."""
    found = {}
    start = multiprocessing.get_context("spawn").Process
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"\n# {name}\n", flush=True)
            options[name].json = Path(folder, f"{name}.json")
            process = start(target=module(name).run, args=(options[name],))
            process.start()
            process.join()
            if options[name].json.exists():
                found[name] = json.loads(options[name].json.read_text(encoding="utf-8"))
    return found


def missed(found: dict[str, Any]) -> list[str]:
    """Return a line for each goal that was missed."""
    lines = []
    for name, numbers in found.items():
        for section in numbers.get("sections", ()):
            for row in (Row(**row) for row in section["rows"]):
                if row.goal is not None and row.value is not None and not row.is_met:
                    measured = row.value if row.ratio is None else row.ratio
                    where = f"{name}, {section['title'].partition(';')[0]}"
                    lines.append(f"{where}: {row.name}: {measured:.3f}, the goal is {row.goal:.3f}")
    return lines


def main() -> int:
    names, given, options = parse(sys.argv[1:])
    found = measure(names, options)
    results = {
        "quick": given.quick,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
            "cores": os.cpu_count(),
        },
        "versions": {key: value for numbers in found.values() for key, value in numbers["versions"].items()},
        "benchmarks": found,
    }
    if given.json:
        write(results, given.json)
    if given.figures:
        figures.draw(results, given.figures)
    if len(names) > 1:
        print("\n# Goals that were missed\n")
        print("\n".join(missed(found)) or "none")
    failed = [name for name in names if name not in found]
    if failed:
        print(f"\nFailed, see above: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
