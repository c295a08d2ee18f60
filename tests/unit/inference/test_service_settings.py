"""``max_batch`` and ``max_wait_ms`` of the inference process, as a worker feels them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from cpu_lanes import real_frames
from structlog.testing import capture_logs

from dicom_node.config import parse
from dicom_node.inference import service
from dicom_node.inference.catalogue import read_card
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.remote import RemoteEngine

FRAMES = real_frames()


def longest_s(folder: Path, lines: str, frames: int) -> float:
    """Ask beside a worker that is idle, and so may still ask: return how long the answer took."""
    config = parse(f'[spool]\ndirectory = "{folder}"\n[watermark]\ninference = "cpu"\n{lines}', "t")
    own, card = OnnxEngine(read_card()), read_card()
    stop, ready = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool, capture_logs() as said:
        done = pool.submit(service.run_inference, config, 0, stop, ready.set)
        try:
            assert ready.wait(60)
            workers = [RemoteEngine([service.folder_of(config, 0)], own, card) for _ in range(2)]
            for each in workers:
                each.settle()
            assert [line["event"] for line in said].count("inference_used") == len(workers)
            began = monotonic()
            answer = workers[0].decode(FRAMES[:frames])
            took_s = monotonic() - began
            np.testing.assert_array_equal(answer, own.decode(FRAMES[:frames]))
            for each in workers:
                each.close()
        finally:
            stop.set()
        done.result(timeout=30)
    return took_s


@pytest.mark.parametrize(
    ("lines", "frames", "waits"),
    [
        ("max_wait_ms = 900.0\nmax_batch = 4", 2, True),
        ("max_wait_ms = 0.0\nmax_batch = 4", 2, False),
        ("max_wait_ms = 900.0\nmax_batch = 2", 2, False),
    ],
    ids=["waits for others", "told not to wait", "the batch is full"],
)
def test_a_question_waits_max_wait_ms_for_others_unless_max_batch_is_reached(
    tmp_path: Path, lines: str, frames: int, waits: bool
) -> None:
    assert (longest_s(tmp_path, lines, frames) >= 0.9) is waits
