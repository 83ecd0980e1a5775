"""Names that are markup, for a patient and for a slice that is an error and so is shown."""

HOSTILE_PATIENT = "<script>alert('patient')</script>"
HOSTILE_SLICE = '"><img src=x onerror=alert(1)>&amp;.png'
