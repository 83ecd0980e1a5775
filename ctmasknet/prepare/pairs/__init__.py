"""Which image and which mask belong together, whose they are, and the split that lists say.

Its doors are :func:`~ctmasknet.prepare.pairs.pictures.find_pairs` and
:func:`~ctmasknet.prepare.pairs.volumes.find_volume_pairs`.
"""

from ctmasknet.prepare.pairs.kinds import LesionPair, VolumePair, source_folders, split_by_lists
from ctmasknet.prepare.pairs.pictures import find_pairs
from ctmasknet.prepare.pairs.volumes import find_volume_pairs, slice_masks

__all__ = [
    "LesionPair",
    "VolumePair",
    "find_pairs",
    "find_volume_pairs",
    "slice_masks",
    "source_folders",
    "split_by_lists",
]
