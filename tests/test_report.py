"""Tables, plots, crops and page of a comparison: numbers worked out by hand, names that need care, equal bytes."""

import csv
import io
import json
import re

import cv2
import matplotlib
import numpy as np
import pytest

from hranet_arch import examples, pages, plots, report, scores, tables
from hranet_arch.examples import CLEAN, picture_path
from hranet_arch.record import Record

ODD = r"a_b|100% & <i>$x$</script>"  # a name that Markdown, LaTeX, matplotlib and HTML all read as something else
PUBLISHED = {
    "sources": {"Paper": {"repository": "someone/net@1234567", "where": "Table 1"}},
    "denoise/gray": {
        "Net": {
            "source": ["Paper"],
            "note": "17 layers",
            "notes": {"Urban100": "not reproduced"},
            "values": {
                "Set12": {"15": 32.86, "25": 30.44},
                "BSD68": {"15": 31.73, "25": 29.23},
                "Urban100": {"15": 32.64},
            },
        }
    },
    "denoise/color": {},
    "sr": {"SRNet": {"source": ["Paper"], "training": "DIV2K", "values": {"Set5": {"2": [38.02, 0.9607]}}}},
}  # fmt: skip
# mean PSNR by method, set and level; SSIM is 0.9 for the first method measured there, 0.01 less for each after it
PSNR = {
    "noisy": {("Set12", 15): 24.61, ("Set12", 25): 20.18, ("BSD68", 15): 24.61, ("BSD68", 25): 20.18},
    "Net": {("Set12", 15): 32.89, ("Set12", 25): 30.40, ("BSD68", 15): 31.73, ("BSD68", 25): 29.23},
    ODD: {("Set12", 15): 32.894, ("Set12", 25): 30.90, ("BSD68", 15): 31.00},
    "BM3D": {("Set12", 15): 32.37, ("Set12", 25): 29.97, ("BSD68", 15): 31.07, ("BSD68", 25): 28.57},
}


@pytest.fixture(autouse=True)
def published(monkeypatch):
    monkeypatch.setattr(scores, "read_published", lambda: PUBLISHED)


def make_cost(parameters, macs, milliseconds, level=None):
    latency = [
        {"size": (1, side, side), "median": t / 1e3, "lower_quartile": t * 0.9e-3, "upper_quartile": t * 1.1e-3,
         "blocks": 9, "runs": 90, "rounds": 6, "threads": 2, "device": "cpu"}
        for side, t in ((256, milliseconds), (512, 4 * milliseconds))
    ]  # fmt: skip
    memory = {"size": (1, 512, 512), "peak": 123_400_000, "weights": 1, "growth": 1, "device": "cpu", "method": "child"}
    size = None if macs is None else (1, 256, 256)
    return {"level": level, "parameters": parameters, "macs": macs, "macs_size": size,
            "latency": latency, "memory": [memory]}  # fmt: skip


def make_method(kind, costs=(), published=None):
    weights = {"all": {"file": "net_g.pth", "sha256": "ab" * 32}} if kind == "network" else {}
    return {"kind": kind, "type": "Net", "arguments": {"num_feat": 64}, "weights": weights, "costs": list(costs),
            "training": "BSD400" if kind == "network" else None, "published": published}  # fmt: skip


def make_result(method, testset, level, psnr, ssim):
    """The pictures lie 1 dB below and above the mean for the input, 2 dB for others: the second gains most."""
    spread = 1 if method == "noisy" else 2
    values = [psnr - spread, psnr + spread]
    pictures = [{"name": name, "size": (40, 44), "psnr": value, "psnr_float": value + 0.001, "ssim": ssim}
                for name, value in zip("12", values)]  # fmt: skip
    return {"method": method, "testset": testset, "level": level, "pictures": pictures, "ssim": ssim,
            "psnr": psnr, "psnr_float": psnr + 0.001}  # fmt: skip


def make_data(psnr=PSNR):
    """A record as a dictionary: four methods, one of which failed on BSD68 at 25."""
    results = [
        make_result(method, *group, value, 0.9 - 0.01 * [m for m in psnr if group in psnr[m]].index(method))
        for method, groups in psnr.items() for group, value in groups.items()
    ]  # fmt: skip
    costs = {"Net": make_cost(556_096, 36_400_000_000, 20), ODD: make_cost(1_234_567, 48_910_000_000, 51.2)}
    return {
        "format": "hranet-arch comparison 1",
        "name": "gray_25",
        "started": "2026-01-02T03:04:05Z",
        "commit": "0123456789ab",
        "machine": {
            "system": "Linux x86_64", "device": "cpu", "device_name": "Some CPU", "threads": 2,
            "versions": {"hranet-arch": "1", "python": "3.11", "torch": "2.13", "numpy": "2.4"},
            "cpu_capability": "AVX2", "precision": {"dtype": "float32"},
        },
        "protocol": {
            "task": "denoise", "color": "gray", "levels": [15, 25], "channel": "gray", "crop_border": "0",
            "noise": {
                "name": "gaussian", "generator": "RandomState", "seed": "0 for each picture", "description": "white",
            },
            "metrics": {"psnr": "8-bit", "psnr_float": "unrounded", "ssim": "11 x 11"},
            "precision": "fp32", "tile": 0,
        },
        "testsets": {
            "Set12": {"pictures": 2, "sha256": {"all": "cd" * 32}, "status": "exact"},
            "BSD68": {"pictures": 2, "sha256": {"all": "ef" * 32}, "status": "by name"},
        },
        "methods": {
            "noisy": make_method("input"),
            "Net": make_method("network", [costs["Net"]], "Net"),
            ODD: make_method("network", [costs[ODD]]),
            "BM3D": make_method("classical", [make_cost(None, None, 900)]),
        },
        "results": results,
        "failures": [{"method": ODD, "testset": "BSD68", "level": "25", "picture": None, "reason": "no\nmemory <b>"}],
    }  # fmt: skip


def make_record(**changes):
    return Record.model_validate({**make_data(), **changes})


def make_sr_data():
    """Super-resolution: each scale has a test set and costs of its own; noise there is none."""
    data = make_data()
    data["protocol"] |= {"task": "sr", "noise": None, "channel": "y", "crop_border": "scale", "levels": [2, 4]}
    data["testsets"] = {f"Set5/x{s}": {"pictures": 2, "sha256": {"all": "cd" * 32}, "status": "exact"} for s in (2, 4)}
    data["methods"] = {"SRNet": make_method("network", [make_cost(10**6, 10**9, 9, s) for s in (2, 4)], "SRNet")}
    data["results"] = [make_result("SRNet", "Set5/x2", 2, 38.06, 0.96), make_result("SRNet", "Set5/x4", 4, 32, 0.9)]
    return data


def write_pictures(record, folder, size=(40, 44)):
    rng = np.random.default_rng(0)
    for result in record.results:
        for picture in result.pictures:
            for name in (CLEAN, result.method):
                path = picture_path(folder, result.testset, result.level, name, picture.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), rng.integers(0, 256, size, dtype=np.uint8))


def safe_record(**changes):
    """As ``make_record``, with a name that can be a folder's."""
    return Record.model_validate_json(json.dumps({**make_data(), **changes}).replace("</script>", "(script)"))


def read_page(text):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


# --- tables -----------------------------------------------------------------------------------------------------------


def test_markdown_by_hand():
    lines = tables.format_markdown(make_record()).splitlines()
    odd = r"a\_b\|100% &amp; &lt;i&gt;\$x\$&lt;/script&gt;"
    table = [line for line in lines if line.startswith("|")][:6]
    assert table == [
        "| PSNR, dB / SSIM | trained on | Set12 σ 15 | Set12 σ 25 | BSD68 σ 15 | BSD68 σ 25 |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| noisy |  | 24.61 / **0.9000** | 20.18 / **0.9000** | 24.61 / **0.9000** | 20.18 / **0.9000** |",
        # 32.89 against 32.86 is 0.03 apart, 30.40 against 30.44 is 0.04; equal prints are both the best
        "| Net | BSD400 | **32.89** (32.86) / 0.8900 | 30.40 (30.44 ≠) / 0.8900 | **31.73** (31.73) / 0.8900 "
        "| **29.23** (29.23) / 0.8900 |",
        f"| {odd} | BSD400 | **32.89** / 0.8800 | **30.90** / 0.8800 | 31.00 / 0.8800 | — |",
        "| BM3D |  | 32.37 / 0.8700 | 29.97 / 0.8700 | 31.07 / 0.8700 | 28.57 / 0.8800 |",
    ]
    assert rf"| {odd} | 1.235 | 48.91 | 51.2 \[46.1, 56.3\] | 205 \[184, 225\] | 123.4 |" in lines
    assert r"| BM3D | — | — | 900 \[810, 990\] | 3600 \[3240, 3960\] | 123.4 |" in lines
    assert "- BSD68: 2 pictures; the published pictures by name, number and size; SHA-256 efefefefefef" in lines
    assert f"- {odd}, BSD68, 25: no memory &lt;b&gt;" in lines
    assert "- Net on Set12, BSD68: 17 layers" in lines
    assert any(line.startswith("BSD68: the pictures are those of the published set by name") for line in lines)


def test_csv_by_hand():
    rows = list(csv.DictReader(io.StringIO(tables.format_csv(make_record()))))
    assert len(rows) == 4 * 4
    row = next(r for r in rows if (r["method"], r["testset"], r["sigma"]) == ("Net", "Set12", "25"))
    expected = {
        "kind": "network", "pictures": "2", "psnr": "30.4000", "psnr_float": "30.4010", "ssim": "0.8900",
        "published_psnr": "30.44", "published_ssim": "", "difference": "-0.04", "published_note": "17 layers",
        "published_source": "someone/net@1234567: Table 1", "parameters": "556096", "macs": "36400000000",
        "macs_size": "1x256x256", "latency_ms_median_1x512x512": "80.0000", "peak_memory_mb_1x512x512": "123.400",
        "set_status": "exact", "set_sha256": "cd" * 32,
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    failed = next(r for r in rows if (r["method"], r["testset"], r["sigma"]) == (ODD, "BSD68", "25"))
    assert (failed["psnr"], failed["pictures"], failed["parameters"]) == ("", "0", "1234567")


def test_what_a_network_is_given_is_said():
    methods = make_data()["methods"]
    methods["Net"] |= {"enlarge_first": True, "channel": "y", "ensemble": True}
    (line,) = [
        line for line in tables.format_markdown(make_record(methods=methods)).splitlines() if "- Net: network" in line
    ]
    assert "; takes the bicubically enlarged picture; takes the luma alone; mean over the picture's eight" in line


def test_csv_of_super_resolution_has_the_hash_of_each_scales_folders():
    data = make_sr_data()
    for scale in (2, 4):
        hashes = {f"x{scale}/gt": f"{scale}a" * 32, f"x{scale}/lq": f"{scale}b" * 32}
        data["testsets"][f"Set5/x{scale}"]["sha256"] = hashes
    rows = list(csv.DictReader(io.StringIO(tables.format_csv(Record.model_validate(data)))))
    assert [(row["set_sha256"][:2], row["set_lq_sha256"][:2]) for row in rows] == [("2a", "2b"), ("4a", "4b")]


def test_latex_by_hand():
    text = tables.format_latex(make_record())
    code = [line for line in text.splitlines() if not line.startswith("%")]
    odd = r"a\_b$|$100\% \& $<$i$>$\$x\$$<$/script$>$"
    cells = [r"\textbf{32.89} (32.86) / \underline{0.8900}", r"\underline{30.40} (30.44\,$\neq$) / \underline{0.8900}"]
    assert rf"Net & {cells[0]} & {cells[1]} \\" in code
    assert rf"{odd} & 31.00 / 0.8800 & --- \\" in code
    assert r"BM3D & \underline{31.07} / 0.8700 & \underline{28.57} / 0.8800 \\" in code
    opened, closed = (re.findall(rf"\\{word}{{(\w+)}}", "\n".join(code)) for word in ("begin", "end"))
    assert sorted(opened) == sorted(closed) == ["table", "tabular", "tabular"]
    # each row of a tabular has as many cells as its head
    widths = [line.count(" & ") for line in code if line.endswith(r"\\") and "multicolumn" not in line]
    assert widths == [2] * 9 + [5] * 5


def test_published_stands_beside_comparable_results_only():
    record = make_record()
    assert scores.find_published(record, record.find("Net", "Set12", 15)).psnr == 32.86
    assert scores.find_published(record, record.find("BM3D", "Set12", 15)) is None  # the record names none
    for status in ("differs", "unknown"):
        data = make_data()
        data["testsets"]["Set12"]["status"] = status
        other = Record.model_validate(data)
        assert scores.find_published(other, other.find("Net", "Set12", 15)) is None
        assert "(32.86)" not in tables.format_markdown(other) and "(31.73)" in tables.format_markdown(other)
    data = make_data()
    data["protocol"]["noise"]["name"] = "gaussian_clipped_8bit"
    assert "(31.73)" not in tables.format_markdown(Record.model_validate(data))


@pytest.mark.parametrize(
    ("make", "group", "change"),
    [
        ("denoise", ("Net", "Set12", 15), {"channel": "y"}),
        ("denoise", ("Net", "Set12", 15), {"crop_border": "scale"}),
        ("sr", ("SRNet", "Set5/x2", 2), {"channel": "rgb"}),
        ("sr", ("SRNet", "Set5/x2", 2), {"crop_border": "0"}),
    ],
)
def test_published_stands_beside_no_other_protocol(make, group, change):
    data = {"denoise": make_data, "sr": make_sr_data}[make]()
    record = Record.model_validate(data)
    assert scores.find_published(record, record.find(*group))
    data["protocol"] |= change
    record = Record.model_validate(data)
    assert scores.find_published(record, record.find(*group)) is None


def test_behind_two_that_are_best_there_is_a_second():
    assert scores._rank({"a": "30.00", "b": "30.00", "c": "29.00"}) == {"a": 1, "b": 1, "c": 2}


def test_ssim_is_ranked_by_its_four_digits():
    data = make_data({name: {("Set12", 15): PSNR[name][("Set12", 15)]} for name in ("noisy", "Net")})
    data["results"] = [make_result("noisy", "Set12", 15, 24.61, 0.9), make_result("Net", "Set12", 15, 32.89, 0.9004)]
    data["failures"] = []
    found = scores.score_results(Record.model_validate(data))
    assert [found[name, ("Set12", 15)].ssim_rank for name in ("noisy", "Net")] == [2, 1]


def test_a_mean_over_part_of_a_set_has_no_rank_and_nothing_beside():
    data = make_data()
    data["testsets"]["Set12"]["pictures"] = 3
    text = tables.format_markdown(Record.model_validate(data))
    assert "| Net | BSD400 | 32.89† / 0.8900 | 30.40† / 0.8900 | **31.73** (31.73) / 0.8900 |" in text
    assert "†: the mean lacks pictures" in text


def test_a_note_on_the_set_takes_the_place_of_the_mark():
    data = make_data()
    data["testsets"]["Urban100"] = data["testsets"]["Set12"]
    data["results"].append(make_result("Net", "Urban100", 15, 31.9, 0.9))
    text = tables.format_markdown(Record.model_validate(data))
    assert "31.90 (32.64 ‡) / 0.9000 |" in text
    assert "- Net on Urban100: 17 layers; not reproduced" in text


def test_super_resolution_has_costs_at_each_scale():
    text = tables.format_markdown(Record.model_validate(make_sr_data()))
    assert "| SRNet | BSD400 | 38.06 (38.02 ≠) / 0.9600 | 32.00 / 0.9000 |" in text  # a single method is not the best
    assert "| PSNR, dB / SSIM | trained on | Set5 ×2 | Set5 ×4 |" in text
    assert "| Cost at ×2 | parameters, M" in text and "| Cost at ×4 | parameters, M" in text
    assert "- SRNet on Set5: trained on DIV2K" in text
    assert "\\emph{Set5}" in tables.format_latex(Record.model_validate(make_sr_data()))


def test_published_rows_stand_beside_with_their_training_sets():
    record = Record.model_validate({**make_sr_data(), "published": ["SRNet"]})
    text = tables.format_markdown(record)
    assert "| Published, not measured here | trained on | Set5 ×2 | Set5 ×4 |\n| --- | --- | ---: | ---: |" in text
    assert "| SRNet | DIV2K | 38.02 / 0.9607 | — |" in text
    assert r"SRNet (published) & 38.02 / 0.9607 & --- \\" in tables.format_latex(record)
    assert "SRNet: DIV2K" in tables.format_latex(record)
    row = {"name": "SRNet", "training": "DIV2K", "cells": [{"text": "38.02 / 0.9607", "value": 38.02}, None]}
    assert report.describe_page(record)["published"] == [row]
    data = make_sr_data()
    data["testsets"]["Set5/x2"]["status"] = "differs"
    assert "not measured" not in tables.format_markdown(Record.model_validate({**data, "published": ["SRNet"]}))[:900]


def make_jpeg_data():
    """JPEG: PSNR-B everywhere, the second method's on top."""
    data = make_data({name: {("Set12", 15): PSNR[name][("Set12", 15)]} for name in ("noisy", "Net", ODD)})
    data["protocol"] |= {"task": "jpeg", "noise": None, "channel": "y", "compression": "libjpeg"}
    data["protocol"]["metrics"] |= {"psnrb": "less what blocks are left"}
    for number, result in enumerate(data["results"]):
        result["psnrb"] = 24 + number
        for picture in result["pictures"]:
            picture["psnrb"] = 24 + number
    data["failures"] = []
    return data


def test_psnr_b_has_a_place_of_its_own(monkeypatch):
    table = {"jpeg/gray": {"Net": {"source": ["Paper"], "values": {"Set12": {"15": [32.86, 0.89, 25.3]}}}}}
    monkeypatch.setattr(scores, "read_published", lambda: {**PUBLISHED, **table})
    record = Record.model_validate({**make_jpeg_data(), "published": ["Net"]})
    text = tables.format_markdown(record)
    assert "Grey JPEG artifact removal, quality 15, 25: 3 methods" in text
    assert "| PSNR, dB / SSIM / PSNR-B, dB | trained on | Set12 quality 15 |" in text
    assert "| Net | BSD400 | **32.89** (32.86) / 0.8900 / 25.00 |" in text
    assert "/ **26.00** |" in text and "| Net |  | 32.86 / 0.8900 / 25.30 |" in text
    assert "- JPEG files: libjpeg; MATLAB's" in text
    assert r"\underline{0.8900} / \underline{25.00}" in tables.format_latex(record)
    row = next(r for r in csv.DictReader(io.StringIO(tables.format_csv(record))) if r["method"] == "Net")
    assert (row["quality"], row["psnrb"], row["published_psnrb"]) == ("15", "25.0000", "25.3")
    cell = report.describe_page(record)["scores"][1][0]["PSNR-B"]
    assert cell == {"text": "25.00", "value": 25, "best": False, "published": "25.30"}


@pytest.mark.parametrize("seconds, text", [(0.000512, "0.512"), (0.00512, "5.12"), (0.0512, "51.2"), (0.512, "512")])
def test_milliseconds_have_three_digits(seconds, text):
    assert scores.format_milliseconds(seconds) == text


# --- plots and pictures -----------------------------------------------------------------------------------------------


def test_pareto_front_by_hand():
    assert plots.pareto_front([(3, 31), (1, 30), (2, 29.5), (3, 30.5), (4, 31), (5, 32)]) == [(1, 30), (3, 31), (5, 32)]
    assert plots.pareto_front([]) == []


def test_panels_leave_out_the_input_and_draw_classical_methods_as_lines():
    macs, latency, parameters = (plots.list_panels(make_record(), quantity)[0] for quantity in plots.QUANTITIES)
    assert {p.method: (p.cost, p.psnr) for p in macs.points} == {"Net": (36.4, 32.89), ODD: (48.91, 32.894)}
    assert macs.lines == parameters.lines == {"BM3D": 32.37}
    assert macs.axis == "MACs, G at 256×256"
    net = latency.points[0]
    assert (net.low, net.cost, net.high) == pytest.approx((72, 80, 88))  # the larger size
    assert latency.lines == {} and len(latency.points) == 3


def test_a_panel_sets_beside_each_other_what_makes_the_same_picture():
    """At 3 times a network is given 240 x 426 for what another is given as 720 x 1280."""
    data = make_sr_data()
    data["protocol"]["levels"] = [3]
    data["testsets"] = {"Set5/x3": data["testsets"]["Set5/x2"]}
    small, large = make_cost(10**6, 10**9, 9, 3), make_cost(2 * 10**6, 10**10, 90, 3)
    for cost, sizes in ((small, [(1, 100, 100), (3, 240, 426)]), (large, [(1, 300, 300), (1, 720, 1280)])):
        cost["macs_size"], cost["latency"] = sizes[-1], cost["latency"][:1] * 2
        cost["latency"] = [{**one, "size": size} for one, size in zip(cost["latency"], sizes)]
    data["methods"] = {"Small": make_method("network", [small]), "Large": make_method("network", [large])}
    data["methods"]["Large"]["enlarge_first"] = True
    data["results"] = [make_result(name, "Set5/x3", 3, 34, 0.9) for name in ("Small", "Large")]
    for quantity in plots.QUANTITIES:
        (panel,) = plots.list_panels(Record.model_validate(data), quantity)
        assert [point.method for point in panel.points] == ["Small", "Large"], quantity
        assert panel.axis.endswith("at 720×1280") or quantity.key == "parameters"


def test_region_by_hand():
    first, second = np.zeros((2, 10, 12), np.uint8)
    second[6:8, 9:11] = 100
    second[0, 0] = 150  # stronger, but one pixel: 22500 against 4 * 10000
    assert examples.choose_region([first, second], size=2) == (6, 9, 2, 2)
    assert examples.choose_region([first, second], size=96) == (0, 0, 10, 12)
    assert examples.choose_region([first], size=3) == (0, 0, 3, 3)
    color = np.zeros((2, 5, 5, 3), np.uint8)
    color[1, 4, 3, 2] = 1
    assert examples.choose_region(list(color), size=1) == (4, 3, 1, 1)


def test_examples_are_those_of_most_and_least_gain():
    best, worst = examples.choose_examples(make_record())[:2]
    assert (best.name, best.role, best.gain) == ("2", "best", pytest.approx(34.89 - 25.61))
    assert (worst.name, worst.role, worst.gain) == ("1", "worst", pytest.approx(30.89 - 23.61))
    assert (best.method, best.reference) == ("Net", "noisy")


def test_equal_gains_are_one_example():
    data = make_data({name: PSNR[name] for name in ("Net", ODD)})  # both pictures lie 2 dB from the mean
    chosen = examples.choose_examples(Record.model_validate(data))
    assert [(e.name, e.role) for e in chosen if e.testset == "Set12"] == [("1", "best")] * 2


def test_examples_without_input_and_without_network():
    data = make_data({name: PSNR[name] for name in ("BM3D", ODD)})
    assert {(e.method, e.reference) for e in examples.choose_examples(Record.model_validate(data))[:2]} == {
        (ODD, "BM3D")
    }
    alone = Record.model_validate(make_data({"BM3D": PSNR["BM3D"]}))
    assert [(e.name, e.reference, e.gain) for e in examples.choose_examples(alone)[:2]] == [
        ("2", None, pytest.approx(34.37)), ("1", None, pytest.approx(30.37)),
    ]  # fmt: skip


def test_a_crop_in_the_figure_is_the_picture_enlarged_twice():
    crop = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    figure = examples._draw_crops("title", {"a": crop}, [""])
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[34:44, 12:26, :3]
    assert np.array_equal(drawn, crop[..., ::-1].repeat(2, 0).repeat(2, 1))


# --- the whole report -------------------------------------------------------------------------------------------------


def test_report_writes_the_same_bytes_again(tmp_path):
    record = safe_record()
    files = []
    for folder, matplotlibrc in (
        (tmp_path / "a", {}),
        (tmp_path / "b", {"savefig.bbox": "tight", "font.family": "serif"}),
    ):
        write_pictures(record, folder)
        with matplotlib.rc_context(matplotlibrc):
            report.write_report(record, folder)
        files.append({str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})
    assert files[0] == files[1]
    written = {name for name in files[0] if not name.startswith("pictures/")}
    assert written == {
        "report.html", "table.csv", "table.md", "table.tex",
        *(f"plots/psnr_{key}.{suffix}" for key in ("latency", "macs", "parameters") for suffix in ("png", "svg")),
        *(f"crops/{name}_{role}.png" for name in ("Set12_15", "Set12_25", "BSD68_15", "BSD68_25")
          for role in ("best_2", "worst_1")),
    }  # fmt: skip


def test_a_name_that_matplotlib_cannot_draw_is_said_once(tmp_path, caplog, recwarn):
    record = Record.model_validate_json(json.dumps(make_data()).replace(json.dumps(ODD), '"网络"'))
    write_pictures(record, tmp_path)
    report.write_report(record, tmp_path)
    assert [line.split(":")[0] for line in caplog.messages if "font" in line] == ["网络"]
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    drawn = read_page((tmp_path / "report.html").read_text("utf-8"))["plots"]
    assert [">网络</text>" in plot["svg"] for plot in drawn] == [True] * 3


def test_the_page_is_whole_and_safe(tmp_path):
    template = pages.read_page("report_page.html")
    text = report.format_page(template, report.describe_page(make_record()))
    page = read_page(text)
    assert page["methods"][2] == ODD  # although the name holds </script>
    assert page["scores"][1][1]["PSNR"] == {
        "text": "30.40", "value": pytest.approx(30.4), "best": False, "published": "30.44", "sign": "≠",
        "title": "-0.04 dB from the published 30.44",
    }  # fmt: skip
    assert page["scores"][1][1]["difference"]["text"] == "-0.04"
    assert page["scores"][2][3] is None
    cells = [page["scores"][method][1] for method in (0, 2)]  # the one has the best SSIM, the other the best PSNR
    assert [(one["PSNR"]["best"], one["SSIM"]["best"]) for one in cells] == [(False, True), (True, False)]
    assert not re.search(r"""(?:src|href|url\()\s*=?\s*["']?\s*(?:https?:)?//""", text)


def test_pictures_that_are_missing_leave_their_example_out(tmp_path):
    record = safe_record()
    report.write_report(record, tmp_path)
    assert read_page((tmp_path / "report.html").read_text("utf-8"))["examples"] == []
    write_pictures(record, tmp_path)
    picture_path(tmp_path, "Set12", 15, "BM3D", "1").unlink()
    loaded = examples.load_examples(record, tmp_path)
    assert len(loaded) == 7 and ("Set12", 15, "1") not in {
        (e.example.testset, e.example.level, e.example.name) for e in loaded
    }


@pytest.mark.parametrize("kept", [["BM3D"], ["noisy"], ["Net"]])
def test_a_single_method_without_costs_is_enough(kept, tmp_path):
    data = make_data({name: PSNR[name] for name in kept})
    data["methods"] = {name: {**data["methods"][name], "costs": []} for name in kept}
    data["failures"] = []
    record = Record.model_validate(data)
    write_pictures(record, tmp_path)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots/psnr_macs.png").write_bytes(b"of a run with other methods")
    report.write_report(record, tmp_path)
    assert "**" not in (tmp_path / "table.md").read_text("utf-8")
    assert list((tmp_path / "plots").iterdir()) == []


def test_scores_and_results_may_be_missing(tmp_path):
    data = make_data()
    for result in data["results"]:
        if result["method"] == "Net":
            result |= dict.fromkeys(("psnr", "psnr_float", "ssim"))
            for picture in result["pictures"]:
                picture |= dict.fromkeys(("psnr", "psnr_float", "ssim"))
    record = Record.model_validate_json(json.dumps(data).replace("</script>", ""))
    write_pictures(record, tmp_path)
    report.write_report(record, tmp_path)
    assert "| Net | BSD400 | —† / — |" in (tmp_path / "table.md").read_text("utf-8")
    report.write_report(Record.model_validate({**data, "results": []}), tmp_path)


def test_large_pictures_show_their_middle_so_that_the_page_stays_small(tmp_path, monkeypatch):
    group = ("Set12", 15)
    record = Record.model_validate(make_data({name: {group: PSNR[name][group]} for name in ("noisy", "Net")}))
    write_pictures(record, tmp_path, size=(700, 300))
    loaded = examples.load_examples(record, tmp_path)
    assert "the middle 640 × 640 pixels" in examples.encode_pictures(record, loaded)["pictureNotes"]
    monkeypatch.setattr(examples, "PAGE_CHARACTERS", 600_000)
    encoded = examples.encode_pictures(record, loaded)
    assert "the middle 256 × 256 pixels" in encoded["pictureNotes"]
    assert sum(map(len, encoded["pictures"])) < 600_000
    monkeypatch.setattr(examples, "SMALL", 1000)
    assert "WebP, quality 92" in examples.encode_pictures(record, loaded)["pictureNotes"]
