"""COVID-CT-Mask-Net as a Detectron2 extension.

Importing this package registers its parts with Detectron2. The way in:

* :func:`ctmasknet.config.add_ctmasknet_config` adds the configuration keys,
* :mod:`ctmasknet.modeling` holds the registered parts (``CTMaskNet``, ``RankedBoxROIHeads``, ...),
* :mod:`ctmasknet.ct` reads CT files, :mod:`ctmasknet.prepare` makes data sets of them,
  :mod:`ctmasknet.data` registers those,
* :mod:`ctmasknet.engine` trains, :mod:`ctmasknet.evaluation` measures, :mod:`ctmasknet.draw` draws,
* :mod:`ctmasknet.predict` predicts scans (``CTPredictor``).

:mod:`ctmasknet.ct` alone needs neither torch nor Detectron2; without them all else is refused
with what to install.
"""

import sys
import warnings

from ctmasknet.errors import quiet_start

__all__ = ["add_ctmasknet_config", "modeling"]
__version__ = "0.1.0"

quiet_start()
# Detectron2 calls torch.jit.script when imported, torch.meshgrid when run, and makes tensors of
# arrays that nobody writes to, which torch warns about: nothing a user can act on.
warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=FutureWarning)
warnings.filterwarnings("ignore", message=r"torch\.meshgrid", category=UserWarning)
warnings.filterwarnings("ignore", message=r"The given NumPy array is not wri", category=UserWarning)
try:
    from ctmasknet import modeling
    from ctmasknet.config import add_ctmasknet_config
except ModuleNotFoundError as error:
    _missing = (error.name or "").split(".")[0]
    if _missing not in ("torch", "torchvision", "detectron2"):
        raise

    class _SayWhatToInstall:
        """Stands before the other finders, so that every later import of it says so."""

        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.split(".")[0] == _missing:
                raise ModuleNotFoundError(
                    f"{_missing} is not installed, and only ctmasknet.ct works without it: install "
                    "torch, torchvision and Detectron2 as docs/install.md of ctmasknet says",
                    name=_missing,
                )
            return None

    sys.meta_path.insert(0, _SayWhatToInstall)

    def __getattr__(name: str):
        if name in __all__:
            return _SayWhatToInstall.find_spec(_missing)
        raise AttributeError(f"module 'ctmasknet' has no attribute {name!r}")
