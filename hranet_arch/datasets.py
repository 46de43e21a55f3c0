"""Training and test sets: clean pictures made bad on the fly, by noise or otherwise, and pairs of bad and clean ones.

All read a folder of files or an LMDB in BasicSR's layout, grey or colour, 8- or 16-bit, through BasicSR's
``FileClient``; all give ``lq``, ``gt`` (RGB or grey tensors ``(c, h, w)`` in [0, 1]) and their paths.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hranet_arch.compat import apply_fixes

apply_fixes()

from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import FileClient

from hranet_arch import noise
from hranet_arch.degradations import Degradations
from hranet_arch.errors import InputError
from hranet_arch.images import SUFFIXES, decode_image, list_pictures, to_float, to_planes, to_tensor
from hranet_arch.lmdb_reader import open_lmdb, read_meta_info


class PictureStore:
    """The pictures of one folder or LMDB: their keys, in order, and each as a float array.

    Args:
        root: a folder, or an LMDB folder ending in ``.lmdb``.
        color: ``'gray'``, ``'rgb'`` or ``'y'``: what a picture is read as (``images.decode_image``).
        cache: ``'ram'`` keeps the decoded pictures (in their own depth) in memory, in each worker process.
        meta_info_file: BasicSR's list of files (first word of each line), for a folder alone.

    Raises:
        InputError: if the folder, the LMDB or its list is missing, broken or empty; for a list of an LMDB's pictures.
    """

    def __init__(self, root: str, color: str, cache: str | None = None, meta_info_file: str | None = None) -> None:
        self.root = root
        self.color = color
        self.cache: dict[str, np.ndarray] | None = {} if cache == "ram" else None
        self.is_lmdb = str(root).endswith(".lmdb")
        self._client: FileClient | None = None
        self.sizes: dict[str, tuple[int, int]] = {}
        if self.is_lmdb:
            if meta_info_file:
                raise InputError(f"{root}: meta_info_file chooses from a folder; an LMDB has a list of its own.")
            open_lmdb(root)
            self.sizes = read_meta_info(root)
            self.keys = list(self.sizes)
        elif meta_info_file:
            lines = Path(meta_info_file).read_text(encoding="utf-8").splitlines()
            self.keys = [line.split(" ")[0] for line in lines if line.strip()]
        else:
            self.keys = sorted(path.relative_to(root).as_posix() for path in list_pictures(Path(root)))
        if not self.keys:
            raise InputError(f"{root}: no pictures there (looked for {', '.join(SUFFIXES)}).")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_client": None}  # an open LMDB cannot go to another process

    def read(self, key: str) -> np.ndarray:
        """Returns float32 ``(h, w, 1)`` or BGR ``(h, w, 3)`` in [0, 1]; a new array each time."""
        image = self.cache.get(key) if self.cache is not None else None
        if image is None:
            image = self.decode(key)
            if self.cache is not None:
                self.cache[key] = image
        image = to_float(image, self.path(key))
        return image[..., None] if image.ndim == 2 else image

    def decode(self, key: str) -> np.ndarray:
        """Returns the picture in its own depth, ``(h, w)`` or BGR ``(h, w, 3)``; never from the cache."""
        return decode_image(self._read_bytes(key), self.path(key), self.color)

    def _read_bytes(self, key: str) -> bytes:
        if self._client is None:
            kwargs = {"db_paths": self.root, "client_keys": "pictures"} if self.is_lmdb else {}
            self._client = FileClient("lmdb" if self.is_lmdb else "disk", **kwargs)
        try:
            return self._client.get(key if self.is_lmdb else self.path(key), "pictures")
        except OSError as error:
            raise InputError(f"{self.path(key)}: cannot be read ({error.strerror}).") from error

    def path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def size(self, key: str) -> tuple[int, int]:
        """Height and width, from the LMDB's list or the file's header.

        Only a picture that EXIF turns, or that Pillow cannot read, is decoded for it.
        """
        if key not in self.sizes:
            from PIL import ExifTags, Image

            try:
                with Image.open(self.path(key)) as image:
                    # Pillow would decode a whole PNG in search of what stands before its pixels, if anywhere.
                    has_exif = image.format != "PNG" or "exif" in image.info
                    is_turned = has_exif and image.getexif().get(ExifTags.Base.Orientation, 1) != 1  # as OpenCV does
                    size = image.size[::-1]
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                is_turned = True  # a format that only OpenCV knows, a size beyond Pillow's limit, or a clear error
            self.sizes[key] = self.decode(key).shape[:2] if is_turned else size
        return self.sizes[key]

    def require_headers(self) -> None:
        """Raises InputError for a picture that is not there or no picture: now, not when its turn comes."""
        for key in self.keys:
            self.size(key)

    def require_size(self, side: int, what: str = "the patch", cure: str = "Remove them, or lower gt_size.") -> None:
        """Raises InputError, naming the pictures, where any is smaller than what is to be cut from it."""
        small = [f"{key} {self.size(key)}" for key in self.keys if min(self.size(key)) < side]
        if small:
            raise InputError(
                f"{self.root}: {len(small)} of {len(self.keys)} pictures are smaller than {what}, {side}x{side}: "
                f"{_some(small)}. {cure}"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class GaussianDenoisingDataset(Dataset):
    """Clean pictures with additive white Gaussian noise (claims 1 and 2 of the source).

    For training: random crops, flips and rotations, new noise each time, from torch's generator. For validation and
    test: whole pictures with the field's fixed noise (``noise.add_test_noise``), the same at every visit. An item also
    has its noise level, ``sigma`` in grey levels.

    Args:
        opt: ``name``, ``phase``, ``dataroot_gt`` (folder or ``.lmdb``), ``sigma`` in grey levels (a number, or
            ``[lowest, highest]`` to draw from in training), ``color`` (``gray`` or ``rgb``), ``clip`` and
            ``quantize`` (make the noisy picture fit an 8-bit file), ``cache`` (``ram``), ``meta_info_file``; for
            training ``gt_size``, ``use_hflip``, ``use_rot``, and ``degrade_on``: ``loader`` makes samples one by one,
            here; ``device`` makes whole batches, in ``device_batches``, and this class only finds the pictures.
    """

    def __init__(self, opt: dict) -> None:
        self.opt = opt
        self.is_train = opt["phase"] == "train"
        self.store = PictureStore(opt["dataroot_gt"], opt["color"], opt.get("cache"), opt.get("meta_info_file"))
        if self.is_train:
            self.store.require_size(opt["gt_size"])
        else:
            self.store.require_headers()

    def __len__(self) -> int:
        return len(self.store.keys)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        key = self.store.keys[index]
        image = self.store.read(key)
        if self.is_train:
            image = _crop_and_augment([image], self.opt, 1, self.store.path(key))[0]
            gt = to_tensor(image)
            sigma = self.opt["sigma"]
            level = noise.draw_sigma(sigma) if isinstance(sigma, (list, tuple)) else sigma
            lq = noise.add_gaussian_noise(gt, level)
        else:
            gt = to_tensor(image)
            # The field draws the noise in HWC order; grey has one channel, so (h, w, 1) and (h, w) draw alike.
            level = self.opt["sigma"]
            noisy = noise.add_test_noise(gt.permute(1, 2, 0).numpy(), level)
            lq = torch.from_numpy(noisy).permute(2, 0, 1).contiguous()
        if self.opt.get("clip"):
            lq = lq.clamp(0, 1)
        if self.opt.get("quantize"):
            lq = noise.quantize(lq)
        path = self.store.path(key)
        return {"lq": lq, "gt": gt, "sigma": torch.tensor(float(level)), "lq_path": path, "gt_path": path}


class DegradationDataset(Dataset):
    """Clean pictures that go through the steps of ``degradations``: for super-resolution, JPEG, the noise of sensors.

    For training: random crops, flips and rotations, then the steps. A crop is taken with the ``margin`` that the steps
    ask for, so that what is inside is as if the whole picture had gone through them (but JPEG's blocks, which start at
    the crop's corner). For validation and test: whole pictures, cut to a multiple of the scale, with the same random
    numbers for each (NumPy's legacy generator, seed 0).

    Args:
        opt: ``name``, ``phase``, ``dataroot_gt`` (folder or ``.lmdb``), ``degradations`` (see ``degradations.py``),
            ``color`` (``gray``, ``rgb``, or ``y`` for the luma), ``cache`` (``ram``), ``meta_info_file``; for training
            ``gt_size`` (of the clean patch, a multiple of the scale), ``use_hflip``, ``use_rot``.
    """

    def __init__(self, opt: dict) -> None:
        self.opt = opt
        self.is_train = opt["phase"] == "train"
        self.store = PictureStore(opt["dataroot_gt"], opt["color"], opt.get("cache"), opt.get("meta_info_file"))
        self.degradations = Degradations(opt["degradations"])
        self.margin = self.degradations.margin if self.is_train else 0
        if self.is_train:
            self.crop_opt = {**opt, "gt_size": opt["gt_size"] + 2 * self.margin}
            margin = f" with the margin of {self.margin} that its degradations need" if self.margin else ""
            self.store.require_size(self.crop_opt["gt_size"], f"the patch{margin}")
        else:
            scale = self.degradations.scale
            self.store.require_size(scale, f"one pixel made {scale} times smaller", "Remove them.")

    def __len__(self) -> int:
        return len(self.store.keys)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        key, scale = self.store.keys[index], self.degradations.scale
        gt = self.store.read(key)
        if self.is_train:
            gt = _crop_and_augment([gt], self.crop_opt, 1, self.store.path(key))[0]
            random = np.random.default_rng(torch.randint(2**62, ()).item())
        else:
            gt = gt[: gt.shape[0] // scale * scale, : gt.shape[1] // scale * scale]
            random = np.random.RandomState(0)
        gt = gt[..., ::-1]  # RGB
        lq = self.degradations(gt, random)
        path = self.store.path(key)
        gt, lq = _cut_border(gt, self.margin), _cut_border(lq, self.margin // scale)
        return {"lq": to_planes(lq), "gt": to_planes(gt), "lq_path": path, "gt_path": path}


def _cut_border(image: np.ndarray, width: int) -> np.ndarray:
    return image[width : image.shape[0] - width, width : image.shape[1] - width]


class PairedDenoisingDataset(Dataset):
    """Noisy and clean pictures of the same scenes: BasicSR's ``PairedImageDataset``, in grey and 16-bit too.

    Args:
        opt: ``name``, ``phase``, ``dataroot_lq``, ``dataroot_gt`` (two folders or two ``.lmdb``), ``color``
            (``gray`` or ``rgb``), ``filename_tmpl`` (how a noisy picture is named after the clean one's name without
            suffix, default ``'{}'``), ``cache`` (``ram``), ``meta_info_file`` (of clean pictures); for training
            ``gt_size``, ``use_hflip``, ``use_rot``.

    Raises:
        InputError: names the pictures that have no partner or another size.
    """

    def __init__(self, opt: dict) -> None:
        self.opt = opt
        self.is_train = opt["phase"] == "train"
        self.scale = opt.get("scale", 1)
        listing = opt.get("meta_info_file")
        self.gt = PictureStore(opt["dataroot_gt"], opt["color"], opt.get("cache"), listing)
        self.lq = PictureStore(opt["dataroot_lq"], opt["color"], opt.get("cache"))
        self.pairs = self._pair(opt.get("filename_tmpl", "{}"))
        self._require_equal_sizes()
        if self.is_train:
            self.gt.require_size(opt["gt_size"])

    def _pair(self, template: str) -> list[tuple[str, str]]:
        """Pairs by name, whatever the suffix and never by position."""
        lq_keys: dict[str, str] = {}
        for key in self.lq.keys:
            if (first := lq_keys.setdefault(_stem(key), key)) != key:
                raise InputError(f"{self.lq.root}: {first} and {key} differ in suffix only. Keep one of them.")
        partners = {key: lq_keys.pop(_noisy_stem(template, key), None) for key in self.gt.keys}
        missing = [key for key, partner in partners.items() if partner is None]
        if missing or (lq_keys and not self.opt.get("meta_info_file")):  # a list leaves noisy pictures over
            raise InputError(
                f"{self.opt['name']}: pictures without a partner: {len(missing)} in {self.gt.root} "
                f"({_some(missing)}), {len(lq_keys)} in {self.lq.root} ({_some(list(lq_keys.values()))}). "
                "Pairs have equal names (see filename_tmpl)."
            )
        return list(partners.items())

    def _require_equal_sizes(self) -> None:
        wrong = [
            f"{gt} {self.gt.size(gt)} and {self.lq.size(lq)}"
            for gt, lq in self.pairs
            if self.gt.size(gt) != tuple(size * self.scale for size in self.lq.size(lq))
        ]
        if wrong:
            raise InputError(f"{self.opt['name']}: pairs whose sizes do not fit (scale {self.scale}): {_some(wrong)}.")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        gt_key, lq_key = self.pairs[index]
        gt, lq = self.gt.read(gt_key), self.lq.read(lq_key)
        if self.is_train:
            gt, lq = _crop_and_augment([gt, lq], self.opt, self.scale, self.gt.path(gt_key))
        return {
            "lq": to_tensor(lq),
            "gt": to_tensor(gt),
            "lq_path": self.lq.path(lq_key),
            "gt_path": self.gt.path(gt_key),
        }


def _stem(key: str) -> str:
    return str(Path(key).with_suffix(""))


def _noisy_stem(template: str, key: str) -> str:
    path = Path(key)
    try:
        return str(path.with_name(template.format(path.stem)))
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise InputError(f"filename_tmpl {template!r}: must hold {{}}, for the clean picture's stem.") from error


def _crop_and_augment(images: list[np.ndarray], opt: dict, scale: int, name: str) -> list[np.ndarray]:
    """Random crop, flip and rotation (claim 2) of a clean picture, or of a clean and a noisy one alike."""
    gt, lq = paired_random_crop(images[0], images[-1], opt["gt_size"], scale, name)
    crops = [gt, lq][: len(images)]
    # BasicSR flips in place: a copy keeps it away from the picture, and makes the crop contiguous as OpenCV asks.
    crops = augment([crop.copy() for crop in crops], opt.get("use_hflip", True), opt.get("use_rot", True))
    return crops if isinstance(crops, list) else [crops]
