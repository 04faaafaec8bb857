"""A file that one process at a time holds."""

import fcntl
import os
from pathlib import Path
from typing import BinaryIO


def hold(path: Path) -> BinaryIO:
    """Opens a file to read and to append, which this process alone holds until it is closed.

    The system closes it when the process ends, however it does.

    Args:
      path: of the file; made if it is not there. Who holds it may remove it.

    Raises:
      BlockingIOError: another process holds it.
      OSError: it cannot be opened.
    """
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # its last holder has removed it since it was opened
