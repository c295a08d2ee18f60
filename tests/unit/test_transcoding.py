"""Copies in another transfer syntax are made by a child, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from dicom_node.errors import PixelError, SpoolError
from dicom_node.transcoding import Transcoder

NATIVE = min((Path(__file__).parents[2] / "demo/mr_brain").glob("*.dcm"))
ACCEPTED = (str(ExplicitVRLittleEndian),)


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """An instance in JPEG-LS."""
    ds = pydicom.dcmread(NATIVE)
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    ds.save_as(tmp_path / "coded.dcm")
    return tmp_path / "coded.dcm"


def test_a_compressed_instance_comes_out_uncompressed(coded: Path, tmp_path: Path) -> None:
    with Transcoder(1 << 24) as transcode:
        transcode(coded, tmp_path / "out.dcm", ACCEPTED)
        with pytest.raises(PixelError, match="no uncompressed transfer syntax is accepted"):
            transcode(coded, tmp_path / "none.dcm", (str(JPEGLSLossless),))
        (tmp_path / "junk.dcm").write_bytes(b"junk" * 99)
        with pytest.raises(PixelError):
            transcode(tmp_path / "junk.dcm", tmp_path / "none.dcm", ACCEPTED)
    assert not (tmp_path / "none.dcm").exists()
    copy = pydicom.dcmread(tmp_path / "out.dcm")
    assert (copy.pixel_array == pydicom.dcmread(NATIVE).pixel_array).all()


def test_a_decoder_that_never_returns_costs_its_instance_only(
    coded: Path, tmp_path: Path, codec_astray: None
) -> None:
    with Transcoder(1 << 24) as transcode:
        with pytest.raises(PixelError, match=r"a decoder did not come back \(SIGPROF\)"):
            transcode(coded, tmp_path / "none.dcm", ACCEPTED)
        transcode(NATIVE, tmp_path / "out.dcm", ACCEPTED)
    assert (tmp_path / "out.dcm").exists()


@pytest.mark.parametrize("error", ["ZeroDivisionError", "EOFError"])
def test_a_fault_nobody_foresaw_is_said_without_its_words(
    error: str, coded: Path, tmp_path: Path, in_children: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    in_children(f"""
        from dicom_node.instance import transcode
        def failing(*_, **__):
            raise {error}("Doe^Jane")
        transcode.transcode = failing
    """)
    with Transcoder(1 << 24) as transcode, pytest.raises(PixelError, match="exit code 70"):
        transcode(coded, tmp_path / "none.dcm", ACCEPTED)
    said = capfd.readouterr().err
    assert error in said
    assert "Doe" not in said


@pytest.mark.parametrize("error", ["DecoderLost('died of signal 9')", "MemoryError()",
                                   "OSError(28, 'No space left on device')"])  # fmt: skip
def test_what_is_the_machines_fault_is_done_later(
    error: str, coded: Path, tmp_path: Path, in_children: Callable[[str], None]
) -> None:
    in_children(f"""
        from dicom_node.errors import DecoderLost
        from dicom_node.instance import transcode
        def failing(*_, **__):
            raise {error}
        transcode.transcode = failing
    """)
    with Transcoder(1 << 24) as transcode, pytest.raises(SpoolError, match="not transcoded: "):
        transcode(coded, tmp_path / "none.dcm", ACCEPTED)


SLOW = """
    import os, time
    from pathlib import Path
    from dicom_node.instance import transcode
    def slow(source, out, *_, **__):
        out.write_text(str(os.getpid()))
        time.sleep(600)
    transcode.transcode = slow
"""


def test_a_child_that_is_killed_says_nothing_of_the_instance(
    coded: Path, tmp_path: Path, in_children: Callable[[str], None]
) -> None:
    in_children(SLOW)
    out = tmp_path / "out.dcm"

    def kill() -> None:
        if out.exists() and out.read_text():
            os.kill(int(out.read_text()), signal.SIGKILL)

    with Transcoder(1 << 24) as transcode, pytest.raises(SpoolError, match="SIGKILL"):
        transcode(coded, out, ACCEPTED, kill)


def test_who_waits_can_give_up_and_the_next_in_line_is_served(
    coded: Path, tmp_path: Path, in_children: Callable[[str], None]
) -> None:
    in_children(SLOW)
    entered = threading.Event()
    failures: list[BaseException] = []

    def until_begun() -> None:
        entered.set()
        if (tmp_path / "first.dcm").exists():
            raise TimeoutError

    def first() -> None:
        try:
            transcode(coded, tmp_path / "first.dcm", ACCEPTED, until_begun)
        except TimeoutError as error:
            failures.append(error)

    def until_served() -> None:
        if (tmp_path / "second.dcm").exists():
            raise TimeoutError

    with Transcoder(1 << 24) as transcode:
        thread = threading.Thread(target=first)
        thread.start()
        assert entered.wait(60)
        with pytest.raises(TimeoutError):
            transcode(coded, tmp_path / "second.dcm", ACCEPTED, until_served)
        thread.join()
    assert [type(each) for each in failures] == [TimeoutError]
