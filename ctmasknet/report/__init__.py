"""One HTML file about an evaluation or a prediction folder: read offline, mailed, checked by eye.

:func:`write_report` does all of it. :mod:`.source` reads the folder, :mod:`.wording` puts figures
and limits into words, :mod:`.figures` draws curves, :mod:`.thresholds` and :mod:`.units_table` make
what the page's script works on, :mod:`.slice_gallery` chooses slices, :mod:`.pictures` finds or
draws their pictures, :mod:`.origin` tells where all is from, and :mod:`.page` fills the template.
"""

from ctmasknet.report.page import ReportOptions, write_report

__all__ = ["ReportOptions", "write_report"]
