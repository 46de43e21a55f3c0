"""Releasing weights: what the file and its card say, what is refused, and the page of results."""

import copy
import hashlib
import importlib.util
import json
from pathlib import Path

import cv2
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hranet_arch.errors import InputError
from hranet_arch.record import Record
from tests.conftest import REPOSITORY, load_network
from tests.test_record import RECORD


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


release_weights, make_results = load_script("release_weights"), load_script("make_results")


@pytest.fixture
def trained(recipe, run):
    """A finished run of a few steps, and the record of a comparison of its best weights."""
    for path in [*Path("train").iterdir(), *Path("val").iterdir()]:
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    assert run("train", {**recipe, "val": {**recipe["val"], "best_on": "val"}}) == 0
    checkpoint = Path("experiments/tiny/models/net_g_best.pth")
    data = copy.deepcopy(RECORD)
    data["methods"]["Net"]["weights"]["all"]["sha256"] = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return Path("experiments/tiny"), Record.model_validate(data)


def release(run, record, output="weights"):
    return release_weights.release(run, Path("options/x.yml"), record, "Net", Path(output))


def test_weights_and_card_say_how_they_were_made(trained):
    run, record = trained
    assert release(run, record).startswith("weights/tiny.safetensors: validates at ")
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
    assert len(card["training"]["data_sha256"]) == 64 != card["validation"]["data_sha256"]
    text = Path("weights/tiny.md").read_text()
    assert "| Set | 25 | 30.00 | 0.8000 |" in text and "basicsr train -opt options/x.yml" in text


def test_weights_that_are_no_better_do_not_replace_those_there(trained):
    run, record = trained
    release(run, record)
    before = Path("weights/tiny.safetensors").read_bytes()
    with pytest.raises(InputError, match="they stay as they are"):
        release(run, record)
    assert Path("weights/tiny.safetensors").read_bytes() == before


def test_results_of_other_weights_are_not_taken(trained):
    run, record = trained
    (run / "models/net_g_best.pth").write_bytes((run / "models/net_g_8.pth").read_bytes())
    torch.save({"params_ema": load_network(run / "models/net_g_4.pth", "params_ema")}, run / "models/net_g_best.pth")
    with pytest.raises(InputError, match="the record measured other weights as Net"):
        release(run, record)
    with pytest.raises(InputError, match="the record has no method Other; it has Net"):
        release_weights.release(run, Path("x.yml"), record, "Other", Path("weights"))


def test_released_files_are_as_their_cards_say():
    """Of each file in the package: small enough, loads strictly, and has a card of its own."""
    from hranet_arch.hranet import HRANet

    for path in (REPOSITORY / "hranet_arch" / "weights").glob("*.safetensors"):
        assert path.stat().st_size <= 5_000_000
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        card = json.loads(metadata["card"])
        network = HRANet(**{key: value for key, value in json.loads(metadata["network_g"]).items() if key != "type"})
        network.load_state_dict(load_file(path))
        assert card["name"] == path.stem and (REPOSITORY / card["training"]["option_file"]).is_file()
        assert path.with_suffix(".md").read_text() == release_weights.format_card(card)


def test_the_results_page_is_made_of_the_committed_records():
    page = make_results.PAGE.read_text("utf-8")
    folders = REPOSITORY / "hranet_arch" / "weights", REPOSITORY / "docs" / "records"
    assert make_results.make_page(page, *folders) == page
    assert "hranet_s_gray_s25" in page and "HRANet-S" in page
