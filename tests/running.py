"""Tools called as a user calls them, without the cost of a new process."""

import runpy


def run_tool(repository, tool, *words) -> int:
    """Call a tool's ``main`` with these words; returns its exit code."""
    main = runpy.run_path(str(repository / tool))["main"]
    return main([str(word) for word in words])
