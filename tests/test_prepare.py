"""LMDBs are read back with lmdb and cv2 alone, as BasicSR reads them, and compared bit by bit with their sources."""

import hashlib
import json
import os
import re
import threading

import cv2
import lmdb
import numpy as np
import pytest
import tifffile
from PIL import Image

from hranet_arch import lmdb_writer, prepare
from hranet_arch.datasets import GaussianDenoisingDataset
from hranet_arch.errors import InputError
from hranet_arch.prepare import prepare_lmdb, prepare_pairs


def make_picture(height, width, channels=3, dtype=np.uint8, seed=0):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())  # cv2.imwrite has no Unicode paths on Windows
    return image


def read_lmdb(folder):
    """Keys as BasicSR's ``paths_from_lmdb`` finds them, values as its ``FileClient`` and ``imdecode`` do."""
    lines = (folder / "meta_info.txt").read_text().splitlines()
    with lmdb.open(str(folder), readonly=True, lock=False, readahead=False) as env, env.begin() as transaction:
        values = {line: transaction.get(line.split(".")[0].encode("ascii")) for line in lines}
        assert env.stat()["entries"] == len(lines)
    pictures = {}
    for line, value in values.items():
        image = cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_UNCHANGED)
        height, width, channels = map(int, re.fullmatch(r"\S+\.png \((\d+),(\d+),(\d+)\) 1", line).groups())
        assert (*image.shape, 1)[:3] == (height, width, channels)
        pictures[line.split(".")[0]] = image
    return pictures


def read_manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def assert_same(found, wanted):
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def assert_nothing_left(folder):
    """Nothing under a final or temporary name; the empty lock file stays."""
    assert [name for name in os.listdir(folder) if ".lmdb" in name and not name.endswith(".lock")] == []


@pytest.fixture
def source(tmp_path):
    """A folder of three pictures of 20 x 30 pixels: a, b, c."""
    for seed, name in enumerate("abc"):
        save(tmp_path / "in" / f"{name}.png", make_picture(20, 30, seed=seed))
    return tmp_path / "in"


# One folder to one LMDB


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures_come_back_bit_identical(tmp_path, channels, dtype, suffix):
    image = save(tmp_path / "in" / f"x{suffix}", make_picture(7, 5, channels, dtype))
    one = save(tmp_path / "in" / f"y{suffix}", make_picture(1, 1, channels, dtype))
    summary = prepare_lmdb(tmp_path / "in", tmp_path / "deep" / "out.lmdb")
    pictures = read_lmdb(tmp_path / "deep" / "out.lmdb")
    assert_same(pictures["x"], image)
    assert_same(pictures["y"], one.reshape(pictures["y"].shape))
    assert summary == {
        "path": str(tmp_path / "deep" / "out.lmdb"),
        "pictures": 2,
        "entries": 2,
        "left_out": [],
        "unchanged": False,
    }
    assert sorted(os.listdir(tmp_path / "deep" / "out.lmdb")) == sorted(lmdb_writer.FILES)


def test_alpha_is_dropped(tmp_path):
    image = save(tmp_path / "in" / "x.png", make_picture(6, 9, 4))
    prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb")
    assert_same(read_lmdb(tmp_path / "out.lmdb")["x"], image[..., :3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_is_bt601_of_colour_and_leaves_gray_alone(tmp_path, dtype):
    colour = save(tmp_path / "in" / "x.png", make_picture(16, 17, 3, dtype))
    gray = save(tmp_path / "in" / "y.png", make_picture(16, 17, 1, dtype))
    prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb", gray=True)
    pictures = read_lmdb(tmp_path / "out.lmdb")
    wanted = colour.astype(float) @ [0.114, 0.587, 0.299]  # BGR
    assert pictures["x"].dtype == dtype
    tolerance = {np.uint8: 1.01, np.uint16: 3}[dtype]  # libpng has coefficients of 15 bits, and truncates
    assert np.abs(pictures["x"] - wanted).max() <= tolerance
    assert_same(pictures["y"], gray)


def test_folders_are_scanned_sorted_with_links_without_hidden_files(tmp_path):
    for name in ("in/b/z.PNG", "in/a.png", "in/b/.hidden.png", "in/.git/x.png", "in/b/notes.txt", "elsewhere/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(cv2.imencode(".png", make_picture(2, 2))[1].tobytes())
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/b/circle").symlink_to(tmp_path / "in")
    prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb")
    assert list(read_lmdb(tmp_path / "out.lmdb")) == ["a", "b_z", "link_y"]
    opt = {"name": "x", "phase": "val", "dataroot_gt": str(tmp_path / "in"), "sigma": 25, "color": "rgb"}
    assert GaussianDenoisingDataset(opt).store.keys == ["a.png", "b/z.PNG", "link/y.png"]


def test_files_of_several_pictures_are_refused(tmp_path):
    """A JPEG's and a TIFF's previews are no pictures of their own."""
    frames = [Image.fromarray(make_picture(8, 9, seed=seed)) for seed in range(2)]
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.webp", "a.tif"):
        frames[0].save(tmp_path / "in" / name, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match=rf"{name}: holds 2 pictures. Split it into files of one"):
            prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb")
        (tmp_path / "in" / name).unlink()
    frames[0].save(tmp_path / "in" / "b.jpg", "MPO", save_all=True, append_images=frames[1:])
    with tifffile.TiffWriter(tmp_path / "in" / "c.tif") as file:
        file.write(make_picture(8, 9))
        file.write(make_picture(4, 5), subfiletype=1)
    prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb")
    assert list(read_lmdb(tmp_path / "out.lmdb")) == ["b", "c"]
    with tifffile.TiffWriter(tmp_path / "in" / "c.tif") as file:  # the other way round OpenCV would read the preview
        file.write(make_picture(4, 5), subfiletype=1)
        file.write(make_picture(8, 9))
    with pytest.raises(InputError, match="c.tif: holds 2 pictures"):
        prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb", overwrite=True)


def test_awkward_names_get_safe_distinct_keys_that_do_not_depend_on_order(tmp_path):
    names = ["img.v1.png", "img.v2.png", "b/c.png", "b_c.png", "same.png", "same.bmp", "plain-1.png", "két kép.png"]
    names += ["画.png", "图.png", "n" * 220 + ".png", "n" * 220 + "x.png", "with space.png"]
    images = {name: save(tmp_path / "in" / name, make_picture(3, 4, seed=i)) for i, name in enumerate(names)}
    prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb", workers=3)
    pictures = read_lmdb(tmp_path / "out.lmdb")
    key_of = {record["name"]: record["key"] for record in read_manifest(tmp_path / "out.lmdb")["pictures"]}
    assert len(pictures) == len(set(key_of.values())) == len(names)
    for name, image in images.items():
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,200}", key_of[name])
        assert_same(pictures[key_of[name]], image)
    assert key_of["plain-1.png"] == "plain-1"
    assert prepare._make_keys(names[::-1]) == key_of


def test_crops_equal_those_cut_by_hand(tmp_path):
    image = save(tmp_path / "in" / "p.png", make_picture(11, 8))
    exact = save(tmp_path / "in" / "q.png", make_picture(4, 8, 1))
    summary = prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb", crop_size=4, step=3)
    pictures = read_lmdb(tmp_path / "out.lmdb")
    corners = [(y, x) for y in (0, 3, 6, 7) for x in (0, 3, 4)]
    assert list(pictures) == [f"p_s{n:03d}" for n in range(1, 13)] + [f"q_s{n:03d}" for n in range(1, 4)]
    for number, (y, x) in enumerate(corners, 1):
        assert_same(pictures[f"p_s{number:03d}"], image[y : y + 4, x : x + 4])
    for number, x in enumerate((0, 3, 4), 1):
        assert_same(pictures[f"q_s{number:03d}"], exact[:, x : x + 4])
    assert (summary["pictures"], summary["entries"]) == (2, 15)


def test_step_is_crop_size_unless_given(tmp_path):
    save(tmp_path / "in" / "p.png", make_picture(8, 4))
    prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb", crop_size=4)
    assert list(read_lmdb(tmp_path / "out.lmdb")) == ["p_s001", "p_s002"]


def test_manifest_states_sizes_hashes_keys_and_settings(source, tmp_path):
    prepare_lmdb(source, tmp_path / "out.lmdb", crop_size=20)
    manifest = read_manifest(tmp_path / "out.lmdb")
    assert manifest["format"] == prepare.FORMAT
    assert manifest["settings"]["crop_size"] == manifest["settings"]["step"] == 20
    for record, name in zip(manifest["pictures"], "abc"):
        data = (source / f"{name}.png").read_bytes()
        assert (record["name"], record["bytes"]) == (f"{name}.png", len(data))
        assert record["sha256"] == hashlib.sha256(data).hexdigest()
        assert record["keys"] == [f"{name}_s001", f"{name}_s002"]


def test_the_map_grows_when_a_tiny_picture_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_writer, "_FIRST_MAP_SIZE", 2**15)
    monkeypatch.setattr(lmdb_writer, "_BATCH", 2**17)
    save(tmp_path / "in" / "a.png", np.zeros((1, 1), np.uint8))
    images = {f"b{i}": save(tmp_path / "in" / f"b{i}.png", make_picture(200, 300, seed=i)) for i in range(8)}
    prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb")
    pictures = read_lmdb(tmp_path / "out.lmdb")
    for name, image in images.items():
        assert_same(pictures[name], image)


@pytest.mark.parametrize("workers", [1, 5])
def test_the_number_of_workers_does_not_change_a_byte(source, tmp_path, workers):
    prepare_lmdb(source, tmp_path / "one.lmdb", workers=1)
    prepare_lmdb(source, tmp_path / "more.lmdb", workers=workers)
    for name in lmdb_writer.FILES - {"lock.mdb"}:
        assert (tmp_path / "one.lmdb" / name).read_bytes() == (tmp_path / "more.lmdb" / name).read_bytes()


# Bad pictures


@pytest.fixture
def bad_source(source):
    """Of a, b, c, c is whole; beside them text, an empty file, a truncated PNG and a truncated JPEG."""
    (source / "a.png").write_bytes(b"no picture")
    (source / "b.png").write_bytes(b"")
    whole = (source / "c.png").read_bytes()
    (source / "cut.png").write_bytes(whole[: len(whole) // 2])
    (source / "cut.jpg").write_bytes(cv2.imencode(".jpg", make_picture(99, 99))[1].tobytes()[:-500])
    return source


def test_every_bad_picture_is_named_and_nothing_is_left(bad_source, tmp_path):
    with pytest.raises(InputError) as error:
        prepare_lmdb(bad_source, tmp_path / "out.lmdb")
    for name in ("a.png", "b.png", "cut.png", "cut.jpg", "--skip-bad"):
        assert name in str(error.value)
    assert "c.png" not in str(error.value)
    assert_nothing_left(tmp_path)


def test_skip_bad_leaves_them_out_and_says_so(bad_source, tmp_path):
    summary = prepare_lmdb(bad_source, tmp_path / "out.lmdb", skip_bad=True)
    assert list(read_lmdb(tmp_path / "out.lmdb")) == ["c"]
    assert (summary["pictures"], len(summary["left_out"])) == (1, 4)
    left_out = [record["name"] for record in read_manifest(tmp_path / "out.lmdb")["pictures"] if "left_out" in record]
    assert left_out == ["a.png", "b.png", "cut.jpg", "cut.png"]
    assert prepare_lmdb(bad_source, tmp_path / "out.lmdb", skip_bad=True) == {**summary, "unchanged": True}
    with pytest.raises(InputError, match="cut.jpg"):
        prepare_lmdb(bad_source, tmp_path / "out.lmdb")


def test_no_usable_picture_is_an_error_with_skip_bad_too(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="a.png"):
        prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb", skip_bad=True)
    assert_nothing_left(tmp_path)


def test_a_picture_smaller_than_the_crop_is_named_or_left_out(source, tmp_path):
    save(source / "small.png", make_picture(19, 30))
    with pytest.raises(InputError, match=r"small.png: 19x30 pixels .* smaller than crop_size 20"):
        prepare_lmdb(source, tmp_path / "out.lmdb", crop_size=20)
    summary = prepare_lmdb(source, tmp_path / "out.lmdb", crop_size=20, skip_bad=True)
    assert summary["pictures"] == 3


def test_float_pictures_are_refused(tmp_path):
    save(tmp_path / "in" / "x.tif", np.ones((4, 4), np.float32))
    with pytest.raises(InputError, match="x.tif: pixels of type float32"):
        prepare_lmdb(tmp_path / "in", tmp_path / "out.lmdb")


# Running again


def test_the_same_again_is_unchanged(source, tmp_path):
    first = prepare_lmdb(source, tmp_path / "out.lmdb")
    before = (tmp_path / "out.lmdb" / "data.mdb").stat().st_mtime_ns
    assert prepare_lmdb(source, tmp_path / "out.lmdb", workers=1) == {**first, "unchanged": True}
    assert (tmp_path / "out.lmdb" / "data.mdb").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda folder: save(folder / "b.png", make_picture(20, 30, seed=9)), {}, "b.png has changed"),
        (lambda folder: save(folder / "d.png", make_picture(2, 2)), {}, "d.png is new"),
        (lambda folder: (folder / "a.png").unlink(), {}, "a.png is gone"),
        (lambda folder: None, {"gray": True}, "gray is True, was False"),
        (lambda folder: None, {"crop_size": 8}, "crop_size is 8, was None"),
    ],
)
def test_other_pictures_or_settings_are_refused_until_overwrite(source, tmp_path, change, settings, message):
    prepare_lmdb(source, tmp_path / "out.lmdb")
    before = (tmp_path / "out.lmdb" / "data.mdb").read_bytes()
    change(source)
    with pytest.raises(InputError, match=message) as error:
        prepare_lmdb(source, tmp_path / "out.lmdb", **settings)
    assert "--overwrite" in str(error.value)
    assert (tmp_path / "out.lmdb" / "data.mdb").read_bytes() == before
    assert not prepare_lmdb(source, tmp_path / "out.lmdb", overwrite=True, **settings)["unchanged"]
    assert prepare_lmdb(source, tmp_path / "out.lmdb", **settings)["unchanged"]
    assert len([name for name in os.listdir(tmp_path) if "out.lmdb" in name]) == 2  # itself and the lock


def test_an_lmdb_without_manifest_or_data_is_refused_but_can_be_overwritten(source, tmp_path):
    prepare_lmdb(source, tmp_path / "out.lmdb")
    for name in ("manifest.json", "data.mdb"):
        (tmp_path / "out.lmdb" / name).unlink()
        with pytest.raises(InputError, match="no whole manifest.json and data.mdb"):
            prepare_lmdb(source, tmp_path / "out.lmdb")
        prepare_lmdb(source, tmp_path / "out.lmdb", overwrite=True)


def test_an_lmdb_without_its_list_is_not_up_to_date(source, tmp_path):
    prepare_lmdb(source, tmp_path / "out.lmdb")
    (tmp_path / "out.lmdb" / "meta_info.txt").unlink()
    with pytest.raises(InputError, match="meta_info.txt is gone\nGive another output, or --overwrite"):
        prepare_lmdb(source, tmp_path / "out.lmdb")


def test_a_folder_of_something_else_is_never_overwritten(source, tmp_path):
    (tmp_path / "out.lmdb").mkdir()
    (tmp_path / "out.lmdb" / "thesis.tex").touch()
    with pytest.raises(InputError, match="thesis.tex"):
        prepare_lmdb(source, tmp_path / "out.lmdb", overwrite=True)
    (tmp_path / "file.lmdb").touch()
    with pytest.raises(InputError, match="no folder"):
        prepare_lmdb(source, tmp_path / "file.lmdb", overwrite=True)
    assert (tmp_path / "out.lmdb" / "thesis.tex").exists() and (tmp_path / "file.lmdb").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, lmdb.DiskError("disk full"), OSError(28, "No space left")])
def test_a_run_that_fails_leaves_nothing_or_what_was_there(source, tmp_path, monkeypatch, error):
    def fail(self, manifest):
        raise error

    prepare_lmdb(source, tmp_path / "old.lmdb")
    before = (tmp_path / "old.lmdb" / "data.mdb").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(lmdb_writer.LMDBWriter, "finish", fail)
        for name in ("new.lmdb", "old.lmdb"):
            with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else InputError):
                prepare_lmdb(source, tmp_path / name, overwrite=True)
    assert not (tmp_path / "new.lmdb").exists()
    assert (tmp_path / "old.lmdb" / "data.mdb").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))
    assert prepare_lmdb(source, tmp_path / "new.lmdb")["pictures"] == 3


def test_a_run_that_is_stopped_while_it_waits_leaves_the_others_work(source, tmp_path, monkeypatch):
    """Ctrl-C in the second of two: what lies under the temporary name is the first one's, which writes it."""
    (tmp_path / ".out.lmdb.tmp").mkdir()
    (tmp_path / ".out.lmdb.tmp" / "data.mdb").write_bytes(b"half")

    def stop(lock):
        raise KeyboardInterrupt

    monkeypatch.setattr("filelock.FileLock.__enter__", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_lmdb(source, tmp_path / "out.lmdb")
    assert (tmp_path / ".out.lmdb.tmp" / "data.mdb").read_bytes() == b"half"


def test_of_two_outputs_both_are_put_back(tmp_path):
    """Killed after the first has its new name, and before the second has."""
    outputs = [tmp_path / "lq.lmdb", tmp_path / "gt.lmdb"]
    for name, content in (("lq.lmdb", "new"), (".lq.lmdb.old", "old"), ("gt.lmdb", "old"), (".gt.lmdb.tmp", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.mdb").write_text(content)
    lmdb_writer.recover(outputs)
    assert [(output / "data.mdb").read_text() for output in outputs] == ["old", "old"]


def test_an_old_lmdb_half_deleted_is_not_put_back(source, tmp_path):
    """Killed while it deleted what it had replaced: the next run of the same removes the rest, and so keeps the new."""
    first = prepare_lmdb(source, tmp_path / "out.lmdb")
    (tmp_path / ".out.lmdb.old").mkdir()
    (tmp_path / ".out.lmdb.old" / "meta_info.txt").write_text("old")
    (tmp_path / ".out.lmdb.doomed").mkdir()
    assert prepare_lmdb(source, tmp_path / "out.lmdb") == {**first, "unchanged": True}
    assert len([name for name in os.listdir(tmp_path) if "out.lmdb" in name]) == 2  # itself and the lock
    (tmp_path / ".out.lmdb.tmp").mkdir()
    assert prepare_lmdb(source, tmp_path / "out.lmdb")["unchanged"]


def test_what_a_killed_run_left_is_removed(source, tmp_path):
    (tmp_path / ".out.lmdb.tmp").mkdir()
    (tmp_path / ".out.lmdb.tmp" / "data.mdb").write_bytes(b"half")
    prepare_lmdb(source, tmp_path / "out.lmdb")
    assert sorted(read_lmdb(tmp_path / "out.lmdb")) == ["a", "b", "c"]
    assert not (tmp_path / ".out.lmdb.tmp").exists()


def test_what_a_killed_run_was_about_to_replace_is_put_back(source, tmp_path):
    """Killed between the two renames; the next run fails, and the old LMDB must be there still."""
    prepare_lmdb(source, tmp_path / "out.lmdb")
    before = (tmp_path / "out.lmdb/data.mdb").read_bytes()
    (tmp_path / "out.lmdb").rename(tmp_path / ".out.lmdb.old")
    (source / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="bad.png"):
        prepare_lmdb(source, tmp_path / "out.lmdb", overwrite=True)
    assert (tmp_path / "out.lmdb/data.mdb").read_bytes() == before


def test_of_two_runs_at_once_the_second_waits_and_finds_the_work_done(source, tmp_path):
    summaries = []
    run = lambda: summaries.append(prepare_lmdb(source, tmp_path / "out.lmdb"))  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(summary["unchanged"] for summary in summaries) == [False, True, True, True]


# Arguments and folders


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": 0}, "crop_size 0: must be"),
        ({"crop_size": 8, "step": -1}, "step -1: must be"),
        ({"step": 4}, "only together with crop_size"),
        ({"workers": 0}, "workers 0: must be"),
        ({"crop_size": 2.5}, "crop_size 2.5: must be"),
    ],
)
def test_bad_arguments_are_named(source, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        prepare_lmdb(source, tmp_path / "out.lmdb", **settings)
    assert_nothing_left(tmp_path)


def test_folders_that_cannot_be_used_are_named(source, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    source.rename(tmp_path / "in.lmdb")
    for folder, output, message in (
        ("nowhere", "out.lmdb", "nowhere: no such folder"),
        ("empty", "out.lmdb", "empty: no pictures"),
        ("in.lmdb", "out", "must end in .lmdb"),
        ("in.lmdb", "in.lmdb", "folder of the pictures too"),
        ("in.lmdb", "file/out.lmdb", "cannot be written"),
    ):
        with pytest.raises(InputError, match=message):
            prepare_lmdb(tmp_path / folder, tmp_path / output)
    assert not (tmp_path / "out.lmdb").exists()


# Pairs


@pytest.fixture
def pairs(tmp_path):
    """Folders lq (names ending in x2) and gt, twice as high and wide, with equal content in the top left."""
    for seed, name in enumerate(("a", "sub/b")):
        gt = save(tmp_path / "gt" / f"{name}.png", make_picture(20, 28, seed=seed))
        save(tmp_path / "lq" / f"{name}x2.bmp", gt[::2, ::2])
    return tmp_path


def run_pairs(folder, **settings):
    settings = {"filename_tmpl": "{}x2", "scale": 2, **settings}
    return prepare_pairs(folder / "lq", folder / "gt", folder / "lq.lmdb", folder / "gt.lmdb", **settings)


def test_pairs_have_equal_keys_and_corresponding_crops(pairs):
    summary = run_pairs(pairs, crop_size=8, step=6)
    lq, gt = read_lmdb(pairs / "lq.lmdb"), read_lmdb(pairs / "gt.lmdb")
    assert list(lq) == list(gt)
    corners = [(y, x) for y in (0, 6, 12) for x in (0, 6, 12, 18, 20)]
    assert len(gt) == 2 * len(corners) == summary["entries"]
    for key, name in (("a", "a"), ("sub_b", "sub/b")):
        image = cv2.imread(str(pairs / "gt" / f"{name}.png"))
        for number, (y, x) in enumerate(corners, 1):
            assert_same(gt[f"{key}_s{number:03d}"], image[y : y + 8, x : x + 8])
            assert_same(lq[f"{key}_s{number:03d}"], image[y : y + 8 : 2, x : x + 8 : 2])
    assert (summary["lq_path"], summary["gt_path"]) == (str(pairs / "lq.lmdb"), str(pairs / "gt.lmdb"))
    assert run_pairs(pairs, crop_size=8, step=6)["unchanged"]


def test_missing_partners_are_named_on_both_sides(pairs):
    (pairs / "lq" / "ax2.bmp").unlink()
    save(pairs / "lq" / "only_lqx2.png", make_picture(2, 2))
    save(pairs / "gt" / "only_gt.png", make_picture(4, 4))
    with pytest.raises(InputError) as error:
        run_pairs(pairs)
    for name in ("a.png", "only_lqx2.png", "only_gt.png"):
        assert name in str(error.value)
    assert "b.png" not in str(error.value)
    assert_nothing_left(pairs)


def test_two_files_of_one_stem_are_named(pairs):
    save(pairs / "lq" / "ax2.png", make_picture(10, 14))
    with pytest.raises(InputError, match="ax2.bmp, ax2.png differ in suffix only"):
        run_pairs(pairs)


def test_pairs_of_unequal_size_are_named_or_left_out(pairs):
    save(pairs / "lq" / "ax2.bmp", make_picture(10, 13))
    with pytest.raises(InputError, match=r"a.png: 20x28 pixels .* not 2 times .*ax2.bmp, 10x13"):
        run_pairs(pairs)
    assert_nothing_left(pairs)
    assert len(run_pairs(pairs, skip_bad=True)["left_out"]) == 1
    assert list(read_lmdb(pairs / "lq.lmdb")) == list(read_lmdb(pairs / "gt.lmdb")) == ["sub_b"]


def test_a_bad_picture_takes_its_partner_with_it(pairs):
    (pairs / "gt" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="a.png: not a picture"):
        run_pairs(pairs)
    run_pairs(pairs, skip_bad=True)
    assert list(read_lmdb(pairs / "lq.lmdb")) == list(read_lmdb(pairs / "gt.lmdb")) == ["sub_b"]


def test_both_lmdbs_appear_together(pairs, monkeypatch):
    (pairs / "gt.lmdb").mkdir()  # empty, so it may be replaced
    replace = os.replace

    def fail_at_the_last(source, target):
        if str(source).endswith(".gt.lmdb.tmp"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at_the_last)
        with pytest.raises(InputError, match="No space left"):
            run_pairs(pairs, overwrite=True)
    assert os.listdir(pairs / "gt.lmdb") == [] and not (pairs / "lq.lmdb").exists()
    run_pairs(pairs, overwrite=True)
    assert list(read_lmdb(pairs / "lq.lmdb")) == list(read_lmdb(pairs / "gt.lmdb")) == ["a", "sub_b"]


def test_one_of_two_outputs_missing_makes_both_anew(pairs):
    run_pairs(pairs)
    (pairs / "lq.lmdb").rename(pairs / "elsewhere")
    assert not run_pairs(pairs)["unchanged"]
    assert list(read_lmdb(pairs / "lq.lmdb")) == list(read_lmdb(pairs / "gt.lmdb"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": 5}, "crop_size 5: must be a multiple of scale, 2"),
        ({"crop_size": 8, "step": 3}, "step 3: must be a multiple"),
        ({"scale": 0}, "scale 0"),
        ({"filename_tmpl": "x2"}, "filename_tmpl 'x2': must hold {}"),
        ({"filename_tmpl": "{}{"}, "filename_tmpl"),
    ],
)
def test_bad_pair_arguments_are_named(pairs, settings, message):
    with pytest.raises(InputError, match=message):
        run_pairs(pairs, **settings)


def test_pairs_need_two_outputs(pairs):
    with pytest.raises(InputError, match="given for both outputs"):
        prepare_pairs(pairs / "gt", pairs / "gt", pairs / "x.lmdb", pairs / "x.lmdb")
