"""Train on scikit-learn's digits in several processes, with dropout and augmentation; killed, it resumes exactly.

``torchrun --nproc-per-node 4 benchmarks/workloads/digits_ddp.py`` trains, and goes on from the checkpoint if there is
one. ``python benchmarks/workloads/digits_ddp.py --prove 20`` starts that with 2 and with 4 processes again and again,
kills one of them or all at a random moment until the training comes to its end, and compares the final weights.

From 3 ranks on an exact resume needs DDP's buckets to be as they were: after the first backward DDP lays them out anew,
in the order in which the gradients came, and in another layout the ranks sum in another order. A resumed run would do
its first step in the layout that the unbroken run had in its first step alone. So `settle` has both do a step that
leaves nothing behind but the final layout.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from digits_loader import AugmentedDigits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from scoped_rng import deterministic, isolated
from scoped_rng.checkpoint import StatefulRng, resume
from scoped_rng.data import seeded_loader
from scoped_rng.distributed import assert_distinct, assert_in_sync, rank_seed

BATCH = 16


def settle(model: DistributedDataParallel, images: torch.Tensor) -> None:
    """Have DDP lay out its buckets for good; the streams, buffers and gradients are put back."""
    with isolated(also=model):
        for _ in range(2):  # what comes first of the second step rebuilds the buckets
            model(images).sum().backward()
    model.zero_grad()


class Training:
    """What one rank has of the training, and a checkpoint of all ranks in the middle of an epoch."""

    def __init__(self, buckets: str) -> None:
        with isolated(0):  # the same weights on every rank
            model = nn.Sequential(
                *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Flatten(), nn.Linear(8 * 4 * 4, 64), nn.ReLU(), nn.Dropout(0.25), nn.Linear(64, 10)),
            )
        self.model = DistributedDataParallel(model, find_unused_parameters=buckets == "unused")
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)
        data = AugmentedDigits(512)
        self.loader = seeded_loader(data, seed=0, batch_size=BATCH, sampler=DistributedSampler(data))
        self.rng = StatefulRng(gather=True)
        if buckets == "settled":
            settle(self.model, torch.zeros(BATCH, 1, 8, 8))
        self.step = 0

    def run(self, epochs: int, path: Path, every: int, kill: list[int] | None) -> None:
        for _ in range(self.loader.epoch, epochs):
            for images, labels in self.loader:
                loss = nn.functional.cross_entropy(self.model(images), labels)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.step += 1
                if kill == [self.step, dist.get_rank()]:
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.step % every == 0:
                    assert_in_sync(list(self.model.parameters()), self.optimizer, streams=())
                    assert_distinct("torch")
                    self.save(path)

    def save(self, path: Path) -> None:
        """Write one file for all ranks, beside and then renamed: a kill leaves the old one or the new one."""
        checkpoint = {
            "model": self.model.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": self.rng.state_dict(),  # on every rank, since it gathers
            "step": self.step,
        }
        if dist.get_rank() == 0:
            beside = path.with_suffix(".new")
            torch.save(checkpoint, beside)
            os.replace(beside, path)
            print(f"saved at step {self.step}", flush=True)

    def load(self, path: Path) -> None:
        checkpoint = torch.load(path, weights_only=True)
        parts = {"model": self.model.module, "optimizer": self.optimizer, "loader": self.loader}
        resume(checkpoint, **parts, rng=self.rng)
        self.step = checkpoint["step"]
        if dist.get_rank() == 0:
            print(f"resumed at step {self.step}", flush=True)

    def digest(self) -> str:
        """Return a few hex digits of the weights."""
        digest = hashlib.blake2b(digest_size=8)
        for tensor in self.model.module.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    print(f"process {os.getpid()}", flush=True)
    with deterministic(rank_seed(0)):  # other dropout on every rank
        training = Training(args.buckets)
        if args.checkpoint.exists():
            training.load(args.checkpoint)
        training.run(args.epochs, args.checkpoint, args.every, args.kill)
        assert_in_sync(list(training.model.parameters()), training.optimizer, streams=())
    if dist.get_rank() == 0:
        print(f"weights {training.digest()}", flush=True)
    dist.barrier()  # gloo aborts where one rank is gone while another is still busy
    dist.destroy_process_group()


def launch(ranks: int, options: list[str], kill: float | None = None) -> str:
    """Run the training under torchrun; after so many steps that are saved, kill one process or all."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": os.devnull}
    process = subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines, workers = [], []
    for line in process.stdout:
        lines.append(line)
        workers += [int(number) for number in re.findall(r"^process (\d+)", line)]
        if kill is not None and len(workers) == ranks and re.match("saved|resumed", line):
            if kill <= 0:
                for worker in random.choice([workers, [random.choice(workers)]]):
                    os.kill(worker, signal.SIGKILL)
                kill = None
            else:
                kill -= 1
    process.wait()
    return "".join(lines)


def prove(args: argparse.Namespace) -> None:
    """Kill the training at random moments so many times in all, and compare."""
    kills = wrong = 0
    steps = [args.epochs * 512 // ranks // BATCH for ranks in args.ranks]
    with tempfile.TemporaryDirectory() as folder:
        common = ["--epochs", str(args.epochs), "--every", str(args.every), "--buckets", args.buckets]
        unbroken = {
            ranks: weights(launch(ranks, [*common, "--checkpoint", f"{folder}/unbroken{ranks}.pt"]))
            for ranks in args.ranks
        }
        for attempt in range(10 * args.prove):
            if kills >= args.prove:
                break
            ranks, most = list(zip(args.ranks, steps, strict=True))[attempt % len(args.ranks)]
            file = f"{folder}/{attempt}.pt"
            final, here = None, 0
            while final is None:
                after = random.randrange(most // args.every) if here < 3 else None
                output = launch(ranks, [*common, "--checkpoint", file], after)
                final = weights(output)
                here += final is None
                kills += final is None
            same = final == unbroken[ranks]
            wrong += not same
            print(
                f"{ranks} ranks, killed {here} times: weights {final}, {'the same' if same else 'OTHERS'}", flush=True
            )
    print(f"{kills} kills, {wrong} trainings with other weights than {unbroken}")
    sys.exit(bool(wrong))


def weights(output: str) -> str | None:
    found = re.search(r"^weights (\w+)", output, re.MULTILINE)
    if found is None and "process" not in output:
        raise RuntimeError(f"the training has not begun:\n{output}")
    return found[1] if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every", type=int, default=3, metavar="N", help="steps from checkpoint to checkpoint")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("digits_ddp.pt"), help="the file (default: %(default)s)"
    )
    parser.add_argument("--buckets", choices=["settled", "unused", "plain"], default="settled")
    parser.add_argument("--kill", type=int, nargs=2, metavar=("STEP", "RANK"), help="kill a process behind a step")
    parser.add_argument("--prove", type=int, metavar="N", help="kill N times at random moments, and compare")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="for --prove (default: 2 4)")
    args = parser.parse_args()
    prove(args) if args.prove else train(args)


if __name__ == "__main__":
    main()
