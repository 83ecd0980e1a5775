"""What a terminal and a log are told: how much (``verbosity``), and how far a long work is
(``progress``)."""
