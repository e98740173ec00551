"""Workers of Ray that are killed by signal 9."""

import os
import signal
from pathlib import Path

from jaxrec.serving.ray_engine import PartWriter


class KilledOnce(PartWriter):
    """One of the workers is killed when it has written a part and not yet told of it."""

    def __call__(self, rows):
        result = super().__call__(rows)
        lists = Path(self.outputs.lists.address)
        try:
            lists.with_name("killed").touch(exist_ok=False)
        except FileExistsError:
            return result
        (lists / ".part-00001.parquet.draft").mkdir()  # what a half-written file leaves
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


class KilledAlways(PartWriter):
    def __call__(self, rows):
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")
