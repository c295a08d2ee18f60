"""The composition root: builds the node's processes from its configuration and runs them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import structlog

from dicom_node.config import Config, environment
from dicom_node.errors import AuditError, ConfigError, KeyRingError, SpoolError
from dicom_node.spool import Spool
from dicom_node.spool.destinations import NOT_NAMED
from dicom_node.supervisor import Role, StopEvent, Supervisor, notify_systemd

if TYPE_CHECKING:
    from dicom_node.audit.events import Event

_log = structlog.get_logger(__name__)

ROLES = ("receive", "infer", "mark", "forward", "register", "verify")
# A machine may have a GPU's packages and no GPU: then it is looked for every five minutes.
_GPU_BACKOFF_S = 300.0


def serve(config: Config, *, only: str | None = None, announce: Callable[[str], None]) -> int:
    """Run the node until SIGTERM or SIGINT, then drain; return the exit code.

    Parameters
    ----------
    only
        One of ``receive``, ``infer``, ``mark``, ``forward``, ``forward:NAME``, ``register`` or
        ``verify``: run just these processes, for a systemd unit each. None: all of them; ``verify``
        only where the configuration has a ``[verify]`` section.
    announce
        Given the readiness line once every process works and the port accepts.

    Raises
    ------
    ConfigError
        If `only` names nothing there is, or the keys are another owner's.
    KeyRingError, SpoolError
        If the keys or the spool cannot be used.
    """
    roles = roles_of(config, only)
    marks = config.watermark.enabled and any(role.name.startswith("mark") for role in roles)
    if marks:
        _first_start_keys(config)
    with Spool(config.spool) as spool:
        found = spool.recover()
        _log.info(
            "spool_recovered",
            requeued_jobs=found.requeued_jobs,
            requeued_deliveries=found.requeued_deliveries,
            held_jobs=found.held_jobs,
            removed_files=found.removed_files,
            backlog=spool.backlog(),
        )
        _hold_unknown(config, spool)

        def ready() -> None:
            announce(readiness_line(config, roles))
            notify_systemd("READY=1")

        supervisor = Supervisor(
            roles,
            environment=environment(),
            shutdown_timeout_s=config.node.shutdown_timeout_s + 5.0,
            on_death=lambda: _reclaim(spool),
            on_kill=lambda: _reclaim(spool, drained=True),
            on_ready=ready,
        )
        _enter(config, "start", only)
        try:
            code = supervisor.run()
        finally:
            _enter(config, "stop", only)
    notify_systemd("STOPPING=1")
    return code


def _enter(config: Config, action: Literal["start", "stop"], only: str | None) -> None:
    """Enter into the audit trail that the node begins or stops; images do not wait for it."""
    from dicom_node import __version__
    from dicom_node.audit.events import Activity

    _record(config, Activity(at=datetime.now(UTC), action=action, process=only or "node",
                             version=__version__))  # fmt: skip


def _record(config: Config, event: Event) -> None:
    from dicom_node.audit.recording import AuditTrail
    from dicom_node.keys import KeyRing

    try:
        ring = KeyRing.open(config.keys.directory)
    except KeyRingError:
        ring = None  # a process that may not read keys: who may, signs later
    try:
        trail = AuditTrail.open(config, ring)
        trail.record([event])
        trail.close()
    except AuditError as error:
        _log.error("not_in_the_audit_trail", event_kind=event.kind, reason=str(error))


def roles_of(config: Config, only: str | None = None) -> list[Role]:
    """Return the processes of the node, or those that `only` names (ConfigError)."""
    kind, _, name = (only or "").partition(":")
    if only is not None and (kind not in ROLES or (name and kind != "forward")):
        known = ", ".join(ROLES)
        raise ConfigError(f"--only {only}: use one of {known}, or forward:NAME")
    roles: list[Role] = []
    if kind in ("", "receive"):
        roles += [
            Role(f"receive-{index}", _receive, (config, index), retry_start=True)
            for index in range(config.node.receivers)
        ]
    inference = inference_processes(config)
    if kind in ("", "infer"):
        # Workers mark without it, so nothing waits for it; unless a GPU was insisted on.
        insists = config.watermark.engine == "tensorrt"
        roles += [
            Role(f"infer-{index}", _infer, (config, index), essential=insists,
                 longest_backoff_s=_GPU_BACKOFF_S)
            for index in range(inference)
        ]  # fmt: skip
    if kind in ("", "mark"):
        roles += [
            Role(f"mark-{index}", _mark, (config, index, inference))
            for index in range(mark_workers(config))
        ]
    if kind in ("", "forward"):
        names = [destination.name for destination in config.destination]
        if name and name not in names:
            known = ", ".join(names) or "none"
            raise ConfigError(f"--only {only}: no [[destination]] has this name; known: {known}")
        if kind and not names:
            raise ConfigError("--only forward: no [[destination]] is configured; add one")
        roles += [
            Role(f"forward-{each}", _forward, (config, each))
            for each in names
            if name in ("", each)
        ]
    if kind in ("", "register"):
        roles.append(Role("register", _register, (config,), essential=False))
    if kind == "verify" or (not kind and config.verifies):
        roles.append(Role("verify", _verify, (config,), retry_start=True, essential=False))
    return roles


def mark_workers(config: Config) -> int:
    """Return how many mark processes to run: as configured, else one per usable core."""
    if not config.watermark.enabled:
        # For what was received before marking was switched off.
        return 1
    return config.watermark.workers or len(os.sched_getaffinity(0))


def inference_processes(config: Config) -> int:
    """Return how many inference processes to run: one per GPU where there may be one, else none.

    Whether a GPU's backend really runs and passes its check, the process finds out; here only
    packages are looked for, without loading them.
    """
    settings = config.watermark
    if not settings.enabled or settings.inference == "off":
        return 0
    if settings.inference == "cpu":
        return settings.gpus
    if settings.engine == "onnx" or not (settings.engine == "tensorrt" or _gpu_packages()):
        return 0
    return settings.gpus


def _gpu_packages() -> bool:
    if importlib.util.find_spec("pycuda") is not None:
        return True
    try:
        importlib.metadata.distribution("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def gpu_for(index: int, shown: str | None) -> str:
    """Return what CUDA is to show inference process `index`, of what the node is shown.

    Raises
    ------
    ConfigError
        It is shown fewer than ``watermark.gpus``.
    """
    if shown is None:
        return str(index)
    several = [each.strip() for each in shown.split(",") if each.strip()]
    if several and index >= len(several):
        raise ConfigError(
            f"watermark.gpus: there is no GPU for inference process {index}, CUDA_VISIBLE_DEVICES"
            f" = {shown!r}; set watermark.gpus = {len(several)}"
        )
    return several[index] if several else ""


def readiness_line(config: Config, roles: list[Role]) -> str:
    """Return the line that says what runs now."""
    parts = ["ready:"]
    if any(role.name.startswith("receive") for role in roles):
        parts.append(f"{config.node.ae_title} on {config.node.bind}:{config.node.port},")
    parts.append(", ".join(role.name for role in roles) or "nothing to do here")
    return " ".join(parts)


def _first_start_keys(config: Config) -> None:
    """Make the key ring if there is none yet; refuse one that others can read."""
    from dicom_node.keys import KeyRing

    existed = config.keys.directory.is_dir()
    ring = KeyRing.open(config.keys.directory, owner=config.watermark.owner, create=True)
    if not existed:
        _log.warning(
            "keys_created",
            directory=str(config.keys.directory),
            key_id=ring.current.key_id.hex(),
            advice="back this folder up: without it nothing can be restored",
        )
        from dicom_node.audit.recording import key_used

        _record(config, key_used(ring, "init"))
    if ring.current.owner != config.watermark.owner:
        raise ConfigError(
            f"watermark.owner = {config.watermark.owner!r}: the current key"
            f" {ring.current.key_id.hex()} in keys.directory = {str(config.keys.directory)!r} is"
            f" {ring.current.owner!r}'s, and the marks name the key's owner; set watermark.owner ="
            f" {ring.current.owner!r}, or make a key for the new owner: `dicom-node keys rotate`"
        )


def _hold_unknown(config: Config, spool: Spool) -> None:
    """Say what waits for a destination that is not configured; it is held, so that it shows."""
    try:
        found = spool.hold_unknown([destination.name for destination in config.destination])
    except SpoolError as error:
        _log.error("unknown_destinations_not_held", reason=str(error))
        return
    for name, count in found.items():
        _log.error(
            "destination_unknown", destination=name, deliveries=count,
            reason=NOT_NAMED.format(name=name),
        )  # fmt: skip


def _reclaim(spool: Spool, *, drained: bool = False) -> None:
    """Free what a dead process held; idle processes do the same if it cannot be done now."""
    try:
        found = spool.reclaim(drained=drained)
    except SpoolError as error:
        _log.error("claims_not_requeued", reason=str(error))
        return
    if found.requeued_jobs:
        _log.warning("claims_requeued", jobs=found.requeued_jobs)


# Each of these runs in a process of its own and imports only what that process needs: the receiver
# has no keys and no decoder, the forwarder no network.


def _receive(config: Config, index: int, *, stop: StopEvent, ready: Callable[[], None]) -> None:
    from dicom_node.receive import run_receiver

    run_receiver(config, index, stop, on_ready=lambda _port: ready())


def _infer(config: Config, index: int, *, stop: StopEvent, ready: Callable[[], None]) -> None:
    # Before anything asks CUDA: this process sees one GPU, of those the node was shown.
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu_for(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
    from dicom_node.inference.service import run_inference

    run_inference(config, index, stop, on_ready=ready)


def _mark(
    config: Config, index: int, inference: int, *, stop: StopEvent, ready: Callable[[], None]
) -> None:
    from dicom_node.pipeline import run_marker

    run_marker(config, stop, on_ready=ready, index=index, inference=inference)


def _forward(config: Config, name: str, *, stop: StopEvent, ready: Callable[[], None]) -> None:
    from dicom_node.forward import run_forwarder
    from dicom_node.transcoding import Transcoder

    ready()
    with Transcoder(config.watermark.max_pixels) as transcode:
        run_forwarder(config, name, stop, transcode)


def _register(config: Config, *, stop: StopEvent, ready: Callable[[], None]) -> None:
    from dicom_node.registering import run_registrar

    run_registrar(config, stop, on_ready=ready)


def _verify(config: Config, *, stop: StopEvent, ready: Callable[[], None]) -> None:
    from dicom_node.verify.service import run_verifier

    run_verifier(config, stop, on_ready=ready)
