"""Tools called as a user calls them, without the cost of a new process, and what tests need."""

import runpy

import pytest

from ctmasknet.modeling.fast.inference import has_bfloat16
from ctmasknet.modeling.fast.int8 import nncf_installed
from ctmasknet.modeling.fast.openvino import installed

#: For tests that compute in bfloat16 through oneDNN.
needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16("cpu"), reason="oneDNN does not compute in bfloat16 on this CPU"
)
#: For tests of the engine that an extra installs.
needs_openvino = pytest.mark.skipif(not installed(), reason="openvino is not installed")
#: For tests that quantize.
needs_nncf = pytest.mark.skipif(not nncf_installed(), reason="nncf is not installed")


def run_tool(repository, tool, *words) -> int:
    """Call a tool's ``main`` with these words; returns its exit code."""
    main = runpy.run_path(str(repository / tool))["main"]
    return main([str(word) for word in words])
