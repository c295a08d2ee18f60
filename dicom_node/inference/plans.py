"""Compiled plans in a cache: each names the model, the GPU and the runtime it was built for.

A plan file is ``magic, length of the header, header (JSON), plan``. Its name is a digest of what
it is for, so another model, GPU or TensorRT version looks for another file; the header says it
again, and a file that says anything else is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from dicom_node.errors import EngineError
from dicom_node.inference.tensorrt_compiler import RECIPE, Compiled, Precision, Tensor

_log = structlog.get_logger(__name__)

ANY_GPU = ""
_MAGIC = b"dicom-node plan 1\n"
_LENGTH = struct.Struct("<I")
_LARGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class PlanKey:
    """What a plan is for.

    Attributes
    ----------
    network
        File name of the ONNX network.
    model_sha256
        Of that file, hex.
    precision
        ``fp16`` or ``fp32``.
    most
        Frames a call at most.
    gpu
        Name of the GPU; `ANY_GPU`: any of that compute capability (built elsewhere).
    capability
        ``SM89``.
    runtime
        Name and version of TensorRT.
    recipe
        Which way of compiling; counts up with ours.
    """

    network: str
    model_sha256: str
    precision: Precision
    most: int
    gpu: str
    capability: str
    runtime: str
    recipe: int = RECIPE

    @property
    def file(self) -> str:
        """Name of the plan's file: readable, and another for every other key."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        stem = self.network.removesuffix(".onnx")
        return f"{stem}-{self.capability}-{self.precision}-{digest[:16]}.plan"

    def differs(self, other: PlanKey) -> str:
        """Say in which way `other` is for something else, "" if it is not."""
        mine, theirs = asdict(self), asdict(other)
        return ", ".join(
            f"{name} {theirs[name] or 'any'} instead of {mine[name] or 'any'}"
            for name in mine
            if mine[name] != theirs[name]
        )


def cache_folder() -> Path:
    """Return where plans are kept: what systemd names as our cache, else the user's."""
    given = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given or Path(home) / "dicom-node") / "plans"


def write_plan(path: Path, key: PlanKey, compiled: Compiled) -> None:
    """Write a plan so that nobody ever sees half of it (EngineError)."""
    header = json.dumps(
        {
            "for": asdict(key),
            "plan_sha256": hashlib.sha256(compiled.plan).hexdigest(),
            "inputs": [tensor.to_json() for tensor in compiled.inputs],
            "outputs": [tensor.to_json() for tensor in compiled.outputs],
        }
    ).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            half = Path(scratch) / path.name
            half.write_bytes(_MAGIC + _LENGTH.pack(len(header)) + header + compiled.plan)
            half.replace(path)
    except OSError as error:
        raise EngineError(f"{path}: the plan cannot be kept: {error.strerror}") from error


def read_plan(path: Path, key: PlanKey) -> Compiled:
    """Read a plan and refuse it if it is damaged or for anything but `key`.

    Raises
    ------
    EngineError
        Says in which way it is for something else: another GPU, version, model.
    """
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        header, plan = _split(blob)
        compiled = Compiled(
            plan,
            tuple(Tensor.from_json(each) for each in header["inputs"]),
            tuple(Tensor.from_json(each) for each in header["outputs"]),
        )
        built_for, digest = PlanKey(**header["for"]), header["plan_sha256"]
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise EngineError(f"{path}: is no plan, or a damaged one: {error}") from error
    if difference := key.differs(built_for):
        raise EngineError(f"{path}: was built for {difference}")
    if hashlib.sha256(plan).hexdigest() != digest:
        raise EngineError(f"{path}: the plan was altered or damaged after it was built")
    return compiled


def plan_for(
    key: PlanKey, build: Callable[[], Compiled], folder: Path | None = None, *,
    afresh: bool = False,
) -> Compiled:  # fmt: skip
    """Return the plan for `key` from the cache; build it and keep it where it is not there.

    A plan built elsewhere for any GPU of the compute capability serves as well. A file that is
    refused is built anew and replaced; a cache that cannot be written costs only time. With
    `afresh` what is in the cache is not looked at.
    """
    folder = folder or cache_folder()
    anywhere = PlanKey(**{**asdict(key), "gpu": ANY_GPU})
    for wanted in () if afresh else dict.fromkeys((key, anywhere)):
        path = folder / wanted.file
        if not path.exists():
            continue
        try:
            return read_plan(path, wanted)
        except EngineError as error:
            _log.warning("plan_refused", reason=str(error))
    compiled = build()
    try:
        write_plan(folder / key.file, key, compiled)
    except EngineError as error:
        _log.warning("plan_not_kept", reason=str(error))
    return compiled


def _split(blob: bytes) -> tuple[dict[str, Any], bytes]:
    if not blob.startswith(_MAGIC):
        raise ValueError("it does not begin like one")
    at = len(_MAGIC) + _LENGTH.size
    (size,) = _LENGTH.unpack_from(blob, len(_MAGIC))
    if size > min(_LARGEST_HEADER, len(blob) - at):
        raise ValueError("it ends in its header")
    header = json.loads(blob[at : at + size])
    if not isinstance(header, dict):
        raise ValueError("its header is no table")  # noqa: TRY004  # a damaged file, not a bug
    return header, blob[at + size :]
