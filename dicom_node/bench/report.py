"""Tables as Markdown and for the terminal."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from dicom_node import __version__
from dicom_node.errors import ConfigError


@dataclass
class Table:
    """A title, column heads, rows of text."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Append a row; it has one cell per column."""
        assert len(cells) == len(self.columns)
        self.rows.append(cells)

    def markdown(self) -> str:
        """Return the table in Markdown, the title above it."""
        lines = [f"**{self.title}**", "", _line(self.columns), _line(["---"] * len(self.columns))]
        return "\n".join([*lines, *map(_line, self.rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def machine() -> str:
    """Return one line that says where figures come from."""
    model = "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [s for s in info.read_text("utf-8", "replace").splitlines() if "model name" in s]
        model = names[0].partition(":")[2].strip() if names else model
    memory = ""
    if Path("/proc/meminfo").is_file():
        kib = int(Path("/proc/meminfo").read_text("ascii").split()[1])
        memory = f", {kib / (1 << 20):.0f} GiB"
    cores = len(os.sched_getaffinity(0))
    return (
        f"dicom-node {__version__}, {cores} cores of {model}{memory}, "
        f"Python {platform.python_version()}, numpy {np.__version__}, "
        f"onnxruntime {onnxruntime.__version__}"
    )


def write(out: Path, name: str, tables: Sequence[Table], values: Mapping[str, Any]) -> None:
    """Write ``NAME.md`` and ``NAME.json`` into `out` (ConfigError if it cannot be written)."""
    text = "\n".join([machine() + "\n", *(table.markdown() for table in tables)])
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.md").write_text(text, "utf-8")
        (out / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from error
