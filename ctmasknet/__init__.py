"""COVID-CT-Mask-Net as a Detectron2 extension.

Importing this package registers its parts with Detectron2. The way in:

* :func:`ctmasknet.config.add_ctmasknet_config` adds the configuration keys,
* :mod:`ctmasknet.modeling` holds the registered parts (``CTMaskNet``, ``RankedBoxROIHeads``, ...),
* :mod:`ctmasknet.ct` reads CT files, :mod:`ctmasknet.prepare` makes data sets of them,
  :mod:`ctmasknet.data` registers those,
* :mod:`ctmasknet.engine` trains, :mod:`ctmasknet.evaluation` measures, :mod:`ctmasknet.draw` draws,
* :mod:`ctmasknet.predict` predicts scans (``CTPredictor``).
"""

import warnings

from ctmasknet.errors import quiet_start

quiet_start()
# Importing Detectron2 calls torch.jit.script, which torch warns about: nothing a user can act on.
warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=FutureWarning)
from ctmasknet import modeling  # noqa: E402
from ctmasknet.config import add_ctmasknet_config  # noqa: E402

__all__ = ["add_ctmasknet_config", "modeling"]
__version__ = "0.1.0"
