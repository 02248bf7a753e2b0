"""``python -m benchmarks COMMAND``."""

from __future__ import annotations

import argparse

from . import compare, data, distributed, plugin, scope, trace

COMMANDS = {
    "compare": compare,
    "data": data,
    "distributed": distributed,
    "pytest": plugin,
    "scope": scope,
    "trace": trace,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure scoped_rng.")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, module in COMMANDS.items():
        text = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args()
    if hasattr(options, "run"):
        options.run(options)
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
