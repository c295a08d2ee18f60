from __future__ import annotations

import re
from pathlib import Path

import pytest
import structlog

from dicom_node import node
from dicom_node.config import Config, parse
from dicom_node.errors import ConfigError, SpoolFull
from dicom_node.keys import KeyRing
from dicom_node.node import (
    ROLES,
    _reclaim,
    gpu_for,
    mark_workers,
    readiness_line,
    roles_of,
    serve,
)

SYSTEMD = Path(__file__).parents[2] / "systemd"


@pytest.fixture
def config() -> Config:
    text = "[node]\nreceivers = 2\n[watermark]\nworkers = 3\n"
    for name in ("pacs", "archive"):
        text += f'[[destination]]\nname = "{name}"\nae_title = "A"\nhost = "h"\nport = 104\n'
    return parse(text, "test")


def names(config: Config, only: str | None = None) -> list[str]:
    return [role.name for role in roles_of(config, only)]


def test_every_kind_of_process_runs_as_often_as_configured(config: Config) -> None:
    assert names(config) == [
        "receive-0", "receive-1", "mark-0", "mark-1", "mark-2", "forward-pacs", "forward-archive",
        "register",
    ]  # fmt: skip


def test_only_selects_one_kind_or_one_destination(config: Config) -> None:
    assert names(config, "receive") == ["receive-0", "receive-1"]
    assert names(config, "forward") == ["forward-pacs", "forward-archive"]
    assert names(config, "forward:archive") == ["forward-archive"]
    assert names(config, "verify") == ["verify"]


def test_auditors_are_served_only_where_the_file_says_so(config: Config) -> None:
    assert "verify" not in names(config)
    assert names(parse("[verify]\nport = 4711\n", "test"))[-1] == "verify"


def test_images_flow_without_registry_and_verification(config: Config) -> None:
    inessential = {role.name for role in roles_of(config) if not role.essential}
    assert inessential == {"register"}
    assert not roles_of(config, "verify")[0].essential


def test_inference_processes_run_where_there_may_be_a_gpu_and_nothing_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def infer(settings: str) -> list[tuple[str, bool]]:
        roles = roles_of(parse(f"[watermark]\nworkers = 2\ngpus = 2\n{settings}", "test"))
        found = [(role.name, role.essential) for role in roles if role.name.startswith("infer-")]
        workers = [role.args for role in roles if role.name.startswith("mark-")]
        assert [args[1] for args in workers] == list(range(len(workers)))
        assert {args[2] for args in workers} == {len(found)}, "workers look for what does not run"
        return found

    both, insisted = ([(f"infer-{at}", essential) for at in (0, 1)] for essential in (False, True))
    for packages in (False, True):
        monkeypatch.setattr(node, "_gpu_packages", lambda found=packages: found)
        assert infer("") == (both if packages else [])
        assert infer('inference = "cpu"\n') == both
        assert infer('inference = "cpu"\nengine = "onnx"\n') == both
        assert infer('inference = "off"\n') == infer('engine = "onnx"\n') == []
        assert infer('engine = "tensorrt"\n') == insisted
        assert infer('inference = "cpu"\nenabled = false\n') == []


def test_each_inference_process_sees_one_gpu_of_those_the_node_was_shown() -> None:
    assert [gpu_for(index, None) for index in range(3)] == ["0", "1", "2"]
    assert [gpu_for(index, "2, GPU-8932f937") for index in range(2)] == ["2", "GPU-8932f937"]
    assert gpu_for(0, "") == "", "a GPU that was hidden stays hidden"
    with pytest.raises(ConfigError, match=r"set watermark\.gpus = 1"):
        gpu_for(1, "3")


def test_only_infer_with_nothing_to_do_waits_quietly() -> None:
    roles = roles_of(parse('[watermark]\ninference = "off"\n', "test"), "infer")
    assert roles == []
    assert readiness_line(Config(), roles) == "ready: nothing to do here"


@pytest.mark.parametrize("only", ["paint", "mark:pacs", "forward:moon", ""])
def test_what_only_does_not_know_is_refused(config: Config, only: str) -> None:
    with pytest.raises(ConfigError, match="--only"):
        roles_of(config, only)


def test_forwarding_to_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no \[\[destination\]\]"):
        roles_of(Config(), "forward")


def test_with_marking_off_one_worker_looks_after_what_was_left() -> None:
    assert mark_workers(parse("[watermark]\nenabled = false\nworkers = 8\n", "test")) == 1


def test_the_ready_line_says_what_runs(config: Config) -> None:
    line = readiness_line(config, roles_of(config))
    assert line.startswith("ready: DICOMNODE on 0.0.0.0:11112, receive-0,")
    assert line.endswith("forward-archive, register")
    assert readiness_line(config, roles_of(config, "mark")) == "ready: mark-0, mark-1, mark-2"


def test_keys_of_another_owner_than_configured_are_refused_with_both_ways_out(
    tmp_path: Path,
) -> None:
    keys, spool = tmp_path / "keys", tmp_path / "spool"
    ring = KeyRing.open(keys, owner="NORTH-CLINIC", create=True)
    text = f'[keys]\ndirectory = "{keys}"\n[spool]\ndirectory = "{spool}"\n[watermark]\n'
    config = parse(text + 'owner = "SOUTH-CLINIC"\n', "test")
    with pytest.raises(ConfigError, match=r"watermark\.owner = 'SOUTH-CLINIC'") as caught:
        serve(config, announce=print)
    said = str(caught.value)
    assert ring.current.key_id.hex() in said
    assert "set watermark.owner = 'NORTH-CLINIC'" in said
    assert "`dicom-node keys rotate`" in said
    assert not spool.exists(), "nothing was started"
    with pytest.raises(ConfigError):
        serve(config, only="mark", announce=print)


def test_claims_that_cannot_be_freed_now_do_not_end_the_node() -> None:
    class Full:
        def reclaim(self, *, drained: bool) -> None:
            raise SpoolFull("no space left for the journal")

    with structlog.testing.capture_logs() as events:
        _reclaim(Full())  # type: ignore[arg-type]
    assert [event["reason"] for event in events] == ["no space left for the journal"]


def test_every_role_has_a_systemd_unit_and_the_target_wants_it() -> None:
    wanted = re.findall(r"dicom-node-(\w+)\.service", (SYSTEMD / "dicom-node.target").read_text())
    assert sorted(wanted) == sorted(ROLES)
    for role in ROLES:
        unit = (SYSTEMD / f"dicom-node-{role}.service").read_text()
        assert f"--only {role}\n" in unit
        assert "Type=notify" in unit
        # systemd tells the supervisor to stop, and nobody behind its back.
        assert "KillMode=mixed\n" in unit
        # What needs no keys cannot reach them; what marks has no network; the rest reads them only.
        keys = "ReadOnlyPaths" if role in ("register", "verify") else "InaccessiblePaths"
        shut = "PrivateNetwork=yes" if role == "mark" else f"{keys}=-/var/lib/dicom-node/keys"
        assert shut in unit
        assert ("PrivateNetwork=yes" in unit) == (role in ("infer", "mark"))
        # Who runs networks may reach a GPU, which ProtectClock alone would hide on older systemd.
        assert ("DeviceAllow=char-nvidia* rw" in unit) == (role in ("infer", "mark"))
        assert ("PrivateDevices=yes" in unit) == (role not in ("infer", "mark"))
        # Who decodes pixels compiles loops: into memory it may execute, and a folder that keeps.
        decodes = role in ("infer", "mark", "forward", "verify")
        assert ("MemoryDenyWriteExecute=yes" in unit) == (not decodes)
        assert ("Environment=NUMBA_CACHE_DIR=/var/cache/dicom-node" in unit) == decodes
        assert ("CacheDirectory=dicom-node" in unit) == decodes
