"""The trainer of the paper's K cells: `PACTrainer` takes K from its arguments (`pac_k`), so there is no other.

Each of the K releases of a step gets 1/K of the step's budget, and the memory is that of one direction.
"""

from paczo.pac_trainer import PACArguments, PACTrainer

__all__ = ["PACArguments", "PACTrainer"]
