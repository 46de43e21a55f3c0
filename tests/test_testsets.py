"""Benchmark sets are recognised by pixels or names, laid out, and found again in a training set, however changed."""

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from hranet_arch import images, overlaps, testsets
from hranet_arch.errors import InputError
from hranet_arch.noise import add_test_noise
from hranet_arch.prepare import prepare_lmdb
from hranet_arch.testsets import KnownSet
from tests.conftest import REPOSITORY, run_cli

DATASETS = REPOSITORY.parent / "shared" / "datasets"
needs_shared = pytest.mark.skipif(not DATASETS.is_dir(), reason="needs the pictures in ../shared/datasets")


def make_scene(seed: int, size: tuple[int, int] = (200, 260)) -> np.ndarray:
    """A grey picture with structure at all scales, as photographs have: noise of six octaves."""
    rng = np.random.default_rng(seed)
    scene = np.zeros(size)
    for octave in range(6):
        cells = rng.standard_normal((3 * 2**octave, 4 * 2**octave))
        scene += cv2.resize(cells, size[::-1], interpolation=cv2.INTER_CUBIC) / 1.6**octave
    return np.uint8(np.clip(128 + 45 * scene, 0, 255))


def write(path, picture, *options):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture, list(options))
    return path


@pytest.fixture
def scenes():
    return {f"p{i}": make_scene(i, (60, 80)) for i in range(4)}


@pytest.fixture
def catalogue(scenes, tmp_path):
    """Four sets: one known by its pixels, two by name, and a larger version of one of these."""
    hashes = {name: testsets.hash_picture(write(tmp_path / "hash.png", scene)) for name, scene in scenes.items()}
    (tmp_path / "hash.png").unlink()
    here = {"source": "https://example.org", "licence": "free"}
    return [
        KnownSet("Four", 4, **here, pictures=hashes, sizes=[[80, 60]]),
        KnownSet("Cut", 3, **here, pictures={}, sizes=[[50, 50]], pattern=r"(?:k)?0*(\d+)"),
        KnownSet("Whole", 3, **here, pictures={}, sizes=[[70, 50]], pattern=r"(?:k)?0*(\d+)"),
        KnownSet("Big", 2, **here, pictures={}, longest_side=[90, 200], pattern=r"img_(\d+)(?:_HR)?"),
    ]


def states(found):
    return {one.name: (one.status, sorted(one.files), one.missing) for one in found}


# --- hashes -----------------------------------------------------------------------------------------------------------


def test_hash_of_a_picture_is_of_its_pixels(tmp_path):
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
    by_hand = hashlib.sha256(b"(2, 3) uint8\n" + bytes(range(6))).hexdigest()
    assert testsets.hash_picture(write(tmp_path / "a.png", gray)) == by_hand
    assert testsets.hash_picture(write(tmp_path / "b.png", gray, cv2.IMWRITE_PNG_COMPRESSION, 0)) == by_hand
    assert testsets.hash_picture(write(tmp_path / "c.bmp", np.dstack([gray] * 3))) == by_hand  # grey as three channels

    bgr = np.dstack([gray, gray + 10, gray + 20])
    rgb = b"(2, 3, 3) uint8\n" + bgr[..., ::-1].tobytes()
    assert testsets.hash_picture(write(tmp_path / "d.png", bgr)) == hashlib.sha256(rgb).hexdigest()
    assert testsets.hash_picture(write(tmp_path / "e.png", gray.astype(np.uint16))) != by_hand


def test_hash_of_a_set_is_of_its_pictures_not_of_names_or_order(tmp_path):
    a = write(tmp_path / "a.png", make_scene(0, (20, 30)))
    b = write(tmp_path / "b.png", make_scene(1, (20, 30)))
    lines = sorted(testsets.hash_picture(path) + "\n" for path in (a, b))
    assert testsets.hash_set([a, b]) == testsets.hash_set([b, a]) == hashlib.sha256("".join(lines).encode()).hexdigest()
    renamed = shutil.copy(a, tmp_path / "c.png")
    assert testsets.hash_set([b, renamed]) == testsets.hash_set([a, b]) != testsets.hash_set([a, a])


def test_the_catalogue_is_whole():
    catalogue = {known.name: known for known in testsets.read_catalogue()}
    counts = {"Set12": 12, "BSD68": 68, "CBSD68": 68, "McMaster": 18, "Urban100": 100}
    counts |= {"Kodak24": 24, "Kodak24-full": 24, "LIVE1": 29, "classic5": 5}
    counts |= {f"Set{n}/x{x}/{side}": n for n in (5, 14) for x in (2, 3, 4) for side in ("gt", "lq")}
    assert {name: known.count for name, known in catalogue.items()} == counts
    for known in catalogue.values():
        assert known.source.startswith("http") and known.licence
        assert [bool(known.pictures), bool(known.pattern), bool(known.stems)].count(True) == 1
        assert len(set(known.stems)) == len(known.stems) in (0, known.count)
        if known.pictures:
            assert len(known.pictures) == known.count
            lines = "".join(f"{value}\n" for value in sorted(known.pictures.values()))
            assert known.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert catalogue["Kodak24"].sizes == [[500, 500]] and catalogue["Kodak24-full"].sizes == [[512, 768]]


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_set_is_found_by_its_pixels_under_any_name(tmp_path, scenes, catalogue):
    for i, scene in enumerate(scenes.values()):
        write(tmp_path / f"deep/down/other{i}.bmp", scene)
    write(tmp_path / "deep/down/stranger.png", make_scene(9, (60, 80)))
    (found,) = testsets.find_testsets(tmp_path, catalogue)
    assert (found.name, found.status, found.missing) == ("Four", "exact", [])
    assert {stem: path.name for stem, path in found.files.items()} == {f"p{i}": f"other{i}.bmp" for i in range(4)}


def test_a_set_is_found_by_its_stems_although_another_has_its_pixels(tmp_path, scenes, catalogue):
    """classic5's Lena is Set12's too; a picture that is missing is named."""
    for name, scene in (("lena", scenes["p0"]), ("boats", make_scene(8, (60, 80))), ("other", make_scene(9, (60, 80)))):
        write(tmp_path / f"old/{name}.bmp", scene)
    here = {"source": "https://example.org", "licence": "free", "pictures": {}, "sizes": [[80, 60]]}
    stems = [KnownSet("Old", 2, **here, stems=["boats", "lena"])]
    expected = {"Old": ("by name", ["boats", "lena"], [])}
    assert states(testsets.find_testsets(tmp_path, [*catalogue, *stems])) == expected
    (tmp_path / "old/lena.bmp").unlink()
    assert states(testsets.find_testsets(tmp_path, stems)) == {"Old": ("incomplete", ["boats"], ["lena"])}


def test_of_two_copies_the_whole_one_is_taken_and_then_the_one_called_so(tmp_path, scenes, catalogue):
    for name, scene in scenes.items():
        for folder in ("a", "Four", "z"):
            write(tmp_path / folder / f"{name}.png", scene)
    write(tmp_path / "0/p0.png", scenes["p0"])
    (found,) = testsets.find_testsets(tmp_path, catalogue)
    assert {path.parent.name for path in found.files.values()} == {"Four"}


def test_an_incomplete_set_says_what_is_missing(tmp_path, scenes, catalogue):
    for name in ("p0", "p1", "p3"):
        write(tmp_path / f"{name}.png", scenes[name])
    write(tmp_path / "p2.png", scenes["p2"]).write_bytes(b"\x89PNG damaged")
    found = testsets.find_testsets(tmp_path, catalogue)
    assert states(found) == {"Four": ("incomplete", ["p0", "p1", "p3"], ["p2"])}
    assert "1 of 4 pictures are missing" in testsets.list_missing(found, catalogue)[0]
    (tmp_path / "p0.png").unlink()
    (tmp_path / "p1.png").unlink()
    assert testsets.find_testsets(tmp_path, catalogue) == []  # one of four is no set


def test_a_lossy_copy_under_the_right_name_differs(tmp_path, scenes, catalogue, monkeypatch):
    for name, scene in scenes.items():
        write(tmp_path / f"four/{name}.jpg", scene, cv2.IMWRITE_JPEG_QUALITY, 90)
    found = testsets.find_testsets(tmp_path, catalogue)
    assert [one.status for one in found] == ["differs"]
    assert "4 of 4 pictures have other pixels" in testsets.list_missing(found, catalogue)[0]
    with pytest.raises(InputError, match="Four: differs"):
        testsets.link_or_copy(found[0], tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert [one.status for one in testsets.find_testsets(Path("."), catalogue)] == ["differs"]


def test_two_versions_of_a_set_are_told_apart_by_their_sizes(tmp_path, catalogue):
    for i in (1, 2, 3):
        write(tmp_path / f"first/k0{i}.png", make_scene(i, (50, 50)))
        write(tmp_path / f"second/k0{i}.png", make_scene(i, (70, 50) if i == 2 else (50, 70)))
    found = {one.name: one for one in testsets.find_testsets(tmp_path, catalogue)}
    assert {name: (one.status, list(one.files)) for name, one in found.items()} == {
        "Cut": ("by name", ["k01", "k02", "k03"]),
        "Whole": ("by name", ["k01", "k02", "k03"]),
    }
    assert found["Whole"].files["k02"].parent.name == "second"


def test_names_and_numbers_alone_do_not_make_a_set(tmp_path, catalogue):
    for i in range(1, 6):
        write(tmp_path / f"training/{i}.png", make_scene(i, (50, 50)))  # five, where the set has three
    write(tmp_path / "lr/img_1.png", make_scene(0, (30, 40)))  # the low-resolution version
    write(tmp_path / "lr/img_2.png", make_scene(0, (30, 40)))
    assert testsets.find_testsets(tmp_path, catalogue) == []
    write(tmp_path / "hr/img_1_HR.png", make_scene(0, (60, 100)))
    write(tmp_path / "hr/img_2_HR.png", make_scene(0, (90, 60)))
    assert states(testsets.find_testsets(tmp_path, catalogue)) == {"Big": ("by name", ["img_1_HR", "img_2_HR"], [])}


def test_pictures_of_a_known_set_are_not_another_set_by_name(tmp_path, catalogue):
    pictures = {f"p{i}": make_scene(i, (50, 50)) for i in (1, 2, 3)}
    hashes = {n: testsets.hash_picture(write(tmp_path / f"{n[1:]}.png", p)) for n, p in pictures.items()}
    known = KnownSet("Known", 3, "https://example.org", "free", hashes, sizes=[[50, 50]])
    assert list(states(testsets.find_testsets(tmp_path, [known, *catalogue]))) == ["Known"]


def test_links_are_followed_and_hidden_folders_are_not(tmp_path, scenes, catalogue):
    for name, scene in scenes.items():
        write(tmp_path / f"away/{name}.png", scene)
        write(tmp_path / f"root/.hidden/{name}.png", scene)
    assert testsets.find_testsets(tmp_path / "root", catalogue) == []
    (tmp_path / "root/link").symlink_to(tmp_path / "away")
    (tmp_path / "away/loop").symlink_to(tmp_path / "root")
    (found,) = testsets.find_testsets(tmp_path / "root", catalogue)
    assert found.status == "exact" and len(found.files) == 4


def test_a_missing_folder_and_missing_sets_are_named(tmp_path, catalogue):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        testsets.find_testsets(tmp_path / "nowhere")
    lines = testsets.list_missing([], catalogue)
    assert lines[0] == "Four: not found. 4 pictures; published at https://example.org (free)"
    assert len(lines) == 4


# --- laying out -------------------------------------------------------------------------------------------------------


def test_a_set_is_copied_under_its_published_names_once(tmp_path, scenes, catalogue):
    for i, scene in enumerate(scenes.values()):
        write(tmp_path / f"found/other{i}.bmp", scene)
    (found,) = testsets.find_testsets(tmp_path, catalogue)
    folder = testsets.link_or_copy(found, tmp_path / "datasets")
    assert folder == tmp_path / "datasets/Four"
    assert sorted(path.name for path in folder.iterdir()) == ["p0.bmp", "p1.bmp", "p2.bmp", "p3.bmp"]
    assert (folder / "p1.bmp").read_bytes() == (tmp_path / "found/other1.bmp").read_bytes()
    assert testsets.hash_set(folder.iterdir()) == testsets.hash_set(found.files.values())

    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "p3.bmp").unlink()
    write(folder / "p3.png", scenes["p3"])  # the same pixels in another format are left alone
    testsets.link_or_copy(found, tmp_path / "datasets")
    assert sorted(path.name for path in folder.iterdir()) == ["p0.bmp", "p1.bmp", "p2.bmp", "p3.png"]
    assert all(path.stat().st_mtime_ns == times[path] for path in folder.glob("*.bmp"))


def test_nothing_else_is_overwritten(tmp_path, scenes, catalogue):
    for name, scene in scenes.items():
        write(tmp_path / f"found/{name}.png", scene)
    (found,) = testsets.find_testsets(tmp_path / "found", catalogue)
    folder = tmp_path / "datasets/Four"
    write(folder / "p0.png", scenes["p1"])
    write(folder / "mine.png", scenes["p1"])
    with pytest.raises(InputError, match=r"Four: holds something else than Four: mine\.png, p0\.png"):
        testsets.link_or_copy(found, tmp_path / "datasets")
    assert sorted(path.name for path in folder.iterdir()) == ["mine.png", "p0.png"]
    for path in folder.iterdir():
        path.unlink()
    write(folder / "p0.png", scenes["p0"])
    write(folder / "p0.bmp", scenes["p1"])  # whichever of the two the system names first
    with pytest.raises(InputError, match=r"Four: holds something else than Four: p0\.bmp, p0\.png"):
        testsets.link_or_copy(found, tmp_path / "datasets")


def test_a_set_can_be_linked_and_stays_where_it_is_already(tmp_path, scenes, catalogue):
    for name, scene in scenes.items():
        write(tmp_path / f"found/{name}.png", scene)
    (found,) = testsets.find_testsets(tmp_path / "found", catalogue)
    folder = testsets.link_or_copy(found, tmp_path / "datasets", link=True)
    assert (folder / "p2.png").is_symlink() and (folder / "p2.png").samefile(tmp_path / "found/p2.png")
    (again,) = testsets.find_testsets(tmp_path / "datasets", catalogue)
    assert testsets.link_or_copy(again, tmp_path / "datasets") == folder


# --- test pictures in a training set ----------------------------------------------------------------------------------


def jpeg(picture, quality):
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def resize(picture, factor):
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=way)


CHANGES = {
    "all, the same pixels": lambda p: p,
    "all": lambda p: jpeg(p, 40),
    "33%": lambda p: p[30:150, 100:243],
    "28%": lambda p: jpeg(p[60:180, 10:130], 60),
    "all, mirrored": lambda p: p[:, ::-1],
    "all, mirrored, turned by 180 degrees": lambda p: p[::-1],
    "all, turned by 90 degrees": lambda p: np.rot90(p),
    "all, mirrored, turned by 270 degrees": lambda p: np.rot90(p, 3)[:, ::-1],
    "all, 0.50 times as large": lambda p: resize(p, 0.5),
    "all, 1.50 times as large": lambda p: resize(p, 1.5),
    "all, turned by 180 degrees, 0.70 times as large": lambda p: jpeg(resize(p[::-1, ::-1], 0.7), 50),
    "20%, turned by 90 degrees, 1.30 times as large": lambda p: np.rot90(resize(p[80:180, 150:254], 1.3)),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {
        "One": [write(folder / f"one/{i}.png", make_scene(i)) for i in range(4)],
        "Two": [write(folder / f"two/{i}.png", make_scene(10 + i)) for i in range(3)],
    }


def test_each_changed_copy_is_found_and_described(tmp_path, sets):
    scene = make_scene(2)
    for i, change in enumerate(CHANGES.values()):
        write(tmp_path / f"{i:02}.png", np.ascontiguousarray(change(scene)))
    found = overlaps.find_test_pictures([tmp_path], sets)
    assert [(one.training, one.test_set, one.test) for one in found] == [
        (str(tmp_path / f"{i:02}.png"), "One", str(sets["One"][2])) for i in range(len(CHANGES))
    ]
    assert [one.kind for one in found] == list(CHANGES)
    assert all(one.similarity > overlaps.SIMILARITY for one in found) and found[0].similarity == 1


def add_noise(picture, sigma):
    return images.to_8bit(add_test_noise(picture / 255, sigma))


PARTS = {  # what a training picture holds of a test picture, and what is said of it
    "45 x 45 pixels": (lambda p: p[80:125, 180:225], ["4%"]),
    "fewer than 2000 pixels": (lambda p: p[80:124, 180:224], []),
    "most of it": (lambda p: p[:, :208], ["80%"]),
    # The fewer features agree, the more alike the rest must be: the correlation is 0.76, 0.95 and 0.82.
    "all of it in strong noise": (lambda p: add_noise(p, 40), ["all"]),
    "a part in little noise": (lambda p: add_noise(p[80:148, 180:248], 16), ["9%"]),
    "a part in strong noise": (lambda p: add_noise(p[80:160, 180:260], 30), []),
}


@pytest.mark.parametrize("change, kinds", PARTS.values(), ids=PARTS)
def test_parts_are_found_that_show_enough(tmp_path, sets, change, kinds):
    path = write(tmp_path / "part.png", np.ascontiguousarray(change(make_scene(2))))
    found = overlaps.find_test_pictures([path], sets)
    assert [one.kind for one in found] == kinds


def test_a_larger_picture_that_holds_a_test_picture_is_found(tmp_path, sets):
    large = make_scene(50, (400, 500))
    large[120:320, 200:460] = make_scene(11)
    (found,) = overlaps.find_test_pictures([write(tmp_path / "large.png", large)], sets)
    assert (found.test_set, found.test, found.kind) == ("Two", str(sets["Two"][1]), "all")


def test_two_parts_of_one_photograph_overlap(tmp_path):
    photograph = make_scene(60, (300, 400))
    test = write(tmp_path / "sets/left.png", photograph[:, :250])
    (found,) = overlaps.find_test_pictures([write(tmp_path / "right.png", photograph[:, 130:])], {"Left": [test]})
    assert found.kind == "48%"


def test_a_test_picture_of_two_sets_is_reported_for_both(tmp_path, sets):
    copy = write(tmp_path / "copy.png", resize(make_scene(2), 0.8))
    found = overlaps.find_test_pictures([write(tmp_path / "t.png", make_scene(2)[:, ::-1])], {**sets, "Three": [copy]})
    assert [one.test_set for one in found] == ["One", "Three"]


def test_other_pictures_raise_no_alarm(tmp_path, sets):
    for i in range(12):
        write(tmp_path / f"{i}.png", make_scene(100 + i))
    write(tmp_path / "black.png", np.zeros((200, 260), np.uint8))
    write(tmp_path / "stripes.png", np.uint8(np.tile(np.arange(260) // 8 % 2 * 200, (200, 1))))
    write(tmp_path / "tiny.png", make_scene(2)[:9, :9])
    assert overlaps.find_test_pictures([tmp_path], sets) == []


def test_a_copy_that_is_made_smaller_to_be_compared_is_described_as_it_was(tmp_path):
    test = write(tmp_path / "sets/scene.png", make_scene(2))
    large = write(tmp_path / "large.png", resize(make_scene(2), 5))
    assert max(cv2.imread(str(large)).shape) > overlaps.LARGEST
    (found,) = overlaps.find_test_pictures([large], {"Set": [test]})
    assert found.kind == "all, 5.00 times as large"


def test_an_lmdb_and_single_files_are_searched_too(tmp_path, sets):
    write(tmp_path / "pictures/other.png", make_scene(200))
    write(tmp_path / "pictures/leak.png", np.dstack([make_scene(1)] * 3))
    prepare_lmdb(tmp_path / "pictures", tmp_path / "train.lmdb", crop_size=160, step=100)
    single = write(tmp_path / "deep.png", make_scene(12).astype(np.uint16) * 256)  # the low bytes are black
    found = overlaps.find_test_pictures([tmp_path / "train.lmdb", single], sets)
    assert {one.training for one in found[:-1]} == {f"{tmp_path / 'train.lmdb'}: leak_s00{i}" for i in range(1, 5)}
    assert (found[-1].training, found[-1].test_set, found[-1].kind) == (str(single), "Two", "all")


def test_a_training_set_with_a_test_picture_is_refused_by_name(tmp_path, sets):
    write(tmp_path / "fine.png", make_scene(200))
    overlaps.refuse_test_pictures([tmp_path], sets)
    leak = write(tmp_path / "leak.png", make_scene(0)[:, ::-1])
    with pytest.raises(InputError) as error:
        overlaps.refuse_test_pictures([tmp_path], sets)
    assert str(error.value).splitlines()[1:] == [f"  {leak}: One/0.png (all, mirrored)"]


def test_pictures_without_texture_are_compared_by_their_pixels(tmp_path):
    flat = write(tmp_path / "sets/flat.png", np.full((100, 100), 7, np.uint8))
    training = [write(tmp_path / f"{value}.png", np.full((100, 100), value, np.uint8)) for value in (7, 8)]
    (found,) = overlaps.find_test_pictures(training, {"Flat": [flat]})
    assert found.training == str(training[0])


def test_lmdbs_below_a_folder_are_searched_and_nothing_to_search_is_refused(tmp_path, sets):
    """Else a training set that nobody looked at would have its all-clear."""
    (name, pictures), *_ = sets.items()
    write(tmp_path / "pictures/leak.png", cv2.imread(str(pictures[0]), cv2.IMREAD_UNCHANGED))
    prepare_lmdb(tmp_path / "pictures", tmp_path / "data/train.lmdb")
    (tmp_path / "data/link").symlink_to(tmp_path / "data/train.lmdb")
    (tmp_path / "empty").mkdir()
    for training in ("data", "data/link"):
        found = overlaps.find_test_pictures([tmp_path / training], {name: pictures})
        assert [one.test for one in found] == [str(pictures[0])]
    with pytest.raises(InputError, match="empty: holds no pictures and no LMDBs"):
        overlaps.find_test_pictures([tmp_path / "empty"], {name: pictures})


def test_lmdbs_behind_a_linked_folder_are_searched(tmp_path, sets):
    (name, pictures), *_ = sets.items()
    write(tmp_path / "pictures/leak.png", cv2.imread(str(pictures[0]), cv2.IMREAD_UNCHANGED))
    prepare_lmdb(tmp_path / "pictures", tmp_path / "disk/train.lmdb")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/big").symlink_to(tmp_path / "disk")
    assert len(overlaps.find_test_pictures([tmp_path / "data"], {name: pictures})) == 1
    (tmp_path / "disk/train.lmdb/meta_info.txt").unlink()
    with pytest.raises(InputError, match="train.lmdb/meta_info.txt: missing"):
        overlaps.find_test_pictures([tmp_path / "data"], {name: pictures})


def test_a_training_picture_of_two_rows_is_compared(tmp_path, sets):
    (name, pictures), *_ = sets.items()
    thin = write(tmp_path / "thin.png", np.full((2, 5000), 7, np.uint8))
    assert not list(overlaps.find_test_pictures([thin], {name: pictures}))


def test_what_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    """As for a user who may not; this one may be root."""

    def walk(folder, onerror=None, followlinks=False):
        if onerror:
            onerror(PermissionError(13, "Permission denied", f"{folder}/locked"))
        return iter(())

    monkeypatch.setattr(images.os, "walk", walk)
    with pytest.raises(InputError, match="locked: cannot be listed: Permission denied"):
        images.list_pictures(tmp_path)
    assert images.list_pictures(tmp_path, skip_unlisted=True) == []


def test_training_pictures_are_not_cleared_where_there_was_no_set_to_look_for(tmp_path, sets, capsys):
    (tmp_path / "empty").mkdir()
    folders = ("--from", str(tmp_path / "empty"), "--output", str(tmp_path / "out"))
    assert run_cli("prepare", "testsets", *folders, "--training", str(tmp_path)) == 2
    assert "--training: there is no test set to look for in it." in capsys.readouterr().err


def test_training_pictures_that_are_not_there_are_named_before_the_search(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hranet_arch.testsets.find_testsets", None)
    folders = ("--from", str(tmp_path), "--output", str(tmp_path / "out"))
    assert run_cli("prepare", "testsets", *folders, "--training", str(tmp_path), "mistyped") == 2
    assert "--training: mistyped: no such file or folder." in capsys.readouterr().err


def test_bad_arguments_are_named(tmp_path, sets):
    with pytest.raises(InputError, match="Empty: has no pictures"):
        overlaps.find_test_pictures([], {"Empty": []})
    with pytest.raises(InputError, match="nowhere: no such folder"):
        overlaps.find_test_pictures([tmp_path / "nowhere"], sets)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="bad.png: not a picture"):
        overlaps.find_test_pictures([tmp_path], sets)


# --- real data --------------------------------------------------------------------------------------------------------


@needs_shared
def test_the_published_sets_are_recognised():
    found = {one.name: one for one in testsets.find_testsets(DATASETS)}
    known = {one.name: one for one in testsets.read_catalogue()}
    assert {name: "exact" for name, one in known.items() if one.pictures} == {n: one.status for n, one in found.items()}
    listed = (DATASETS / "BSDS500_cbsd68.txt").read_text().split()
    assert sorted(path.name for path in found["CBSD68"].files.values()) == sorted(listed)
    assert testsets.hash_set(found["BSD68"].files.values()) == known["BSD68"].sha256
    missing = [line.split(":")[0] for line in testsets.list_missing(list(found.values()))]
    assert sorted(missing) == ["Kodak24-full", "LIVE1", "McMaster", "Urban100", "classic5"]


@needs_shared
def test_bsd400_shares_the_starfish_with_set12():
    """A true finding: BSD400's test_020 and Set12's 04 are cut from the same photograph, BSDS500's 12003."""
    training = [DATASETS / f"BSD400/test_{i:03}.png" for i in range(14, 24)]
    (found,) = overlaps.find_test_pictures(training, {"Set12": sorted((DATASETS / "Set12").iterdir())})
    assert (found.training, found.test) == (str(training[6]), str(DATASETS / "Set12/04.png"))
    assert found.kind == "29%" and found.similarity > 0.999


@pytest.mark.slow
@needs_shared
def test_bsd400_has_nothing_else_in_common_with_bsd68_and_set12():
    sets = {name: sorted((DATASETS / name).iterdir()) for name in ("BSD68", "Set12")}
    (found,) = overlaps.find_test_pictures([DATASETS / "BSD400"], sets)
    assert (found.training, found.test) == (str(DATASETS / "BSD400/test_020.png"), str(DATASETS / "Set12/04.png"))


@pytest.mark.slow
@needs_shared
def test_planted_parts_of_bsd68_and_set12_are_found(tmp_path):
    """Crops of 128 to 180 pixels, mirrored, turned, rescaled by 0.5 to 1.4, JPEG 30 to 90: all with texture but 2 %."""
    sets = {name: sorted((DATASETS / name).iterdir()) for name in ("BSD68", "Set12")}
    pictures = [path for paths in sets.values() for path in paths]
    rng = np.random.default_rng(0)
    planted = {}
    for i in range(120):
        path = pictures[rng.integers(len(pictures))]
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        size = int(rng.integers(128, 181))
        y, x = (int(rng.integers(0, side - size + 1)) for side in picture.shape)
        part = resize(picture[y : y + size, x : x + size], rng.choice([0.5, 0.7, 1, 1, 1.4]))
        part = np.rot90(part, rng.integers(4))[:, :: rng.choice([1, -1])]
        if (part - cv2.GaussianBlur(part, (0, 0), 3)).std() > 3:
            quality = cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 91))
            planted[str(write(tmp_path / f"{i:03}.jpg", np.ascontiguousarray(part), *quality))] = str(path)
    found = {one.training: one.test for one in overlaps.find_test_pictures([tmp_path], sets)}
    assert all(planted[training] == test for training, test in found.items())
    assert len(planted) > 100 and len(found) >= 0.98 * len(planted)


@pytest.mark.slow
@needs_shared
def test_bsd400_is_found_in_bsds500():
    """Real crops: each of these was cut from one of the photographs, whose numbers BSD400 does not tell."""
    training = [DATASETS / f"BSD400/test_{i:03}.png" for i in range(1, 401, 16)]
    photographs = [DATASETS / "BSDS500" / name for name in (DATASETS / "BSDS500_cbsd432.txt").read_text().split()]
    found = overlaps.find_test_pictures(training, {"BSDS432": photographs})
    assert sorted(one.training for one in found if one.similarity > 0.98) == sorted(map(str, training))
