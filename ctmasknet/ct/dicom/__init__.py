"""DICOM: bytes of files, what a header states of each frame, and slices as series.

Its door is :func:`ctmasknet.ct.dicom.series.read_dicom_file`.
"""
