"""The bundled sample: photographs that ship with scikit-image, as a training and a validation LMDB. No download."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import cv2

from hranet_arch.errors import InputError
from hranet_arch.images import decode_image
from hranet_arch.prepare import prepare_lmdb

ROOT = "datasets/sample"
SIZE = 256  # of the pictures, which are cut so that reading one at random is quick

# What scikit-image's documentation of `skimage.data` says of each photograph's licence. Left out: moon (blocks of an
# old compression), hubble_deep_field (grain), retina (mostly smooth, larger than all others together), cell and
# microaneurysms (low contrast), and what is no photograph.
TRAINING = {
    "brick.png": "CC0 (cc0textures.com)",
    "coins.png": "no known copyright restrictions (Brooklyn Museum Collection)",
    "grass.png": "CC0 (linolafett, DeviantArt)",
    "gravel.png": "CC0 (cc0textures.com)",
    "ihc.png": "no known copyright restrictions (Center for Microscopy and Molecular Imaging)",
    "motorcycle_left.png": "Middlebury 2014 stereo benchmark, no licence stated",
    "motorcycle_right.png": "Middlebury 2014 stereo benchmark, no licence stated",
    "rocket.jpg": "public domain (SpaceX)",
}
VALIDATION = {
    "astronaut.png": "public domain (NASA)",
    "camera.png": "CC0 (Lav Varshney)",
    "chelsea.png": "CC0 (Stefan van der Walt)",
    "coffee.png": "CC0 (Rachel Michetti)",
}
_TOP_LEFT = {"astronaut.png": (0, 96), "camera.png": (128, 128), "chelsea.png": (22, 97), "coffee.png": (72, 172)}


def prepare_sample(root: str | Path = ROOT, *, overwrite: bool = False) -> dict:
    """Makes ``train.lmdb`` and ``val.lmdb`` under ``root``: sub-pictures of 256 x 256; one of each validation picture.

    Colour and grey are kept as the files have them. The two sets share no photograph.

    Returns:
        ``{'train': summary, 'val': summary}``, each as from ``prepare_lmdb``.

    Raises:
        InputError: if scikit-image or one of the photographs is not installed.
    """
    photographs = _find_photographs()
    with tempfile.TemporaryDirectory() as folder:
        for name, pictures in (("train", TRAINING), ("val", VALIDATION)):
            Path(folder, name).mkdir()
            for file in pictures:
                if name == "train":
                    shutil.copy(photographs / file, Path(folder, name, file))
                else:
                    top, left = _TOP_LEFT[file]
                    picture = decode_image((photographs / file).read_bytes(), file)
                    cut = picture[top : top + SIZE, left : left + SIZE]
                    # Not cv2.imwrite, which ends Python where the path cannot be written in UTF-8.
                    Path(folder, name, file).write_bytes(cv2.imencode(Path(file).suffix, cut)[1])
        train = prepare_lmdb(Path(folder, "train"), Path(root, "train.lmdb"), crop_size=SIZE, overwrite=overwrite)
        val = prepare_lmdb(Path(folder, "val"), Path(root, "val.lmdb"), overwrite=overwrite)
    lines = [f"{file}: {licence}\n" for file, licence in {**TRAINING, **VALIDATION}.items()]
    Path(root, "SOURCES.txt").write_text("Photographs of scikit-image (skimage/data):\n" + "".join(lines))
    return {"train": train, "val": val}


def is_sample_path(path: str | Path) -> bool:
    """Whether ``prepare_sample()`` makes this path; relative paths are of the current folder."""
    return os.path.abspath(path) in {os.path.abspath(Path(ROOT, name)) for name in ("train.lmdb", "val.lmdb")}


def _find_photographs() -> Path:
    cure = "Install a version that has them, in this Python: pip install 'scikit-image==0.26.0'"
    spec = importlib.util.find_spec("skimage")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"scikit-image, whose photographs make the sample, is not installed. {cure}")
    folder = Path(spec.submodule_search_locations[0], "data")
    missing = [name for name in {**TRAINING, **VALIDATION} if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: scikit-image lacks photographs of the sample: {', '.join(missing)}. {cure}")
    return folder
