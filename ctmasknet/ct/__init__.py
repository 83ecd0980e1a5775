"""Any CT file as upright slices in HU or grey.

The only room that opens a picture, a DICOM or a NIfTI file. Its door is
:func:`ctmasknet.ct.read.read_scans`.
"""
