"""Releasing weights: what the file and its card say, what is refused, and the page of results."""

import copy
import json
import re
from pathlib import Path

import cv2
import make_results
import numpy as np
import pytest
import release_weights
import revive_weights
import torch
import widen_weights
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hranet_arch import HRANet, arithmetic, checkpoints, networks, option_files
from hranet_arch.errors import InputError
from hranet_arch.record import Record, read_record
from tests.conftest import REPOSITORY, load_network
from tests.test_record import RECORD


def train(recipe, run):
    """A finished run of a few steps, and the record of a comparison of its best weights."""
    options = {**recipe, "val": {"best_on": "val", **recipe["val"]}}
    assert run("train", options) == 0
    Path("options").mkdir()
    save_file({"first": torch.ones(2)}, "experiments/narrow.safetensors")
    save_file({"second": torch.ones(3)}, "experiments/wide.safetensors")
    started = {**options, "path": {"pretrain_network_g": "experiments/narrow.safetensors"}}
    started["train"] = {**options["train"], "teacher": "experiments/wide.safetensors"}
    Path("options/x.yml").write_text(yaml.safe_dump(started), encoding="utf-8")
    checkpoint = Path("experiments/tiny/models/net_g_best.pth")
    data = copy.deepcopy(RECORD)
    data["methods"]["Net"]["weights"]["all"]["sha256"] = checkpoints.hash_params(load_network(checkpoint, "params_ema"))
    return Path("experiments/tiny"), data


@pytest.fixture
def trained(recipe, run):
    for path in [*Path("train").iterdir(), *Path("val").iterdir()]:
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    folder, data = train(recipe, run)
    return folder, Record.model_validate(data)


def release(run, record):
    """Releases, and puts what was measured into the card."""
    line = release_weights.release(run, Path("options/x.yml"), Path("weights"))
    if record is not None:
        release_weights.update_cards(record, Path("weights"))
    return line


def test_weights_and_card_say_how_they_were_made(trained):
    run, record = trained
    said = release(run, record)
    params = load_file("weights/tiny.safetensors")
    best = load_network(run / "models/net_g_best.pth", "params_ema")
    assert params.keys() == best.keys() and all(torch.equal(params[name], best[name]) for name in best)
    with safe_open("weights/tiny.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["network_g"]) == {"type": "HRANet", "num_feat": 8}
    assert (metadata["task"], metadata["color"], json.loads(metadata["sigma"])) == ("denoise", "gray", 25)
    card = json.loads(metadata["card"])
    assert card["results"] == {"Set": {"25": {"psnr": 30.0, "ssim": 0.8, "pictures": 2}}}
    assert card["training"]["pictures"] == 6 and card["training"]["iterations"] == 8
    assert card["validation"]["set"] == "val" and card["commit"] == record.commit
    state = checkpoints.load_checkpoint(run / "training_states/8.state")["best"]["val"]["psnr"]
    assert card["validation"]["psnr"] == pytest.approx(state["val"], abs=5e-5)
    assert card["validation"]["iteration"] == state["iter"]
    assert said == f"weights/tiny.safetensors: validates at {state['val']:.4f} dB"
    assert len(card["training"]["data_sha256"]) == 64 != card["validation"]["data_sha256"]
    assert card["training"]["start_sha256"] == checkpoints.hash_params({"first": torch.ones(2)})
    assert card["training"]["teacher_sha256"] == checkpoints.hash_params({"second": torch.ones(3)})
    text = Path("weights/tiny.md").read_text()
    assert "| Set | 25 | 30.00 | 0.8000 |" in text and "basicsr train -opt options/x.yml" in text
    assert "from the layers that it shares with narrow, taught by wide." in text
    assert f"Picked by val (not a test set): {state['val']:.2f} dB at iteration {state['iter']}." in text


@pytest.mark.parametrize("name", networks.list_released())
def test_a_card_names_the_training_that_made_its_weights(name):
    """Network, schedule, batches and start are the option file's; a start by name has not been replaced since."""
    card = networks.list_released()[name].card
    options, training = option_files.read_options(REPOSITORY / card["training"]["option_file"]), card["training"]
    dataset = options["datasets"]["train"]
    assert (card["name"], card["network"]) == (options["name"], options["network_g"])
    assert (training["scheduled"], training["seed"]) == (options["train"]["total_iter"], options["manual_seed"])
    assert (training["batch"], training["patch"]) == (dataset["batch_size_per_gpu"], dataset["gt_size"])
    start = options.get("path", {}).get("pretrain_network_g")
    assert training.get("start") == (start and Path(start).stem)
    teacher = options["train"].get("teacher")
    assert training.get("teacher") == (teacher and Path(teacher).stem)
    if start in networks.list_released():
        params, _ = networks.read_weights(networks.find_weights(start))
        assert checkpoints.hash_params(params) == training["start_sha256"]


def test_a_card_of_a_blind_network_says_at_which_level_it_was_picked():
    texts = {name: networks.find_weights(name).with_suffix(".md").read_text() for name in networks.list_released()}
    assert "32.63 dB at sigma 25, at iteration 1,700." in texts["hranet_color_blind"]
    assert "30.71 dB, the mean at quality 10, 40, at iteration 900." in texts["hranet_s_color_jpeg"]
    assert "30.30 dB at iteration 9,450." in texts["hranet_gray_s25"]


def test_a_card_of_a_network_that_several_levels_picked_says_which(recipe, run):
    for path in [*Path("train").iterdir(), *Path("val").iterdir()]:
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    recipe["datasets"]["train"]["sigma"] = [25, 50]  # a range, which the levels below are not
    recipe["datasets"]["val_2"] = {**recipe["datasets"]["val"], "name": "strong", "sigma": 50}
    recipe["val"]["best_on"] = ["val", "strong"]  # each beside its level, in whichever order
    folder, _ = train(recipe, run)
    release(folder, None)
    best = checkpoints.load_checkpoint(folder / "training_states/8.state")["best"]
    psnr, iteration = best["strong, val"]["psnr"]["val"], best["strong, val"]["psnr"]["iter"]
    text = Path("weights/tiny.md").read_text()
    assert (
        f"by strong, val (not a test set): {psnr:.2f} dB, the mean at sigma 50, 25, at iteration {iteration}." in text
    )
    options = yaml.safe_load(next(folder.glob("*.yml")).read_text("utf-8"))
    options["val"]["best_on"] = ["other", "val"]
    options["datasets"]["val_2"]["name"] = "other"
    (folder / "newer.yml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    with pytest.raises(InputError, match="knows no best by val.best_on"):
        release(folder, None)
    options["val"]["best_on"] = "val"
    (folder / "newer.yml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    with pytest.raises(InputError, match="picked by other sets"):
        release(folder, None)


def test_weights_of_an_iteration_that_no_state_knows_are_refused(trained):
    """Killed after a validation and before the next checkpoint: the state's best is an older one."""
    run, _ = trained
    path = run / "models/net_g_best.pth"
    checkpoint = checkpoints.load_checkpoint(path)
    best = checkpoints.load_checkpoint(run / "training_states/8.state")["best"]["val"]["psnr"]["iter"]
    assert checkpoint["iter"] == best
    torch.save({**checkpoint, "iter": 9}, path)
    with pytest.raises(InputError, match=f"is of iteration 9, and for the newest training state {best} is the best"):
        release(run, None)
    assert not Path("weights").exists()


def test_weights_that_another_set_picked_are_refused(recipe, run):
    """Resumed with another best_on, and stopped before it was validated."""
    recipe["datasets"]["val_2"] = {**recipe["datasets"]["val"], "name": "strong", "sigma": 50}
    recipe["val"]["best_on"] = ["val"]
    folder, _ = train(recipe, run)
    options = yaml.safe_load(next(folder.glob("*.yml")).read_text("utf-8"))
    options["val"]["best_on"] = ["strong"]
    (folder / "newer.yml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    with pytest.raises(InputError, match=r"picked by other sets, or another metric, than val.best_on: \[strong\]"):
        release(folder, None)


def test_weights_that_another_metric_picked_are_refused(trained):
    run, _ = trained
    options = yaml.safe_load(next(run.glob("*.yml")).read_text("utf-8"))
    options["val"]["metrics"] = dict(reversed(options["val"]["metrics"].items()))
    (run / "newer.yml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    with pytest.raises(InputError, match="its best weights were picked by calculate_ssim; a card says by which PSNR"):
        release(run, None)
    assert not Path("weights").exists()


def test_the_pictures_of_an_lmdb_cannot_be_hashed(tmp_path):
    (tmp_path / "a.lmdb").mkdir()
    with pytest.raises(InputError, match="trains on a folder of pictures"):
        release_weights.list_files({"dataroot_gt": str(tmp_path / "a.lmdb")})


def test_a_card_names_the_precision_that_was_computed(recipe, run, monkeypatch):
    monkeypatch.setattr(arithmetic, "is_fast", lambda precision, device: precision == "fp32")
    recipe["train"]["precision"] = "bf16"
    folder, _ = train(recipe, run)
    release(folder, None)
    assert " batches of 2 patches of 16x16, fp32, " in Path("weights/tiny.md").read_text()


def degrade(recipe, color, training, validation):
    """The recipe with another task: pictures are JPEGs that a list names, made bad by a step of an option file."""
    for phase, step in (("train", training), ("val", validation)):
        dataset = recipe["datasets"][phase]
        del dataset["sigma"]
        for path in Path(phase).iterdir():
            cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)))
            path.unlink()
        names = [path.name for path in sorted(Path(phase).iterdir())][:-1]
        Path(f"{phase}.txt").write_text("\n".join(names) + "\n")
        dataset.update(type="DegradationDataset", color=color, degradations=[step], meta_info_file=f"{phase}.txt")
    recipe["model_type"] = "RestorationModel"
    recipe["train"]["pixel_opt"] = {"type": "L1Loss"}


def read_metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_weights_that_enlarge_say_so(recipe, run):
    degrade(recipe, "rgb", *[{"type": "BicubicDownsampling", "scale": 2}] * 2)
    recipe["scale"] = 2
    recipe["network_g"].update(num_in_ch=3, num_out_ch=3, upscale=2)
    folder, data = train(recipe, run)
    protocol = {"task": "sr", "color": "rgb", "levels": [2, 4], "noise": None, "channel": "y", "crop_border": "scale"}
    data["protocol"].update(protocol)
    weights = data["methods"]["Net"]["weights"]
    weights |= {"2": weights.pop("all"), "4": {"file": "x4.pth", "sha256": "2" * 64}}
    data["testsets"]["Set"]["sha256"] = {"x2/gt": "0" * 64, "x2/lq": "1" * 64}
    result = data["results"].pop()
    data["results"] = [{**result, "level": 2}, {**result, "level": 4}]  # the second is the other weights'
    assert release(folder, Record.model_validate(data)).startswith("weights/tiny.safetensors: validates at ")
    metadata = read_metadata("weights/tiny.safetensors")
    assert (metadata["task"], metadata["color"], metadata["scale"]) == ("sr", "rgb", "2")
    assert json.loads(metadata["network_g"])["upscale"] == 2 and "sigma" not in metadata
    card = json.loads(metadata["card"])
    assert list(card["results"]["Set"]) == ["2"] and card["scale"] == card["validation"]["scale"] == 2
    assert card["training"]["pictures"] == 5 and card["testsets"]["Set"] == {"x2/gt": "0" * 64, "x2/lq": "1" * 64}
    text = Path("weights/tiny.md").read_text()
    assert "enlarges colour pictures 2 times that MATLAB's bicubic `imresize` made small." in text
    assert "| test set | scale |" in text and "| Set | 2 | 30.00 | 0.8000 |" in text and "Noise" not in text
    assert "PSNR and SSIM of the luma, without a border of as many pixels as the scale. Measured on a CPU" in text
    description = networks.load_network("weights/tiny.safetensors").description
    assert (description.task, description.scale) == ("sr", 2)
    data["protocol"].update(RECORD["protocol"])  # a comparison for denoising says nothing of them
    with pytest.raises(InputError, match="the record measured none of the weights"):
        release_weights.update_cards(Record.model_validate(data), Path("weights"))


def test_weights_against_jpegs_blocks_say_so(recipe, run):
    ranged, fixed = ({"type": "JPEGCompression", "quality": quality} for quality in ([10, 40], 10))
    degrade(recipe, "y", ranged, fixed)
    folder, data = train(recipe, run)
    record = Record.model_validate(data)
    # As the record of a comparison of JPEGs has it.
    record = record.model_copy(update={"protocol": record.protocol.model_copy(update={"task": "jpeg", "noise": None})})
    release(folder, record)
    metadata = read_metadata("weights/tiny.safetensors")
    assert (metadata["task"], metadata["color"], metadata["quality"]) == ("jpeg", "gray", "[10, 40]")
    assert json.loads(metadata["card"])["validation"]["quality"] == 10
    text = Path("weights/tiny.md").read_text()
    assert "for grey pictures out of JPEGs of quality 10 to 40." in text and "| test set | quality |" in text
    assert networks.Description.read("weights/tiny.safetensors").quality == (10, 40)


def test_weights_for_several_steps_need_no_comparison(recipe, run):
    steps = [{"type": "PoissonGaussianNoise", "photons": 300}, {"type": "JPEGCompression", "quality": 80}]
    degrade(recipe, "rgb", *[steps[1]] * 2)
    for dataset in recipe["datasets"].values():
        dataset["degradations"] = steps
    recipe["network_g"].update(num_in_ch=3, num_out_ch=3)
    folder, _ = train(recipe, run)
    release(folder, None)
    metadata = read_metadata("weights/tiny.safetensors")
    card = json.loads(metadata["card"])
    assert card["results"] == {} and card["validation"]["degradations"] == card["degradations"] == steps
    text = Path("weights/tiny.md").read_text()
    assert "made bad by PoissonGaussianNoise(photons=300), then JPEGCompression(quality=80)." in text
    assert "No comparison is of pictures made bad in several ways" in text and "| tiny |" not in text
    assert networks.Description.read("weights/tiny.safetensors").task == "denoise"
    assert "[tiny](../hranet_arch/weights/tiny.md) | " in make_results.format_weights(Path("weights"))


def test_weights_that_are_no_better_do_not_replace_those_there(trained):
    run, record = trained
    release(run, record)
    before = Path("weights/tiny.safetensors").read_bytes()
    best = torch.load(run / "models/net_g_best.pth")
    best["params_ema"]["feature_extraction.0.bias"] += 1
    torch.save(best, run / "models/net_g_best.pth")
    with pytest.raises(InputError, match="they stay as they are"):
        release(run, None)
    assert Path("weights/tiny.safetensors").read_bytes() == before


def test_runs_that_no_card_can_describe_are_refused(trained):
    run, _ = trained
    (options,) = run.glob("*.yml")
    text = options.read_text()
    for old, new, message in (
        ("type: HRANet", "type: DnCNN", "trains DnCNN; what is released here are HRANets"),
        ("type: GaussianDenoisingDataset", "type: PairedDenoisingDataset", "a card says how pictures were made bad"),
    ):
        assert old in text
        options.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=message):
            release(run, None)
    options.write_text(text)
    options.rename(options.with_suffix(".yaml"))
    assert "validates at" in release(run, None)


def test_a_card_has_the_steps_of_noise_that_a_set_for_white_noise_adds():
    val = {"name": "val", "type": "GaussianDenoisingDataset", "sigma": 25}
    assert release_weights.list_steps(val) == [{"type": "GaussianNoise", "sigma": 25}]


def test_weights_are_compared_with_those_there_where_both_validated_on_the_same_pictures(tmp_path):
    path = tmp_path / "there.safetensors"
    old, same, other = ({"validation": {"data_sha256": name, "psnr": psnr}} for name, psnr in
                        (("a", 30.0), ("a", 30.1), ("b", 30.1)))  # fmt: skip
    save_file({"weight": torch.ones(1)}, path, {"card": json.dumps(old)})
    release_weights.require_better(same, path)
    with pytest.raises(InputError, match="validated on another set, or at other levels; the two cannot be compared"):
        release_weights.require_better(other, path)


def test_files_over_5_mb_are_refused_and_leave_nothing(tmp_path):
    """4 bytes a weight: 1,250,000 are 5,000,000 bytes, to which the header comes."""
    card, path = networks.list_released()["hranet_s_gray_s25"].card, tmp_path / "large.safetensors"
    with pytest.raises(InputError, match="larger than 5000000 bytes; it is not released"):
        release_weights.write(path, {"weight": torch.zeros(1_250_000)}, {}, card)
    assert not list(tmp_path.iterdir())
    release_weights.write(path, {"weight": torch.zeros(1_240_000)}, {}, card)
    assert path.stat().st_mode & 0o777 == 0o644  # for all to read


def test_the_newest_state_is_that_of_the_largest_number(tmp_path):
    (tmp_path / "training_states").mkdir()
    for iteration in (8, 1000):
        torch.save({"iter": iteration}, tmp_path / f"training_states/{iteration}.state")
    assert release_weights.load_newest_state(tmp_path)["iter"] == 1000


def test_what_is_measured_later_is_put_into_the_card_of_the_same_weights(trained):
    run, record = trained
    release(run, None)
    params = load_file("weights/tiny.safetensors")
    assert "Not compared yet." in Path("weights/tiny.md").read_text()
    # The comparison knows the file as the checkpoint that it was made of.
    assert checkpoints.hash_params(params) == record.methods["Net"].weights["all"].sha256
    lines = release_weights.update_cards(record, Path("weights"))
    assert lines == ["weights/tiny.safetensors: measured on Set"]
    assert json.loads(read_metadata("weights/tiny.safetensors")["card"])["results"]["Set"]["25"]["psnr"] == 30.0
    assert checkpoints.hash_params(load_file("weights/tiny.safetensors")) == checkpoints.hash_params(params)


def test_every_tensor_counts_in_the_hash():
    params = {"a": torch.zeros(2, 3), "b": torch.ones((), dtype=torch.bfloat16)}
    changed = [
        {**params, "a": torch.zeros(3, 2)},
        {**params, "a": torch.tensor([[0, 0, 0], [0, 0, 1e-7]])},
        {**params, "b": torch.ones(())},
        {**params, "a": torch.zeros(2, 3, dtype=torch.int32)},  # the same bytes
        {"a": params["a"], "c": params["b"]},
    ]
    hashes = {checkpoints.hash_params(one) for one in (params, *changed)}
    assert len(hashes) == 6
    turned = {"b": params["b"], "a": params["a"].t().contiguous().t()}  # another order in memory and in the dictionary
    assert checkpoints.hash_params(turned) == checkpoints.hash_params(params)


def test_results_of_an_ensemble_or_of_fewer_sets_do_not_take_the_place_of_the_networks(trained):
    run, record = trained
    release(run, record)
    data = record.model_dump(mode="json", exclude_unset=True)
    plus = [{**one, "method": "Net+", "psnr": one["psnr"] + 1} for one in data["results"] if one["method"] == "Net"]
    for one in plus:
        one["pictures"] = [{**picture, "psnr": picture["psnr"] + 1} for picture in one["pictures"]]
    data["methods"]["Net+"] = {**data["methods"]["Net"], "ensemble": True}
    both = Record.model_validate({**data, "results": data["results"] + plus})
    release_weights.update_cards(both, Path("weights"))
    assert json.loads(read_metadata("weights/tiny.safetensors")["card"])["results"]["Set"]["25"]["psnr"] == 30.0
    results = [one.model_copy(update={"pictures": one.pictures[1:]}) for one in record.results]
    with pytest.raises(InputError, match="has scores of Set at 25|the record measured none of the weights"):
        release_weights.update_cards(record.model_copy(update={"results": results}), Path("weights"))
    other = json.loads(json.dumps(data).replace('"Set"', '"Other"'))
    with pytest.raises(InputError, match="tiny.safetensors: has scores of Set at 25, which the record has not"):
        release_weights.update_cards(Record.model_validate(other), Path("weights"))


def test_results_of_other_weights_are_not_taken(trained):
    run, record = trained
    best = torch.load(run / "models/net_g_best.pth")
    best["params_ema"]["feature_extraction.0.bias"] += 1
    torch.save(best, run / "models/net_g_best.pth")
    with pytest.raises(InputError, match="the record measured none of the weights in weights"):
        release(run, record)
    assert "Not compared yet." in Path("weights/tiny.md").read_text()


def test_a_run_is_released_by_its_own_option_file(trained):
    run, record = trained
    other = Path("options/x.yml").read_text().replace("name: tiny", "name: other", 1)
    Path("options/x.yml").write_text(other)
    with pytest.raises(InputError, match="nowhere: is no training's folder: it holds no option file. .* in x.yml"):
        release_weights.release(Path("nowhere"), Path("x.yml"), Path("weights"))
    with pytest.raises(InputError, match="x.yml: trains other, and .*tiny is of tiny. Give the option file that made"):
        release(run, record)
    assert not Path("weights").exists()


def test_files_that_were_not_released_are_left_alone(trained):
    run, record = trained
    release(run, None)
    for name, metadata in (("a", None), ("z", {"network_g": "{}"})):
        save_file({"first": torch.ones(2)}, f"weights/{name}.safetensors", metadata)
    assert release_weights.update_cards(record, Path("weights")) == ["weights/tiny.safetensors: measured on Set"]
    (run / "stray.yml").write_text("a: 1")
    with pytest.raises(InputError, match="stray.yml: is not the option file of a training"):
        release(run, None)


@pytest.mark.parametrize("times", [2, 3])
def test_widened_weights_compute_the_same_and_their_copies_learn_apart(times, tmp_path):
    torch.manual_seed(0)
    narrow, wide = HRANet(num_feat=4, num_block=4), HRANet(num_feat=4 * times, num_block=4)
    for norm in (module for module in narrow.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 2)
    widen_weights.widen(narrow, wide)
    x = torch.rand(2, 1, 19, 26)
    for network in (narrow, wide):
        network.train()
    assert torch.allclose(narrow(x), wide(x), atol=1e-5)  # by the batch's statistics
    for network in (narrow, wide):
        network.eval()
    output = wide(x)
    assert torch.allclose(narrow(x), output, atol=1e-5)
    output.square().mean().backward()
    gradient = wide.coarse_denoising.blocks[1].lwb1.conv3x3.weight.grad
    assert not torch.allclose(gradient[0], gradient[1], rtol=0.01)


def test_released_weights_are_widened_by_a_command(tmp_path, capsys):
    output = tmp_path / "wide.safetensors"
    command = ["--weights", "hranet_s_gray_s25", "--output", str(output)]
    assert widen_weights.main([*command, "--num-feat", "64"]) == 0
    narrow, wide = (networks.load_network(name).module for name in ("hranet_s_gray_s25", output))
    x = torch.rand(1, 1, 33, 40)
    with torch.inference_mode():
        assert torch.allclose(narrow(x), wide(x), atol=1e-5)
    assert widen_weights.main([*command, "--num-feat", "48"]) == 1
    assert "(32, 1, 3, 3) cannot be widened to (48, 1, 3, 3)" in capsys.readouterr().err
    assert widen_weights.main(["--weights", "nothing", "--output", str(output), "--num-feat", "64"]) == 1
    assert "nothing" in capsys.readouterr().err
    assert widen_weights.main([*command[:-1], str(tmp_path / "wide.pth"), "--num-feat", "64"]) == 1
    assert "wide.pth: give a name that ends in .safetensors" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["wide.safetensors"]


def test_dead_channels_come_alive_and_the_network_computes_nearly_the_same():
    torch.manual_seed(0)
    network, noisy = HRANet(num_feat=8).eval(), torch.rand(2, 1, 40, 40)
    revive_weights.revive(network, noisy)  # some are dead by chance
    block = network.coarse_denoising.blocks[1].lwb1
    with torch.no_grad():
        block.conv5x5.bias[:3] = block.conv3x3.bias[2] = -100
    before, kept = network(noisy), block.conv5x5.weight[3:].clone()
    assert revive_weights.revive(network, noisy) == 4
    assert revive_weights.revive(copy.deepcopy(network), noisy) == 0
    assert (network(noisy) - before).abs().max() < 0.05 * (before - noisy).abs().max()
    assert torch.equal(block.conv5x5.weight[3:], kept)
    assert not block.conv1x1.weight[:, 2].any() and block.conv1x1.weight[:, :2].all()
    (network(noisy) - 1).square().mean().backward()
    assert block.conv5x5.weight.grad[:2].flatten(1).any(1).all() and block.conv1x1.weight.grad[:, 2].any()
    with torch.no_grad():
        block.conv3x3.bias[:] = -100  # a branch of which nothing lives
    assert revive_weights.revive(network, noisy) >= 8 and (block.conv3x3.bias > -100).all()
    assert network(noisy).isfinite().all() and revive_weights.revive(network, noisy) == 0


def test_released_weights_are_revived_by_a_command(tmp_path, capsys):
    output, folder = tmp_path / "revived.safetensors", tmp_path / "pictures"
    folder.mkdir()
    command = ["--weights", "hranet_s_gray_s25", "--pictures", str(folder), "--sigma", "25", "--output", str(output)]
    cv2.imwrite(str(folder / "small.png"), np.full((20, 30), 99, np.uint8))
    assert revive_weights.main(command) == 0
    assert "channels revived" in capsys.readouterr().out
    old, new = (networks.load_network(name).module for name in ("hranet_s_gray_s25", output))
    x = revive_weights.load_noisy(folder, "gray", 25)
    with torch.inference_mode():
        assert torch.allclose(old(x), new(x), atol=0.02) and not torch.equal(old(x), new(x))
    cv2.imwrite(str(folder / "other.png"), np.full((21, 30), 99, np.uint8))
    assert revive_weights.main(command) == 1
    assert "at least 180x180 pixels" in capsys.readouterr().err


def test_channels_are_revived_by_what_a_training_sees(tmp_path):
    red = np.zeros((180, 180, 3), np.uint8)
    red[..., 2] = 102  # OpenCV's order
    noisy = []
    for name, pixels in (("eight", red), ("sixteen", red.astype(np.uint16) * 257)):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "red.png"), pixels)
        noisy.append(revive_weights.load_noisy(tmp_path / name, "rgb", 25))
    assert noisy[0].mean((0, 2, 3)).tolist() == pytest.approx([0.4, 0, 0], abs=0.002)
    assert noisy[0].std((0, 2, 3)).tolist() == pytest.approx([25 / 255] * 3, rel=0.02)
    assert torch.allclose(noisy[1], noisy[0], atol=1e-6)


def test_released_files_are_as_their_cards_say():
    """Of each file in the package: small enough, loads strictly, and has a card of its own."""
    for path in (REPOSITORY / "hranet_arch" / "weights").glob("*.safetensors"):
        assert path.stat().st_size <= 5_000_000
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        card = json.loads(metadata["card"])
        network = HRANet(**{key: value for key, value in json.loads(metadata["network_g"]).items() if key != "type"})
        network.load_state_dict(load_file(path))
        assert card["results"] or "degradations" in card, f"{path.name}: not compared"
        assert card["name"] == path.stem and (REPOSITORY / card["training"]["option_file"]).is_file()
        assert path.with_suffix(".md").read_text() == release_weights.format_card(card)


def test_the_pages_are_made_of_the_committed_records():
    pages = make_results.make_pages()
    assert {path.name for path in pages} == {"results.md", "README.md"}
    for path, text in pages.items():
        assert path.read_text("utf-8") == text
        assert not re.search(r" above .+?(\| — )+\|$", text, re.MULTILINE)  # of a name that nothing has
    gray = json.loads((REPOSITORY / "docs/records/compare_gray.json").read_text())
    (psnr,) = [
        one["psnr"]
        for one in gray["results"]
        if (one["method"], one["testset"], one["level"]) == ("ADNet", "BSD68", 25)
    ]
    row = next(line for line in pages[REPOSITORY / "README.md"].splitlines() if line.startswith("| ADNet |"))
    assert row.split("|")[4].split("/")[1].strip() == f"{psnr:.2f}"


def test_differences_are_of_measured_and_of_published_values():
    record = read_record(REPOSITORY / "docs/records/compare_gray.json")

    def read_cells(hranet, adnet):
        """What follows each row's name, at Set12's first level, by these results at it."""
        values = {"HRANet": hranet, "ADNet": adnet}
        results = [one.model_copy(update={"psnr": values.get(one.method, one.psnr)}) for one in record.results
                   if (one.testset, one.level) == ("Set12", 15)]  # fmt: skip
        lines = make_results.format_margins(record.model_copy(update={"results": results})).strip().splitlines()
        assert lines[0] == "| PSNR above another's, dB | Set12 σ 15 |"
        return dict(line.strip("| ").split(" | ") for line in lines[2:])

    cells = read_cells(32.9949, 33.0021)
    assert cells["HRANet above ADNet"] == "-0.01"
    assert cells["HRANet above BRDNet (published)"] == "-0.04"  # 33.03
    assert cells["HRANet above RIDNet (published)"] == "—"  # nothing of Set12
    assert read_cells(32.9951, 33.0049)["HRANet above ADNet"] == "-0.01"  # printed as 33.00 both
    assert read_cells(32.9949, 32.9951)["HRANet above ADNet"] == "+0.00"
    assert make_results.format_margins(record.model_copy(update={"name": "another"})) == ""
    results = [
        one.model_copy(update={"pictures": one.pictures[:3]}) if one.method == "ADNet" else one
        for one in record.results
    ]
    partial = record.model_copy(update={"results": results})
    assert "| HRANet above ADNet | — | — |" in make_results.format_margins(partial)
    assert "| ADNet | 0.52 M | — / — / — |" in make_results.summarize([partial])
