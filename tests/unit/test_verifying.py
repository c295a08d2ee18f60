"""docs/VERIFYING.md is a session: its commands are run in order, and print what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from peer_tools import PACKAGES, needed

from dicom_node.cli.main import main
from dicom_node.config import WatermarkConfig
from dicom_node.inference import open_engine
from dicom_node.instance import seal
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "VERIFYING.md"
WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
SCRIPT = ROOT / "examples" / "check_signature.py"
SHORT = ROOT / "examples" / "check_pixels.py"
# A command, and what it prints if the page says so.
STEPS = re.findall(r"```sh\n(.*?)```\n(?:\n```text\n(.*?)```)?", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the page assumes it: a configuration with keys, and one marked instance."""
    folder = tmp_path_factory.mktemp("verifying")
    (folder / "conf").mkdir()
    (folder / "conf" / "node.toml").write_text(
        f'[keys]\ndirectory = "{folder}/keys"\n[spool]\ndirectory = "{folder}/spool"\n'
        '[watermark]\nengine = "onnx"\nowner = "CLINIC"\n'
    )
    config = ["--config", str(folder / "conf" / "node.toml")]
    assert main(["keys", "init", *config]) == 0
    source = folder / "instance.dcm"
    shutil.copy(min((ROOT / "demo" / "mr_brain").glob("*.dcm")), source)
    assert main(["mark", str(source), "--out", f"{folder}/marked", *config]) == 0
    shutil.copy(folder / "marked" / "instance.dcm", source)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "bin").mkdir()
    for name, words in (("dicom-node", "-m dicom_node.cli.main"), ("python", "")):
        shim = folder / "bin" / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        shim.chmod(0o755)
    return folder


def check(
    public_key: Path, path: Path, script: Path = SCRIPT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script, public_key, path], capture_output=True, text=True, timeout=60
    )


def test_every_command_of_the_page_runs_and_prints_what_the_page_says(place: Path) -> None:
    for tool in ("openssl", "dcmodify", "dcmconv", "dcmcjpls"):
        needed(tool, "the page is not checked")
    environment = os.environ | {"PATH": f"{place}/bin:{os.environ['PATH']}",
                                "PYTHONPATH": PACKAGES}  # fmt: skip
    assert len(STEPS) == 9
    for command, promised in STEPS:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", command], cwd=place, env=environment,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        printed = done.stdout + done.stderr
        assert done.returncode == 0, f"{command}\n{printed}"
        for line in promised.splitlines():
            assert line in printed, f"{command}\nprinted\n{printed}"


def test_the_key_id_is_the_beginning_of_the_digest_the_page_shows(place: Path) -> None:
    ring = KeyRing.open(place / "keys")
    pem = place / "key.pem"
    pem.write_text(ring.export_public())
    command = next(c for c, _ in STEPS if "sha3-256" in c).replace("public.pem", "key.pem")
    done = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True)
    digest = done.stdout.split()[-1]
    assert digest.startswith(ring.current.key_id.hex())


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("nothing", 0, "authentic"),
        ("a pixel", 1, "tampered"),
        ("the header", 0, "changed in the header: PatientID"),
        ("all private attributes", 0, "authentic"),
    ],
)
def test_a_public_key_alone_tells_what_the_page_says_it_tells(
    what: str, code: int, said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pem = tmp_path / "public.pem"
    pem.write_text(KeyRing.open(place / "keys").export_public())
    ds = pydicom.dcmread(place / "instance.dcm")
    if what == "a pixel":
        ds.PixelData = bytes([ds.PixelData[0] ^ 1]) + ds.PixelData[1:]
    elif what == "the header":
        ds.PatientID = "SOMEBODY-ELSE"
    elif what == "all private attributes":
        ds.remove_private_tags()
    ds.save_as(tmp_path / "copy.dcm")
    # A folder without keys, as an auditor has it.
    (tmp_path / "node.toml").write_text(f'[keys]\ndirectory = "{tmp_path}/none"\n')
    words = ["--public-key", str(pem), "--config", str(tmp_path / "node.toml")]
    assert main(["verify", str(tmp_path / "copy.dcm"), *words]) == code
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("script", "most"), [(SCRIPT, 89), (SHORT, 40)])
def test_the_scripts_share_no_code_with_us_and_are_short(script: Path, most: int) -> None:
    text = script.read_text("utf-8")
    assert not re.search(r"^\s*(from|import)\s+dicom_node", text, re.MULTILINE)
    code = text.partition("# ruff")[2]
    statements = [line for line in code.splitlines() if line.strip() and line[:1] not in ("#", '"')]
    assert len(statements) < most, "the page says eighty, and thirty below the imports"
    below = code[code.index("public_key, path") :].strip().splitlines()
    assert script != SHORT or len(below) <= 30


@pytest.fixture(scope="module")
def sealed(place: Path, shared: Path) -> tuple[Path, list[Path]]:
    """Objects that cannot carry marks, sealed; every kind of header the script has to read."""
    ring = KeyRing.open(place / "keys")
    pem = place / "sealed.pem"
    pem.write_text(ring.export_public())
    made = []
    for kind in ("sr", "seg", "rt", "ecg", "pmap_float", "htj2k", "charset", "deflated"):
        source = min(p for p in (shared / "dicom" / kind).rglob("*.dcm"))
        out = place / f"sealed-{kind}.dcm"
        seal.seal_file(source, out, ring.current, marked_at=1_790_000_000)
        made.append(out)
    return pem, made


def test_the_script_and_the_node_agree_on_what_is_sealed(
    sealed: tuple[Path, list[Path]], place: Path
) -> None:
    pem, paths = sealed
    ring = KeyRing.from_public_pem(pem.read_text())
    for path in paths:
        assert seal.check_seal(path, ring).intact
        done = check(pem, path)
        assert done.returncode == 0, f"{path.name}: {done.stdout}{done.stderr}"
        assert "all pixels" in done.stdout


def test_the_script_names_one_changed_sample_of_sealed_pixels(
    sealed: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    pem, paths = sealed
    ds = pydicom.dcmread(next(path for path in paths if "seg" in path.name))
    pixels = bytearray(ds.PixelData)
    pixels[len(pixels) // 2] ^= 1
    ds.PixelData = bytes(pixels)
    ds.save_as(tmp_path / "changed.dcm")
    done = check(pem, tmp_path / "changed.dcm")
    assert done.returncode == 1
    assert "(7FE0,0010) PixelData" in done.stdout


def test_the_script_refuses_a_seal_of_another_key(
    sealed: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    other = KeyRing.open(tmp_path / "keys", owner="SOMEBODY", create=True)
    (tmp_path / "other.pem").write_text(other.export_public())
    done = check(tmp_path / "other.pem", sealed[1][0])
    assert done.returncode == 1
    assert "not signed with this key" in done.stderr


@pytest.mark.parametrize(
    "source",
    [
        "ct_series/liver_3slice_GE_LightSpeedUltra/01.dcm",
        "us/pydicom__examples_rgb_color.dcm",
        "mr/pylibjpeg-data__emri_small.dcm",
        "mr/pydicom__examples_overlay.dcm",
    ],
)
def test_the_script_and_the_node_agree_on_marked_pixels(
    source: str, place: Path, shared: Path, tmp_path: Path
) -> None:
    ring = KeyRing.open(place / "keys")
    (tmp_path / "public.pem").write_text(ring.export_public())
    out = tmp_path / "marked.dcm"
    marker = Marker(WatermarkConfig(), ring, open_engine("onnx"))
    assert marker.mark(shared / "dicom" / source, out, marked_at=WHEN).action == "marked"
    done = check(tmp_path / "public.pem", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all pixels" in done.stdout
    short = check(tmp_path / "public.pem", out, SHORT)
    assert short.returncode == 0, short.stdout + short.stderr
    ds = pydicom.dcmread(out)
    pixels = bytearray(ds.PixelData)
    pixels[-2] ^= 1
    ds.PixelData = bytes(pixels)
    ds.save_as(tmp_path / "changed.dcm")
    for script in (SCRIPT, SHORT):
        done = check(tmp_path / "public.pem", tmp_path / "changed.dcm", script)
        assert done.returncode == 1
        assert f"pixels of frame {ds.get('NumberOfFrames', 1)}" in done.stderr


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientID", "SOMEBODY-ELSE"), ("PatientID", None), ("SOPInstanceUID", "1.2.3"),
     ("StudyInstanceUID", "1.2.3")],
)  # fmt: skip
def test_the_short_script_sees_pixels_under_another_name(
    keyword: str, value: str | None, place: Path, tmp_path: Path
) -> None:
    ring = KeyRing.open(place / "keys")
    (tmp_path / "public.pem").write_text(ring.export_public())
    ds = pydicom.dcmread(place / "instance.dcm")
    if value is None:
        del ds[keyword]
    else:
        setattr(ds, keyword, value)
    ds.save_as(tmp_path / "changed.dcm")
    done = check(tmp_path / "public.pem", tmp_path / "changed.dcm", SHORT)
    assert done.returncode == 1
    assert done.stderr.startswith("changed: (00")


@pytest.mark.parametrize("script", [SCRIPT, SHORT])
@pytest.mark.parametrize("left", ["nothing of ours", "the creator", "another's block"])
def test_a_script_says_of_a_file_without_a_seal_that_it_has_none(
    left: str, script: Path, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "public.pem").write_text(KeyRing.open(place / "keys").export_public())
    ds = pydicom.dcmread(place / "instance.dcm")
    if left == "the creator":
        block = ds.private_block(0x0071, "DICOM-NODE WATERMARK 1.0")
        for element in range(1, 0x100):
            if element in block:
                del block[element]
    else:
        ds.remove_private_tags()
    if left == "another's block":
        ds.private_block(0x0071, "SOMEBODY ELSE", create=True).add_new(2, "OB", b"12")
    ds.save_as(tmp_path / "stripped.dcm")
    done = check(tmp_path / "public.pem", tmp_path / "stripped.dcm", script)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("not signed, or stripped: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", [SCRIPT, SHORT])
def test_a_script_says_nothing_of_success_over_a_changed_file(
    script: Path, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "public.pem").write_text(KeyRing.open(place / "keys").export_public())
    ds = pydicom.dcmread(place / "instance.dcm")
    ds.PatientID = "SOMEBODY-ELSE"
    ds.save_as(tmp_path / "changed.dcm")
    done = check(tmp_path / "public.pem", tmp_path / "changed.dcm", script)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert said.startswith("changed: (0010,0020)")
    assert "Success" not in said
    assert "all pixels" not in said


def test_the_short_script_refuses_a_seal_of_another_key(place: Path, tmp_path: Path) -> None:
    other = KeyRing.open(tmp_path / "keys", owner="SOMEBODY", create=True)
    (tmp_path / "other.pem").write_text(other.export_public())
    done = check(tmp_path / "other.pem", place / "instance.dcm", SHORT)
    assert done.returncode == 1
    assert "not signed with this key" in done.stderr
