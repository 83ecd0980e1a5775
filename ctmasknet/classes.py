"""Names, order and colours of the classes, and what a file name says of its slice.

This is the only place that knows them; everything else asks here (or, for a registered data set,
its metadata).
"""

from __future__ import annotations

#: Slice classes in the order of the logits (reference: ``0_``, ``1_``, ``2_`` of the authors' file
#: names).
IMAGE_CLASSES = ("normal", "pneumonia", "covid")
#: Values of a CNCB label mask (paper section 2.1). Lung is part of the background for the detector.
MASK_LABELS = {0: "background", 1: "lung", 2: "ggo", 3: "consolidation"}
#: Lesion classes, in category order, that each mask type yields.
MASK_TYPES = {"both": ("ggo", "consolidation"), "ggo": ("ggo",), "merge": ("lesion",)}
#: RGB colours of the lesion classes in every picture the project draws.
LESION_COLORS = {"ggo": (64, 176, 255), "consolidation": (255, 128, 32), "lesion": (96, 208, 96)}
#: Of classes of other names, in their order: none like another one or those above.
SPARE_COLORS = (
    *((240, 80, 220), (255, 224, 64), (136, 96, 255), (0, 224, 208), (255, 64, 80)),
    *((192, 144, 96), (176, 240, 32), (255, 176, 200), (176, 176, 240)),
)
