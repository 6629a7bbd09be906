"""Start one command in several processes, as torchrun does: its environment, and a store that outlives each of them."""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warm_forks import FORKS

_SECONDS = 120


@dataclass(frozen=True)
class Ended:
    """Exit code, standard output and standard error of each process."""

    codes: list[int]
    out: list[str]
    err: list[str]

    @property
    def complaints(self) -> list[str]:
        """The lines of all processes in which the command says why it failed."""
        return [line for text in self.err for line in text.splitlines() if line.startswith("cellbridge ")]


def command(*arguments: object) -> None:
    """Run the command line in this process."""
    from cellbridge.cli import main

    sys.exit(main([str(argument) for argument in arguments]))


def launch(
    body: Callable[..., Any], each: Sequence[Sequence[object]], *, meanwhile: Callable[[list[Any]], None] | None = None
) -> Ended:
    """Run `body(*each[i])` in process i of len(each), and wait for all of them.

    Parameters
    ----------
    body : a function of a module.
    meanwhile : called with the processes while they run.
    """
    from torch import distributed

    board = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        paths = [(Path(folder) / f"{i}.out", Path(folder) / f"{i}.err") for i in range(len(each))]
        started = [
            FORKS.Process(target=_child, args=(body, arguments, i, len(each), board.port, *paths[i]))
            for i, arguments in enumerate(each)
        ]
        for process in started:
            process.start()
        if meanwhile is not None:
            meanwhile(started)
        for process in started:
            process.join(_SECONDS)
        hanging = [process for process in started if process.exitcode is None]
        for process in hanging:
            process.kill()
            process.join()
        texts = [[path.read_text(encoding="utf-8") for path in both] for both in paths]
        assert not hanging, texts
    return Ended([p.exitcode or 0 for p in started], [out for out, _ in texts], [err for _, err in texts])


def _child(
    body: Callable[..., Any], arguments: Sequence[object], rank: int, count: int, port: int, out: Path, err: Path
) -> None:
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    if count > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
    import torch

    torch.set_num_threads(1)
    body(*arguments)
