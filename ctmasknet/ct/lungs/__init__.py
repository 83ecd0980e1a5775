"""Where the lungs are in slices: by a rule on HU (:mod:`.threshold`) or by a network that the user
has (:mod:`.network`).

Door: :func:`.masks.scan_lungs`.
"""
