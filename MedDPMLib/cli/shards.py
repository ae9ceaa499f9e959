"""Which share of the work is this process's? That of --shard, or of its rank under torchrun."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import typer

from MedDPMLib.errors import MedDPMError

_Job = TypeVar("_Job")

ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Only share I of N of the work, for N processes or jobs that share one folder: --shard 1/4 to 4/4. Under"
        " torchrun each process has its own share.",
    ),
]


@dataclass(frozen=True)
class Shard:
    """Share ``index`` (from 1) of ``count``. ``local_rank`` is that of the process on its machine, under torchrun."""

    index: int = 1
    count: int = 1
    local_rank: int | None = None

    def share_of(self, jobs: Sequence[_Job]) -> Sequence[_Job]:
        """A run of neighbors in ``jobs``. The shares of all indices are disjoint and together all ``jobs``, and their
        lengths differ by one at most."""
        return jobs[(self.index - 1) * len(jobs) // self.count : self.index * len(jobs) // self.count]

    def device(self, chosen: str) -> str:
        """The device for this process where ``chosen`` is that of the command: each has its own GPU."""
        if self.local_rank is None or chosen not in ("auto", "cuda"):
            return chosen
        import torch

        there = torch.cuda.device_count()
        return f"cuda:{self.local_rank % there}" if there > 1 else chosen

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def find_shard(option: str | None) -> Shard:
    """The share that ``option`` says ("2/8"), else RANK and WORLD_SIZE, which torchrun sets; else everything."""
    if option is not None:
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", option)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise MedDPMError(f'"{option}" is no share of the work: write --shard 1/4 to 4/4 for four shares')
        return Shard(int(match[1]), int(match[2]))
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Shard()
    rank, world, local = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank is None or not world or rank >= world:
        raise MedDPMError(
            f"RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment are no rank of"
            " torchrun: unset them, or give --shard"
        )
    return Shard(rank + 1, world, local or 0)


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if re.fullmatch(r"\d{1,6}", text) else None
