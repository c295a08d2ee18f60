"""One process that checks files: what a hostile image brings down is this, and nothing else.

Started by `checking_pool` with the number of a descriptor; ends when the other end is closed.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

from dicom_node import logging
from dicom_node.errors import NodeError
from dicom_node.verify.checking import Checker, Setup, Task


def main(descriptor: int) -> None:
    """Serve tasks from a connection until it ends."""
    # The parent drains and then closes the connection; a signal to the group must not come first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.configure()
    connection = Connection(descriptor)
    try:
        setup: Setup = connection.recv()
        try:
            checker = Checker(setup)
        except NodeError as error:
            connection.send(str(error))
            return
        connection.send(None)
        while True:
            task: Task = connection.recv()
            connection.send(checker.check(task))
    except (EOFError, OSError):
        return  # the parent is gone or has no more work


if __name__ == "__main__":
    main(int(sys.argv[1]))
