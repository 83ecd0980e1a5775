"""prepare_lesions.py under its name for the CNCB lesion set; see there."""

import runpy
import sys
from pathlib import Path

main = runpy.run_path(str(Path(__file__).with_name("prepare_lesions.py")))["main"]

if __name__ == "__main__":
    sys.exit(main())
