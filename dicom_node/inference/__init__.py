"""Run the networks. One protocol (:mod:`base`), one file per backend, weights checked by card."""

from dicom_node.inference.base import RobustEngine
from dicom_node.inference.opening import check_engines, list_engines, open_engine

__all__ = ["RobustEngine", "check_engines", "list_engines", "open_engine"]
