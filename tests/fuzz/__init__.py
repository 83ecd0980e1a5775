"""Files from strangers, by the thousand: seeded damage to every kind of file that a tool reads.

    python -m tests.fuzz --minutes 30 --seed 1
    python -m tests.fuzz --minutes 5 --only yaml coco --keep /tmp/found

Each input is read in a process of its own, with a limit of memory and of time. What must not happen
(:mod:`.runner`): code of the file runs, the process dies or hangs, an exception that is no one line
of :class:`ctmasknet.errors.CTMaskNetError`, memory by the GiB. :mod:`.mutations` knows how the
formats are built, :mod:`.targets` which reader takes which file. Damaged CT files have a quicker
run of their own, :mod:`tests.helpers.ct_damage`.
"""
