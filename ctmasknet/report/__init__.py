"""One HTML file about an evaluation or a prediction folder: read offline, mailed, checked by eye.

:func:`write_report` does all of it: :mod:`.source` reads the folder, :mod:`.sections`,
:mod:`.burden_section`, :mod:`.tables` and :mod:`.figures` set out what is in it, :mod:`.pictures`
finds or draws slices, and :mod:`.page` fills the template.
"""

from ctmasknet.report.page import write_report

__all__ = ["write_report"]
