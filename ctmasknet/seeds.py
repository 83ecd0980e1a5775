"""Which seeds a command line may give."""

from __future__ import annotations

from ctmasknet.errors import CTMaskNetError


def check_seed(seed: int) -> None:
    """Refuse a seed that not every generator takes (scikit-learn's take 32 bits).

    Raises:
        CTMaskNetError: a seed outside 0..2^32 - 1; a negative one does not mean a random seed here.
    """
    if not 0 <= seed < 2**32:
        raise CTMaskNetError(f"seed is {seed}; give a number within 0..{2**32 - 1}")
