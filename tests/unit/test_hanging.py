"""A marking that never comes back ends its process; the next one has the job, at most thrice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dicom_node.config import SpoolConfig
from dicom_node.spool import Spool

# Holds the interpreter, as OpenJPEG and CharLS do, until the process is ended.
ASTRAY = "lambda *_, **__: sum(range(10**15))"
FORM = "PixelForm(64, 64, 1, 8, 8, False, 'MONOCHROME2', 0)"


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("codec", ["jpeg2000", "jpegls"])
@pytest.mark.parametrize("way", ["decode", "encode"])
def test_a_codec_that_never_returns_ends_its_process(codec: str, way: str) -> None:
    library, call = {
        ("jpeg2000", "decode"): ("_openjpeg", "decode_pixel_data"),
        ("jpeg2000", "encode"): ("_openjpeg", "encode_buffer"),
        ("jpegls", "decode"): ("jpeg_ls", "decode_buffer"),
        ("jpegls", "encode"): ("jpeg_ls", "encode_buffer"),
    }[codec, way]
    ended = python(f"""
        import numpy as np
        from dicom_node.instance.codecs import {codec} as codec, limit
        from dicom_node.instance.model import PixelForm
        form, codes = {FORM}, np.zeros((64, 64), np.uint8)
        code = codec.encode(codes, form, 8)
        codec.{library}.{call} = {ASTRAY}
        limit.CPU_S = 0.3
        codec.decode(code, form) if {way!r} == "decode" else codec.encode(codes, form, 8)
        print("came back")
    """)
    assert ended.returncode == -signal.SIGPROF, ended.stderr
    assert ended.stdout == ""


def test_work_between_codecs_is_not_counted(tmp_path: Path) -> None:
    ended = python(f"""
        import numpy as np
        from dicom_node.instance.codecs import jpegls, limit
        from dicom_node.instance.model import PixelForm
        limit.CPU_S, limit.CPU_S_PER_MIB = 0.2, 0.0
        form, codes = {FORM}, np.zeros((64, 64), np.uint8)
        code = jpegls.encode(codes, form, 8)
        try:
            jpegls.decode(code[:20], form)
        except Exception:
            pass
        sum(range(30_000_000))
        print("came back")
    """)
    assert (ended.returncode, ended.stdout) == (0, "came back\n"), ended.stderr


WORKER = """
    import time
    from pathlib import Path
    from dicom_node import heartbeat, pipeline
    from dicom_node.config import SpoolConfig
    from dicom_node.spool import Spool
    for module in (pipeline, heartbeat):
        module.LEASE_S = 0.6
    heartbeat.HANG_S = 0.3
    class Sleepy:
        def mark(self, source, out, *, marked_at):
            if {grows}:
                for _ in range(10):
                    out.open("ab").write(bytes(1 << 20))
                    time.sleep(0.1)
                raise SystemExit(7)
            time.sleep(60)
    with Spool(SpoolConfig(directory=Path({folder!r}), min_free_mib=0)) as spool:
        worker = pipeline.MarkWorker(
            spool, lambda _: Sleepy(), current_key_id=b"k" * 8, destinations=["pacs"]
        )
        while not worker.step():
            time.sleep(0.05)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Spool(SpoolConfig(directory=tmp_path, min_free_mib=0)) as spool:
        spool.receive(
            b"header ", b"pixels", sop_class_uid="1.2", sop_instance_uid="1.2.3",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
        )  # fmt: skip
    return tmp_path


def test_an_instance_over_which_three_workers_hang_is_held(folder: Path) -> None:
    for _ in range(3):
        ended = python(WORKER.format(folder=str(folder), grows=False))
        assert ended.returncode == os.EX_SOFTWARE, ended.stderr
        assert "marking_hangs" in ended.stdout + ended.stderr
        with Spool(SpoolConfig(directory=folder, min_free_mib=0)) as spool:
            spool.recover()
    with Spool(SpoolConfig(directory=folder, min_free_mib=0)) as spool:
        assert spool.claim(lease_s=1) is None
        [job] = spool.jobs()
        assert job.state == "held", job.reason
        assert "3 times" in job.reason


def test_a_marking_whose_result_grows_is_given_time_for_it(folder: Path) -> None:
    ended = python(WORKER.format(folder=str(folder), grows=True))
    assert ended.returncode == 7, ended.stdout
