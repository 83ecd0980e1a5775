"""One HTML file about an evaluation or a prediction folder: read offline, mailed, checked by eye.

:func:`write_report` does all of it. :mod:`.source` reads the folder; :mod:`.wording`,
:mod:`.sections` and :mod:`.figures` set out the evaluation; :mod:`.thresholds` and
:mod:`.units_table` make what the page's script works on; :mod:`.burden_source` and
:mod:`.burden_section` show lesion burden; :mod:`.slice_gallery` chooses slices,
:mod:`.pictures` finds their pictures and :mod:`.evidence` draws more; :mod:`.origin` tells where
all is from; :mod:`.page` fills the template.
"""

from ctmasknet.report.page import ReportOptions, write_report

__all__ = ["ReportOptions", "write_report"]
