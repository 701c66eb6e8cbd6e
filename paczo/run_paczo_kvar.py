"""PACZero with K directions a step (`--pac_k`): the plain command under the name that the paper's K cells use.

With `--pac_k 1` it is the plain command, bit for bit.
"""

from __future__ import annotations

from paczo.run_paczo import main
from src.utils import run_cli

if __name__ == "__main__":
    run_cli(main)
