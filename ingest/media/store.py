"""The folder of snapshots and clips: files appear whole, under their own name, or not at all."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

PARTIAL = ".part"  # the suffix of what is being written


class Store:
    """A folder to write into. All methods raise OSError when that cannot be done."""

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        self.folder = folder
        self._min_free_bytes = min_free_bytes

    def has(self, relative: str) -> bool:
        """Whether the file is there already."""
        return (self.folder / relative).exists()

    def has_room(self) -> bool:
        """Whether the disk has more room than must stay free."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free > self._min_free_bytes

    def begin(self, relative: str) -> Path:
        """Where to write a file, before `finish` gives it its name."""
        path = self.folder / (relative + PARTIAL)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, partial: Path) -> Path:
        """Give a file that is complete its name; returns it."""
        return partial.replace(partial.with_name(partial.name.removesuffix(PARTIAL)))

    def discard(self, partial: Path) -> None:
        """Remove what could not be completed; silent where that is not possible either."""
        with suppress(OSError):
            partial.unlink()

    def write(self, relative: str, data: bytes) -> Path:
        """Write a small file."""
        partial = self.begin(relative)
        try:
            partial.write_bytes(data)
            return self.finish(partial)
        except OSError:
            self.discard(partial)
            raise
