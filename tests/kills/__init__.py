"""Every tool that writes, killed at seeded moments and called again.

    python -m tests.kills --seed 1
    python -m tests.kills --kills 10 --only training report

Each work (:mod:`.works`) runs once unbroken. Then it is ended by SIGKILL, SIGTERM or Ctrl-C, half
of the times at a random step of its writing (a file opened, renamed, removed), half at a random
moment (:mod:`.runner`), and called again. What it leaves has to be what the unbroken run left, but
for what clocks and command lines say (:mod:`.content`), and no file more.
"""
