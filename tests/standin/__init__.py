"""A stand-in for NVIDIA's driver library: `nvml.c`, built with the machine's compiler, scripted by a file."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")


def compiler() -> str | None:
    """The machine's C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> Path:
    """Builds the library into a folder, which goes into LD_LIBRARY_PATH. Safe in several processes at once."""
    folder.mkdir(parents=True, exist_ok=True)
    library, new = folder / "libnvidia-ml.so.1", folder / f"new-{os.getpid()}"
    found = compiler()
    assert found is not None, "a C compiler is needed"
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-lpthread"]
    subprocess.run([found, "-o", str(new), str(SOURCE), *options], check=True)
    new.rename(library)
    return library


class Script:
    """The file that tells the stand-in what to say. Rules stay until `set` is called again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set()

    def set(self, *rules: str) -> None:
        """Replaces all rules: lines as `nvml.c` describes them."""
        new = self.path.with_suffix(".new")
        new.write_text("".join(f"{rule}\n" for rule in rules))
        new.rename(self.path)


def uuid(index: int) -> str:
    """The UUID of a stand-in's GPU."""
    return f"GPU-{index:08x}-0000-4000-8000-000000000000"
