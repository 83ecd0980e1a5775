"""prepare_slices.py under its name for COVIDx-CT; see there."""

import runpy
import sys
from pathlib import Path

_general = runpy.run_path(str(Path(__file__).with_name("prepare_slices.py")))
main, parser = _general["main"], _general["parser"]

if __name__ == "__main__":
    sys.exit(main())
