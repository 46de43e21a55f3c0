"""The datasets against hand-made pictures and BasicSR's own dataset; the field's fixed noise."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from hranet_arch import prepare
from hranet_arch.datasets import GaussianDenoisingDataset, PairedDenoisingDataset
from hranet_arch.errors import InputError
from tests.conftest import make_pictures


def noisy_set(root, **options):
    base = {"name": "set", "phase": "val", "color": "gray", "sigma": 25, "dataroot_gt": str(root)}
    return GaussianDenoisingDataset({**base, **options})


def train_set(root, **options):
    return noisy_set(root, **{"phase": "train", "gt_size": 16, **options})


def paired_set(lq, gt, **options):
    base = {"name": "pairs", "phase": "val", "color": "gray", "dataroot_lq": str(lq), "dataroot_gt": str(gt)}
    return PairedDenoisingDataset({**base, **options})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", 4)


@pytest.fixture(scope="module")
def lmdb(pictures):
    path = pictures.parent / "pictures.lmdb"
    prepare.prepare_lmdb(pictures, path)
    return path


@pytest.mark.parametrize(("color", "code"), [("gray", cv2.COLOR_BGR2GRAY), ("rgb", cv2.COLOR_BGR2RGB)])
def test_a_test_picture_and_its_noise_are_the_fields(pictures, color, code):
    """BT.601 grey or RGB, over 255; noise by NumPy's legacy generator, seeded 0 for each picture, in HWC order."""
    item = noisy_set(pictures, color=color)[2]
    clean = cv2.cvtColor(cv2.imread(str(pictures / "2.png")), code)
    clean = clean[..., None] if clean.ndim == 2 else clean
    np.random.seed(0)
    noisy = clean.astype(np.float32) / 255 + np.random.normal(0, 25 / 255, clean.shape)
    assert torch.equal(item["gt"], torch.from_numpy(clean).permute(2, 0, 1).float() / 255)
    np.testing.assert_allclose(item["lq"].permute(1, 2, 0).numpy(), noisy, atol=1e-6)
    assert item["lq_path"] == str(pictures / "2.png")


def test_the_noise_of_a_test_is_the_same_each_time_and_neither_clipped_nor_rounded(pictures):
    dataset = noisy_set(pictures, sigma=100)
    assert torch.equal(dataset[0]["lq"], dataset[0]["lq"])
    assert dataset[0]["lq"].min() < 0 and dataset[0]["lq"].max() > 1


def test_clip_and_quantize_make_what_an_8_bit_file_holds(pictures):
    plain, file = (
        noisy_set(pictures, sigma=100)[0]["lq"],
        noisy_set(pictures, sigma=100, clip=True, quantize=True)[0]["lq"],
    )
    assert torch.equal(file, (plain.clamp(0, 1) * 255).round() / 255)


def test_training_noise_has_the_sigma_asked_for_and_is_new_each_time(pictures):
    dataset = train_set(pictures, sigma=30, gt_size=32)
    torch.manual_seed(0)
    noise = [item["lq"] - item["gt"] for item in (dataset[0], dataset[0], dataset[0], dataset[0])]
    assert torch.cat(noise).std().item() == pytest.approx(30 / 255, rel=0.05)
    assert not torch.equal(noise[0], noise[1])


def test_blind_training_draws_a_level_for_each_patch(pictures):
    dataset = train_set(pictures, sigma=[0, 55], gt_size=32)
    torch.manual_seed(0)
    levels = [(item["lq"] - item["gt"]).std().item() * 255 for item in (dataset[0] for _ in range(40))]
    assert min(levels) < 10 and max(levels) > 45 and 20 < np.mean(levels) < 35


def test_an_item_says_its_noise_level_in_grey_levels(pictures):
    """A network that takes it is told so. The deviation of 1600 pixels is known to 2 %."""
    assert noisy_set(pictures, sigma=25)[0]["sigma"] == 25
    torch.manual_seed(0)
    for item in (train_set(pictures, sigma=[10, 50], gt_size=40)[i] for i in range(4)):
        assert (item["lq"] - item["gt"]).std().item() * 255 == pytest.approx(item["sigma"].item(), rel=0.1)


def test_patches_are_crops_flips_and_rotations_of_the_picture(tmp_path):
    """Each pixel of a 4x4 picture is its own; a patch of the whole picture is then one of its eight symmetries."""
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    dataset = train_set(tmp_path, gt_size=4, sigma=0)
    symmetries = [np.rot90(p, k) for p in (picture, picture[:, ::-1]) for k in range(4)]
    seen = set()
    for _ in range(200):
        patch = (dataset[0]["gt"][0].numpy() * 255).round().astype(np.uint8)
        seen.add(next(i for i, symmetry in enumerate(symmetries) if np.array_equal(patch, symmetry)))
    assert seen == set(range(8))
    upright = train_set(tmp_path, gt_size=2, sigma=0, use_hflip=False, use_rot=False)
    corners = {int(round(upright[0]["gt"][0, 0, 0].item() * 25.5)) for _ in range(200)}
    assert corners == {0, 1, 2, 4, 5, 6, 8, 9, 10}


@pytest.mark.parametrize(
    ("options", "turns"),
    [
        ({"use_rot": False}, [lambda p: p, lambda p: p[:, ::-1]]),
        ({"use_hflip": False}, [lambda p: p, lambda p: p[::-1], lambda p: p.T, lambda p: p[::-1].T]),
    ],
    ids=["flips", "rotations"],
)
def test_flips_and_rotations_can_be_left_out_each(tmp_path, options, turns):
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    dataset = train_set(tmp_path, gt_size=4, sigma=0, **options)
    patches = ((dataset[0]["gt"][0].numpy() * 255).round().astype(np.uint8) for _ in range(100))
    assert {patch.tobytes() for patch in patches} == {turn(picture).tobytes() for turn in turns}


@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_an_lmdb_gives_what_its_folder_gives(pictures, lmdb, color):
    folder, database = noisy_set(pictures, color=color), noisy_set(lmdb, color=color)
    assert len(folder) == len(database) == 4
    for a, b in zip(folder, database):
        assert torch.equal(a["gt"], b["gt"]) and torch.equal(a["lq"], b["lq"])


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_pictures_keep_their_depth(tmp_path, channels):
    """300/65535 lies between two grey levels of 8 bits."""
    picture = np.full((8, 8, channels), 300, np.uint16)
    (tmp_path / "deep").mkdir()
    cv2.imwrite(str(tmp_path / "deep" / "a.png"), picture)
    prepare.prepare_lmdb(tmp_path / "deep", tmp_path / "deep.lmdb")
    for root in (tmp_path / "deep", tmp_path / "deep.lmdb"):
        gt = noisy_set(root, color="gray" if channels == 1 else "rgb")[0]["gt"]
        assert gt.shape[0] == channels and torch.allclose(gt, torch.full_like(gt, 300 / 65535), atol=1e-8)


def test_cached_pictures_stay_as_they_are(pictures):
    """BasicSR's flips work in place; a cached picture must not be turned with its crop."""
    dataset = train_set(pictures, cache="ram", sigma=0, gt_size=40)
    clean = cv2.cvtColor(cv2.imread(str(pictures / "0.png")), cv2.COLOR_BGR2GRAY)
    for _ in range(10):
        dataset[0]
    assert np.array_equal(dataset.store.cache["0.png"], clean)
    (pictures / "0.png").rename(pictures / "moved")
    try:
        dataset[0]  # from memory
    finally:
        (pictures / "moved").rename(pictures / "0.png")
    pairs = paired_set(pictures, pictures, cache="ram")
    pairs[0]
    assert list(pairs.gt.cache) == list(pairs.lq.cache) == ["0.png"]


def test_a_dataset_that_was_used_goes_to_another_process(lmdb):
    dataset = noisy_set(lmdb)
    first = dataset[0]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0]["lq"], first["lq"])


def test_pairs_are_what_basicsrs_dataset_gives(pictures, tmp_path):
    from basicsr.data import build_dataset

    lq = make_pictures(tmp_path / "lq", 4, seed=5)
    opt = {"name": "a", "type": "PairedImageDataset", "phase": "val", "scale": 1, "io_backend": {"type": "disk"}}
    stock = build_dataset({**opt, "dataroot_lq": str(lq), "dataroot_gt": str(pictures)})
    by_name = {item["gt_path"]: item for item in (stock[i] for i in range(4))}
    for item in (ours := paired_set(lq, pictures, color="rgb"))[0], ours[3]:
        theirs = by_name[item["gt_path"]]
        torch.testing.assert_close(item["lq"], theirs["lq"])
        torch.testing.assert_close(item["gt"], theirs["gt"])


def test_pairs_are_cut_and_turned_alike(pictures):
    dataset = paired_set(pictures, pictures, phase="train", gt_size=16)
    assert all(torch.equal(item["lq"], item["gt"]) for item in (dataset[i % 4] for i in range(20)))


def test_pairs_of_two_sizes_are_cut_at_one_place(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (20, 22, 3), np.uint8)
    for name, image in (("lq", small), ("gt", small.repeat(2, 0).repeat(2, 1))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), image)
    item = paired_set(tmp_path / "lq", tmp_path / "gt", phase="train", gt_size=16, scale=2, color="rgb")[0]
    assert item["lq"].shape == (3, 8, 8)
    assert torch.equal(item["gt"], item["lq"].repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_pairs_from_lmdbs_and_by_template(pictures, lmdb, tmp_path):
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    for i in range(4):
        cv2.imwrite(str(noisy / f"{i}_noisy.bmp"), cv2.imread(str(pictures / f"{i}.png")))
    assert len(paired_set(lmdb, lmdb)) == 4
    item = paired_set(noisy, pictures, filename_tmpl="{}_noisy")[1]
    assert torch.equal(item["lq"], item["gt"]) and item["lq_path"].endswith("1_noisy.bmp")


@pytest.mark.parametrize("template", ["{}_{}", "{0.x}", "{name}", "{"])
def test_templates_that_name_no_picture(template, pictures):
    with pytest.raises(InputError, match="filename_tmpl '.*': must hold {}, for the clean picture's stem"):
        paired_set(pictures, pictures, filename_tmpl=template)


def test_pairs_in_subfolders_by_template(tmp_path):
    make_pictures(tmp_path / "gt/x", 1)
    make_pictures(tmp_path / "lq/x", 1)
    (tmp_path / "lq/x/0.png").rename(tmp_path / "lq/x/0_noisy.png")
    dataset = paired_set(tmp_path / "lq", tmp_path / "gt", filename_tmpl="{}_noisy")
    assert dataset.pairs == [("x/0.png", "x/0_noisy.png")]


def test_pictures_without_a_partner_are_named(pictures, tmp_path):
    lq = make_pictures(tmp_path / "lq", 4)
    (lq / "1.png").rename(lq / "other.png")
    with pytest.raises(InputError, match=r"(?s)1\.png.*other\.png"):
        paired_set(lq, pictures)


def test_noisy_pictures_that_differ_in_suffix_alone_are_refused(pictures, tmp_path):
    lq = make_pictures(tmp_path / "lq", 4)
    cv2.imwrite(str(lq / "1.bmp"), cv2.imread(str(lq / "1.png")))
    with pytest.raises(InputError, match=r"1\.bmp and 1\.png differ in suffix only"):
        paired_set(lq, pictures)


def test_a_list_chooses_from_a_folder_and_never_from_an_lmdb(pictures, lmdb, tmp_path):
    """What it leaves out must not come in by another way: it may hold back validation pictures."""
    listing = tmp_path / "list.txt"
    listing.write_text("2.png (40,44,3)\n\n0.png (40,44,3)\n\n", encoding="utf-8")
    assert noisy_set(pictures, meta_info_file=str(listing)).store.keys == ["2.png", "0.png"]
    pairs = paired_set(pictures, pictures, meta_info_file=str(listing))
    assert [Path(pairs[i]["lq_path"]).name for i in range(len(pairs))] == ["2.png", "0.png"]
    for make in (lambda: noisy_set(lmdb, meta_info_file=str(listing)),
                 lambda: paired_set(lmdb, lmdb, meta_info_file=str(listing))):  # fmt: skip
        with pytest.raises(InputError, match="an LMDB has a list of its own"):
            make()


def test_a_file_of_a_list_that_is_not_there_is_named_before_the_first_picture(pictures, tmp_path):
    (tmp_path / "list.txt").write_text("2.png\n9.png (1,1,3)\n")
    with pytest.raises(InputError, match=r"/9\.png: cannot be read"):
        noisy_set(pictures, meta_info_file=str(tmp_path / "list.txt"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_turned_picture_has_the_size_that_it_is_read_with(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / f"a/x.{suffix}", exif=exif)
    store = noisy_set(tmp_path / "a").store
    assert store.size(f"x.{suffix}") == store.read(f"x.{suffix}").shape[:2]


def test_a_picture_beyond_pillows_limit_has_a_size(pictures, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 44 // 2 - 1)  # twice as many are an error to Pillow
    assert noisy_set(pictures).store.size("0.png") == (40, 44)


def test_pairs_of_unequal_size_are_named(pictures, tmp_path):
    lq = make_pictures(tmp_path / "lq", 4, size=(40, 45))
    with pytest.raises(InputError, match=r"0\.png.*\(40, 44\).*\(40, 45\)"):
        paired_set(lq, pictures)


def test_pictures_smaller_than_the_patch_are_named(pictures, lmdb):
    for root in (pictures, lmdb):
        with pytest.raises(InputError, match=r"4 of 4 pictures are smaller than the patch, 41x41"):
            train_set(root, gt_size=41)
        with pytest.raises(InputError, match="smaller than the patch, 41x41"):
            paired_set(root, root, phase="train", gt_size=41)


def test_a_damaged_picture_is_named(tmp_path):
    make_pictures(tmp_path / "a", 2)
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "a" / "1.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"1\.png: not a picture"):
        noisy_set(tmp_path / "a")[1]


def test_an_empty_or_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        noisy_set(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no pictures"):
        noisy_set(tmp_path)
