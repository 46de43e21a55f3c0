"""The bundled sample: the same each time, and nothing of its validation pictures in training."""

import importlib.machinery
import importlib.util
import json
import os
import re

import cv2
import lmdb
import numpy as np
import pytest

from hranet_arch.errors import InputError
from hranet_arch.sample import is_sample_path, prepare_sample


def read_manifest(path):
    return json.loads((path / "manifest.json").read_text())


def read_lmdb(path):
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        items = [(key.decode(), value) for key, value in transaction.cursor()]
    return {key: cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_UNCHANGED) for key, value in items}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    root = tmp_path_factory.mktemp("sample")
    return root, prepare_sample(root)


def find_photograph(name):
    return os.path.join(importlib.util.find_spec("skimage").submodule_search_locations[0], "data", name)


def test_sample_made_twice_is_identical_and_then_unchanged(sample, tmp_path, monkeypatch):
    """The second time by way of a folder whose name cannot be written in UTF-8."""
    root, summaries = sample
    (tmp_path / "l\udcfc").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "l\udcfc"))
    prepare_sample(tmp_path)
    for name in ("train.lmdb", "val.lmdb"):
        for file in ("data.mdb", "meta_info.txt", "manifest.json"):
            assert (root / name / file).read_bytes() == (tmp_path / name / file).read_bytes()
    assert [summary["unchanged"] for summary in summaries.values()] == [False, False]
    assert [summary["unchanged"] for summary in prepare_sample(root).values()] == [True, True]


def test_sample_validation_pictures_are_cut_from_their_photographs(sample):
    pictures = read_lmdb(sample[0] / "val.lmdb")
    assert list(pictures) == ["astronaut", "camera", "chelsea", "coffee"]
    for key, image in pictures.items():
        photograph = cv2.imread(find_photograph(f"{key}.png"), cv2.IMREAD_UNCHANGED)
        scores = cv2.matchTemplate(photograph, image, cv2.TM_SQDIFF)
        top, left = np.unravel_index(scores.argmin(), scores.shape)
        assert np.array_equal(image, photograph[top : top + 256, left : left + 256])


def test_sample_training_and_validation_share_no_photograph(sample):
    train, val = (read_manifest(sample[0] / f"{name}.lmdb")["pictures"] for name in ("train", "val"))
    for of in ("name", "sha256", "key"):
        assert not {record[of] for record in train} & {record[of] for record in val}
    assert {"motorcycle_left.png", "motorcycle_right.png"} <= {record["name"] for record in train}  # near-duplicates


def test_sample_training_pictures_contain_no_validation_picture(sample):
    train, val = read_lmdb(sample[0] / "train.lmdb"), read_lmdb(sample[0] / "val.lmdb")
    assert {image.shape[:2] for image in train.values()} == {(256, 256)}
    for picture in val.values():
        patch = as_gray(picture)[96:160, 96:160]
        # 1 for the same patch, whatever its brightness and contrast; large smooth shapes alone come to 0.83
        assert cv2.matchTemplate(as_gray(picture), patch, cv2.TM_CCOEFF_NORMED).max() > 0.99
        assert max(cv2.matchTemplate(as_gray(p), patch, cv2.TM_CCOEFF_NORMED).max() for p in train.values()) < 0.95


def as_gray(image):
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def test_sample_names_source_and_licence_of_every_photograph(sample):
    text = (sample[0] / "SOURCES.txt").read_text()
    names = [r["name"] for n in ("train", "val") for r in read_manifest(sample[0] / f"{n}.lmdb")["pictures"]]
    assert "scikit-image" in text and len(names) == 12
    assert all(re.search(rf"^{name}: \w", text, re.MULTILINE) for name in names)


def test_photographs_that_are_not_installed_are_named(tmp_path, monkeypatch):
    (tmp_path / "skimage" / "data").mkdir(parents=True)
    (tmp_path / "skimage" / "data" / "camera.png").touch()
    spec = importlib.machinery.ModuleSpec("skimage", None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path / "skimage"))
    for found, message in ((spec, r"photographs .*coffee.png.* pip install 'scikit-image"), (None, "not installed")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(InputError, match=message) as error:
            prepare_sample(tmp_path / "out")
        assert "camera.png" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_is_sample_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_sample_path("datasets/sample/train.lmdb")
    assert is_sample_path("./datasets/sample/val.lmdb/")
    assert is_sample_path(tmp_path / "datasets" / "sample" / "val.lmdb")
    assert not is_sample_path("datasets/sample")
    assert not is_sample_path("datasets/other/train.lmdb")
    assert not is_sample_path("elsewhere/datasets/sample/train.lmdb")
