"""Start a module of the project in several processes, one a GPU, by `accelerate launch`.

    python -m scripts.launch 2 paczo.run_paczo --pac_zpl ...

Exits with the module's own exit code, without the launcher's report of it. Where there is no GPU, the processes
share the CPU.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from src.utils import UserError, run_cli

FIXED = ("--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
PORT = ("--main_process_port", "0")  # any free one


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; raises `UserError` for a number that is none, or above that of the GPUs."""
    count, *module = sys.argv[1:] if argv is None else argv
    if not count.isdigit() or int(count) < 2:
        raise UserError(f"NUM_GPUS must be a whole number from 1 on, got '{count}'")
    found = torch.cuda.device_count()
    if 0 < found < int(count):
        raise UserError(f"NUM_GPUS={count}, but there are {found} GPUs here")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    words = [*FIXED, *PORT, "--num_processes", count, "-m", *module]
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        sys.exit(max(1, *codes))


if __name__ == "__main__":
    run_cli(main)
