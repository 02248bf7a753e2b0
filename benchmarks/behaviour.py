"""What scopes must get right, run against every peer that is installed, as a table in Markdown.

Each cell is a forked child of a process that has imported the peer, so that a peer which leaves the process broken
spoils no other cell.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import kit

from .expected import ROWS
from .outcomes import FAILS, NOT_APPLICABLE, PASSES, in_child
from .peers import PEERS
from .table import write
from .timing import machine, versions

__all__ = ["add_arguments", "run"]

MARKS = {PASSES: "✓", FAILS: "✗", NOT_APPLICABLE: "·"}


def prepare() -> None:
    """Give the streams states that no seed gives, with a cached gaussian each."""
    random.seed(11)
    np.random.seed(12)
    torch.default_generator.manual_seed(13)
    kit.draws()


def cells(name: str) -> dict[str, tuple[str, str]]:
    """Run every row against one peer, in this process."""
    torch.set_num_threads(1)  # a thread of a pool would be missing in the children
    peer = PEERS[name][2]()
    torch.cuda._lazy_seed_tracker.__init__()  # type: ignore[misc]  # what it has seeded on import
    prepare()
    return {title: in_child(lambda check=check: check(peer)) for title, check in ROWS.items()}  # type: ignore[misc]


def measure(name: str) -> dict[str, Any]:
    """Run every row against one peer, in a fresh interpreter."""
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, name]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"absent": f"it cannot be imported: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the table in Markdown, with what could not be run below it."""
    there = [name for name, its in found.items() if "absent" not in its]
    header = [f"{name} {version(PEERS[name][0])}" for name in there]
    lines = [f"| | {' | '.join(header)} |", "|---|" + ":-:|" * len(there)]
    for title in ROWS:
        marks = [MARKS[found[name]["cells"][title][0]] for name in there]
        lines.append(f"| {title} | {' | '.join(marks)} |")
    lines += ["", "; ".join(f"{mark} {outcome}" for outcome, mark in MARKS.items()) + "."]
    lines += ["What was run: " + "; ".join(f"{name}: {PEERS[name][1]}" for name in there) + "."]
    lines += [f"{name}, {PEERS[name][1]}: {its['absent']}." for name, its in found.items() if "absent" in its]
    return "\n".join(lines) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its command."""
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to FILE as well")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER", help="(default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each cell, with the reason, to FILE")


def run(options: argparse.Namespace) -> None:
    """Run every row against every peer, and print the table, and why each cell that fails does."""
    found: dict[str, dict[str, Any]] = {
        name: measure(name) if version(PEERS[name][0]) else {"absent": "not installed"} for name in options.peers
    }
    markdown = table(found)
    print(markdown)
    for name, its in found.items():
        for title, (outcome, why) in its.get("cells", {}).items():
            if outcome != PASSES:
                print(f"{name:13}{outcome}: {title}: {why}")
    if options.markdown:
        options.markdown.write_text(markdown, encoding="utf-8")
    if options.json:
        distributions = (distribution for distribution, _, _ in PEERS.values())
        numbers = {"versions": versions(distributions), "machine": machine(), "peers": found}
        write(numbers, options.json)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps({"cells": cells(sys.argv[1])}))
