"""Former name of :mod:`ctmasknet.data.registry`, kept for scripts that import it."""

from ctmasknet.data.registry import (
    dataset_dicts,
    patients_of,
    register_cncb_lesions,
    register_covidx_ct,
    register_prepared,
)

__all__ = [
    "dataset_dicts",
    "patients_of",
    "register_cncb_lesions",
    "register_covidx_ct",
    "register_prepared",
]
