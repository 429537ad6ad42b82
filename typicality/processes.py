"""Several processes on one run: who does what, and waiting for one another.

`accelerate launch` and `torch.distributed.run` tell each process its rank in the environment. Processes share nothing
but the run directory: each takes its part of the images and writes files of its own, and at a barrier all see what
all have written. Nothing is exchanged on the devices, so gloo serves on every machine. A process that ends, however
it ends, closes its connections, and the others stop at their next barrier instead of waiting for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from typicality.errors import InputError, InterruptedRun

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=14)
"""The main process may fine-tune for days while the others wait; a process that died is noticed at once."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run as one of them sees it. `rank` 0 is the main one, which alone writes tables."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, work: Sequence[T]) -> list[T]:
        """Return this process's part of a list that is the same in all of them."""
        return list(work[self.rank :: self.count])

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises
        ------
        InterruptedRun : when another process has ended.
        """
        self.total(0)

    def total(self, number: int) -> int:
        """Return the sum of a number over all processes, which wait for one another.

        Raises
        ------
        InterruptedRun : when another process has ended.
        """
        return self._reduced(number, "SUM")

    def agree(self, value: str) -> bool:
        """Return whether all processes, which wait for one another, give the same text.

        Raises
        ------
        InterruptedRun : when another process has ended.
        """
        number = int.from_bytes(hashlib.sha256(value.encode()).digest()[:7])
        return self._reduced(number, "MIN") == self._reduced(number, "MAX")

    def _reduced(self, number: int, how: str) -> int:
        if self.count == 1:
            return number
        import torch
        import torch.distributed as distributed

        everywhere = torch.tensor(number, dtype=torch.int64)
        try:
            distributed.all_reduce(everywhere, getattr(distributed.ReduceOp, how))
        except RuntimeError as error:
            raise InterruptedRun(
                f"process {self.rank} stops, because another process of this run has ended; see its message, and "
                "give the same command again, with any number of processes, to continue"
            ) from error
        return int(everywhere)


ALONE = Processes()


def is_main() -> bool:
    """Return whether this process is the one that speaks to the user."""
    return os.environ.get("RANK", "0") == "0"


def processes_here() -> Processes:
    """Return the processes that a launcher has started, joined on first use; `ALONE` without a launcher.

    Raises
    ------
    InputError : when the launcher's settings are incomplete or the others cannot be reached.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        return ALONE
    import torch
    import torch.distributed as distributed

    if not distributed.is_initialized():
        try:
            distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"the {count} processes cannot reach one another ({error}); start them with `accelerate launch` or "
                "`python -m torch.distributed.run`"
            ) from error
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return Processes(distributed.get_rank(), distributed.get_world_size())
