"""One SOP instance as data: file to frames and back, display, derivation, header seal.

All of pydicom that looks at pixels or rewrites a header lives in this package.
"""

from __future__ import annotations

from pydicom import config as _pydicom_config

# A node reads what modalities send, valid or not: values are judged where they matter.
_pydicom_config.settings.reading_validation_mode = _pydicom_config.IGNORE
_pydicom_config.settings.writing_validation_mode = _pydicom_config.IGNORE
