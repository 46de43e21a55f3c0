"""``basicsr denoise`` from the command line: which files, which results, what is said, and what a kill leaves."""

import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

from hranet_arch import HRANet, before_after, networks, pictures, png, restore_files
from hranet_arch.baselines import FFDNet
from hranet_arch.restore import Denoiser
from tests.conftest import REPOSITORY, run_cli


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of its own, with a small network in ``net.pth`` and no released ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path / "released")
    torch.manual_seed(0)
    torch.save({"params": HRANet(num_feat=4).state_dict()}, "net.pth")
    Path("in").mkdir()
    return tmp_path


def make(path, *shape, dtype="uint8", seed=0):
    values = np.random.default_rng(seed).random(shape)
    picture = pictures.Picture((values * np.iinfo(dtype).max if dtype[0] == "u" else values).astype(dtype))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pictures.write_picture(picture, path)
    return picture.pixels


def run(*arguments, model="net.pth"):
    return run_cli("denoise", *arguments, *(["--model", model] if model else []))


def listed(folder="out"):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


# --- which files ------------------------------------------------------------------------------------------------------


def test_a_folder_is_cleaned_as_denoiser_does_it(capsys):
    noisy = make("in/a b é.png", 20, 31)
    make("in/b.tif", 9, 9, 3, dtype="float32")
    Path("in/notes.txt").write_text("no picture")
    Path("in/.hidden.png").write_text("no picture")
    assert run("in", "-o", "out") == 0
    assert listed() == ["a b é.png", "b.tif"]
    assert np.array_equal(pictures.read_picture("out/a b é.png").pixels, Denoiser("net.pth")(noisy))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("in/a b é.png -> out/a b é.png: 31 x 20 grey uint8, noise about ")
    assert lines[0].endswith(" s") and "net, " in lines[0]
    assert "9 x 9 colour float32, noise unknown (too small), net, channel by channel (a grey network)" in lines[1]


def test_one_file_becomes_another_and_may_change_its_format():
    noisy = make("in/a.png", 12, 10)
    assert run("in/a.png", "-o", "clean.tif") == 0
    assert np.array_equal(tifffile.imread("clean.tif"), Denoiser("net.pth")(noisy))
    assert run("in/a.png", "-o", "new/folder") == 0
    assert listed("new") == ["folder/a.png"]


def test_the_ensemble_reaches_the_network():
    """Each orientation has an error of its own: with weights drawn at random the mean differs in 8 bits."""
    noisy = make("in/a.png", 20, 31)
    net = HRANet(num_feat=4)
    torch.nn.init.normal_(net.detail_enhancement[-1].weight)
    torch.save({"params": net.state_dict()}, "net.pth")
    assert run("in/a.png", "-o", "out", "--ensemble") == 0
    found = pictures.read_picture("out/a.png").pixels
    assert np.array_equal(found, Denoiser("net.pth", ensemble=True)(noisy))
    assert not np.array_equal(found, Denoiser("net.pth")(noisy))


def test_subfolders_keep_their_place_and_results_are_no_input():
    for name in ("in/a.png", "in/x/a.png", "in/x/y/b.png"):
        make(name, 5, 5)
    assert run("in", "-o", "out") == 0
    assert listed() == ["a.png"]
    for _ in range(2):
        assert run("in", "-o", "in/clean", "--recursive") == 0
        assert listed("in/clean") == ["a.png", "x/a.png", "x/y/b.png"]


def test_patterns_find_files(capsys):
    for name in ("in/a1.png", "in/a2.png", "in/b.png", "in/[x].png"):
        make(name, 5, 5)
    assert run("in/a*.png", "in/[x].png", "in/a1.png", "-o", "out") == 0
    assert listed() == ["[x].png", "a1.png", "a2.png"]


def test_results_that_fit_the_pattern_are_no_input():
    make("in/x/a.png", 5, 5)
    for _ in range(2):
        assert run("in/*/*.png", "-o", "in/out") == 0
    assert listed("in/out") == ["a.png"]
    assert run("in/x/*.png", "-o", "in/x") == 2  # over the pictures themselves
    assert run("in/x/*.png", "-o", ".") == 0  # a folder that the pictures lie in is no earlier run's alone
    assert Path("a.png").is_file()


def test_linked_folders_are_gone_through_once():
    make("in/a.png", 5, 5)
    make("other/b.png", 5, 5)
    Path("in/linked").symlink_to(Path("other").absolute())
    Path("other/back").symlink_to(Path("in").absolute())
    assert run("in", "-o", "out", "--recursive") == 0
    assert listed() == ["a.png", "linked/b.png"]


def test_arguments_that_cannot_be_used_end_with_2_and_do_nothing(capsys):
    make("in/a.png", 5, 5)
    make("other/a.png", 5, 5)
    before = Path("in/a.png").read_bytes()
    for arguments, message in (
        (["in", "-o", "in"], "would be replaced"),
        (["in/a.png", "-o", "in/a.png", "--overwrite"], "would be replaced"),
        (["in/a.png", "other/a.png", "-o", "in"], "would be replaced"),
        (["in", "other", "-o", "out"], "would both become out/a.png"),
        (["nothing.png", "-o", "out"], "nothing.png: no such file"),
        (["no*.png", "-o", "out"], "no file fits"),
        (["in", "-o", "out.png"], "must be a folder"),
        (["in", "-o", "net.pth"], "must be a folder"),
        (["in/a.png", "-o", "clean.gif"], "clean.gif: GIF is not written; .png"),
        (["in/a.png", "-o", ""], "-o '': give a folder"),
        (["in/a.png", "-o", "-"], "-o '-': give a folder"),
        (["in/a.png", "-o", "out", "--tile", "3"], "tile=3"),
        (["in/a.png", "-o", "out", "--device", "tpu"], "device='tpu' is no device's name. Here 'auto' and 'cpu' can"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
    release("gray", HRANet(num_feat=4), color="gray", sigma="[0, 55]")
    for arguments, message in ((["--tile", "3"], "tile=3"), (["--device", "tpu"], "device='tpu'")):
        assert run("in/a.png", "-o", "out", *arguments, model=None) == 2  # before any network is chosen
        assert message in capsys.readouterr().err
    Path("released/gray.safetensors").unlink()
    Path("empty").mkdir()
    assert run("empty", "-o", "out") == 2 and "no pictures" in capsys.readouterr().err
    for sigma in ("x", "-1", "256", "nan"):
        assert run("in", "-o", "out", f"--sigma={sigma}") == 2
    assert run("in", "-o", "out", model="gone") == 2 and "None are released yet" in capsys.readouterr().err
    assert run("in", "-o", "out", model=None) == 2 and "--model FILE" in capsys.readouterr().err
    assert Path("in/a.png").read_bytes() == before and not Path("out").exists()


def test_a_folder_that_cannot_be_written_to_is_told_of_before_the_work(monkeypatch, capsys):
    make("in/a.png", 5, 5)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(restore_files._Worker, "restore", lambda self, item, report: pytest.fail("begins the work"))
    assert run("in", "-o", "out") == 2
    assert "out: cannot be written to" in capsys.readouterr().err and not Path("out").exists()


def test_a_file_and_a_link_to_it_both_have_a_result():
    make("in/a.png", 5, 5)
    Path("in/b.png").symlink_to("a.png")
    assert run("in", "-o", "out") == 0
    assert listed() == ["a.png", "b.png"]


def test_a_file_that_cannot_be_opened_is_named_in_words(capsys):
    make("in/a.png", 5, 5)
    Path("in/b.png").symlink_to("gone.png")
    assert run("in", "-o", "out") == 1
    assert "failed: in/b.png: No such file or directory." in capsys.readouterr().err


def test_a_link_to_an_input_is_not_written_over():
    make("in/a.png", 5, 5)
    Path("out").mkdir()
    Path("out/a.png").symlink_to(Path("in/a.png").resolve())
    assert run("in", "-o", "out", "--overwrite") == 2


# --- bad pictures among good ones -------------------------------------------------------------------------------------


def test_bad_pictures_are_named_and_the_rest_is_cleaned(capsys):
    make("in/good.png", 30, 40)
    make("in/good.jpg", 30, 40, 3)
    whole = Path("in/good.png").read_bytes()
    Path("in/truncated.png").write_bytes(whole[:-300])
    Path("in/text.png").write_text("hello")
    Path("in/empty.jpg").write_bytes(b"")
    Path("in/jpeg.png").write_bytes(Path("in/good.jpg").read_bytes())
    with open("in/bomb.png", "wb") as file:
        file.write(png.SIGNATURE)
        png._write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 6, 0, 0, 0))
        png._write_chunk(file, b"IDAT", zlib.compress(b"\0" * 1000))
        png._write_chunk(file, b"IEND", b"")
    tifffile.imwrite("in/hot.tif", np.full((5, 5), 900, np.float32))
    Path("in/dir.png").mkdir()
    assert run("in", "-o", "out") == 1
    assert listed() == ["good.jpg", "good.png", "jpeg.png"]
    with Image.open("out/jpeg.png") as image:
        assert image.format == "PNG" and image.size == (40, 30)
    errors = capsys.readouterr().err
    for name in ("truncated.png", "text.png", "empty.jpg", "bomb.png", "hot.tif"):
        assert f"failed: in/{name}" in errors
    assert "5 of 8 pictures could not be done" in errors


def test_whatever_goes_wrong_with_one_picture_the_others_are_cleaned(monkeypatch, capsys):
    make("in/a.png", 5, 5)
    make("in/b.png", 5, 6)
    make("in/c.png", 5, 7)
    errors = {5: ZeroDivisionError("oops"), 6: MemoryError()}
    read = pictures.read_picture

    def fail(path):
        picture = read(path)
        if picture.pixels.shape[1] in errors:
            raise errors[picture.pixels.shape[1]]
        return picture

    monkeypatch.setattr(pictures, "read_picture", fail)
    assert run("in", "-o", "out") == 1
    message = capsys.readouterr().err
    assert "in/a.png: ZeroDivisionError: oops" in message and "in/b.png: not enough memory" in message
    assert listed() == ["c.png"]


def test_a_pattern_that_the_output_folder_fits_goes_on(folder, capsys):
    make("in/a.png", 9, 9)
    for _ in range(2):
        assert run("in/*", "-o", "in/clean") == 0
    assert "in/clean/a.png: is there already" in capsys.readouterr().out


def test_a_name_that_becomes_too_long_is_refused_before_the_work(folder, capsys):
    make(f"in/{'n' * 246}.png", 9, 9)
    assert run("in", "-o", "out", "--compare") == 2
    assert "a name of 258 bytes; 255 are the most" in capsys.readouterr().err and not Path("out").exists()


def test_a_result_that_its_format_cannot_hold_is_refused_before_the_work(capsys, monkeypatch):
    make("in/a.png", 5, 5, dtype="uint16")
    monkeypatch.setattr(Denoiser, "restore", None)
    assert run("in/a.png", "-o", "out.jpg") == 1
    assert "JPEG does not hold pixels of type uint16" in capsys.readouterr().err


# --- again, and killed ------------------------------------------------------------------------------------------------


def test_results_that_are_there_are_kept_unless_told_otherwise(capsys):
    make("in/a.png", 5, 5)
    make("in/b.png", 5, 5)
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"mine")
    assert run("in", "-o", "out") == 0
    assert Path("out/a.png").read_bytes() == b"mine"
    assert "out/a.png: is there already; --overwrite makes it anew" in capsys.readouterr().out
    assert run("in", "-o", "out", "--overwrite") == 0
    assert pictures.read_picture("out/a.png").pixels.shape == (5, 5)


KILLED = """
import signal, sys, time
from pathlib import Path
from hranet_arch import cli, pictures

write = pictures._WRITERS["PNG"]

def write_slowly(picture, path):
    write(picture, path)
    if "b.png" in path.name:
        path.write_bytes(path.read_bytes()[:20])
        Path("written").touch()
        time.sleep(60)

pictures._WRITERS["PNG"] = write_slowly
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with Ctrl-C ignored
cli.main(["denoise", "in", "-o", "out", "--model", "net.pth"])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_while_writing_it_leaves_no_half_file_and_goes_on_later(number, folder, capsys):
    for name in "abc":
        make(f"in/{name}.png", 9, 9)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", KILLED], env=environment, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not Path("written").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) == (-9 if number == signal.SIGKILL else 130)
    assert [name for name in listed() if not name.startswith(".")] == ["a.png"]
    assert len(listed()) == (2 if number == signal.SIGKILL else 1)  # SIGKILL leaves the hidden file
    assert run("in", "-o", "out") == 0
    assert [name for name in listed() if not name.startswith(".")] == ["a.png", "b.png", "c.png"]
    assert "out/a.png: is there already" in capsys.readouterr().out
    assert pictures.read_picture("out/b.png").pixels.shape == (9, 9)


# --- which network, which noise level ---------------------------------------------------------------------------------


def release(name, net, **texts):
    Path("released").mkdir(exist_ok=True)
    save_file(net.state_dict(), f"released/{name}.safetensors", texts)


def test_the_released_network_that_fits_is_taken(capsys):
    for color, channels in (("gray", 1), ("rgb", 3)):
        for sigma in (15, 50):
            net = HRANet(num_feat=4, num_in_ch=channels, num_out_ch=channels)
            release(f"{color}_{sigma}", net, color=color, sigma=str(sigma))
        release(f"{color}_blind", net, color=color, sigma="[0, 55]")
    rng = np.random.default_rng(0)
    for name, sigma, shape in (("a", 15, (90, 90)), ("b", 50, (90, 90, 3)), ("c", 30, (90, 90)), ("d", 0, (3, 3))):
        noisy = (128 + sigma * rng.normal(size=shape)).clip(0, 255).astype(np.uint8)
        pictures.write_picture(pictures.Picture(noisy), f"in/{name}.png")
    assert run("in", "-o", "out", model=None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [name in line for name, line in zip(("gray_15", "rgb_50", "gray_blind", "gray_blind"), lines)] == [True] * 4
    assert run("in", "-o", "out2", "--sigma", "15", model=None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(", noise of 15, as told, " in line for line in lines)
    assert [f"{color}_15" in line for color, line in zip(("gray", "rgb", "gray", "gray"), lines)] == [True] * 4
    assert run("in/a.png", "-o", "out3", "--sigma", "blind", model=None) == 0
    assert "gray_blind" in capsys.readouterr().out


def test_a_network_that_is_told_the_noise_level_is(capsys):
    torch.manual_seed(0)
    net = FFDNet(num_feat=4)
    torch.save(net.state_dict(), "ffdnet.pth")
    flat = (128 + 20 * np.random.default_rng(0).normal(size=(200, 200))).clip(0, 255).astype(np.uint8)
    pictures.write_picture(pictures.Picture(flat), "in/a.png")
    denoiser = Denoiser("ffdnet.pth")
    assert run("in", "-o", "told", "--sigma", "40", model="ffdnet.pth") == 0
    assert np.array_equal(pictures.read_picture("told/a.png").pixels, denoiser(flat, sigma=40))
    assert run("in", "-o", "auto", model="ffdnet.pth") == 0
    assert np.array_equal(pictures.read_picture("auto/a.png").pixels, denoiser(flat, sigma="auto"))
    assert not np.array_equal(pictures.read_picture("auto/a.png").pixels, pictures.read_picture("told/a.png").pixels)
    assert run("in", "-o", "blind", "--sigma", "blind", model="ffdnet.pth") == 2
    assert "must be told" in capsys.readouterr().err
    make("in/a.png", 3, 3)
    assert run("in", "-o", "small", model="ffdnet.pth") == 1
    assert "too small for an estimate" in capsys.readouterr().err


def test_a_noise_level_that_the_network_was_not_trained_for_is_refused(capsys):
    make("in/a.png", 5, 5)
    release("gray_25", HRANet(num_feat=4), color="gray", sigma="25")
    for sigma, status in (("25", 0), ("auto", 0), ("15", 2), ("blind", 2)):
        assert run("in", "-o", "out", "--overwrite", "--sigma", sigma, model="released/gray_25.safetensors") == status
    assert "was trained for 25" in capsys.readouterr().err
    release("gray_blind", HRANet(num_feat=4), color="gray", sigma="[0, 55]")
    for sigma, status in (("25", 0), ("auto", 0), ("blind", 0), ("60", 2)):
        assert (
            run("in", "-o", "out", "--overwrite", "--sigma", sigma, model="released/gray_blind.safetensors") == status
        )
    assert "was trained for 0 to 55" in capsys.readouterr().err
    torch.save({"params": HRANet(num_feat=4).state_dict()}, "unsaid.pth")
    for sigma, status in (("auto", 0), ("blind", 0), ("25", 2)):
        assert run("in", "-o", "out", "--overwrite", "--sigma", sigma, model="unsaid.pth") == status
    assert "a level that it does not say" in capsys.readouterr().err


# --- before and after -------------------------------------------------------------------------------------------------


def test_the_comparison_has_both_pictures_and_the_detail_where_most_is_to_be_seen():
    before = np.full((200, 300), 100, np.uint8)
    after = before.copy()
    after[128:192, 96:160:2] = 255
    composed = before_after.compose(before, after)
    assert composed.shape == (200 + 8 + 300, 300 + 8 + 300, 3) and composed.dtype == np.uint8
    assert np.array_equal(composed[0, :300], np.full((300, 3), 100))
    assert (composed[130, 308 + 97 : 308 + 160 : 2] == 100).all() and (composed[130, 308 + 98] == 255).all()
    assert composed[128, 96].tolist() == [255, 64, 64]  # the mark
    detail = composed[208:, 308:]
    assert set(np.unique(detail)) == {100, 255} and (composed[208:, :300] == 100).all()
    stripes = (detail[0, 1:, 0] != detail[0, :-1, 0]).sum()
    assert stripes == 63  # 64 columns enlarged without smoothing


def test_colours_without_structure_are_no_detail():
    """Between red, green and blue a flat sky differs more than textured stone does from pixel to pixel."""
    picture = np.full((200, 200, 3), (30, 110, 200), np.uint8)
    picture[128:192, 96:160] = make("x.png", 64, 64)[..., None] // 4 + 82  # as bright
    assert before_after._find_detail(picture) == (128, 96, 64)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (70, 1, 3), (1500, 2000, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float64"])
def test_pictures_of_any_size_and_depth_are_compared(shape, dtype):
    image = make("x.tif", *shape, dtype=dtype)
    composed = before_after.compose(image, image)
    width = (composed.shape[1] - 8) // 2
    assert max(composed.shape) <= 2 * 960 + 8
    assert np.array_equal(composed[:, :width], composed[:, width + 8 :])


def test_pictures_that_differ_in_suffix_alone_have_two_comparisons():
    make("in/a.png", 9, 9)
    make("in/a.tif", 9, 9)
    make("in/b.png", 9, 9)
    assert run("in", "-o", "out", "--compare") == 0
    comparisons = ["a.png_compare.png", "a.tif_compare.png", "b_compare.png"]
    assert listed() == sorted(["a.png", "a.tif", "b.png", *comparisons])


def test_comparisons_lie_beside_the_results_and_stand_upright(capsys):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter to be seen
    Image.fromarray(make("x.png", 20, 50)).save("in/a.jpg", exif=exif)
    assert run("in", "-o", "out", "--compare") == 0
    assert listed() == ["a.jpg", "a_compare.png"]
    assert pictures.read_picture("out/a_compare.png").pixels.shape == (50 + 8 + 20, 20 + 8 + 20, 3)
    Path("out/a_compare.png").unlink()
    assert run("in", "-o", "out") == 0 and "is there already" in capsys.readouterr().out
    assert run("in", "-o", "out", "--compare") == 0
    assert listed() == ["a.jpg", "a_compare.png"]


def test_a_comparison_that_is_there_already_is_kept(capsys):
    """It is another picture's, or the user's own."""
    make("in/a.png", 20, 31)
    kept = make("out/a_compare.png", 9, 9)
    assert run("in", "-o", "out", "--compare") == 1
    assert "a_compare.png: is there already; give another -o, or replace it by --overwrite." in capsys.readouterr().err
    assert listed() == ["a_compare.png"] and np.array_equal(pictures.read_picture("out/a_compare.png").pixels, kept)
    assert run("in", "-o", "out", "--compare", "--overwrite") == 0
    assert pictures.read_picture("out/a_compare.png").pixels.shape != kept.shape


def test_a_result_that_lacks_a_comparison_gets_one_and_is_kept(capsys):
    make("in/a.png", 20, 31)
    kept = make("out/a.png", 20, 31, seed=1)
    assert run("in", "-o", "out", "--compare") == 0
    assert "which was there already" in capsys.readouterr().out
    assert np.array_equal(pictures.read_picture("out/a.png").pixels, kept)
    shown = pictures.read_picture("out/a_compare.png").pixels
    assert (shown[:20, -31:, 0] == kept).mean() > 0.8  # all but the detail's mark
    make("out/a.png", 9, 9)
    Path("out/a_compare.png").unlink()
    assert run("in", "-o", "out", "--compare") == 1
    assert "not of its size; --overwrite makes it anew" in capsys.readouterr().err
    assert run("in", "-o", "out", "--compare", "--overwrite") == 0


# --- memory -----------------------------------------------------------------------------------------------------------

# Not ru_maxrss: it begins with what the process that started this one had, which after other tests is 4 GB.
PEAK = """
import sys
from pathlib import Path
from hranet_arch import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as stop:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024, stop.code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux says what a process took at most")
@pytest.mark.parametrize("name", ["large.jpg", "large.png", "large.tif"])
def test_a_picture_of_12000_x_9000_stays_under_4_gb(name, folder):
    column = (np.arange(9000)[:, None, None] * [1, 2, 3] // 256).astype(np.uint8)
    rows = np.broadcast_to(column, (9000, 12000, 3)).copy()
    pictures.write_picture(pictures.Picture(rows), f"in/{name}")
    del rows
    # A network of next to no work: what is measured is all around it, and tiles as large as tiles become.
    torch.save(FFDNet(num_in_ch=3, num_out_ch=3, num_feat=2, num_conv=2).state_dict(), "net.pth")
    command = [sys.executable, "-c", PEAK, "denoise", "in", "-o", "out", "--model", "net.pth", "--compare"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peak, status = result.stdout.splitlines()[-1].split()
    assert status == "0", result.stderr
    assert int(peak) < 4e9
    header = pictures.read_header(f"out/{name}")
    assert (header.width, header.height) == (12000, 9000)


def test_cv2_reads_what_was_written():
    noisy = make("in/a.png", 12, 10, 3, dtype="uint16")
    assert run("in", "-o", "out") == 0
    clean = Denoiser("net.pth")(noisy)
    assert np.array_equal(cv2.imread("out/a.png", cv2.IMREAD_UNCHANGED)[..., ::-1], clean)
