"""Does a training set hold test pictures? Copies, crops, and mirrored, turned, rescaled or re-encoded ones are found.

Equal pixels are found by hash, the rest by SIFT features: each one of a training picture, as it is and mirrored, is
paired with the nearest one of each test set. A pair fixes a shift, turn and scale. Those that most pairs agree on are
tried: what both pictures would share is correlated, after a band-pass and local contrast normalisation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from hranet_arch.errors import InputError
from hranet_arch.images import decode_image, list_databases, list_pictures
from hranet_arch.lmdb_reader import open_lmdb, read_meta_info, read_value
from hranet_arch.testsets import hash_bytes, map_in_threads

LARGEST = 1024  # pixels of the longer side; larger pictures are compared at this size
LARGEST_SCALE = 4.0  # of one picture to the other
# What the thresholds rest on: 907 crops and copies of pictures of BSD68 and Set12, and 302 pictures of BSD400, CBSD432
# and Kodak24 against 123 test pictures.
SMALLEST = 2000  # pixels that both show, counted in the coarser one; twice that where fewer than three features agree
TEXTURE = 1.5  # grey levels by which those must vary: in nothing, everything is alike
SIMILARITY = 0.85  # their correlation; copies had 0.86 and more, other pictures 0.61 and less
MANY = 12  # features that agree; other pictures had 6 at most
LOWER_SIMILARITY = 0.5  # where so many agree: another scan of the same photograph, say
_NEAREST = 0.8  # cosine of two descriptors that may be of the same spot
_TRIALS = 5  # of placements, for each training picture and test set
_MIRROR = np.arange(128).reshape(4, 4, 8)[::-1, :, [0, 7, 6, 5, 4, 3, 2, 1]].ravel()  # SIFT of the picture mirrored


@dataclass(frozen=True)
class Overlap:
    """A training picture that shows something a test picture shows; ``similarity`` is the correlation of that."""

    training: str
    test_set: str
    test: str
    kind: str  # what of the test picture the training picture holds, and how it was changed
    similarity: float


def find_test_pictures(training: Iterable[str | Path], testsets: Mapping[str, Sequence[str | Path]]) -> list[Overlap]:
    """Finds training pictures that are, hold, or are cut from a test picture.

    Sure for parts of about 100 x 100 pixels of a test picture and more, if they show something: sky cannot be told
    from sky. Pictures of a training set that are smaller than 45 x 45 pixels are passed over.

    Args:
        training: picture files, folders of pictures, LMDB folders.
        testsets: files of each test set, by its name.

    Returns:
        An entry for each training picture and test picture that overlap, in the order of the training pictures.

    Raises:
        InputError: for folders that are missing and pictures that cannot be read.
    """
    items = list(_list_training(training))
    for path in {path for _, path, key in items if key is not None}:
        open_lmdb(path)  # before there are threads: two that open one at once are refused
    indices = [_Index(name, [Path(path) for path in paths]) for name, paths in testsets.items()]

    def compare(item: tuple[str, Path, str | None]) -> list[Overlap]:
        label, path, key = item
        data = path.read_bytes() if key is None else read_value(open_lmdb(path), key, str(path))
        value, picture = hash_bytes(data, label), _Picture(data, label)
        features = picture.find_features(128)
        return [overlap for index in indices for overlap in index.find(label, value, picture, features)]

    return [overlap for found in map_in_threads(compare, items, "comparing") for overlap in found]


def refuse_test_pictures(training: Iterable[str | Path], testsets: Mapping[str, Sequence[str | Path]]) -> None:
    """Raises an ``InputError`` that names each training picture that overlaps with a test picture, if any does."""
    overlaps = find_test_pictures(training, testsets)
    if overlaps:
        lines = "".join(f"\n  {o.training}: {o.test_set}/{Path(o.test).name} ({o.kind})" for o in overlaps)
        raise InputError(f"The training set holds test pictures. Leave them out, or do not test on these:{lines}")


def _list_training(paths: Iterable[str | Path]) -> Iterator[tuple[str, Path, str | None]]:
    """What to call a picture, its file or LMDB, and its key there."""
    for path in map(Path, paths):
        if (path / "data.mdb").is_file():
            for key in read_meta_info(path):
                yield f"{path}: {key}", path, key
        elif path.is_file():
            yield str(path), path, None
        else:
            files, databases = list_pictures(path), list_databases(path)
            if not files and not databases:
                raise InputError(f"{path}: holds no pictures and no LMDBs, so nothing could be compared.")
            yield from ((str(file), file, None) for file in files)
            yield from _list_training(databases)


# --- features ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Features:
    """SIFT features: place ``x + iy``; size and direction as one complex number; descriptors of length 1."""

    places: np.ndarray
    frames: np.ndarray
    descriptors: np.ndarray


class _Picture:
    """A picture in grey, 8 bits, not larger than LARGEST; ``scale`` is by what it was made smaller."""

    def __init__(self, data: bytes, name: str) -> None:
        image = decode_image(data, name, "gray")
        if image.dtype != np.uint8:
            image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
        self.scale = min(1.0, LARGEST / max(image.shape))
        if self.scale < 1:
            size = [max(round(side * self.scale), 1) for side in image.shape[::-1]]
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        self.image = image

    def find_features(self, limit: int) -> _Features:
        """At most ``limit``, the strongest of each cell of 32 x 32 pixels first, so that all parts have some."""
        keypoints, descriptors = cv2.SIFT_create(contrastThreshold=0.01).detectAndCompute(self.image, None)
        if descriptors is None:
            return _Features(np.zeros(0, complex), np.zeros(0, complex), np.zeros((0, 128), np.float32))
        places = np.array([complex(*keypoint.pt) for keypoint in keypoints])
        frames = np.array([k.size * np.exp(1j * math.radians(k.angle)) for k in keypoints])
        cells, ranks = Counter(), np.zeros(len(keypoints), int)
        for i in np.argsort([-keypoint.response for keypoint in keypoints], kind="stable"):
            cell = places[i].real // 32, places[i].imag // 32
            ranks[i] = cells[cell]
            cells[cell] += 1
        kept = np.argsort(ranks, kind="stable")[:limit]
        weights = descriptors[kept] / np.maximum(descriptors[kept].sum(1, keepdims=True), 1e-6)
        return _Features(places[kept], frames[kept], np.sqrt(weights))  # "RootSIFT", Arandjelovic and Zisserman 2012


class _Index:
    """The features of a test set, their descriptors projected to the 32 directions in which they vary most."""

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        if not paths:
            raise InputError(f"{name}: has no pictures. Give the files of the test set.")
        self.name, self.paths = name, paths
        contents = [path.read_bytes() for path in paths]
        self.hashes = [hash_bytes(data, str(path)) for data, path in zip(contents, paths)]
        self.pictures = [_Picture(data, str(path)) for data, path in zip(contents, paths)]
        features = map_in_threads(lambda p: p.find_features(max(500, p.image.size // 100)), self.pictures, name)
        self.owners = np.repeat(np.arange(len(paths)), [len(one.places) for one in features])
        self.places = np.concatenate([one.places for one in features])
        self.frames = np.concatenate([one.frames for one in features])
        descriptors = np.concatenate([one.descriptors for one in features])
        self.mean = descriptors.mean(0) if len(descriptors) else np.zeros(128, np.float32)
        sample = descriptors[:: len(descriptors) // 20000 + 1] - self.mean
        self.directions = np.linalg.svd(sample, full_matrices=False)[2][:32].T
        self.descriptors = self.project(descriptors)

    def project(self, descriptors: np.ndarray) -> np.ndarray:
        short = (descriptors - self.mean) @ self.directions
        return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-6)

    def find(self, label: str, value: str, picture: _Picture, features: _Features) -> list[Overlap]:
        """The overlaps of one training picture, at most one with each test picture."""
        best = {n: Overlap(label, self.name, str(self.paths[n]), "all, the same pixels", 1.0)
                for n, other in enumerate(self.hashes) if other == value}  # fmt: skip
        trials = [t for is_mirrored in (False, True) for t in self.list_placements(features, is_mirrored)]
        for votes, n, placements, is_mirrored in sorted(trials, key=lambda trial: -trial[0])[:_TRIALS]:
            for placement in placements:
                shift = _Placement(*placement, is_mirrored)
                smallest = SMALLEST if votes >= 3 else 2 * SMALLEST
                similarity, share = _compare(picture.image, self.pictures[n].image, shift, smallest)
                needed = SIMILARITY if votes < MANY else LOWER_SIMILARITY
                if similarity > max(needed, best[n].similarity if n in best else 0):
                    kind = _describe(shift, share, self.pictures[n].scale / picture.scale)
                    best[n] = Overlap(label, self.name, str(self.paths[n]), kind, similarity)
        return list(best.values())

    def list_placements(self, features: _Features, is_mirrored: bool) -> list[tuple]:
        """For each test picture with near features: votes, its number, placements worth a trial, ``is_mirrored``."""
        places, frames, descriptors = features.places, features.frames, features.descriptors
        if is_mirrored:
            places, frames, descriptors = np.conj(places), np.conj(frames), descriptors[:, _MIRROR]
        nearest, cosines = _find_nearest(self.project(descriptors), self.descriptors)
        trials = []
        for n in np.unique(self.owners[nearest[cosines > _NEAREST]]):
            chosen = (cosines > _NEAREST) & (self.owners[nearest] == n)
            z, t = places[chosen], self.places[nearest[chosen]]
            a = self.frames[nearest[chosen]] / frames[chosen]  # t = a z + b
            b = t - a * z
            errors = np.abs(a[:, None] * z + b[:, None] - t)
            agree = errors < (3 + 0.05 * np.abs(z - z[:, None])) * np.maximum(1, np.abs(a))[:, None]
            votes = agree.sum(1) + cosines[chosen] / 2
            k = int(votes.argmax())
            fitted = _fit(z, t, agree[k], a[k], b[k])
            trials.append((votes[k], n, [fitted, *_straighten(z, t, *fitted)], is_mirrored))
        return trials


def _find_nearest(queries: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index and cosine of the most similar row of ``base``, by blocks that stay in the processor's cache."""
    nearest, cosines = np.zeros(len(queries), int), np.full(len(queries), -1, np.float32)
    rows = np.arange(len(queries))
    for begin in range(0, len(base), 1024):
        products = queries @ base[begin : begin + 1024].T
        columns = products.argmax(1)
        is_nearer = products[rows, columns] > cosines
        nearest[is_nearer] = begin + columns[is_nearer]
        cosines[is_nearer] = products[rows, columns][is_nearer]
    return nearest, cosines


# --- placements -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Placement:
    """Training place z -> test place ``a z + b``; of a mirrored picture, z is the conjugate (top and bottom change)."""

    a: complex
    b: complex
    is_mirrored: bool

    @property
    def matrix(self) -> np.ndarray:
        turn = np.array([[self.a.real, -self.a.imag], [self.a.imag, self.a.real]])
        return np.c_[turn @ np.diag([1, -1]) if self.is_mirrored else turn, [self.b.real, self.b.imag]]


def _fit(z: np.ndarray, t: np.ndarray, agree: np.ndarray, a: complex, b: complex) -> tuple[complex, complex]:
    """Least squares over the pairs that agree, then over those that lie ever nearer to what has been fitted."""
    for tolerance in (8, 4, 2, 2):
        centred = z[agree] - z[agree].mean()
        if np.abs(centred).max() < 4:  # one place, which tells no scale
            break
        a = np.vdot(centred, t[agree] - t[agree].mean()) / np.vdot(centred, centred)
        b = t[agree].mean() - a * z[agree].mean()
        agree = np.abs(a * z + b - t) < tolerance * max(1, abs(a))
        if agree.sum() < 2:
            break
    return a, b


def _straighten(z: np.ndarray, t: np.ndarray, a: complex, b: complex) -> list[tuple[complex, complex]]:
    """The placement turned by a whole number of right angles, if it nearly is: one pair's angle is not exact."""
    right = 1j ** round(np.angle(a) / (math.pi / 2))
    near = np.abs(a * z + b - t) < 6 * max(1, abs(a))
    if abs(np.angle(a / right)) > math.radians(6) or not near.any():
        return []
    rest = (t - abs(a) * right * z)[near]
    return [(abs(a) * right, complex(np.median(rest.real), np.median(rest.imag)))]


def _compare(training: np.ndarray, test: np.ndarray, placement: _Placement, smallest: int) -> tuple[float, float]:
    """Correlation of what two pictures share (0 if that is too little), and the share of the test picture."""
    scale, matrix = abs(placement.a), placement.matrix
    if not 1 / LARGEST_SCALE < scale < LARGEST_SCALE:
        return 0.0, 0.0
    source, target = test, training
    if scale < 1:  # the training picture is the finer one: compared in the coarser one's pixels
        source, target, matrix, scale = training, test, cv2.invertAffineTransform(matrix), 1 / scale
    if scale > 1.05:
        source = cv2.GaussianBlur(source, (0, 0), 0.5 * math.sqrt(scale**2 - 1))
    size = target.shape[::-1]
    flags = cv2.WARP_INVERSE_MAP
    inside = cv2.warpAffine(np.ones_like(source), matrix, size, flags=flags | cv2.INTER_NEAREST) > 0
    if inside.sum() < smallest:
        return 0.0, 0.0
    moved = cv2.warpAffine(source, matrix, size, flags=flags | cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    box = np.ix_(inside.any(1), inside.any(0))
    (one, texture), (other, other_texture) = (_normalize(image[box], inside[box]) for image in (moved, target))
    if min(texture, other_texture) < TEXTURE:
        return 0.0, 0.0
    similarity = float(np.corrcoef(one, other)[0, 1])
    test_area = test.size if target is test else test.size / scale**2
    return similarity, inside.sum() / test_area


def _normalize(image: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, float]:
    """Band-pass, divided by its local strength so that not one strong edge decides; and the strength of it all."""
    image = image.astype(np.float32)
    band = cv2.GaussianBlur(image, (0, 0), 1.5) - cv2.GaussianBlur(image, (0, 0), 6)
    local = np.sqrt(cv2.GaussianBlur(band * band, (0, 0), 6))
    return (band / (local + 2))[inside], float(band[inside].std())  # 2 grey levels are noise


def _describe(placement: _Placement, share: float, scale: float) -> str:
    """In words: how much of the test picture it holds, and what was done to that; turns are counter-clockwise."""
    words = ["all" if share > 0.97 else f"{share:.0%}"]
    degrees = math.degrees(np.angle(placement.a)) + 180 * placement.is_mirrored  # mirrored: left and right
    turned = round(degrees) % 360
    size = scale / abs(placement.a)
    if placement.is_mirrored:
        words.append("mirrored")
    if 1 < turned < 359:
        words.append(f"turned by {turned} degrees")
    if abs(size - 1) > 0.02:
        words.append(f"{size:.2f} times as large")
    return ", ".join(words)
