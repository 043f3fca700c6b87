"""How much of the slow tests is run: a share, of the campaign one that the seed draws, on every
push; all of it every night.

All of it: MNAS_CAMPAIGN=whole python -m pytest -m slow
"""

import os
import random

WHOLE = os.environ.get("MNAS_CAMPAIGN") == "whole"
SEED = 0


def share(cases, number):
    """All cases in the whole campaign, else so many of them, in their order."""
    cases = list(cases)
    if WHOLE or len(cases) <= number:
        return cases
    drawn = random.Random(SEED).sample(range(len(cases)), number)
    return [cases[i] for i in sorted(drawn)]
