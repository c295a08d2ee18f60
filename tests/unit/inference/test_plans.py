"""A plan in the cache is for one model, one GPU and one TensorRT: anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dicom_node.errors import EngineError
from dicom_node.inference.plans import (
    ANY_GPU,
    PlanKey,
    cache_folder,
    plan_for,
    read_plan,
    write_plan,
)
from dicom_node.inference.tensorrt_compiler import Compiled, Tensor

KEY = PlanKey("d1.onnx", "873995d2", "fp16", 64, "NVIDIA L4", "SM89", "tensorrt_rtx 1.7.1.116")
FRAME = (1, 1, 128, 128), (8, 1, 128, 128), (64, 1, 128, 128)
COMPILED = Compiled(
    bytes(range(256)) * 4,
    (Tensor("frame", "FLOAT", (-1, 1, 128, 128), FRAME), Tensor("norms", "FLOAT", (1, 160))),
    (Tensor("soft", "FLOAT", (-1, 160)),),
)
OTHERS = {
    "GPU": replace(KEY, gpu="NVIDIA A2"),
    "compute capability": replace(KEY, capability="SM86"),
    "version": replace(KEY, runtime="tensorrt_rtx 1.8.0.1"),
    "runtime": replace(KEY, runtime="tensorrt 1.7.1.116"),
    "model": replace(KEY, model_sha256="f11f8d5e"),
    "network": replace(KEY, network="strength.onnx"),
    "precision": replace(KEY, precision="fp32"),
    "largest batch": replace(KEY, most=32),
    "recipe": replace(KEY, recipe=KEY.recipe + 1),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_plan(tmp_path / KEY.file, KEY, COMPILED)
    return tmp_path / KEY.file


def test_a_plan_comes_back_as_it_was_written(written: Path) -> None:
    assert read_plan(written, KEY) == COMPILED
    assert [path.name for path in written.parent.iterdir()] == [KEY.file]


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_plan_built_for_something_else_is_refused_and_says_what(
    written: Path, other: PlanKey
) -> None:
    assert other.file != KEY.file
    with pytest.raises(EngineError, match=r"was built for .* instead of ") as refused:
        read_plan(written, other)
    [name] = [field for field in vars(KEY) if getattr(KEY, field) != getattr(other, field)]
    for part in (name, str(getattr(KEY, name)), str(getattr(other, name))):
        assert part in str(refused.value)


@given(st.data())
def test_a_plan_with_any_byte_changed_is_refused_or_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("plans") / KEY.file
    write_plan(path, KEY, COMPILED)
    blob = bytearray(path.read_bytes())
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(blob))
    try:
        found = read_plan(path, KEY)
    except EngineError:
        return
    assert found.plan == COMPILED.plan  # only the description of an input may have been hit


@pytest.mark.parametrize("keep", [0, 5, 20, 22, 100, -1])
def test_a_plan_cut_short_is_refused(written: Path, keep: int) -> None:
    written.write_bytes(written.read_bytes()[:keep])
    with pytest.raises(EngineError, match=r"no plan|damaged"):
        read_plan(written, KEY)


class Builder:
    """Builds `COMPILED` and counts."""

    def __init__(self) -> None:
        self.built = 0

    def __call__(self) -> Compiled:
        self.built += 1
        return COMPILED


def test_a_plan_is_built_once_and_then_found(tmp_path: Path) -> None:
    build = Builder()
    for _ in range(3):
        assert plan_for(KEY, build, tmp_path) == COMPILED
    assert build.built == 1


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_whatever_changes_a_new_plan_is_built(tmp_path: Path, other: PlanKey) -> None:
    build = Builder()
    plan_for(KEY, build, tmp_path)
    plan_for(other, build, tmp_path)
    assert build.built == 2


def test_a_plan_built_elsewhere_serves_every_gpu_of_its_capability(tmp_path: Path) -> None:
    anywhere = replace(KEY, gpu=ANY_GPU)
    write_plan(tmp_path / anywhere.file, anywhere, COMPILED)
    build = Builder()
    assert plan_for(KEY, build, tmp_path) == COMPILED
    plan_for(replace(KEY, capability="SM86"), build, tmp_path)
    assert build.built == 1


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def exchange(path: Path) -> None:
    write_plan(path, OTHERS["GPU"], COMPILED)


@pytest.mark.parametrize("harm", [damage, exchange])
def test_a_refused_plan_is_built_anew_said_and_replaced(
    written: Path, harm: Callable[[Path], None]
) -> None:
    harm(written)
    build = Builder()
    with capture_logs() as said:
        assert plan_for(KEY, build, written.parent) == COMPILED
    assert [line["event"] for line in said] == ["plan_refused"]
    assert build.built == 1
    assert read_plan(written, KEY) == COMPILED


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with capture_logs() as said:
        assert plan_for(KEY, Builder(), tmp_path / "file" / "plans") == COMPILED
    assert [line["event"] for line in said] == ["plan_not_kept"]


def test_plans_are_kept_where_systemd_says_else_with_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dicom-node" / "plans"
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/dicom-node")
    assert cache_folder() == Path("/var/cache/dicom-node/plans")
