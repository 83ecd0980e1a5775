"""Which function runs a golden, by the start of its name."""

from collections.abc import Callable
from pathlib import Path

from tests.modeling.peers import runners_author, runners_graphs, runners_networks

RUNNERS: dict[str, Callable[[Path], None]] = {
    **runners_networks.RUNNERS,
    **runners_author.RUNNERS,
    **runners_graphs.RUNNERS,
}
