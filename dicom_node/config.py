"""The configuration: frozen models, one class per TOML section; unknown keys are errors."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

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


def _checked_address(value: str) -> str:
    """Refuse what is no IP address."""
    ipaddress.ip_address(value)
    return value


def _checked_network(value: str) -> str:
    """Refuse what is neither an IP address nor a network nor empty."""
    if value:
        ipaddress.ip_network(value, strict=False)
    return value


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
    _address = field_validator("bind")(_checked_address)


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
        "diagnostic", description="Strength of W1: diagnostic (about 45 dB), robust (about 42 dB)."
    )
    on_unmarkable: UnmarkablePolicy = Field(
        "forward-sealed", description="What happens to an instance that cannot be marked."
    )
    engine: Literal["auto", "onnx", "tensorrt"] = Field(
        "auto", description="tensorrt if there is a GPU, else onnx."
    )
    workers: int = Field(0, ge=0, le=256, description="Mark processes; 0 = one per core.")
    inference: Literal["auto", "off", "cpu"] = Field(
        "auto",
        description="A process per GPU that runs the networks for all workers; cpu: without a GPU.",
    )
    gpus: int = Field(1, ge=1, le=16, description="Inference processes, one per GPU.")
    max_batch: int = Field(32, ge=1, le=64, description="Most frames in a batch of theirs.")
    max_wait_ms: float = Field(
        1.0, ge=0, le=1000, description="Longest wait for others to share a batch, milliseconds."
    )
    uid_policy: Literal["keep", "derive"] = Field(
        "keep", description="SOP Instance UID of a marked instance; derive: a new one."
    )
    reference_wait_s: float = Field(
        120.0, ge=0, description="derive: longest wait for an instance that is referred to."
    )
    image_type: Literal["keep", "derived"] = Field(
        "keep", description="Image Type value 1 of a marked instance."
    )
    max_pixels: int = Field(
        400_000_000, ge=1, description="Largest frame decoded, pixels; larger is unmarkable."
    )

    @model_validator(mode="after")
    def _one_backend(self) -> WatermarkConfig:
        if self.inference == "cpu" and self.engine == "tensorrt":
            raise ValueError('inference = "cpu" is not engine = "tensorrt"; set inference = "auto"')
        return self

    @field_validator("uid_policy")
    @classmethod
    def _references_follow(cls, value: str, info: ValidationInfo) -> str:
        if value == "derive" and info.data.get("on_unmarkable") == "forward-untouched":
            raise ValueError(
                "reports, presentation states and segmentations have to follow the new UIDs, so"
                " they cannot be forwarded untouched; use on_unmarkable = 'forward-sealed'"
            )
        return value

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


Policy = Literal["as-is", "restored", "refuse-tampered"]


class ClientConfig(_Section):
    """``[[verify.client]]``: who one calling AE title is, and what it is given."""

    ae_title: str = Field(description="AE title of the client, as it calls.")
    policy: Policy | Literal[""] = Field(
        "", description="as-is, restored (originals) or refuse-tampered; empty: verify.policy."
    )
    address: str = Field(
        "", description="Address or network it has to call from; empty: any."
    )

    _ae = field_validator("ae_title")(_checked_ae_title)

    _network = field_validator("address")(_checked_network)


class VerifyConfig(_Section):
    """``[verify]``: the auditors' query/retrieve service; runs where the file has this section."""

    ae_title: str = Field("DICOMVERIFY", description="AE title auditors call.")
    bind: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - an auditor is another host
    port: int = Field(11113, ge=1, le=65535, description="TCP port.")
    pacs: str = Field("", description="Name of the [[destination]] asked; empty: the first.")
    pacs_ae_title: str = Field("", description="Where query/retrieve has an AE title of its own.")
    pacs_host: str = Field("", description="Where it has a host of its own.")
    pacs_port: int = Field(0, ge=0, le=65535, description="Where it has a port; 0: the same.")
    retrieve: Literal["auto", "move", "get"] = Field(
        "auto", description="How instances are fetched; auto: C-GET where the PACS has it."
    )
    fetch_ae_title: str = Field("DICOMFETCH", description="AE title the PACS moves to.")
    fetch_port: int = Field(11114, ge=1, le=65535, description="TCP port of that Storage SCP.")
    fetch_from: str = Field(
        "", description="Address or network the PACS moves from; empty: any."
    )
    on_find: Literal["last", "verify"] = Field(
        "last", description="What C-FIND tells: the last verdict, or one made now."
    )
    policy: Policy = Field("as-is", description="What C-MOVE and C-GET give to other clients.")
    admit: Literal["any", "listed"] = Field(
        "any", description="Whose associations are accepted: any AE's, or those of verify.client."
    )
    client: tuple[ClientConfig, ...] = Field((), description="Clients that are known by name.")
    max_matches: int = Field(
        500, ge=1, description="Most matches that are fetched and checked for one C-FIND."
    )
    max_unchecked: int = Field(
        20000, ge=1,
        description="Most matches a C-FIND passes on unchecked; never fewer than max_matches.",
    )
    workers: int = Field(0, ge=0, le=256, description="Processes that check; 0 = one per core.")
    nightly_sample: int = Field(0, ge=0, description="Instances re-checked every night.")
    nightly_at: str = Field(
        "02:00", pattern=r"^([01]\d|2[0-3]):[0-5]\d$", description="When, local time, HH:MM."
    )
    instances_per_s: float = Field(
        20.0, gt=0, description="Most instances a second an audit fetches from the PACS."
    )
    store_reports: bool = Field(False, description="Store a structured report into the PACS.")

    _ae = field_validator("ae_title", "fetch_ae_title")(_checked_ae_title)
    _network = field_validator("fetch_from")(_checked_network)
    _address = field_validator("bind")(_checked_address)

    @field_validator("pacs_ae_title")
    @classmethod
    def _ae_or_none(cls, value: str) -> str:
        return _checked_ae_title(value) if value else ""

    @model_validator(mode="after")
    def _two_ports(self) -> VerifyConfig:
        if self.port == self.fetch_port:
            raise ValueError(f"port and fetch_port are both {self.port}; give each its own")
        titles = [client.ae_title for client in self.client]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"two [[verify.client]] are {title!r}; remove one")
        if self.admit == "listed" and not titles:
            raise ValueError('admit = "listed" and nobody is: add a [[verify.client]]')
        return self


class RegistryConfig(_Section):
    """``[registry]``: what was marked, searchable."""

    url: str = Field("", description="SQLAlchemy URL; empty: registry.sqlite in spool.directory.")


class AuditConfig(_Section):
    """``[audit]``: the audit trail."""

    directory: str = Field("", description="Folder of the log; empty: audit in spool.directory.")
    checkpoint_every: int = Field(
        1000, ge=1, description="Entries after which the log is signed again."
    )
    syslog: str = Field(
        "",
        pattern=r"^$|^(udp|tls)://[^/:\s]+:\d+$",
        description='Collector of DICOM audit messages: "udp://host:514" or "tls://host:6514".',
    )
    syslog_ca: str = Field("", description="PEM file of the authority that signed the collector.")


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
    registry: RegistryConfig = RegistryConfig()
    audit: AuditConfig = AuditConfig()
    web: WebConfig = WebConfig()

    @property
    def verifies(self) -> bool:
        """Whether the file has a ``[verify]`` section: only then is its port opened."""
        return "verify" in self.model_fields_set

    @property
    def registry_url(self) -> str:
        """SQLAlchemy URL of the registry."""
        return self.registry.url or f"sqlite:///{self.spool.directory / 'registry.sqlite'}"

    @property
    def audit_directory(self) -> Path:
        """Folder of the audit trail."""
        named = self.audit.directory
        return Path(named) if named else self.spool.directory / "audit"

    @model_validator(mode="after")
    def _distinct(self) -> Config:
        for section in ("destination", "move_destination"):
            names = [d.name for d in getattr(self, section)]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two [[{section}]] are named {name!r}; rename one")
        titles = [d.ae_title for d in self.move_destination]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"two [[move_destination]] have AE title {title!r}; remove one")
        named = [d.name for d in self.destination]
        if self.verify.pacs and self.verify.pacs not in named:
            known = ", ".join(named) or "none"
            raise ValueError(
                f"verify.pacs = {self.verify.pacs!r}: no [[destination]] has this name;"
                f" known: {known}"
            )
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


ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)


def environment() -> dict[str, str]:
    """Return the environment for a worker: one thread each, because workers are the parallelism."""
    return {**os.environ, **ONE_THREAD}


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
        "move_destination": MoveDestinationConfig, "verify": VerifyConfig,
        "registry": RegistryConfig, "audit": AuditConfig, "web": WebConfig,
    }  # fmt: skip
    section = known.get(keys[0] if len(keys) > 1 else "", Config)
    close = difflib.get_close_matches(keys[-1], section.model_fields, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(section.model_fields)}"
