"""What `open_instance` decodes, and what it says of the rest."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_objects import noise
from hypothesis import given
from hypothesis import strategies as st
from pydicom.pixels import pixel_array

from dicom_node.errors import PixelError, Unmarkable
from dicom_node.instance.frames import Instance, open_instance
from dicom_node.instance.model import PixelForm, StoredFrame, pack, unpack

LIMIT = 400_000_000
EXPLICIT_BE = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"


def opened(path: Path) -> Instance:
    return open_instance(path, max_pixels=LIMIT)


def test_every_real_object_decodes_as_pydicom_decodes_it_or_says_why_not(shared, objects):
    decoded = compared = 0
    for row in objects:
        path = shared / row["path"]
        try:
            instance = opened(path)
        except PixelError:
            continue
        frame = instance.frame(instance.frame_count - 1)
        decoded += 1
        reference = by_pydicom(path, instance.frame_count - 1)
        if reference is not None:
            assert np.array_equal(frame.values, reference), row["path"]
            compared += 1
        assert instance.low <= frame.values.min() <= frame.values.max() <= instance.high
        instance.close()
    assert decoded >= 380
    assert compared >= 370


def by_pydicom(path: Path, index: int) -> np.ndarray | None:
    """Decode one frame; None where pydicom has no decoder (it finds no deflated pixels by path)."""
    try:
        return pixel_array(path, index=index, raw=True)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sr/pydicom__test-SR.dcm", "no pixel data"),
        ("seg/dcmqi__liver.dcm", "a segmentation"),
        ("rt/pydicom__rtdose.dcm", "dose grid"),
        ("us/pydicom__examples_palette.dcm", "PALETTE COLOR"),
        ("pmap_float/pydicom-data__parametric_map_float.dcm", "parametric map"),
        ("sc/pydicom-data__SC_rgb_expb_32bit.dcm", "32 bits"),
        ("jpegls_misc/pydicom-data__JLSL_RGB_ILV0.dcm", "no SOP Instance UID"),
        ("encapsulated_pdf_generated/dicom-ecg-plot__anonymous_ecg_report.dcm", "no pixel data"),
    ],
)
def test_what_cannot_carry_marks_is_unmarkable_with_a_plain_reason(shared, name, reason):
    with pytest.raises(Unmarkable, match=reason):
        opened(shared / "dicom" / name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("malformed/pydicom__MR_truncated.dcm", "cut short: .7FE0,0010. announces 8192 bytes"),
        ("malformed/pydicom__rtplan_truncated.dcm", "cut short"),
        ("malformed/pydicom-data__emri_small_jpeg_2k_lossless_too_short.dcm", "cut short"),
    ],
)
def test_a_truncated_data_set_is_a_pixel_error_and_not_unmarkable(shared, name, reason):
    with pytest.raises(PixelError, match=reason) as caught:
        opened(shared / "dicom" / name)
    assert not isinstance(caught.value, Unmarkable)


def test_a_text_file_is_no_data_set(tmp_path):
    path = tmp_path / "readme.txt"
    path.write_text("This is not the data set you are looking for. " * 20)
    with pytest.raises(PixelError):
        opened(path)
    path.write_bytes(b"")
    with pytest.raises(PixelError, match="no data set"):
        opened(path)


def test_a_file_without_preamble_and_meta_header_is_read(make, tmp_path):
    codes = noise(20, 30)
    for implicit, little in ((True, True), (False, True), (False, False)):
        ds = pydicom.dcmread(make(codes, bits_stored=12))
        if not little:
            ds.PixelData = codes.byteswap().tobytes()
        bare = tmp_path / "bare.dcm"
        with bare.open("wb") as stream:
            pydicom.dcmwrite(
                stream, ds_without_meta(ds), implicit_vr=implicit, little_endian=little
            )
        instance = opened(bare)
        assert np.array_equal(instance.frame(0).values, codes)


def ds_without_meta(ds: pydicom.Dataset) -> pydicom.Dataset:
    plain = pydicom.Dataset()
    for element in ds:
        plain.add(element)
    return plain


def test_another_transfer_syntax_in_the_meta_header_is_named(make):
    path = make(noise(16, 16))
    told = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0", 1)
    path.write_bytes(told)
    with pytest.raises(PixelError, match=r"announces Implicit.*encoded as Explicit VR Little"):
        opened(path)


def test_native_pixels_announced_as_compressed_are_named(make):
    path = make(noise(16, 16))
    raw = path.read_bytes()
    told = raw.replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x14\x001.2.840.10008.1.2.5\0", 1)
    assert told != raw
    path.write_bytes(told)
    with pytest.raises(PixelError, match="RLE Lossless, but the pixel data is native"):
        opened(path)


def test_a_frame_of_another_codec_is_named(shared, tmp_path):
    source = next((shared / "dicom/ct_transfer_syntaxes").glob("*2.4.90.dcm"))
    told = source.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.70", 1)
    path = tmp_path / "wrong.dcm"
    path.write_bytes(told)
    instance = opened(path)
    with pytest.raises(PixelError, match=r"frame 1 of 1: .*no JPEG code stream but JPEG 2000"):
        instance.frame(0)


def test_a_jpeg_frame_that_aborts_the_decoder_costs_one_frame_and_not_the_worker(shared, tmp_path):
    source = shared / "dicom/ot_testpattern/cornerstone3D__TestPattern_JPEG-Baseline_YBR422.dcm"
    raw = bytearray(source.read_bytes())
    raw[raw.index(b"\xff\xc4\x00\x47\x11")] = 0  # the last Huffman table is gone
    path = tmp_path / "broken.dcm"
    path.write_bytes(raw)
    with pytest.raises(PixelError, match="frame 1 of 1: the JPEG decoder gave up"):
        opened(path).frame(0)
    assert opened(source).frame(0).values.shape == (400, 640, 3)


def test_a_panic_of_the_rle_decoder_is_a_pixel_error(shared, tmp_path):
    source = pydicom.dcmread(shared / "dicom/mr/pydicom__MR_small_RLE.dcm")
    frame = bytearray(pydicom.encaps.get_frame(source.PixelData, 0, number_of_frames=1))
    frame[64:72] = b"\x7f" * 8
    source.PixelData = pydicom.encaps.encapsulate([bytes(frame)])
    source.save_as(tmp_path / "broken.dcm")
    with pytest.raises(PixelError, match="RLE decoder failed"):
        opened(tmp_path / "broken.dcm").frame(0)


def test_damaged_bytes_anywhere_are_a_pixel_error_or_decode(shared, tmp_path):
    random = np.random.default_rng(1)
    names = (
        "mr/pydicom__MR_small_RLE.dcm",
        "us/pydicom__examples_jpeg2k.dcm",
        "jpegls_misc/pydicom-data__JLSL_RGB_ILV0.dcm",
        "sc/pydicom__SC_rgb_jpeg_dcmtk.dcm",
        "htj2k/pydicom-data__HTJ2K_08_RGB.dcm",
        "sc/pydicom__SC_ybr_full_422_uncompressed.dcm",
    )
    path, opened_again = tmp_path / "damaged.dcm", 0
    for name in names:
        original = (shared / "dicom" / name).read_bytes()
        for round_number in range(6):
            raw = bytearray(original)
            reach = len(raw) if round_number % 2 else min(len(raw), 3000)
            for at in random.integers(132, reach, 5):
                raw[at] = random.integers(256)
            path.write_bytes(raw)
            try:
                opened(path).frame(0)
            except PixelError:
                continue
            opened_again += 1
    assert opened_again


def test_8_bit_samples_in_big_endian_words_are_unswapped(make):
    codes = noise(16, 16, bits=8)
    path = make(codes, syntax=EXPLICIT_BE, pixel_data=codes.view("u2").byteswap().tobytes())
    raw = path.read_bytes().replace(b"\x7f\xe0\x00\x10OB", b"\x7f\xe0\x00\x10OW")
    path.write_bytes(raw)
    assert np.array_equal(opened(path).frame(0).values, codes)


def test_a_decompression_bomb_is_refused_before_memory_is_taken(make):
    path = make(noise(8, 8), extra={"Rows": 60000, "Columns": 60000})
    with pytest.raises(Unmarkable, match="60000 x 60000 pixels are announced, over the limit"):
        opened(path)


def test_a_code_stream_larger_than_announced_is_refused(shared, tmp_path):
    source = pydicom.dcmread(next((shared / "dicom/ct_transfer_syntaxes").glob("*2.4.80.dcm")))
    source.Rows = source.Columns = 16
    path = tmp_path / "small.dcm"
    source.save_as(path)
    with pytest.raises(PixelError, match="announces 16 x 16 pixels, the code stream 512 x 512"):
        opened(path).frame(0)


def test_a_deflate_bomb_is_refused(make):
    path = make(np.zeros((64, 64), np.uint8), syntax=DEFLATED)
    from dicom_node.instance.datafile import open_data_file

    with pytest.raises(PixelError, match="inflates to more than 1000 bytes"):
        open_data_file(path, inflate_limit=1000)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"SOPInstanceUID": None, "SOPClassUID": None}, ""),
        ({"Rows": None}, "no Rows"),
        ({"NumberOfFrames": 3}, "announces 3 frames of 512 bytes, the pixel data has 512"),
        ({"HighBit": 15, "BitsStored": 12}, "High Bit"),
        ({"PixelData": b""}, "no pixel data"),
        ({"BitsAllocated": 1}, "1 bit"),
        ({"Rows": 0}, "0 x 16"),
    ],
)
def test_bad_pixel_modules_are_refused_by_name(make, extra, reason):
    path = make(noise(16, 16), extra=extra)
    if not reason:
        assert opened(path).sop_instance_uid  # taken from the meta header
        return
    with pytest.raises(PixelError, match=reason):
        opened(path)


@pytest.mark.parametrize("syntax", [IMPLICIT, "1.2.840.10008.1.2.1", EXPLICIT_BE, DEFLATED])
@pytest.mark.parametrize("stored", [9, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_native_samples_are_read_with_bits_stored_and_sign(make, syntax, stored, signed):
    codes = noise(24, 40, bits=stored)
    values = codes.astype(np.int32)
    if signed:
        values = np.where(values >> (stored - 1), values - (1 << stored), values)
    container = (values & 0xFFFF).astype(np.uint16)
    written = container.byteswap() if syntax == EXPLICIT_BE else container
    path = make(written, bits_stored=stored, signed=signed, syntax=syntax)
    frame = opened(path).frame(0)
    assert np.array_equal(frame.values, values)
    assert frame.high_bits is None


def test_an_overlay_in_the_high_bits_is_kept_apart(make):
    codes = noise(24, 40, bits=12)
    overlay = np.zeros_like(codes)
    overlay[3:9, 4:20] = 1
    frame = opened(make(codes | overlay << 12, bits_stored=12)).frame(0)
    assert np.array_equal(frame.values, codes)
    assert np.array_equal(frame.high_bits, overlay)


@given(
    stored=st.integers(2, 16),
    signed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_containers_survive_unpacking_and_packing(stored, signed, seed):
    allocated = 8 if stored <= 8 else 16
    form = PixelForm(5, 7, 1, allocated, stored, signed, "MONOCHROME2", 0)
    codes = noise(5, 7, bits=allocated, seed=seed)
    frame = unpack(codes, allocated, form)
    assert form.low <= frame.values.min() <= frame.values.max() <= form.high
    assert np.array_equal(pack(frame, form, allocated), codes)


def test_a_value_outside_bits_stored_is_refused():
    form = PixelForm(2, 2, 1, 16, 12, False, "MONOCHROME2", 0)
    with pytest.raises(ValueError, match=r"outside 0\.\.4095"):
        pack(StoredFrame(np.full((2, 2), 4096, np.int32)), form, 16)


def test_subsampled_chroma_is_shared_by_two_pixels(make):
    luma, blue, red = noise(4, 6, bits=8), noise(4, 3, bits=8, seed=1), noise(4, 3, bits=8, seed=2)
    quads = np.stack([luma[:, ::2], luma[:, 1::2], blue, red], axis=-1)
    path = make(
        np.zeros((4, 6, 3), np.uint8), photometric="YBR_FULL_422", pixel_data=quads.tobytes()
    )
    instance = opened(path)
    values = instance.frame(0).values
    assert np.array_equal(values[..., 0], luma)
    assert np.array_equal(values[..., 1], blue.repeat(2, axis=1))
    assert np.array_equal(values[..., 2], red.repeat(2, axis=1))
    assert instance.host_index == 0


def test_padding_is_read_as_the_samples_are_stored(make):
    path = make(
        noise(8, 8),
        signed=True,
        extra={"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990},
    )
    assert opened(path).padding == (-2000, -1990)


def test_a_thousand_frames_are_streamed_in_the_memory_of_a_few(tmp_path):
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from dicom_node.instance.frames import open_instance
        from dicom_node.instance.writer import FrameWriter
        from dicom_objects import Making
        folder = Path(sys.argv[1])
        source = folder / "many.dcm"
        frame = np.arange(512 * 512, dtype=np.uint16).reshape(512, 512)
        small = Making(frame[None].repeat(2, 0), frames=2).save(source)
        raw = source.read_bytes().replace(b"IS\\x02\\x002 ", b"IS\\x04\\x00300 ")
        head = raw[: -2 * frame.nbytes]
        head = head[:-4] + (300 * frame.nbytes).to_bytes(4, "little")
        with source.open("wb") as stream:
            stream.write(head)
            for _ in range(300):
                stream.write(frame.tobytes())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        instance = open_instance(source, max_pixels=10**8)
        assert instance.frame_count == 300
        with FrameWriter(folder, instance) as writer:
            for one in instance.frames():
                writer.append(one)
            writer.finish(instance.header, folder / "out.dcm")
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40, "MiB more than before, for an object of 150 MiB"
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0


def test_a_deflated_data_set_may_inflate_to_the_pixels_it_announces_and_a_header(
    make, monkeypatch, tmp_path
):
    from dicom_node.instance import datafile, source

    monkeypatch.setattr(source, "_FIRST", 1 << 16)
    monkeypatch.setattr(datafile, "_HEADER_LIMIT", 1 << 16)
    path = make(np.zeros((1024, 1024), np.uint8), syntax=DEFLATED)
    data = datafile.open_data_file(path, max_pixels=1 << 20, scratch=tmp_path)
    assert data.pixel is not None
    assert data.pixel.length == 1 << 20
    data.close()
    with pytest.raises(PixelError, match="inflates to more than 65536 bytes"):
        datafile.open_data_file(path, max_pixels=(1 << 20) - 1)
    # More pixel data than rows and columns account for.
    path = make(np.zeros((64, 64), np.uint8), syntax=DEFLATED, pixel_data=bytes(1 << 20))
    with pytest.raises(PixelError, match=f"inflates to more than {(1 << 16) + 64 * 64} bytes"):
        datafile.open_data_file(path)  # _HEADER_LIMIT and the pixels
    # A long value that is no pixel data.
    extra = {"EncapsulatedDocument": bytes(1 << 20)}
    path = make(np.zeros((64, 64), np.uint8), syntax=DEFLATED, extra=extra)
    with pytest.raises(PixelError, match="inflates to more than 65536 bytes"):
        datafile.open_data_file(path)
    assert [p.name for p in tmp_path.iterdir()] == ["source.dcm"]  # unnamed while it is open
