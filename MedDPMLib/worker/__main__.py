"""``python -m MedDPMLib.worker --session FOLDER [--idle SECONDS]``"""

from __future__ import annotations

import argparse
import faulthandler
from pathlib import Path

from MedDPMLib.runtime.allocator import keep_freed_memory
from MedDPMLib.runtime.priority import give_way
from MedDPMLib.worker.process import Worker, take_channels
from MedDPMLib.worker.session import Session


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m MedDPMLib.worker",
        description="Generates volumes on request, for the program that starts it; see docs/worker-protocol.md.",
    )
    parser.add_argument("--session", type=_folder, required=True, help="folder for the arrays, for this worker alone")
    parser.add_argument(
        "--idle", type=_seconds, help="seconds without work to the model's release, and then to the worker's end"
    )
    options = parser.parse_args()
    faulthandler.enable()  # a crash of a library says where, on standard error
    keep_freed_memory()
    give_way()
    requests, events = take_channels()
    Worker(requests, events, Session(options.session), options.idle).run()


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder: create it first")
    return path.resolve()


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


if __name__ == "__main__":
    main()
