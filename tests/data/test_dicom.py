"""DICOM: rescale, window, photometric interpretation, against values worked out by hand; the table's errors."""

import numpy as np
import pytest
from tests.data.written import dicom, dicom_file

from layergraft.data import Dicom
from layergraft.data.dicom import windowed
from layergraft.errors import UserError

STORED = np.array([[0, 1000], [1024, 2000]], np.uint16)
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def read(tmp_path, window=(), **tags):
    dicom_file(tmp_path / "a.dcm", tags.pop("stored", STORED), **tags)
    return windowed(tmp_path / "a.dcm", list(window))


def test_without_a_window_all_values_are_shown(tmp_path):
    expected = np.round(STORED / 2000 * 255)
    assert np.array_equal(read(tmp_path), expected)
    assert np.array_equal(read(tmp_path, PhotometricInterpretation="MONOCHROME1"), np.round((1 - STORED / 2000) * 255))
    signed = read(tmp_path, stored=(STORED.astype(int) - 1000).astype(np.int16))
    assert np.array_equal(signed, expected)


@pytest.mark.parametrize("own", [True, False])
def test_a_window_is_in_the_modalitys_units(tmp_path, own):
    tags = {"WindowCenter": 40, "WindowWidth": 401} if own else {"WindowCenter": 9, "WindowWidth": 2}
    shown = read(tmp_path, () if own else (40, 401), **CT, **tags)
    # C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5), of -1024, -24, 0 and 976 Hounsfield units
    share = np.clip((STORED - 1024.0 - 39.5) / 400 + 0.5, 0, 1)
    assert np.array_equal(shown, np.round(share * 255)) and 0 < shown[0, 1] < shown[1, 0] < 255


def test_a_slope_below_zero_turns_the_values(tmp_path):
    shown = read(tmp_path, (-1000, 1001), RescaleSlope=-1, RescaleIntercept=0)
    assert shown[0, 0] == 255 and shown[1, 1] == 0 and 120 < shown[0, 1] < 135


def test_the_splits_keep_patients_together(tmp_path, monkeypatch):
    dicom(tmp_path, monkeypatch)
    data = Dicom(path=str(tmp_path), cache=str(tmp_path / "cache"), size=12).load(0)
    patients = [set((split.rows // 2).tolist()) for split in data.splits.values()]
    assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
    assert data.class_names == ("sick", "well") and data.shape == (1, 12, 12)


@pytest.mark.parametrize(
    "table, message",
    [
        ("path,label\n0.dcm,a", "has no column 'file'"),
        ("file,label\n0.dcm,", "line 2 has no label"),
        ("file,label\n0.dcm,a\n0.dcm,b", "names 0.dcm twice"),
        ("file,label\n0.dcm,a\nx.dcm,b", "1 files that are not in .*, the first x.dcm"),
        ("file,label,split\n0.dcm,a,trian", "'trian'; did you mean 'train'"),
        ("file,label,split,patient\n0.dcm,a,train,p\n1.dcm,b,test,p", "patient p is in several splits"),
        ("file,label\n", "has no row"),
    ],
)
def test_a_table_that_cannot_be(table, message, tmp_path):
    for i in range(2):
        dicom_file(tmp_path / f"{i}.dcm", STORED)
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(UserError, match=message):
        Dicom(path=str(tmp_path), cache=str(tmp_path / "cache")).load(0)


def test_several_frames_are_refused_by_name(tmp_path):
    dicom_file(tmp_path / "0.dcm", np.zeros((4, 4), np.uint16), NumberOfFrames=2, Rows=2)
    (tmp_path / "labels.csv").write_text("file,label\n0.dcm,a")
    with pytest.raises(UserError, match="0.dcm: 2 frames; only single images are read"):
        Dicom(path=str(tmp_path), cache=str(tmp_path / "cache")).load(0)
