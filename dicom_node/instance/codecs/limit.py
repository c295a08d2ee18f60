"""An end for a codec that never returns.

OpenJPEG and CharLS hold the interpreter while they work, so no thread of ours can see that one has
gone astray over a hostile frame. The kernel can: it counts the CPU time of the process and ends it.
Whoever supervises the process starts another; after a few such ends its job is held. What has to go
on decodes in a child (`dicom_node.child`).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from dicom_node.instance.model import PixelForm

# Ten times and more what either takes; less than a lease for frames of usual size.
CPU_S = 60.0
CPU_S_PER_MIB = 2.0
_MIB = 1 << 20


@contextmanager
def limited(form: PixelForm) -> Iterator[None]:
    """End this process (SIGPROF) if what is done inside takes more CPU time than a frame may."""
    signal.setitimer(signal.ITIMER_PROF, CPU_S + CPU_S_PER_MIB * form.native_bytes / _MIB)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
