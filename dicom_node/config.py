"""The configuration: frozen models, one class per TOML section; unknown keys are errors."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dicom_node.errors import ConfigError

UnmarkablePolicy = Literal["forward-sealed", "forward-untouched", "hold", "reject"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _checked_ae_title(value: str) -> str:
    """Refuse what PS3.5 6.2 (VR AE) does not allow: empty, over 16 bytes, backslash, control."""
    if not value.strip() or len(value) > 16 or "\\" in value or not value.isascii():
        raise ValueError("an AE title has 1 to 16 ASCII characters and no backslash")
    if not value.isprintable():
        raise ValueError("an AE title has no control characters")
    return value.strip()


class NodeConfig(_Section):
    """``[node]``: the Storage SCP that modalities send to."""

    ae_title: str = Field("DICOMNODE", description="AE title modalities call.")
    bind: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - a modality is another host
    port: int = Field(11112, ge=1, le=65535, description="TCP port of the Storage SCP.")
    receivers: int = Field(1, ge=1, le=64, description="Processes that accept associations.")
    max_associations: int = Field(64, ge=1, le=900, description="Open associations per receiver.")
    max_pdu: int = Field(131072, ge=4096, le=1048576, description="Largest PDU accepted, bytes.")
    association_timeout_s: float = Field(
        30.0, gt=0, description="Seconds a peer may be silent inside an association."
    )
    shutdown_timeout_s: float = Field(20.0, gt=0, description="Seconds a drain may take.")

    _ae = field_validator("ae_title")(_checked_ae_title)

    @field_validator("bind")
    @classmethod
    def _address(cls, value: str) -> str:
        ipaddress.ip_address(value)
        return value


class SpoolConfig(_Section):
    """``[spool]``: where an instance is durable before C-STORE is answered."""

    directory: Path = Field(Path("var/spool"), description="Folder on a local disk.")
    min_free_mib: int = Field(2048, ge=0, description="Below this, C-STORE answers 0xA700.")
    max_backlog: int = Field(50000, ge=1, description="Undelivered instances before 0xA700.")


class KeysConfig(_Section):
    """``[keys]``: the key ring; created with mode 0700 on first start."""

    directory: Path = Field(Path("var/keys"), description="Folder of the key ring.")


class WatermarkConfig(_Section):
    """``[watermark]``: what is done to the pixels."""

    enabled: bool = Field(True, description="false: a plain store-and-forward node.")
    owner: str = Field(
        "GENERAL-HOSPITAL", min_length=1, max_length=32, description="Owner named by the marks."
    )
    profile: Literal["diagnostic", "robust"] = Field(
        "diagnostic", description="Strength of W1: diagnostic (about 44 dB), robust (about 41 dB)."
    )
    on_unmarkable: UnmarkablePolicy = Field(
        "forward-sealed", description="What happens to an instance that cannot be marked."
    )
    engine: Literal["auto", "onnx", "tensorrt"] = Field(
        "auto", description="tensorrt if there is a GPU, else onnx."
    )
    workers: int = Field(0, ge=0, le=256, description="Mark processes; 0 = one per core.")
    uid_policy: Literal["keep"] = Field(
        "keep", description="SOP Instance UID of a marked instance."
    )
    image_type: Literal["keep", "derived"] = Field(
        "keep", description="Image Type value 1 of a marked instance."
    )
    max_pixels: int = Field(
        400_000_000, ge=1, description="Largest frame decoded, pixels; larger is unmarkable."
    )

    @field_validator("owner")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isascii() or not value.isprintable():
            raise ValueError("the owner is 1 to 32 printable ASCII characters")
        return value


class DestinationConfig(_Section):
    """``[[destination]]``: a Storage SCP that every instance is forwarded to."""

    name: str = Field(
        min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$", description="Our name for it."
    )
    ae_title: str = Field(description="AE title called.")
    host: str = Field(min_length=1, description="Host name or address.")
    port: int = Field(ge=1, le=65535, description="TCP port.")
    associations: int = Field(1, ge=1, le=16, description="Associations used side by side.")
    timeout_s: float = Field(60.0, gt=0, description="Seconds to wait for a C-STORE answer.")
    retry_initial_s: float = Field(2.0, gt=0, description="First retry delay, seconds.")
    retry_max_s: float = Field(300.0, gt=0, description="Longest retry delay, seconds.")

    _ae = field_validator("ae_title")(_checked_ae_title)


class MoveDestinationConfig(_Section):
    """``[[move_destination]]``: whom the verification service may send to."""

    name: str = Field(
        min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$", description="Our name for it."
    )
    ae_title: str = Field(description="AE title called.")
    host: str = Field(min_length=1, description="Host name or address.")
    port: int = Field(ge=1, le=65535, description="TCP port.")

    _ae = field_validator("ae_title")(_checked_ae_title)


class VerifyConfig(_Section):
    """``[verify]``: the auditors' query/retrieve service."""

    ae_title: str = Field("DICOMVERIFY", description="AE title auditors call.")
    port: int = Field(11113, ge=1, le=65535, description="TCP port.")

    _ae = field_validator("ae_title")(_checked_ae_title)


class WebConfig(_Section):
    """``[web]``: pages, HTTP API, health and metrics."""

    bind: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=1, le=65535, description="TCP port.")


class Config(_Section):
    """The whole configuration; relative folders are relative to the working folder."""

    node: NodeConfig = NodeConfig()
    spool: SpoolConfig = SpoolConfig()
    keys: KeysConfig = KeysConfig()
    watermark: WatermarkConfig = WatermarkConfig()
    destination: tuple[DestinationConfig, ...] = ()
    move_destination: tuple[MoveDestinationConfig, ...] = ()
    verify: VerifyConfig = VerifyConfig()
    web: WebConfig = WebConfig()

    @model_validator(mode="after")
    def _distinct(self) -> Config:
        for section in ("destination", "move_destination"):
            names = [d.name for d in getattr(self, section)]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two [[{section}]] are named {name!r}; rename one")
        return self


def load(path: Path | None = None) -> Config:
    """Read `path`, else ``conf/node.toml`` in the working folder, else the packaged defaults.

    Raises
    ------
    ConfigError
        Naming the file, the key, the value and the fix.
    """
    if path is None:
        local = Path("conf/node.toml")
        if local.is_file():
            path = local
    if path is None:
        path = _packaged_defaults()
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {error}; name an existing file with --config"
        ) from error
    return parse(text, str(path))


def _packaged_defaults() -> Path:
    """Return the defaults that ship with the package, or, in a source tree, beside it."""
    packaged = Path(str(resources.files("dicom_node").joinpath("node.toml")))
    return packaged if packaged.is_file() else packaged.parents[1] / "conf" / "node.toml"


def parse(text: str, origin: str) -> Config:
    """Return the configuration in `text`; `origin` names it in errors (ConfigError)."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {error}") from error
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        problems = [_explain(origin, problem) for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from error


def environment() -> dict[str, str]:
    """Return the environment for a worker: one thread each, because workers are the parallelism."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **one}


def _explain(origin: str, problem: Mapping[str, Any]) -> str:
    keys = [str(part) for part in problem["loc"]]
    where = ".".join(keys) or "file"
    if problem["type"] == "extra_forbidden":
        return f"{origin}: {where}: unknown key{_nearest(keys)}"
    if problem["type"] == "missing":
        return f"{origin}: {where}: is missing; add it"
    return f"{origin}: {where} = {problem['input']!r}: {problem['msg']}"


def _nearest(keys: list[str]) -> str:
    import difflib

    known: dict[str, type[BaseModel]] = {
        "": Config, "node": NodeConfig, "spool": SpoolConfig, "keys": KeysConfig,
        "watermark": WatermarkConfig, "destination": DestinationConfig,
        "move_destination": MoveDestinationConfig, "verify": VerifyConfig, "web": WebConfig,
    }  # fmt: skip
    section = known.get(keys[0] if len(keys) > 1 else "", Config)
    close = difflib.get_close_matches(keys[-1], section.model_fields, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(section.model_fields)}"
