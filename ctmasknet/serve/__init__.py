"""A page to drop a scan on, for the person at this machine alone.

:mod:`.jobs` keeps what was dropped and runs one prediction at a time in a process of its own;
:mod:`.app` is the page and what it asks for (:func:`create_app`).
"""
