"""The benchmark scripts: their arithmetic by hand, a short run of each, and that the page says what the records say."""

import importlib
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from hranet_arch import arithmetic, networks, registration
from hranet_arch.complexity import count_macs
from hranet_arch.hranet import HRANet, LightweightBlock
from hranet_arch.option_files import merge, read_options
from hranet_arch.options import check_options
from tests.conftest import REPOSITORY, make_pictures

SCRIPTS = REPOSITORY / "scripts"


def run(script, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-W", "ignore", str(SCRIPTS / script), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def assert_says_how_it_was_made(record):
    assert record["commit"] and record["machine"]["versions"]["torch"] == torch.__version__
    assert record["machine"]["device"] == "cpu" and record["settings"]["threads"] == record["machine"]["threads"] == 1
    assert not any("/" in str(value) for value in record["settings"].values())  # no path of this machine


def test_speed_is_compared_round_by_round():
    """Twice as fast in each round, though the machine slows down by half in between."""
    from interleave import compare

    result = compare({"stock": [2.0, 3.0, 2.0], "ours": [1.0, 1.5, 1.0]}, "stock")
    assert result["ours"]["speedup"] == {"median": 2, "lower_quartile": 2, "upper_quartile": 2}
    assert result["ours"]["seconds"] == {"median": 1, "lower_quartile": 1, "upper_quartile": 1.25}


class Counting:
    """Answers with how often anyone was asked."""

    asked = 0

    def wait(self):
        pass

    def call(self, method):
        Counting.asked += 1
        return Counting.asked


def test_contestants_take_turns_and_each_round_is_seen():
    from interleave import take_turns

    seen = [{name: list(given) for name, given in answers.items()} for answers in
            take_turns({"a": Counting(), "b": Counting()}, 3, "count")]  # fmt: skip
    assert seen == [{"a": [1], "b": [2]}, {"a": [1, 4], "b": [2, 3]}, {"a": [1, 4, 5], "b": [2, 3, 6]}]


class Meeting:
    """Answers when all of its kind have been asked."""

    asked = 0

    def ask(self, method):
        Meeting.asked += 1

    def answer(self):
        return Meeting.asked


def test_only_those_that_there_are_can_be_named():
    from interleave import choose

    there = {"stock": 1, "ours": 2, "only fold": 3}
    assert choose(there, None) == there and choose(there, ["ours"]) == {"stock": 1, "ours": 2}
    with pytest.raises(SystemExit, match="--only only fast, our: there are stock, ours, only fold."):
        choose(there, ["our", "only fast", "ours"])


def test_all_contestants_can_work_at_once():
    from interleave import ask_all

    assert ask_all({"a": Meeting(), "b": Meeting()}, "compile") == {"a": 2, "b": 2}


@pytest.mark.slow
def test_all_processes_end_after_one_failed(capsys):
    """Contestants are dictionaries here, of their arguments."""
    from interleave import compile_all, running

    with running(dict, {"threads": 1}, {"sound": "fast", "killed": "fast", "broken": "slow"}) as contestants:
        assert contestants["sound"].call("get", "options") == "fast"
        with pytest.raises(SystemExit, match="(?s)broken failed:.*AttributeError"):
            contestants["broken"].call("run")
        contestants["killed"].wait()
        contestants["killed"].process.kill()
        contestants["killed"].process.join()
        with pytest.raises(SystemExit, match="killed: its process ended .out of memory, perhaps"):
            contestants["killed"].call("get", "options")
    assert not any(contestant.process.is_alive() for contestant in contestants.values())
    compile_all(dict, {}, {"broken": "slow"}, "run")
    assert "compiling beside the others: broken failed" in capsys.readouterr().err


def test_curves_agree_where_windows_do():
    """10 dB is a factor of ten in the loss. The first window is of the start and never counts."""
    from benchmark_training import compare_curves

    flat, near, off = ([0.01 * 10**decades] * 100 for decades in (0, 0.029, 0.031))
    same = compare_curves([flat] * 2, [[0.1] * 50 + flat[50:]] * 2)
    assert same["agree"] and same["runs"] == 2
    assert same["windows"][1] == pytest.approx({"from_step": 51, "stock_db": 20, "ours_db": 20, "error_db": 0})
    assert compare_curves([flat] * 2, [near] * 2)["agree"]
    assert not compare_curves([flat] * 2, [off] * 2)["agree"]  # 0.31 dB, twice


def test_curves_of_runs_that_differ_agree_within_two_standard_errors():
    """0.2 and 1 dB are 0.6 with an error of 0.4; 0.5 and 0.7 dB the same with one of 0.1."""
    from benchmark_training import compare_curves

    runs = {difference: [0.01 * 10 ** (difference / 10)] * 100 for difference in (0, 0.2, 0.5, 0.7, 1)}
    wide = compare_curves([runs[0]] * 2, [runs[0.2], runs[1]])
    assert wide["agree"] and wide["windows"][1]["error_db"] == pytest.approx(0.4)
    assert wide["windows"][1]["ours_db"] == pytest.approx(19.4)
    assert not compare_curves([runs[0]] * 2, [runs[0.5], runs[0.7]])["agree"]
    shifted = compare_curves([runs[0], runs[1]], [runs[0.2], runs[1]])  # run by run, each beside its own
    assert shifted["agree"] and shifted["windows"][1]["error_db"] == pytest.approx(0.1)


@pytest.mark.parametrize(("curves", "said"), [({}, "within one run"), ({"runs": 3}, "over 3 runs")])
def test_a_table_says_of_how_many_runs_its_curves_are(curves, said):
    from make_tables import _make_training

    windows = [{"from_step": step, "stock_db": 24.0, "ours_db": 24.1, "error_db": 0.2} for step in (1, 51)]
    lines = _make_training({"contestants": {}, "profiles": {}, "curves": {"windows": windows, "agree": True, **curves}})
    assert f"Loss curves agree, {said}: in the window from step 51, 24.00 dB (stock) and 24.10 dB (ours)" in lines[-1]


@pytest.mark.parametrize("arguments", [["--curve-steps", "99"], ["--curve-runs", "1"]])
def test_curves_that_could_not_disagree_are_refused(arguments, monkeypatch, capsys):
    import benchmark_training

    monkeypatch.setattr("sys.argv", ["benchmark_training.py", "--input", "a", "--output", "r.json", *arguments])
    with pytest.raises(SystemExit) as ended:
        benchmark_training.main()
    assert ended.value.code == 2 and f"{' '.join(arguments)}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("benchmark_training", ["--input", "a", "--rounds", "0"], "--rounds: '0' is not allowed: 1 or more"),
        ("benchmark_training", ["--input", "a", "--steps", "-2"], "--steps: '-2' is not allowed: 1 or more"),
        ("benchmark_training", ["--input", "a"], "a: no such folder. Give a folder of pictures."),
        ("benchmark_inference", ["--rounds", "0"], "--rounds: '0' is not allowed: 1 or more"),
        ("benchmark_inference", ["--pictures", "a"], "a: no such folder. Give a folder of pictures."),
        ("benchmark_inference", ["--num-feat", "4", "--weights", "a.pth"], "--weights: a.pth: there is no such file."),
    ],
)
def test_what_a_benchmark_cannot_use_is_told_of_first(script, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"{script}.py", "--output", "r.json", *arguments])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main()
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not Path("r.json").exists()


def test_waiting_is_a_share_and_what_was_read_ahead_is_not_timed():
    from benchmark_training import Training

    training, asked = object.__new__(Training), []
    training.device, training.read_ahead = "cpu", 4
    training.run = lambda steps: (asked.append(steps), (0.5, 0.1))[1]
    assert training.run_turn(10) == {"seconds": 0.5, "waiting": 0.2} and asked == [4, 10]


def test_a_time_is_the_mean_of_its_runs(monkeypatch):
    """A quarter of a second each; the first takes longer, and is not timed."""
    import benchmark_inference

    inference, runs, clock = object.__new__(benchmark_inference.Inference), [], [0.0]
    inference.device, inference.noisy = torch.device("cpu"), None

    def denoise(noisy):
        clock[0] += 0.25 if runs else 100
        runs.append(noisy)

    inference.denoise = denoise
    monkeypatch.setattr(benchmark_inference.time, "perf_counter", lambda: clock[0])
    assert inference.time(1.0) == 0.25 and len(runs) == 1 + 4


def test_quality_is_that_of_what_a_file_can_show():
    """-1 is black; the error of 0.1 is of half the pixels."""
    from benchmark_inference import psnr

    assert psnr(np.array([[-1.0, 0.9]]), np.array([[0.0, 1.0]])) == pytest.approx(-10 * np.log10(0.01 / 2))


@pytest.mark.parametrize(
    ("device", "own", "others"),
    [
        ("cpu", ["keep_memory"], ["compile", "dense_branches"]),
        ("cuda", ["compile", "dense_branches"], ["keep_memory"]),
    ],
)
def test_every_option_is_measured_alone_and_left_out(device, own, others, monkeypatch):
    from benchmark_training import list_contestants

    monkeypatch.setattr(arithmetic, "is_fast", lambda precision, device: True)
    contestants = list_contestants(device)
    for key in ["degrade_on", "channels_last", "precision", "fused", *own]:
        assert contestants[f"only {key}"][key] == contestants["ours"][key] != contestants[f"without {key}"][key]
    assert not {f"only {key}" for key in others} & set(contestants)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_contestant_of_inference_has_the_options_of_its_name(device, monkeypatch):
    from benchmark_inference import list_contestants

    monkeypatch.setattr(arithmetic, "is_fast", lambda precision, device: True)
    contestants = list_contestants(device)
    on = {name: {key for key, value in options.items() if value} for name, options in contestants.items()}
    for name, found in on.items():
        kind, _, key = name.partition(" ")
        if kind == "only":
            assert found == {key}
        if kind == "without":  # fused convolutions are channels-last
            assert found == on["ours"] - ({key, "fuse"} if key == "channels_last" else {key})


def test_options_of_inference_reach_the_network(monkeypatch):
    from benchmark_inference import Inference, list_contestants

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # it would outlast this test
    settings, stock = {"device": "cpu", "threads": 1, "num_feat": 4, "weights": None}, list_contestants("cpu")["stock"]
    plain, folded, rough = (Inference(settings, {**stock, **on}) for on in ({}, {"fold": True}, {"bf16": True}))
    has_norms = [any("running_mean" in name for name in one.network.state_dict()) for one in (plain, folded)]
    assert has_norms == [True, False]
    x = torch.rand(1, 1, 16, 16)
    assert not torch.equal(plain.denoise(x), rough.denoise(x))


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bf16_is_measured_where_the_processor_has_it(has_bf16, monkeypatch):
    import benchmark_inference
    import benchmark_training

    monkeypatch.setattr(arithmetic, "is_fast", lambda precision, device: has_bf16)
    training = benchmark_training.list_contestants("cpu")
    assert training["ours"]["precision"] == ("bf16" if has_bf16 else "fp32")
    assert ("only precision" in training) is ("without precision" in training) is has_bf16
    inference = benchmark_inference.list_contestants("cpu")
    assert inference["ours"]["bf16"] is ("only bf16" in inference) is ("ours in fp32" in inference) is has_bf16
    assert ("ours in int8" in inference) is has_bf16


@pytest.mark.parametrize("kind", ["FAST", "PLAIN"])
def test_every_option_reaches_what_trains(kind, tmp_path, monkeypatch, any_precision):
    import benchmark_training

    from hranet_arch.device_batches import DeviceLoader
    from hranet_arch.prepare import prepare_lmdb

    monkeypatch.setattr(logging, "disable", lambda level: None)  # it would outlast this test, as would this:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    kept = []
    monkeypatch.setattr("hranet_arch.allocator.keep_freed_memory", lambda: kept.append(True))
    lmdb = str(tmp_path / "a.lmdb")
    prepare_lmdb(make_pictures(tmp_path / "pictures", 1, size=(50, 60)), lmdb, gray=True)
    settings = {"device": "cpu", "threads": 1, "workers": 0, "batch": 2, "num_feat": 4, "lmdb": lmdb}
    options = getattr(benchmark_training, kind)
    training = benchmark_training.Training(settings, options)
    first = training.describe_weights()
    assert {
        "degrade_on": "device" if isinstance(training.prefetcher.ori_loader, DeviceLoader) else "loader",
        "channels_last": training.model.memory_format is torch.channels_last,
        "precision": training.model.precision,
        "fused": training.model.optimizer_g.defaults["fused"],
        "keep_memory": bool(kept),
    } == options
    training.run(2)
    before = training.describe_weights()
    training.run_again(2)  # for the time that it takes
    assert training.describe_weights() == before and len(training.losses) == 2
    next(training.model.net_g.parameters()).data.view(-1)[0] += 1
    assert training.describe_weights() != before
    training.begin(0)
    again = [training.describe_weights(), training._next_batch()["gt"]]
    assert again[0] == first and training.losses == []
    training.begin(1)
    assert training.describe_weights() != first and not torch.equal(training._next_batch()["gt"], again[1])


class EpochSampler:
    def set_epoch(self, epoch):
        self.epoch = epoch


class Stranger:
    """A contestant with first weights of its own."""

    def __init__(self, name, *arguments, **options):
        self.name = name

    def call(self, method):
        assert method == "describe_weights"
        return self.name

    def close(self):
        pass


def test_contestants_that_start_from_other_weights_are_not_compared(monkeypatch):
    import benchmark_training
    import interleave

    monkeypatch.setattr(interleave, "Contestant", Stranger)
    with pytest.raises(SystemExit, match="do not start from the same weights"):
        next(benchmark_training.measure({"device": "cpu"}, SimpleNamespace(only=["ours"])))


def test_merged_branches_compute_the_same():
    from benchmark_inference import MergedBlock

    torch.manual_seed(0)
    block = HRANet(num_feat=8).coarse_denoising.blocks[2].lwb1.eval()
    z = torch.randn(1, 16, 9, 7)
    with torch.inference_mode():
        torch.testing.assert_close(MergedBlock(block)(z), block(z), rtol=0, atol=1e-6)


def test_a_product_multiplies_as_often_as_the_network():
    """In bf16 where that does; up to what does not fill a column of 1,024."""
    from benchmark_inference import MatrixProduct

    network = HRANet(num_feat=32).eval()
    product, size = MatrixProduct(network, torch.bfloat16), (1, 40, 48)
    x = torch.rand(1, *size)
    assert product(x) is x and product.left.dtype == product.right.dtype == torch.bfloat16
    assert count_macs(product, size) == pytest.approx(count_macs(network, size), rel=0.005)


def test_stock_is_measured_without_dense_branches(monkeypatch):
    import benchmark_training

    monkeypatch.setattr(LightweightBlock, "run_dense", LightweightBlock.run_dense)  # put back after this test
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(logging, "disable", lambda level: None)
    for name in ("_build_stock", "_build_ours"):
        monkeypatch.setattr(benchmark_training.Training, name, lambda *given: (None, EpochSampler(), []))
    settings = {"threads": 1, "device": "cpu", "workers": 0}
    dense, u = LightweightBlock.run_dense, torch.zeros(1, 4, 5, 5)
    benchmark_training.Training(settings, {"dense_branches": True})
    assert LightweightBlock.run_dense is dense
    benchmark_training.Training(settings, None)
    block = LightweightBlock(num_in_ch=4, num_feat=8)
    assert torch.equal(block.run_dense(u), block.separable1(u) + block.separable2(u))
    assert LightweightBlock.run_dense is benchmark_training.run_separable


@pytest.mark.slow
def test_training_is_benchmarked(tmp_path):
    make_pictures(tmp_path / "pictures", 4, size=(50, 60))
    run(
        "benchmark_training.py",
        "--quick",
        "--threads",
        1,
        "--input",
        tmp_path / "pictures",
        "--output",
        tmp_path / "r.json",
    )
    record = json.loads((tmp_path / "r.json").read_text())
    assert_says_how_it_was_made(record)
    result = record["networks"]["HRANet num_feat=4"]
    assert set(result["contestants"]) == {"stock", "ours"} and result["rounds"] == record["settings"]["rounds"]
    assert result["contestants"]["ours"]["options"]["precision"] in ("bf16", "fp32")  # as the processor has it
    assert all(0 <= values["waiting"]["median"] < 1 for values in result["contestants"].values())
    assert result["curves"]["agree"] and result["profiles"]["stock"]


@pytest.mark.slow
def test_inference_is_benchmarked(tmp_path):
    run(
        "benchmark_inference.py",
        "--quick",
        "--threads",
        1,
        "--output",
        tmp_path / "r.json",
        "--only",
        "only fold",
        "ours",
        "as one product",
    )
    record = json.loads((tmp_path / "r.json").read_text())
    assert_says_how_it_was_made(record)
    result = record["networks"]["HRANet num_feat=4"]
    assert set(result["quality"]) == {"stock", "only fold", "ours"}
    assert set(result["sizes"][0]["contestants"]) == {*result["quality"], "as one product"}
    assert result["quality"]["only fold"]["largest_difference"] < 1e-6
    has_bf16 = arithmetic.is_fast("bf16", torch.device("cpu"))
    assert (result["quality"]["ours"]["largest_difference"] > 1e-5) is has_bf16


RECORD = {
    "commit": "0123456789abcdef",
    "machine": {
        "device": "cpu",
        "device_name": "A machine",
        "cpu_capability": "AVX2",
        "versions": {"torch": "2.0"},
    },
    "settings": {"threads": 2, "rounds": 3},
    "networks": {
        "HRANet num_feat=4": {
            "contestants": {
                name: {
                    "seconds": {"median": seconds, "lower_quartile": seconds, "upper_quartile": seconds},
                    "speedup": {"median": 0.1 / seconds, "lower_quartile": 1, "upper_quartile": 3},
                    "waiting": {"median": 0.031},
                }
                for name, seconds in (("stock", 0.1), ("ours", 0.05))
            },
            "curves": None,
            "profiles": {},
        }
    },
}


def test_tables_are_made_from_records(tmp_path):
    from make_tables import render

    page = "Before\n<!-- benchmark_training_cpu.json -->\nold\n<!-- end -->\nAfter\n"
    assert "Not measured yet." in render(page, tmp_path) and "old" not in render(page, tmp_path)
    (tmp_path / "benchmark_training_cpu.json").write_text(json.dumps(RECORD))
    text = render(page, tmp_path)
    assert "| ours | 50.0 (50.0–50.0) | 2.00 (1.00–3.00) | 3.1% |" in text
    assert "A machine (AVX2), 2 threads, torch 2.0, commit 0123456789ab;" in text
    assert render(text, tmp_path) == text and text.startswith("Before\n") and text.endswith("After\n")


@pytest.mark.parametrize("script", ["benchmark_training", "benchmark_inference"])
def test_a_benchmark_that_is_cut_off_leaves_its_rounds(script, tmp_path, monkeypatch):
    module = importlib.import_module(script)

    def measure(*arguments):
        yield {"rounds": 1}
        raise KeyboardInterrupt

    make_pictures(tmp_path / "pictures", 1)
    pictures = ["--input", str(tmp_path / "pictures")] if script == "benchmark_training" else []
    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(sys, "argv", [script, "--quick", "--output", str(tmp_path / "r.json"), *pictures])
    with pytest.raises(KeyboardInterrupt):
        module.main()
    assert json.loads((tmp_path / "r.json").read_text())["networks"] == {"HRANet num_feat=4": {"rounds": 1}}


def test_a_benchmark_that_was_cut_off_has_a_table_of_what_it_had_done(tmp_path):
    from make_tables import render

    pages = {name: f"<!-- {name}.json -->\n<!-- end -->\n" for name in ("benchmark_training", "benchmark_inference")}
    contestants = RECORD["networks"]["HRANet num_feat=4"]["contestants"]
    training = {**RECORD["networks"]["HRANet num_feat=4"], "rounds": 2}
    sizes = [{"height": 8, "width": side, "rounds": rounds, "contestants": contestants} for side, rounds in
             ((8, 3), (9, 1))]  # fmt: skip
    for name, result in (("training", training), ("inference", {"sizes": sizes, "quality": {}})):
        record = {**RECORD, "networks": {"HRANet num_feat=4": result}}
        (tmp_path / f"benchmark_{name}.json").write_text(json.dumps(record))
    text = render(pages["benchmark_training"], tmp_path)
    assert "**HRANet num_feat=4** (cut off after 2 of 3 rounds)" in text and "| ours | 50.0 " in text
    text = render(pages["benchmark_inference"], tmp_path)
    assert "(cut off after 1 of 3 rounds)" in text
    assert "| ours | 50.0 | 2.00 (1.00–3.00) | 50.0 | 2.00 (1.00–3.00) |  |  |" in text


@pytest.mark.parametrize("name", ["performance.md", "recipes.md"])
def test_the_page_says_what_the_records_say(name):
    from make_tables import PAGES, render

    page = (REPOSITORY / "docs" / name).read_text()
    assert REPOSITORY / "docs" / name in PAGES
    assert page == render(page, REPOSITORY / "docs/records")


def test_the_page_about_photographs_says_what_its_record_says():
    record = json.loads((REPOSITORY / "docs/records/finetune.json").read_text())
    page = (REPOSITORY / "docs/real.md").read_text()
    for method, mean in record["mean"].items():
        assert f"{mean:.2f} dB |" in next(line for line in page.splitlines() if line.startswith(f"| {method} |"))


def test_a_folder_without_pictures_is_refused_before_the_timing(tmp_path):
    from benchmark_inference import read_pictures

    with pytest.raises(SystemExit, match="there are no pictures"):
        read_pictures(tmp_path)
    cv2.imwrite(str(tmp_path / "a.jpg"), np.full((20, 30), 51, np.uint8))
    assert read_pictures(tmp_path)[0] == pytest.approx(0.2, abs=0.005)


def test_the_fine_tuning_demo_leaves_a_persons_own_pairs_alone(tmp_path, monkeypatch):
    import finetune_demo

    def stop(*command):
        raise SystemExit(dict(entry.split("=") for entry in command[command.index("--force_yml") + 1 :]))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["finetune_demo", "--picture", "new/a.png", "--record", "new/b.json"])
    monkeypatch.setattr(finetune_demo, "run", stop)
    with pytest.raises(SystemExit) as training:
        finetune_demo.main()
    assert Path("new").is_dir() and not Path("datasets/pairs").exists()
    options = read_options(REPOSITORY / finetune_demo.RECIPE)
    for part, key in itertools.product(("train", "val"), ("dataroot_lq", "dataroot_gt")):
        assert key in options["datasets"][part]
        assert any(Path(training.value.code[f"datasets:{part}:{key}"]).iterdir())


def test_a_steps_time_is_read_where_nothing_was_validated(tmp_path, monkeypatch):
    """20 and 30 seconds for 50 iterations; after the 100th, a validation took another 100."""
    from try_recipes import PRINT_EVERY, read_curve

    assert PRINT_EVERY == 50
    monkeypatch.chdir(tmp_path)
    with SummaryWriter(tmp_path / "tb_logger" / "tiny") as writer:
        for step, time in ((50, 0), (100, 20), (150, 150), (200, 180)):
            writer.add_scalar("losses/l_pix", 0.1, step, walltime=time)
        for step, psnr in ((100, 25.5), (200, 26.25)):
            writer.add_scalar("metrics/BSD400_val/psnr", psnr, step)
            writer.add_scalar("metrics/strong/psnr", 23.5, step)
    curve = read_curve({"name": "tiny", "val": {"best_on": "BSD400_val"}})
    assert curve["psnr"] == {100: 25.5, 200: 26.25}
    assert read_curve({"name": "tiny", "val": {"best_on": ["BSD400_val", "strong"]}})["psnr"] == {
        100: 24.5,
        200: 24.875,
    }
    with SummaryWriter(tmp_path / "tb_logger" / "tiny") as writer:  # broken off between two sets
        writer.add_scalar("metrics/strong/psnr", 20.0, 300)
    assert 300 not in read_curve({"name": "tiny", "val": {"best_on": ["BSD400_val", "strong"]}})["psnr"]
    assert curve["step_seconds"] == pytest.approx({"median": 0.5, "lower_quartile": 0.45, "upper_quartile": 0.55})


def test_a_validation_between_two_lines_is_in_no_steps_time(tmp_path, monkeypatch):
    """25 seconds for 50 iterations, and 60 more for the validation after the 120th."""
    from try_recipes import read_curve

    monkeypatch.chdir(tmp_path)
    with SummaryWriter(tmp_path / "tb_logger" / "tiny") as writer:
        for step, time in ((50, 0), (100, 25), (150, 110), (200, 135)):
            writer.add_scalar("losses/l_pix", 0.1, step, walltime=time)
        writer.add_scalar("metrics/val/psnr", 25.5, 120)
    seconds = read_curve({"name": "tiny", "val": {"best_on": "val"}})["step_seconds"]
    assert seconds == pytest.approx({"median": 0.5, "lower_quartile": 0.5, "upper_quartile": 0.5})


@pytest.mark.parametrize("group", ["base", "found", "tuned", "continued", "control", "taught"])
def test_every_variant_is_an_option_file_that_runs(group, tmp_path, monkeypatch):
    from try_recipes import OPTION_FILE, OPTION_FILES, TRAINED, list_trials, squeeze

    make_pictures(tmp_path / "datasets/BSD400", 1)
    monkeypatch.chdir(tmp_path)
    Path("experiments").mkdir()
    shutil.copy(networks.WEIGHTS / "hranet_s_gray_s25.safetensors", TRAINED)
    options = read_options(REPOSITORY / OPTION_FILES.get(group, OPTION_FILE))
    for dataset in options["datasets"].values():
        del dataset["meta_info_file"]
    seen = []
    for changes in list_trials(group, 1500).values():
        tried = merge(merge(options, squeeze("trial", 0, 1500, 500)), changes)
        assert tried not in seen
        seen.append(tried)
        checked = check_options(tried, registration.registries(), is_train=True)
        assert checked["train"]["scheduler"].get("periods", [1500]) == [1500]


def test_a_precision_that_is_named_is_that_of_every_variant(tmp_path, monkeypatch):
    import try_recipes

    ran, output = [], tmp_path / "record.json"
    monkeypatch.setattr(try_recipes, "train", lambda opt, changes: ran.append(changes) or {})
    monkeypatch.setattr(try_recipes, "read_curve", lambda options: {"psnr": {5: 20.0}})
    command = ["try_recipes", "--group", "found", "--trials", "found", "steps", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [*command, "--precision", "fp32"])
    assert try_recipes.main() == 0
    for (_, changes), result in zip(ran, json.loads(output.read_text())["results"], strict=True):
        assert changes == result["changes"]
        assert changes["train"].pop("precision") == "fp32"
        assert changes == try_recipes.list_trials("found", 1500)[result["trial"]]


def test_what_a_record_holds_is_not_trained_again(tmp_path, monkeypatch, capsys):
    """What a run is known by: variant, length and seed. Another option file's record is not gone on with."""
    import try_recipes

    ran = []
    monkeypatch.setattr(try_recipes, "train", lambda opt, changes: ran.append(changes[0]) or {})
    monkeypatch.setattr(try_recipes, "read_curve", lambda options: {"psnr": {5: 20.0}})

    def run_script(*flags):
        """The exit status; of each run the variant, after which it is named, its seed and its iterations."""
        ran.clear()
        command = ["try_recipes", "--group", "found", "--output", str(tmp_path / "r.json"), *flags]
        monkeypatch.setattr(sys, "argv", command)
        status = try_recipes.main()
        return status, [(one["name"].split("_")[1], one["manual_seed"], one["train"]["total_iter"]) for one in ran]

    found = ["--trials", "found", "--iterations", "100"]
    assert run_script(*found) == (0, [("found", 0, 100)])
    assert run_script(*found) == (0, [])
    assert run_script(*found, "--seeds", "0", "1") == (0, [("found", 1, 100)])
    assert run_script(*found, "--seeds", "1", "0") == (0, [])
    assert run_script("--trials", "steps", "found", "--iterations", "100") == (0, [("steps", 0, 100)])
    assert run_script("--trials", "found", "--iterations", "150") == (0, [("found", 0, 150)])
    assert run_script(*found, "--seeds", "2", "--opt", "other.yml") == (1, [])
    assert "give another --output" in capsys.readouterr().err
    assert run_script(*found, "--seeds", "2", "--validate-every", "50") == (1, [])  # no two lines between validations
    assert "at least 100" in capsys.readouterr().err
    (tmp_path / "a.yml").write_text("name: a\n")
    assert run_script(*found, "--opt", str(tmp_path / "a.yml"), "--output", str(tmp_path / "a.json")) == (1, [])
    assert "val.best_on is missing" in capsys.readouterr().err
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    held = [(one["trial"], one["seed"], one["iterations"]) for one in results]
    assert held == [("found", 0, 100), ("found", 1, 100), ("steps", 0, 100), ("found", 0, 150)]


def test_variants_stand_beside_the_option_file_as_it_is():
    from make_tables import _make_trials

    results = [
        {
            "trial": trial,
            "iterations": 120,
            "seed": seed,
            "psnr": {"50": 25, "120": last},
            "step_seconds": {"median": 0.25},
        }
        for trial, seed, last in (("base", 0, 26.0), ("base", 1, 26.2), ("L1", 0, 26.1), ("L1", 1, 26.0))
    ]
    assert _make_trials(results)[2:] == [
        "| base | 120 | 0.5 | 2 | 26.10 |  |",
        "| L1 | 120 | 0.5 | 2 | 26.05 | +0.10, -0.20 |",
    ]
