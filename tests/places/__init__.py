"""Places that cannot be written: every tool that writes, with every fault of the place it is given.

    python -m tests.places
    python -m tests.places --only predict report --faults link full

A fault is of the place itself (a file in the way, a dead link, too long a name, a folder that takes
no file: :data:`.tries.PLACES`), to be told before any picture is read or any model is run, or a
disk that is full at the first, a middle or the last write, imitated by writes that fail and by a
limit on the size of files. Each try (:mod:`.tries`) is a tool in a process of its own that ends
with one line, which names the path, and leaves nothing half-written; :mod:`.tools` has the tools.
"""
