"""The published values say where they come from, are plausible, and are those of the collected tables."""

import json
import re

import pytest

from tests.conftest import REPOSITORY

PUBLISHED = json.loads((REPOSITORY / "hranet_arch/published.json").read_text())
SOURCES = PUBLISHED["sources"]
TASKS = {
    "denoise/gray": (("15", "25", "50"), {"Set12", "BSD68", "Urban100"}),
    "denoise/color": (("15", "25", "50"), {"CBSD68", "Kodak24", "McMaster", "Urban100"}),
    "sr": (("2", "3", "4"), {"Set5", "Set14", "B100", "Urban100", "Manga109"}),
    "jpeg/gray": (("10", "20", "30", "40"), {"classic5", "LIVE1"}),
}
METHODS = [(task, name, method) for task in TASKS for name, method in PUBLISHED[task].items()]
NUMBERS = REPOSITORY.parent / "shared" / "anchors" / "numbers.md"

SPOT_VALUES = [
    ("denoise/gray", "BM3D", "BSD68", "15", 31.08),
    ("denoise/gray", "DnCNN-S", "Set12", "25", 30.44),
    ("denoise/gray", "DnCNN-B", "BSD68", "50", 26.23),
    ("denoise/gray", "ADNet", "BSD68", "50", 26.29),
    ("denoise/gray", "N3Net", "Urban100", "50", 26.82),
    ("denoise/gray", "Restormer", "Set12", "15", 33.42),
    ("denoise/color", "CBM3D", "Kodak24", "25", 32.15),
    ("denoise/color", "CDnCNN-S", "McMaster", "25", 32.47),
    ("denoise/color", "CDnCNN-B", "McMaster", "25", 31.52),
    ("denoise/color", "FFDNet", "CBSD68", "25", 31.21),
    ("denoise/color", "Restormer", "Kodak24", "50", 30.01),
    ("denoise/color", "ART", "CBSD68", "50", 28.63),
    ("denoise/color", "ART+", "CBSD68", "50", 28.65),
    ("sr", "Bicubic", "Set5", "2", [33.66, 0.9299]),
    ("sr", "IMDN", "Set14", "3", [30.32, 0.8417]),
    ("sr", "SwinIR-light", "Set5", "4", [32.44, 0.8976]),
    ("sr", "RFDN", "Set5", "4", [32.24]),
    ("jpeg/gray", "AR-CNN", "LIVE1", "40", [33.63, 0.9198, 33.14]),
    ("jpeg/gray", "DnCNN-3", "LIVE1", "10", [29.19, 0.8123, 28.90]),
    ("jpeg/gray", "DnCNN-3", "classic5", "20", [31.63, 0.8610, 31.19]),
    ("jpeg/gray", "TNRD", "classic5", "30", [32.78, 0.8837]),
    ("jpeg/gray", "SwinIR", "classic5", "10", [30.27, 0.8249, 29.95]),
]


def read_values(method):
    """Every (set, level, numbers) of a method; the numbers are PSNR and, where they were published, SSIM and PSNR-B."""
    for name, levels in method["values"].items():
        for level, value in levels.items():
            yield name, level, value if isinstance(value, list) else [value]


def test_each_source_is_described_and_used():
    used = [source for _, _, method in METHODS for source in method["source"]]
    assert set(used) == set(SOURCES)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{7}", one["repository"]) for one in SOURCES.values())
    assert all(set(one) == {"repository", "where"} and one["where"] for one in SOURCES.values())


@pytest.mark.parametrize("task, name, method", METHODS, ids=[f"{task}-{name}" for task, name, _ in METHODS])
def test_a_method_is_whole_and_plausible(task, name, method):
    levels, sets = TASKS[task]
    assert set(method) <= {"source", "note", "notes", "training", "values"}
    assert method["source"] and len(set(method["source"])) == len(method["source"])
    assert method["values"] and set(method["values"]) <= sets
    assert set(method.get("notes", {})) <= set(method["values"])
    for name, values in method["values"].items():
        assert values and list(values) == [level for level in levels if level in values], name
    for name, level, (psnr, *others) in read_values(method):
        assert 20 < psnr < 45, (name, level)
        assert len(others) <= {"sr": 1, "jpeg/gray": 2}.get(task, 0), (name, level)
        assert not others or 0.5 < others[0] < 1, (name, level)
        assert len(others) < 2 or psnr - 1.5 < others[1] < psnr, (name, level)  # blocks cost, but not the whole


@pytest.mark.parametrize("task, name, method", METHODS, ids=[f"{task}-{name}" for task, name, _ in METHODS])
def test_psnr_falls_as_the_task_grows_harder(task, name, method):
    """With the noise and the scale; of JPEG, low qualities are the hard ones."""
    for test_set in method["values"]:
        psnr = [numbers[0] for one, _, numbers in read_values(method) if one == test_set]
        psnr = psnr[::-1] if task == "jpeg/gray" else psnr
        assert all(a > b for a, b in zip(psnr, psnr[1:])), test_set


@pytest.mark.parametrize("task, name, test_set, level, value", SPOT_VALUES)
def test_values_copied_by_hand(task, name, test_set, level, value):
    assert PUBLISHED[task][name]["values"][test_set][level] == value


def test_the_traps_are_noted():
    gray, color = PUBLISHED["denoise/gray"], PUBLISHED["denoise/color"]
    assert all("Urban100" in method["notes"] for method in gray.values() if "Urban100" in method["values"])
    assert {task: set(sets) for task, sets in PUBLISHED["apart"].items()} == {"denoise/gray": {"Urban100"}}
    notes = {name: method.get("notes", {}) for name, method in PUBLISHED["sr"].items() if "Set14" in method["values"]}
    older = {name for name, own in notes.items() if "as newer papers measure it" not in own.get("Set14", "")}
    assert older == {"Bicubic", "DnCNN-3", "VDSR"}
    assert all("Kodak24" in method["notes"] for method in color.values() if "Kodak24" in method["values"])
    assert "Kodak24-full" in color["Restormer"]["notes"]["Kodak24"]
    assert "31.68" in color["CBM3D"]["notes"]["Kodak24"]
    assert "blind" in color["CDnCNN-B"]["note"] and "CDnCNN-B" in color["CDnCNN-S"]["note"]
    trained = {name for one in (gray, color) for name, method in one.items() if "training" in method}
    assert trained == {"ADNet", "ADNet-B", "BRDNet"}  # by their code on other pictures than is often read
    untrained = [name for name, method in PUBLISHED["sr"].items() if "training" not in method]
    assert untrained == ["Bicubic", "IMDN+", "RFDN", "SRFormer-light"]
    assert all(PUBLISHED["sr"][name]["note"] == "training set not stated" for name in untrained[1:])


@pytest.mark.skipif(not NUMBERS.is_file(), reason="needs the collected tables, ../shared/anchors/numbers.md")
def test_each_number_stands_in_the_collected_tables():
    """A value in a table row of its method, a number within a note anywhere; they were collected before JPEG's."""
    text = NUMBERS.read_text()
    rows = [line.split("|", 2)[1:] for line in text.splitlines() if line.startswith("|")]
    for task, name, method in [one for one in METHODS if one[0] != "jpeg/gray"]:
        own = " ".join(row for first, row in rows if name.lower() in first.lower())
        printed = set(re.findall(r"\d*\.\d+", own))
        for test_set, level, (psnr, *ssim) in read_values(method):
            numbers = {f"{psnr:.2f}", *(f"{value:.4f}".lstrip("0") for value in ssim)}
            assert numbers <= printed, (task, name, test_set, level)
        notes = " ".join([method.get("note", ""), *method.get("notes", {}).values()])
        assert set(re.findall(r"\d*\.\d+", notes)) <= set(re.findall(r"\d*\.\d+", text)), (task, name)
