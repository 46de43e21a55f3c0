"""``basicsr compare``: scores against independent arithmetic, nothing measured twice, what fails and goes on."""

import importlib
import json
import math
import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hranet_arch import (
    HRANet,
    arithmetic,
    checkpoints,
    compare,
    complexity,
    journal,
    methods,
    noise,
    plan,
    provenance,
    record,
    resize,
    tables,
    testsets,
)
from hranet_arch.baselines import DnCNN, FFDNet
from hranet_arch.errors import InputError
from tests.conftest import REPOSITORY, make_pictures, run_cli

SHARED = REPOSITORY.parent / "shared"


def make_gray(folder, count, seed, size=(40, 44)):
    for path in make_pictures(folder, count, size, seed).iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    return folder


def save(path, network, seed=0):
    """Random weights whose output is far from nothing, as a checkpoint of BasicSR's."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path.parent.mkdir(exist_ok=True)
    torch.save({"params": network.state_dict()}, path)


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Two sets of three and two grey pictures, two networks, one classical method, two levels; quick costs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # BasicSR's training turns it on; the record has it
    make_gray(tmp_path / "datasets/A", 3, seed=1)
    make_gray(tmp_path / "datasets/B", 2, seed=2, size=(31, 33))
    for sigma in (15, 25):
        save(tmp_path / f"weights/dncnn_{sigma}.pth", DnCNN(num_feat=4, num_conv=3, bn=False), sigma)
    save(tmp_path / "weights/hranet.pth", HRANet(num_feat=4))
    return {
        "name": "tiny", "color": "gray", "sigma": [15, 25], "device": "cpu",
        "testsets": {"A": "A", "B": "B"},
        "methods": {
            "DnCNN": {"weights": "dncnn_{sigma}.pth"}, "HRANet": {"weights": "hranet.pth"},
            "NLM": {"method": "non_local_means"},
        },
        "costs": {"sizes": [[16, 16]], "macs_size": [16, 16], "rounds": 1},
    }  # fmt: skip


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Memory takes a child process for each network, and the report draws plots: seconds. Some tests do it for real."""
    if "whole" not in request.keywords:
        monkeypatch.setattr(compare, "_measure_memory", lambda *arguments: [])
        monkeypatch.setattr(compare.report, "write_report", lambda result, folder: (folder / "table.md").write_text(""))


def run(options, *flags):
    Path("compare.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    return run_cli("compare", "-opt", "compare.yml", *flags)


def read(name="tiny"):
    return record.read_record(f"results/{name}/record.json")


# --- scores -----------------------------------------------------------------------------------------------------------


def test_a_record_names_the_precision_that_was_computed(options, monkeypatch, capfd):
    monkeypatch.setattr(arithmetic, "is_fast", lambda precision, device: precision == "fp32")
    options["methods"] = {"DnCNN": options["methods"]["DnCNN"]}
    assert run(options) == 0
    exact = read()
    assert run({**options, "name": "rough", "precision": "bf16"}) == 0
    assert capfd.readouterr().err.count("precision bf16: this processor has no instructions") == 1
    rough = read("rough")
    assert rough.protocol.precision == exact.protocol.precision == "fp32"
    assert [one.psnr for one in rough.results] == [one.psnr for one in exact.results]


def test_scores_are_those_of_scikit_image_and_of_noise_made_by_hand(options):
    assert run(options) == 0
    result = read().find("DnCNN", "A", 25)
    network = DnCNN(num_feat=4, num_conv=3, bn=False)
    network.load_state_dict(torch.load("weights/dncnn_25.pth", weights_only=True)["params"])
    psnrs = []
    for score in result.pictures:
        clean = cv2.imread(f"datasets/A/{score.name}.png", cv2.IMREAD_GRAYSCALE)
        np.random.seed(0)
        noisy = (np.float32(clean / 255) + np.random.normal(0, 25 / 255, clean.shape)).astype(np.float32)
        with torch.inference_mode():
            output = network.eval()(torch.from_numpy(noisy)[None, None])[0, 0].numpy()
        rounded = (output.clip(0, 1) * 255).round().astype(np.uint8)
        psnrs.append(peak_signal_noise_ratio(clean, rounded, data_range=255))
        ssim = structural_similarity(
            clean, rounded, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        exact = peak_signal_noise_ratio(clean / 255, output.astype(np.float64), data_range=1)
        assert (score.psnr, score.ssim) == pytest.approx((psnrs[-1], ssim), abs=1e-6)
        assert score.psnr_float == pytest.approx(exact, abs=1e-4)  # float32 against float64
        assert score.size == clean.shape
        saved = cv2.imread(f"results/tiny/pictures/A/25/DnCNN/{score.name}.png", cv2.IMREAD_UNCHANGED)
        assert (abs(saved.astype(int) - rounded) <= 1).all()
    assert result.psnr == pytest.approx(np.mean(psnrs), abs=1e-9)


def test_the_degraded_pictures_are_scored_too(options):
    """PSNR of white noise of 15 by its definition: 20 log10(255 / 15) = 24.61 dB, before anything is clipped."""
    assert run(options) == 0
    assert read().find("Noisy", "A", 15).psnr_float == pytest.approx(24.61, abs=0.15)


def test_noise_may_be_seeded_by_the_pictures_number(options):
    """The same for the first picture, another for the second: a set is scored on more than one noise field."""
    options["methods"].pop("DnCNN")
    assert run({**options, "sigma": [25]}) == 0
    before = read().find("Noisy", "A", 25).pictures
    assert run({**options, "sigma": [25], "noise_seed": "number"}) == 0
    after = read().find("Noisy", "A", 25).pictures
    assert before[0] == after[0] and before[1] != after[1]
    clean = cv2.imread("datasets/A/1.png", cv2.IMREAD_GRAYSCALE)
    noise_field = np.random.RandomState(1).normal(0, 25 / 255, clean.shape)
    assert after[1].psnr_float == pytest.approx(-10 * np.log10(np.mean(noise_field**2)), abs=1e-4)
    assert read().protocol.noise.seed == "the picture's number in its set, from 0"


def test_clipped_noise_is_what_an_8_bit_file_holds():
    clean = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)
    clipped = noise.TEST_NOISES["gaussian_clipped_8bit"](clean, 50)
    expected = (noise.add_test_noise(clean, 50).clip(0, 1) * 255).round()
    assert np.array_equal(clipped * 255, expected) and clipped.dtype == np.float32
    assert (clipped == 0).any() and (clipped == 1).any()


def test_the_noise_is_named_in_the_record(options):
    assert run({**options, "noise": "gaussian_clipped_8bit", "sigma": [50]}, "--force_yml", "methods:DnCNN=null") == 0
    protocol = read().protocol
    assert protocol.noise.name == "gaussian_clipped_8bit" and "clipped" in protocol.noise.description
    assert protocol.noise.seed == "0 for each picture" and "RandomState" in protocol.noise.generator
    # Clipping takes noise away: fewer than the 14.15 dB of the formula.
    assert read().find("Noisy", "A", 50).psnr_float > 14.3


def test_other_noise_is_measured_anew(options):
    options |= {"methods": {"NLM": {"method": "non_local_means"}}, "sigma": [50], "costs": {"sizes": []}}
    assert run({**options, "noise": "gaussian"}) == 0
    before = read().find("Noisy", "A", 50).psnr_float
    assert run({**options, "noise": "gaussian_clipped_8bit"}) == 0
    assert read().find("Noisy", "A", 50).psnr_float > before + 0.1


def test_a_method_is_measured_at_its_own_levels_alone(options):
    options |= {"methods": {"DnCNN": {"weights": "dncnn_{sigma}.pth", "levels": [25]}}, "costs": {"sizes": []}}
    assert run(options) == 0
    assert [one.level for one in read().results if one.method == "DnCNN"] == [25, 25]


def test_a_level_named_twice_is_measured_once_and_two_pictures_of_one_name_are_refused(options, capsys):
    options |= {"methods": {"NLM": {"method": "non_local_means"}}, "costs": {"sizes": []}}
    cv2.imwrite("datasets/B/0.bmp", np.zeros((9, 9), np.uint8))
    assert run({**options, "sigma": [25, 25.0]}) == 1
    assert "two pictures are called 0. Keep one" in capsys.readouterr().err
    assert read().protocol.levels == [25] and len(read().results) == 2


def test_grey_saved_as_colour_is_grey():
    assert plan._find_channel_fault(np.full((4, 4, 3), 7, np.uint8), "gray") is None


# --- costs ------------------------------------------------------------------------------------------------------------


def test_what_is_timed_is_what_the_network_is_given():
    seen = []
    method = SimpleNamespace(input_size=lambda h, w: (1, h // 2, w // 2), costed=lambda x: seen.append(tuple(x.shape)))
    timed = compare._Timed(method, [16, 24])
    timed(torch.zeros(1, 3, 16, 24))
    assert timed.size == (1, 8, 12) and seen == [(1, 1, 8, 12)]


def test_methods_with_and_without_a_level_are_timed_in_turn(options, monkeypatch):
    timed = []
    monkeypatch.setattr(complexity, "measure_latency", lambda methods, *_, **__: timed.append(list(methods)) or [])
    options["methods"]["HRANet"]["levels"] = [25]
    assert run(options) == 0
    assert timed == [["DnCNN", "NLM", "HRANet"]]


def test_levels_with_different_networks_are_told_of(options, capsys):
    """What is said of a method once, its parameters, holds for the first alone; each level's weights are named."""
    save(Path("weights/dncnn_25.pth"), DnCNN(num_feat=8, num_conv=4, bn=False))
    assert run(options) == 1
    assert "DnCNN: its levels have different networks; arguments and costs are the first's" in capsys.readouterr().err
    assert read().find("DnCNN", "A", 25) is not None


def test_weights_that_are_replaced_meanwhile_are_named_by_level(options, monkeypatch):
    options["methods"] = {"HRANet": {"weights": "hranet.pth"}}
    make = methods.make_method

    def make_and_replace(*arguments):
        made = make(*arguments)
        if made.kind == "network":
            save(Path("weights/hranet.pth"), HRANet(num_feat=4), seed=9)
        return made

    monkeypatch.setattr(methods, "make_method", make_and_replace)
    assert run(options) == 0
    weights = read().methods["HRANet"].weights
    assert list(weights) == ["15", "25"] and weights["15"].sha256 != weights["25"].sha256


def test_costs_of_super_resolution_are_those_of_each_scale(options, monkeypatch):
    """A network that enlarges has a small picture to look at; one after bicubic's enlargement the large one's luma."""
    monkeypatch.setattr(complexity, "measure_latency", partial(complexity.measure_latency, block_time=0.001))
    networks = {scale: HRANet(num_in_ch=3, num_out_ch=3, num_feat=4, upscale=scale) for scale in (2, 4)}
    for scale, network in networks.items():
        for kind, size in (("gt", 48), ("lq", 48 // scale)):
            Path(f"datasets/S/x{scale}/{kind}").mkdir(parents=True)
            cv2.imwrite(f"datasets/S/x{scale}/{kind}/0.png", np.full((size, size, 3), 99, np.uint8))
        save(Path(f"weights/x{scale}.pth"), network)
    save(Path("weights/luma.pth"), DnCNN(num_feat=4, num_conv=3, bn=False))
    luma = {"weights": "luma.pth", "enlarge_first": True, "channel": "y"}
    options |= {"task": "sr", "color": "rgb", "scale": [2, 4], "sigma": None}
    options["testsets"] = {"S": {"gt": "S/x{scale}/gt", "lq": "S/x{scale}/lq"}}
    options["methods"] = {"Net": {"weights": "x{scale}.pth"}, "Luma": luma}
    options["costs"] = {"sizes": [[48, 48]], "macs_size": [48, 48], "rounds": 1}
    assert run(options) == 0
    found = read().methods
    sizes = [(cost.level, cost.macs_size, cost.latency[0].size) for cost in found["Net"].costs]
    assert sizes == [(2, (3, 24, 24), (3, 24, 24)), (4, (3, 12, 12), (3, 12, 12))]
    assert found["Luma"].costs[0].latency[0].size == (1, 48, 48) and found["Net"].published == "Net"
    counts = [complexity.count_parameters(network) for network in networks.values()]
    assert [cost.parameters for cost in found["Net"].costs] == counts


def test_an_ensemble_stands_beside_its_network(options):
    """A "+" of the papers: other scores, eight times the multiplications, and the record and the tables say why."""
    alone = {"weights": "dncnn_{sigma}.pth"}
    options |= {"sigma": [25], "testsets": {"A": "A"}}
    assert run({**options, "methods": {"Net": alone, "Net+": {**alone, "ensemble": True}}}) == 0
    result = read()
    network, ensemble = result.methods["Net"], result.methods["Net+"]
    assert (network.ensemble, ensemble.ensemble) == (False, True)
    assert ensemble.costs[0].macs == 8 * network.costs[0].macs
    assert result.find("Net", "A", 25).psnr_float != result.find("Net+", "A", 25).psnr_float
    about = dict(tables.describe_record(result))["Methods"]
    assert ["mean over the picture's eight symmetries" in line for line in about] == [False, False, True]


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_the_record_says_how_it_was_measured(options):
    assert run({**options, "sigma": [25], "testsets": {"A": "A"}}) == 0
    result = read()
    assert result.failures == [] and list(result.methods) == ["Noisy", "DnCNN", "HRANet", "NLM"]
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|no repository; version .*", result.commit)
    assert result.machine.device == "cpu" and result.machine.threads == torch.get_num_threads()
    dncnn, nlm = result.methods["DnCNN"], result.methods["NLM"]
    assert dncnn.type == "DnCNN" and dncnn.arguments["num_conv"] == 3
    digest = checkpoints.hash_params(torch.load("weights/dncnn_25.pth")["params"])
    assert dncnn.weights["all"].model_dump() == {"file": "dncnn_25.pth", "sha256": digest}
    cost = dncnn.costs[0]
    assert cost.parameters == (9 * 4 + 4) + (9 * 16 + 4) + (9 * 4 + 1)
    assert cost.macs == 16 * 16 * 9 * (4 + 16 + 4) and cost.macs_size == (1, 16, 16)
    assert cost.latency[0].size == (1, 16, 16) and cost.latency[0].median > 0
    assert cost.memory[0].peak > 0 and nlm.costs[0].macs is None and nlm.costs[0].latency[0].median > 0
    assert result.testsets["A"].status == "unknown" and result.testsets["A"].pictures == 3
    for name in ("table.md", "table.csv", "table.tex", "report.html"):
        assert (Path("results/tiny") / name).stat().st_size > 100


@pytest.mark.whole
def test_a_set_is_published_only_if_its_pixels_are(options):
    """A folder called Set12 with other pictures: no published value is set beside what was measured on it."""
    assert run({**options, "testsets": {"Set12": "A"}}, "--force_yml", "methods:DnCNN:published=DnCNN-S") == 0
    assert read().testsets["Set12"].status == "differs"
    assert "(30.4" not in Path("results/tiny/table.md").read_text()


@pytest.mark.parametrize(
    ("stems", "status"),
    [
        (["img_001", "img_002_SRF_2_HR"], "by name"),
        (["img_001", "img_003"], "differs"),
        (["img_001", "1"], "differs"),
        (["cat", "dog"], "differs"),
    ],
)
def test_a_set_by_name_has_the_sets_names(stems, status, monkeypatch):
    known = testsets.KnownSet("Two", 2, "somewhere", "none", {}, pattern="(?i:img)_?0*(\\d+)(?:_SRF_2_HR)?")
    monkeypatch.setattr(testsets, "read_catalogue", lambda: (known,))
    files = {stem: plan._File(Path(stem), "ab" * 32, (40, 44), 1, None) for stem in stems}
    assert plan._identify("Two", files)[1] == status


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Counts what methods are run on; after ``calls.stop_at`` runs, the user presses Ctrl-C."""
    done = []
    run_method = methods.Method.__call__

    def count(self, picture):
        if picture.shape != (48, 48):  # not the probe
            if len(done) == getattr(count, "stop_at", None):
                raise KeyboardInterrupt
            done.append((self.type, self.task.level, picture.tobytes()))
        return run_method(self, picture)

    monkeypatch.setattr(methods.Method, "__call__", count)
    count.done = done
    return count


def without_times(folder):
    content = json.loads(Path(folder, "record.json").read_text())
    for method in content["methods"].values():
        for cost in method["costs"]:
            cost["latency"] = cost["memory"] = None
    return {**content, "started": None, "name": None}


def test_a_stopped_comparison_measures_only_what_is_missing(options, calls):
    assert run({**options, "name": "whole"}) == 0
    total = len(calls.done)
    assert total == 4 * 2 * (3 + 2)  # methods, levels, pictures
    calls.done.clear()
    calls.stop_at = 17
    assert run(options) == 130
    calls.stop_at = None
    assert run(options) == 0
    assert len(calls.done) == len(set(calls.done)) == total
    assert without_times("results/tiny") == without_times("results/whole")
    before = Path("results/tiny/record.json").read_bytes()
    assert run(options) == 0
    assert len(calls.done) == total and Path("results/tiny/record.json").read_bytes() == before


def test_a_stopped_comparison_began_when_it_was_first_run(options, calls, monkeypatch):
    calls.stop_at = 3
    for begun, status in (("2026-01-01T00:00:00Z", 130), ("2026-01-02T00:00:00Z", 0)):
        monkeypatch.setattr(compare, "_now", lambda begun=begun: begun)
        assert run(options) == status
        calls.stop_at = None
    assert json.loads(Path("results/tiny/record.json").read_text())["started"] == "2026-01-01T00:00:00Z"


def test_what_changes_is_measured_again(options, calls):
    assert run(options) == 0
    calls.done.clear()
    save(Path("weights/dncnn_25.pth"), DnCNN(num_feat=4, num_conv=3, bn=False), seed=99)
    assert run(options) == 0
    assert {(kind, level) for kind, level, _ in calls.done} == {("DnCNN", 25.0)} and len(calls.done) == 5
    calls.done.clear()
    picture = cv2.imread("datasets/B/0.png", cv2.IMREAD_UNCHANGED)
    cv2.imwrite("datasets/B/0.png", 255 - picture)
    assert run(options) == 0
    assert len(calls.done) == 4 * 2


def test_other_modules_measure_anew_and_another_commit_does_not(options, calls, monkeypatch):
    assert run(options) == 0
    calls.done.clear()
    monkeypatch.setattr(provenance, "describe_commit", lambda: "of the docs alone")
    assert run(options) == 0 and not calls.done
    assert read().commit == "of the docs alone"
    monkeypatch.setattr(plan, "hash_modules", lambda folder: "others")
    assert run(options) == 0
    assert len(calls.done) == 4 * 2 * (3 + 2)


def test_a_package_is_known_by_its_modules(tmp_path):
    (tmp_path / "part").mkdir()
    seen = []
    for name, text in (("a.py", "1"), ("part/b.py", "1"), ("part/b.py", "2"), ("weights.bin", "1")):
        (tmp_path / name).write_text(text)
        seen.append(journal.hash_modules(tmp_path))
    assert seen[2] == seen[3] and len(set(seen)) == 3
    (tmp_path / "part/b.py").rename(tmp_path / "b.py")
    assert journal.hash_modules(tmp_path) not in seen


def test_a_networks_own_module_counts(options, tmp_path, monkeypatch):
    """A plug-in's, that is: this package's are known together."""
    path = tmp_path / "plugged.py"
    path.write_text("import torch\nclass Net(torch.nn.Module):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    network = importlib.import_module("plugged").Net()
    first = methods._hash_code(network)
    path.write_text(path.read_text() + "# changed\n")
    assert first and methods._hash_code(network) != first
    assert methods._hash_code(HRANet()) is None and methods._hash_code(torch.nn.ReLU()) is None


def test_clean_pictures_are_made_again_where_they_are_gone_or_others(options):
    assert run(options) == 0
    clean = next(Path("results/tiny/pictures").rglob("clean/0.png"))
    content = clean.read_bytes()
    for change in (clean.unlink, lambda: clean.write_bytes(b"other")):
        change()
        assert run(options) == 0
        assert clean.read_bytes() == content


def test_a_name_that_is_not_utf_8_is_escaped(options):
    os.rename(b"datasets/A/0.png", b"datasets/A/caf\xe9.png")
    assert run(options) == 0
    assert [one.name for one in read().find("HRANet", "A", 25).pictures] == ["1", "2", "caf\\xe9"]


def test_a_damaged_picture_whose_name_is_not_utf_8_is_a_failure_like_others(options, capsys):
    Path(os.fsdecode(b"datasets/A/caf\xe9.png")).write_bytes(b"no picture")
    assert run(options) == 1
    assert "A, caf\\xe9: caf\\xe9.png: not a picture" in capsys.readouterr().err
    assert len(read().find("HRANet", "A", 25).pictures) == 3


def test_a_picture_that_exif_turns_has_the_size_that_is_measured(options):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.full((30, 50), 7, np.uint8)).save("datasets/A/turned.jpg", exif=exif)
    assert run(options) == 0
    turned = read().find("HRANet", "A", 25).pictures[-1]
    assert (turned.name, turned.size) == ("turned", (50, 30))
    assert cv2.imread("results/tiny/pictures/A/25/clean/turned.png").shape[:2] == (50, 30)


def test_folders_may_begin_at_home(options, monkeypatch):
    monkeypatch.setenv("HOME", os.getcwd())
    options |= {"datasets_root": "~/datasets", "weights_root": "~/weights", "testsets": {"B": "~/datasets/B"}}
    assert run(options) == 0
    assert len(read().results) == 2 * 4


def test_pictures_are_those_of_the_scores_after_the_weights_went_back(options):
    """Weights A, then B, then A again under one name: the scores are known, the pictures on disk are B's."""
    path, shown = Path("weights/dncnn_25.pth"), []
    first = path.read_bytes()
    for content in (first, None, first):
        path.write_bytes(content) if content else save(path, DnCNN(num_feat=4, num_conv=3, bn=False), seed=99)
        assert run(options) == 0
        shown.append({file.name: file.read_bytes() for file in Path("results/tiny/pictures").rglob("*.png")
                      if "DnCNN" in str(file) and "25" in str(file.parent)})  # fmt: skip
    assert shown[0] and shown[0] == shown[2] != shown[1]


def test_a_latency_that_failed_is_tried_again(options, monkeypatch, capsys):
    forward, is_broken = HRANet.forward, True

    def run_out_of_memory(self, x):
        if is_broken and x.shape[-2:] == (16, 16):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, x)

    monkeypatch.setattr(HRANet, "forward", run_out_of_memory)
    for _ in range(2):
        assert run(options) == 1
        assert "failed: HRANet: latency at (16, 16): CUDA out of memory." in capsys.readouterr().err
    is_broken = False
    assert run(options) == 0
    assert read().methods["HRANet"].costs[0].latency[0].median > 0


def test_levels_of_a_method_that_match_none_are_named(options, capsys):
    options["methods"]["DnCNN"]["levels"] = ["25"]
    assert run(options) == 1
    assert "failed: DnCNN: its levels, ['25'], are none of this comparison's" in capsys.readouterr().err


@pytest.mark.parametrize("line", [b"5", b"null", b"[[1], 2]", b"\xff\xfe", b'["b", {"psn'])
def test_a_damaged_line_of_a_journal_is_passed_over(tmp_path, line):
    first = journal.Journal(tmp_path, 0)
    first.write("a", 1)
    with open(first.path, "ab") as file:
        file.write(line + b"\n")
    assert journal.Journal(tmp_path, 0).values == {"a": 1}


def test_a_record_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="record.json"):
        record.read_record(tmp_path / "record.json")


@pytest.mark.parametrize("network_g", ["{}", '{"num_feat": 4}', '{"type": 5}'])
def test_weights_whose_network_has_no_type_are_named(options, capsys, network_g):
    params = torch.load("weights/hranet.pth", weights_only=True)["params"]
    torch.save({"params": params, "network_g": network_g}, "weights/hranet.pth")
    assert run(options) == 1
    error = capsys.readouterr().err
    assert "failed: HRANet, sigma 15: " in error and "Traceback" not in error
    assert read().find("DnCNN", "A", 15) and not read().find("HRANet", "A", 15)


def test_a_line_cut_off_by_a_kill_is_measured_again(tmp_path):
    first = journal.Journal(tmp_path, 0)
    first.write("a", {"psnr": 1.5})
    with open(first.path, "a") as file:
        file.write('["b", {"psn')
    again = journal.Journal(tmp_path, 0)
    assert again.values == {"a": {"psnr": 1.5}}
    again.write("b", 2)
    assert journal.Journal(tmp_path, 1).values == {"a": {"psnr": 1.5}, "b": 2}


def test_a_process_of_several_leaves_their_group(options, monkeypatch):
    """Left to Python's end, its threads aborted a process whose record was written."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    Path("compare.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    seen = []
    monkeypatch.setattr(compare, "run_compare", lambda *given: seen.append(torch.distributed.is_initialized()))
    assert run_cli("compare", "-opt", "compare.yml", "--launcher", "pytorch") == 0
    assert seen == [True] and not torch.distributed.is_initialized()


def test_processes_on_unlike_machines_are_refused(options, monkeypatch, capsys):
    """The scores of the other are under another key than those of this one."""
    monkeypatch.setattr(compare, "_gather", lambda mine: [mine, ("other", {**mine[1], "threads": 99})])
    assert run(options) == 2
    assert "The processes are on unlike machines: threads" in (message := capsys.readouterr().err) and "99" in message
    assert not Path("results/tiny/record.json").exists()


def test_a_process_of_several_touches_its_own_gpu_alone(monkeypatch):
    seen = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(plan.arithmetic, "find_device", lambda name: seen.append(name))
    for name in ("auto", "cuda", "cuda:0", "cpu"):
        plan._find_device(name)
    assert seen == ["cuda:1", "cuda:1", "cuda:0", "cpu"]


@pytest.mark.slow
def test_two_processes_share_the_pictures_and_make_the_same_record(options):
    options["methods"]["Broken"] = {"weights": "nowhere.pth"}
    assert run({**options, "name": "alone"}) == 1
    Path("compare.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "hranet_arch", "compare"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *command, "-opt", "compare.yml", "--launcher", "pytorch"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "failed: Broken" in result.stderr
    lines = [Path(f"results/tiny/journal/{rank}.jsonl").read_text().count("psnr_float") for rank in (0, 1)]
    assert lines[0] == 4 * 2 * (2 + 1) and lines[1] == 4 * 2 * (1 + 1)
    assert without_times("results/tiny") == without_times("results/alone")


# --- what fails -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_named_and_the_rest_goes_on(options, capsys):
    Path("datasets/Empty").mkdir()
    cv2.imwrite("datasets/A/colour.png", np.random.default_rng(0).integers(0, 256, (40, 44, 3), dtype=np.uint8))
    Path("datasets/A/broken.png").write_bytes(b"no picture")
    save(Path("weights/color.pth"), DnCNN(num_in_ch=3, num_out_ch=3, num_feat=4, num_conv=3))
    Path("weights/text.pth").write_text("no weights")
    options["sigma"] += [-5, "much", 35]
    options["testsets"]["Empty"] = "Empty"
    options["testsets"]["Gone"] = "gone"
    options["methods"] |= {
        "Colour": {"weights": "color.pth"}, "Text": {"weights": "text.pth"}, "Gone": {"weights": "gone.pth"},
        "Magic": {"method": "magic"}, "Random": {"network_g": {"type": "HRANet"}},
        "Misfit": {"weights": "hranet.pth", "network_g": {"type": "HRANet", "num_feat": 8}},
    }  # fmt: skip
    assert run(options) == 1
    errors = capsys.readouterr().err
    for text in (
        "sigma -5: sigma must be a number above 0", "sigma much: sigma must be", "Empty: datasets/Empty: no pictures",
        "Gone: datasets/gone: no such folder", "A, colour: 3 channels, but the comparison is of grey",
        "A, broken: broken.png: not a picture", "DnCNN, sigma 35: weights/dncnn_35.pth: there are no such weights",
        "Colour, sigma 15: DnCNN does not take grey pictures",
        "Text, sigma 15: weights/text.pth: not a whole checkpoint",
        "Gone, sigma 15: weights/gone.pth: there are no such weights", "Magic, sigma 15: there is no method 'magic'",
        "Random, sigma 15: has no weights", "Misfit, sigma 15: weights/hranet.pth does not fit HRANet",
    ):  # fmt: skip
        assert f"failed: {text}" in errors
    assert "Traceback" not in errors
    result = read()
    assert {(one.method, one.testset, one.level) for one in result.results} == {
        (method, testset, level)
        for method in ("Noisy", "DnCNN", "HRANet", "NLM")
        for testset in ("A", "B")
        for level in (15, 25, 35)
        if (method, level) != ("DnCNN", 35)
    }
    assert [one.name for one in result.find("HRANet", "A", 25).pictures] == ["0", "1", "2"]
    assert result.testsets["A"].pictures == 5  # so that these three are no result of the whole set


def test_a_method_that_breaks_on_a_picture_leaves_the_others_alone(options, capsys, monkeypatch):
    forward = HRANet.forward

    def run_out_of_memory(self, x):
        if x.shape[-2:] == (31, 33):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB.")
        return forward(self, x) * (float("nan") if x.shape[-1] == 44 else 1)

    monkeypatch.setattr(HRANet, "forward", run_out_of_memory)
    assert run(options) == 1
    errors = capsys.readouterr().err
    assert "failed: HRANet, B, sigma 15, 0: CUDA out of memory.\n" in errors
    assert "failed: HRANet, A, sigma 25, 2: its output is not finite\n" in errors
    assert read().find("HRANet", "A", 15) is None and read().find("DnCNN", "B", 25) is not None


WRONG_OPTIONS = {
    "sigm: unknown key. Did you mean 'sigma'?": {"sigm": [15]},
    "sigma: is missing; task denoise needs a list": {"sigma": None},
    "scale: does not go with task denoise": {"scale": [2]},
    "methods.X.weigths: unknown key. Did you mean 'weights'?": {"methods": {"X": {"weigths": "a", "method": "bm3d"}}},
    "methods.X: names neither weights, nor network_g, nor method": {"methods": {"X": {}}},
    "methods.X: has a method and a network": {"methods": {"X": {"method": "bm3d", "weights": "a"}}},
    "methods.X.network_g.type: there is no arch 'HRA'": {"methods": {"X": {"network_g": {"type": "HRA"}}}},
    "methods.X.network_g.num_fea: unknown key": {"methods": {"X": {"network_g": {"type": "HRANet", "num_fea": 1}}}},
    "methods.clean: this is what the clean pictures are called": {"methods": {"clean": {"method": "wavelet"}}},
    "methods.Noisy: this is what the given pictures are called": {"methods": {"Noisy": {"method": "wavelet"}}},
    "methods.X.enlarge_first: goes with task sr alone": {"methods": {"X": {"weights": "a", "enlarge_first": True}}},
    "methods.X.channel: grey pictures have one channel": {"methods": {"X": {"weights": "a", "channel": "y"}}},
    "methods.X.channel: a classical method takes all channels": {
        "color": "rgb",
        "methods": {"X": {"method": "wavelet", "channel": "y"}},
    },
    "methods.X.levels: []: ": {"methods": {"X": {"weights": "a", "levels": []}}},
    "published: nothing of 'DnCNN-Z' for this task. Did you": {
        "methods": {"X": {"weights": "a", "published": "DnCNN-Z"}}
    },
    "testsets.A: task denoise takes a folder": {"testsets": {"A": {"gt": "a", "lq": "b"}}},
    "device='cuda:7' cannot be used": {"device": "cuda:7"},
    "costs.rounds: 0: must be greater": {"costs": {"rounds": 0}},
    "Gone: datasets/gone: no such folder": {"testsets": {"Gone": "gone"}},
    "sigma 0: sigma must be a number above 0": {"sigma": [0]},
}


@pytest.mark.parametrize("message", WRONG_OPTIONS)
def test_wrong_options_are_named_before_anything_is_measured(options, capsys, message):
    assert run({**options, **WRONG_OPTIONS[message]}) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors


def test_a_missing_matplotlib_is_named_before_anything_is_measured(options, capsys, monkeypatch, calls):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    assert run(options) == 2
    assert "pip install 'hranet-arch[compare]'" in capsys.readouterr().err and calls.done == []


def test_a_matplotlib_that_refuses_to_load_is_named_before_anything_is_measured(options, capsys, monkeypatch, calls):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    assert run(options) == 2
    errors = capsys.readouterr().err
    assert "MPLBACKEND" in errors and "'nonsense'" in errors and "Traceback" not in errors and calls.done == []


def test_a_comparison_without_any_set_says_each_reason_once(options, capsys):
    assert run({**options, "testsets": {"Gone": "gone", "Lost": "lost"}}) == 2
    errors = capsys.readouterr().err
    assert [errors.count(f"datasets/{name}: no such folder") for name in ("gone", "lost")] == [1, 1]
    assert errors.rstrip().endswith("no test set can be used. Above, each is named with its reason.")


def test_two_comparisons_do_not_write_into_one_folder(options, capsys):
    from hranet_arch.pipeline import lock_folder

    with lock_folder(Path("results/tiny"), 0):
        assert run(options) == 2
    assert "in use by another run" in capsys.readouterr().err


def test_super_resolution_takes_a_grey_picture_among_colour_ones(options):
    """Set14 has one. It is measured as it is, not in studio range; pairs whose sizes do not fit are named."""
    for name, shape in (("0", (24, 32, 3)), ("1", (24, 32)), ("2", (24, 30, 3))):
        picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        for kind, size in (("gt", (32, 24)), ("lq", (16, 12))):
            Path(f"datasets/S/x2/{kind}").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(f"datasets/S/x2/{kind}/{name}.png", cv2.resize(picture, size if name != "2" else (16, 12)))
    save(Path("weights/luma.pth"), DnCNN(num_feat=4, num_conv=3, bn=False))
    entry = {"weights": "luma.pth", "enlarge_first": True, "channel": "y"}
    folders = {"S": {"gt": "S/x{scale}/gt", "lq": "S/x{scale}/lq"}}
    given = {"name": "tiny", "task": "sr", "color": "rgb", "scale": [2], "device": "cpu", "costs": {"sizes": []}}
    given |= {"published": ["VDSR"]}
    assert run({**given, "testsets": folders, "methods": {"Net": entry}}) == 1
    result = read()
    assert [one.name for one in result.find("Bicubic", "S", 2).pictures] == ["0", "1"]
    assert result.testsets["S"].pictures == 3 and "scale 2" in result.failures[0].reason
    assert result.protocol.channel == "y" and result.protocol.crop_border == "scale"
    assert "rounded to 8 bits" in result.protocol.metrics["psnr"] and result.published == ["VDSR"]
    small = torch.from_numpy(cv2.imread("datasets/S/x2/lq/1.png", cv2.IMREAD_UNCHANGED) / 255)
    large = (resize.resize_bicubic(small, 2).numpy().clip(0, 1) * 255).round()[2:-2, 2:-2]
    clean = cv2.imread("datasets/S/x2/gt/1.png", cv2.IMREAD_UNCHANGED)[2:-2, 2:-2].astype(float)
    expected = peak_signal_noise_ratio(clean, large, data_range=255)
    assert result.find("Bicubic", "S", 2).pictures[1].psnr == pytest.approx(expected, abs=1e-6)


def test_a_grey_picture_and_the_same_as_rgb_have_scores_of_their_own(options, capsys):
    """The one is measured as it is, the other on its luma in studio range: every error 219/255 as large, 1.32 dB.
    Set14's published rows have one picture of each kind."""
    rng = np.random.default_rng(0)
    gt, lq = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((24, 32), (12, 16)))
    for name, is_rgb in (("grey", ""), ("rgb", "gt lq"), ("mixed", "lq")):
        for kind, picture in (("gt", gt), ("lq", lq)):
            Path(f"datasets/{name}/{kind}").mkdir(parents=True)
            cv2.imwrite(f"datasets/{name}/{kind}/0.png", np.dstack([picture] * 3) if kind in is_rgb else picture)
    given = {"name": "tiny", "task": "sr", "color": "rgb", "scale": [2], "device": "cpu", "costs": {"sizes": []}}
    folders = {name: {"gt": f"{name}/gt", "lq": f"{name}/lq"} for name in ("grey", "rgb", "mixed")}
    assert run({**given, "testsets": folders, "methods": {"Again": {"method": "input"}}}) == 1
    assert "mixed, 0: has 1 channels and its degraded picture 3; save both alike" in capsys.readouterr().err
    grey, rgb = (read().find("Bicubic", name, 2).psnr for name in ("grey", "rgb"))
    assert rgb - grey == pytest.approx(20 * np.log10(255 / 219), abs=0.1)
    assert run({**given, "task": "jpeg", "color": "gray", "scale": None, "quality": [9], "noise_seed": "number"}) == 2


# --- JPEG -------------------------------------------------------------------------------------------------------------


def measure_by_hand(clean, output):
    """PSNR, SSIM and PSNR-B of grey pictures: scikit-image's, and Yim and Bovik's formulae in loops."""
    clean, output = clean.astype(float), output.astype(float)
    edges, others = [], []
    for picture in (output, output.T):  # steps down the rows, then along them
        for i in range(picture.shape[0] - 1):
            (edges if (i + 1) % 8 == 0 else others).extend((picture[i] - picture[i + 1]) ** 2)
    excess = np.mean(edges) - np.mean(others)
    weight = math.log2(8) / math.log2(min(output.shape)) if excess > 0 else 0
    psnrb = 10 * math.log10(255**2 / (np.mean((clean - output) ** 2) + weight * excess))
    ssim = structural_similarity(
        clean, output, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return peak_signal_noise_ratio(clean, output, data_range=255), ssim, psnrb


def test_jpeg_is_measured_on_the_luma_of_colour_and_on_grey_as_it_is(options):
    """Colour in set C, grey in A; the input is what OpenCV makes of the luma, the network's output is its own."""
    make_pictures(Path("datasets/C"), 2, (41, 52), seed=3)
    for quality in (10, 40):
        save(Path(f"weights/q{quality}.pth"), DnCNN(num_feat=4, num_conv=3, bn=False), quality)
    given = {"name": "tiny", "task": "jpeg", "color": "gray", "quality": [10, 40], "device": "cpu"}
    given |= {"testsets": {"A": "A", "C": "C"}, "methods": {"Net": {"weights": "q{quality}.pth"}}}
    assert run({**given, "costs": {"sizes": []}}) == 0
    result = read()
    assert list(result.methods) == ["JPEG", "Net"] and "OpenCV" in result.protocol.compression
    assert (result.protocol.channel, result.protocol.crop_border, result.protocol.noise) == ("y", "0", None)
    for testset, quality in (("A", 10), ("C", 10), ("C", 40)):
        network = DnCNN(num_feat=4, num_conv=3, bn=False)
        network.load_state_dict(torch.load(f"weights/q{quality}.pth", weights_only=True)["params"])
        for number, score in enumerate(result.find("Net", testset, quality).pictures):
            clean = cv2.imread(f"datasets/{testset}/{score.name}.png", cv2.IMREAD_UNCHANGED)
            if clean.ndim == 3:
                clean = np.round(clean @ [24.966, 128.553, 65.481] / 255 + 16).astype(np.uint8)
            file = cv2.imencode(".jpg", clean, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            lossy = cv2.imdecode(file, cv2.IMREAD_GRAYSCALE)
            with torch.inference_mode():
                output = network.eval()(torch.from_numpy(np.float32(lossy) / 255)[None, None])[0, 0].numpy()
            before = result.find("JPEG", testset, quality).pictures[number]
            assert (before.psnr, before.ssim, before.psnrb) == pytest.approx(measure_by_hand(clean, lossy), abs=1e-6)
            expected = measure_by_hand(clean, (output.clip(0, 1) * 255).round())
            assert (score.psnr, score.ssim, score.psnrb) == pytest.approx(expected, abs=1e-6)
            exact = peak_signal_noise_ratio(clean / 255, output.astype(np.float64), data_range=1)
            assert score.psnr_float == pytest.approx(exact, abs=1e-4)


@pytest.mark.whole
def test_jpeg_in_colour_is_reported_with_psnr_b(options):
    make_pictures(Path("datasets/C"), 2, (41, 52), seed=3)
    save(Path("weights/color.pth"), DnCNN(num_in_ch=3, num_out_ch=3, num_feat=4, num_conv=3, bn=False))
    given = {"name": "tiny", "task": "jpeg", "color": "rgb", "quality": [10], "device": "cpu", "testsets": {"C": "C"}}
    assert run({**given, "methods": {"Net": {"weights": "color.pth"}}, "costs": options["costs"]}) == 0
    score = read().find("JPEG", "C", 10)
    assert score.psnrb < score.psnr and read().protocol.channel == "rgb"
    texts = {name: (Path("results/tiny") / name).read_text() for name in ("table.md", "table.csv", "table.tex")}
    assert "| PSNR, dB / SSIM / PSNR-B, dB | trained on | C quality 10 |" in texts["table.md"]
    assert f"{score.psnrb:.2f}" in texts["table.md"] and f"{score.psnrb:.2f}" in texts["table.tex"]
    assert f",{score.psnrb:.4f}," in texts["table.csv"] and ",psnrb," in texts["table.csv"].splitlines()[0]
    assert '"PSNR-B":{"text":' in (Path("results/tiny/report.html")).read_text("utf-8")


WRONG_JPEG = {
    "quality: is missing; task jpeg needs a list, such as [10, 20, 30, 40]": {"quality": None},
    "quality 0: quality must be a whole number from 1 to 100": {"quality": [0]},
    "quality 10.5: quality must be a whole number": {"quality": [10.5]},
    "sigma: does not go with task jpeg; it has quality": {"sigma": [15]},
    "testsets.A: task jpeg takes a folder": {"testsets": {"A": {"gt": "a", "lq": "b"}}},
    "published: nothing of 'ARCNN' for this task. Did you mean 'AR-CNN'?": {"published": ["ARCNN"]},
    "color: task sr takes rgb": {
        "task": "sr",
        "scale": [2],
        "quality": None,
        "testsets": {"A": {"gt": "a", "lq": "b"}},
    },
}


@pytest.mark.parametrize("message", WRONG_JPEG)
def test_wrong_options_for_jpeg_are_named(options, capsys, message):
    given = {"name": "tiny", "task": "jpeg", "color": "gray", "quality": [10], "device": "cpu"}
    given |= {"testsets": {"A": "A"}, "methods": {"Net": {"weights": "hranet.pth"}}}
    assert run({**given, **WRONG_JPEG[message]}) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors


# --- the shipped files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["compare_gray", "compare_color", "compare_ensemble", "compare_sr", "compare_jpeg"])
def test_shipped_files_are_understood(name):
    from hranet_arch import option_files, options, registration

    opt = option_files.read_options(REPOSITORY / "options" / f"{name}.yml")
    assert options.check_comparison(opt, registration.registries())["name"] == name


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published weights and Set12 in ../shared")
def test_the_published_weights_print_what_their_papers_say(tmp_path, monkeypatch):
    """Set12 at 25: DnCNN-S 30.45, FFDNet 30.44, each within 0.03 dB; ADNet's are in test_baselines.py."""
    monkeypatch.chdir(tmp_path)
    flags = [f"weights_root={SHARED / 'weights'}", f"datasets_root={SHARED / 'datasets'}", "sigma=[25]"]
    others = ("HRANet", "HRANet-S", "HRANet-B", "DnCNN-B", "ADNet", "Wavelet", "Non-local means")
    flags += ["testsets:BSD68=null", *(f"methods:{name}=null" for name in others)]
    flags += ["costs={sizes: [[32, 32]], rounds: 1}"]
    command = ["compare", "-opt", str(REPOSITORY / "options/compare_gray.yml"), "--force_yml", *flags]
    assert run_cli(*command) == 0
    result = read("compare_gray")
    assert result.testsets["Set12"].status == "exact"
    for method, expected in (("DnCNN-S", 30.45), ("FFDNet", 30.44)):
        assert result.find(method, "Set12", 25).psnr == pytest.approx(expected, abs=0.03)
    dncnn = result.methods["DnCNN-S"].costs[0]
    assert dncnn.macs == 554_112 * 256 * 256 and dncnn.parameters == pytest.approx(555_137, abs=0)


def test_ffdnet_is_told_the_level(options):
    """Its map is the only difference between two levels on the same input; a network told 25 scores otherwise at 50."""
    save(Path("weights/ffdnet.pth"), FFDNet(num_feat=4, num_conv=3))
    tasks = [methods.Task("denoise", "gray", level, torch.device("cpu"), "fp32", 0) for level in (25.0, 50.0)]
    outputs = [
        methods.make_method({"weights": "ffdnet.pth"}, task, Path("weights"))(np.full((12, 12), 0.5, np.float32))
        for task in tasks
    ]
    assert not np.allclose(*outputs)
