"""The scan viewer: one HTML file a patient with every slice, its lesions and scores.

:func:`write_viewers` does all of it: :mod:`.prediction` reads the folder of a prediction,
:mod:`.slices` finds its slices and makes pictures and outlines of them, :mod:`.pages` writes.
"""

from ctmasknet.report.viewer.pages import write_viewers

__all__ = ["write_viewers"]
