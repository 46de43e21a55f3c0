"""Networks for other programs: as ONNX, TorchScript and safetensors they compute what PyTorch computes."""

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hranet_arch import HRANet, export, networks, onnx_network, restore
from hranet_arch.baselines import DnCNN, FFDNet
from hranet_arch.errors import InputError
from hranet_arch.restore import Denoiser, Upscaler
from tests.conftest import REPOSITORY, run_cli

NETWORKS = {
    "local": (HRANet, {"num_feat": 8, "attention_gate": "sigmoid"}),
    "global": (HRANet, {"num_feat": 8, "attention_pool": "global"}),
    "told": (FFDNet, {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_conv": 3}),
    "dncnn": (DnCNN, {"num_feat": 4, "num_conv": 4}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weight files, with BatchNorm statistics as after some training."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    for name, (kind, arguments) in NETWORKS.items():
        network = kind(**arguments)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 2)
        content = {"params": network.state_dict(), "network_g": json.dumps({"type": kind.__name__, **arguments})}
        torch.save(content | {"sigma": "[0, 55]", "card": '{"name": "a card"}'}, folder / f"{name}.pth")
    return folder


@pytest.fixture(scope="module")
def onnx_files(folder):
    """The networks as ONNX; exporting takes about five seconds for each."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra [onnx])")
    for name in ("local", "global", "told"):
        export.export(networks.load_network(folder / f"{name}.pth"), "onnx", folder / f"{name}.onnx")
    return folder


def run_unfolded(folder, name, x, *sigma):
    """The network as it was trained, in evaluation mode: the oracle."""
    kind, arguments = NETWORKS[name]
    network = kind(**arguments).eval()
    network.load_state_dict(torch.load(folder / f"{name}.pth", weights_only=True)["params"])
    with torch.inference_mode():
        return network(x, *sigma)


def noisy(*size):
    return torch.rand(*size, generator=torch.Generator().manual_seed(1))


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (1, 1, 8, 9), (4, 1, 31, 17), (1, 1, 1, 70), (1, 1, 97, 131)])
@pytest.mark.parametrize("name", ["local", "global"])
def test_onnx_is_the_network_that_was_trained(onnx_files, name, size):
    """Run as any other program would, with onnxruntime alone, at sizes that the export did not check."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_files / f"{name}.onnx")
    x = noisy(*size)
    (clean,) = session.run(["clean"], {"noisy": x.numpy()})
    assert np.abs(clean - run_unfolded(onnx_files, name, x).numpy()).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.0, 15.0, 75.0])
def test_onnx_is_told_the_noise_level(onnx_files, sigma):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_files / "told.onnx")
    x = noisy(2, 3, 19, 22)
    (clean,) = session.run(["clean"], {"noisy": x.numpy(), "sigma": np.array([sigma], np.float32)})
    assert np.abs(clean - run_unfolded(onnx_files, "told", x, sigma).numpy()).max() < 1e-5


@pytest.mark.slow
def test_onnx_file_says_what_it_is(onnx_files):
    import onnx

    model = onnx.load(onnx_files / "local.onnx")
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(texts["network_g"])["attention_gate"] == "sigmoid"
    assert json.loads(texts["sigma"]) == [0, 55] and json.loads(texts["card"]) == {"name": "a card"}
    assert (texts["color"], texts["task"], texts["halo"], texts["tile_multiple"]) == ("gray", "denoise", "120", "8")
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)] and model.ir_version == 8
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    dims = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 1, "height", "width"]
    assert str(REPOSITORY).encode() not in (onnx_files / "local.onnx").read_bytes()
    assert json.loads({e.key: e.value for e in onnx.load(onnx_files / "global.onnx").metadata_props}["halo"]) is None


@pytest.mark.slow
@pytest.mark.parametrize("key, value", [("bytes_per_pixel", "0"), ("bytes_per_pixel", "-5.0"), ("halo", "-1")])
def test_onnx_file_of_impossible_sizes_is_refused(onnx_files, tmp_path, key, value):
    import onnx

    model = onnx.load(onnx_files / "local.onnx")
    next(entry for entry in model.metadata_props if entry.key == key).value = value
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(InputError, match=f"bad.onnx: its entries .*{key}={value}.* are no sizes"):
        networks.load_network(tmp_path / "bad.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("tile", [64, 150, None])
def test_denoiser_runs_onnx_in_the_same_tiles(onnx_files, tile):
    x = noisy(1, 301, 290)
    whole = run_unfolded(onnx_files, "local", x[None])[0]
    clean = Denoiser(onnx_files / "local.onnx", tile=tile, device="cpu")(x)
    assert (clean - whole).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("make_other", [copy.deepcopy, lambda denoiser: pickle.loads(pickle.dumps(denoiser))])
def test_a_denoiser_of_onnx_can_be_copied_and_pickled(onnx_files, make_other):
    denoiser, x = Denoiser(onnx_files / "local.onnx", device="cpu"), noisy(1, 30, 40)
    assert torch.equal(make_other(denoiser)(x), denoiser(x))


def test_denoiser_tells_onnx_the_noise_level(onnx_files):
    picture = (noisy(33, 47, 3).numpy() * 255).astype(np.uint8)
    ours, theirs = (
        Denoiser(onnx_files / f"told.{kind}", device="cpu")(picture, sigma=30.0) for kind in ("pth", "onnx")
    )
    assert theirs.dtype == np.uint8 and np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.slow
def test_global_attention_goes_whole_or_not_at_all(onnx_files, monkeypatch):
    x = noisy(1, 90, 80)
    denoiser = Denoiser(onnx_files / "global.onnx", device="cpu")
    assert (denoiser(x) - run_unfolded(onnx_files, "global", x[None])[0]).abs().max() < 1e-5
    monkeypatch.setattr("hranet_arch.memory.measure_free", lambda device: 3_000_000)
    with pytest.raises(InputError, match="80 x 90 pixels does not fit .*--backend torch"):
        denoiser(x)
    with pytest.raises(InputError, match="tile=64 is not allowed"):
        Denoiser(onnx_files / "global.onnx", tile=64)


@pytest.mark.slow
def test_out_of_memory_in_onnx_halves_the_tiles(onnx_files, monkeypatch):
    x = noisy(1, 300, 280)
    denoiser = Denoiser(onnx_files / "local.onnx", device="cpu")
    session, areas = denoiser.module._session, []

    class Poor:
        def run(self, names, inputs):
            areas.append(inputs["noisy"].size)
            if inputs["noisy"].size > 280 * 280:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
            return session.run(names, inputs)

    monkeypatch.setattr(denoiser.module, "_session", Poor())
    assert (denoiser(x) - run_unfolded(onnx_files, "local", x[None])[0]).abs().max() < 1e-5
    assert areas[0] == 300 * 280 and min(areas) < 280 * 280


@pytest.mark.slow
def test_command_runs_onnx(onnx_files, tmp_path, capsys):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), (noisy(40, 50).numpy() * 65535).astype(np.uint16))
    results = []
    for model, flags in (("local.onnx", []), ("local.pth", ["--backend", "torch"])):
        output = tmp_path / model
        files = [str(tmp_path / "a.png"), "-o", str(output)]
        status = run_cli("denoise", *files, "--model", str(onnx_files / model), *flags)
        assert status == 0, capsys.readouterr().err
        results.append(cv2.imread(str(output / "a.png"), cv2.IMREAD_UNCHANGED).astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1


@pytest.mark.slow
def test_weights_are_converted_for_the_backend(onnx_files):
    network = networks.load_network(onnx_files / "dncnn.pth", backend="onnxruntime")
    assert network.backend == "onnxruntime" and network.name == "dncnn"
    x = noisy(1, 1, 21, 20)
    assert (network.module(x) - run_unfolded(onnx_files, "dncnn", x)).abs().max() < 1e-5


@pytest.mark.slow
def test_what_onnx_cannot_do_is_refused(onnx_files, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="precision='bf16' is not allowed"):
        Denoiser(onnx_files / "local.onnx", precision="bf16")
    with pytest.raises(InputError, match="for torch give the weights"):
        networks.load_network(onnx_files / "local.onnx", backend="torch")
    with pytest.raises(InputError, match="exported already"):
        export.export(networks.load_network(onnx_files / "local.onnx"), "onnx", tmp_path / "again.onnx")
    (tmp_path / "bad.onnx").write_bytes((onnx_files / "local.onnx").read_bytes()[:1000])
    with pytest.raises(InputError, match="bad.onnx: ONNX Runtime cannot run this model"):
        networks.load_network(tmp_path / "bad.onnx")
    if not onnx_network.has_cuda():
        with pytest.raises(InputError, match="cannot use a GPU"):
            networks.load_network(onnx_files / "local.onnx").module.to("cuda")
        monkeypatch.setattr(onnx_network, "has_cuda", lambda: True)  # as where the wheel can, and the machine cannot
        with warnings.catch_warnings(), pytest.raises(InputError, match="found no CUDA or cuDNN that it can use"):
            warnings.simplefilter("ignore")
            networks.load_network(onnx_files / "local.onnx").module.to("cuda")


def test_a_precision_that_onnx_runtime_lacks_is_refused_before_a_network_is_picked():
    with pytest.raises(InputError, match="precision='bf16' is not allowed: ONNX Runtime runs networks in 'fp32'"):
        restore.check_arguments("cpu", "bf16", None, "onnxruntime")


def test_missing_extra_is_said(folder):
    """As where onnxruntime is not installed: the import fails."""
    code = "import sys; sys.modules['onnxruntime'] = None\nfrom hranet_arch import cli\ncli.main(sys.argv[1:])"
    model, output = str(folder / "local.pth"), str(folder / "x.onnx")
    result = subprocess.run(
        [sys.executable, "-c", code, "export", "--model", model, "--format", "onnx", "-o", output],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2 and "pip install 'hranet-arch[onnx]'" in result.stderr
    assert not Path(output).exists()


# --- TorchScript, safetensors -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit")  # which torch means to give up
@pytest.mark.parametrize("name", NETWORKS)
def test_torchscript_is_the_network_that_was_trained(folder, name):
    made = export.export(networks.load_network(folder / f"{name}.pth"), "torchscript", folder / f"{name}.pt")
    assert len(made.differences) == 5 and max(made.differences.values()) < 1e-5
    files = {"network_g": "", "sigma": "", "card": "", "color": "", "task": ""}
    module = torch.jit.load(folder / f"{name}.pt", _extra_files=files)
    x = noisy(3, 3 if name == "told" else 1, 26, 41)
    sigma = [torch.tensor([40.0])] if name == "told" else []
    with torch.inference_mode():
        assert (module(x, *sigma) - run_unfolded(folder, name, x, *sigma)).abs().max() < 1e-5
    assert json.loads(files["network_g"])["type"] == NETWORKS[name][0].__name__
    assert json.loads(files["sigma"]) == [0, 55] and files["task"] == b"denoise"


@pytest.mark.parametrize("name", NETWORKS)
def test_safetensors_is_read_by_ours(folder, name):
    path = folder / "safe" / f"{name}.safetensors"
    export.export(networks.load_network(folder / f"{name}.pth"), "safetensors", path)
    network = networks.load_network(path)
    assert network.description.sigma == (0, 55) and network.description.card == {"name": "a card"}
    assert network.description.color == ("rgb" if name == "told" else "gray")
    assert not any("running" in key for key in network.module.state_dict())
    x = noisy(1, network.channels, 26, 41)
    sigma = [40.0] if name == "told" else []
    assert (network.module(x, *sigma) - run_unfolded(folder, name, x, *sigma)).abs().max() < 1e-5


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_result_that_differs_is_not_written(folder, tmp_path, monkeypatch):
    network = networks.load_network(folder / "local.pth")
    read = export._READERS["safetensors"]

    def spoil(content, path):
        return lambda x: read(content, path)(x) + 2e-4 * (x.shape[-1] == 103)

    monkeypatch.setitem(export._READERS, "safetensors", spoil)
    with pytest.raises(InputError, match=r"not exported. At 1 x 201 x 103 .* by 0.0002; less than 0.0001"):
        export.export(network, "safetensors", tmp_path / "x.safetensors")
    assert os.listdir(tmp_path) == []


def test_names_and_files_that_are_there(folder, tmp_path):
    network = networks.load_network(folder / "local.pth")
    with pytest.raises(InputError, match="must end in .pt$|must end in .pt[.]"):
        export.export(network, "torchscript", tmp_path / "x.onnx")
    (tmp_path / "x.safetensors").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        export.export(network, "safetensors", tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").read_text() == "mine"
    export.export(network, "safetensors", tmp_path / "x.safetensors", is_overwriting=True)
    assert networks.load_network(tmp_path / "x.safetensors").name == "x"


def test_a_network_without_entries_is_described_by_its_shapes(folder):
    network = networks.load_network(folder / "dncnn.pth")
    bare = replace(network, description=networks.Description("bare", Path("bare.pth")))
    texts = export.describe(bare)
    assert json.loads(texts["network_g"]) == {
        "type": "DnCNN", "num_in_ch": 1, "num_out_ch": 1, "num_feat": 4, "num_conv": 4, "bn": False
    }  # fmt: skip
    assert texts["color"] == "gray" and "sigma" not in texts and "card" not in texts


# --- networks that enlarge --------------------------------------------------------------------------------------------

SIZES = [(1, 3, 1, 1), (2, 3, 7, 30), (1, 3, 5, 3), (3, 3, 32, 32), (1, 3, 41, 33)]


@pytest.fixture(scope="module")
def enlarging(tmp_path_factory):
    """A network that enlarges twice, and its file, which does not say the task."""
    torch.manual_seed(0)
    arguments = {"num_feat": 8, "num_in_ch": 3, "num_out_ch": 3, "upscale": 2}
    network = HRANet(**arguments).eval()
    nn.init.uniform_(network.detail_enhancement[1].running_var, 0.5, 2)
    path = tmp_path_factory.mktemp("enlarging") / "x2.pth"
    torch.save({"params": network.state_dict(), "network_g": json.dumps({"type": "HRANet", **arguments})}, path)
    return network, path


@pytest.mark.filterwarnings("ignore:.torch.jit")  # which torch means to give up
@pytest.mark.parametrize("kind", ["torchscript", "safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_enlarging_network_is_the_one_that_was_trained(enlarging, tmp_path, kind):
    network, path = enlarging
    if kind == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed (extra [onnx])")
    made = export.export(networks.load_network(path), kind, tmp_path / f"x2{export.SUFFIXES[kind]}")
    assert max(made.differences.values()) < 1e-5
    if kind == "torchscript":
        run = torch.jit.load(made.path)
    else:
        loaded = networks.load_network(made.path)
        assert (loaded.scale, loaded.description.task, loaded.description.scale) == (2, "sr", 2)
        run = loaded.module
    for size in SIZES:
        x = noisy(*size)
        with torch.inference_mode():
            found = run(x)
            assert found.shape == (*size[:2], 2 * size[2], 2 * size[3])
            assert (found - network(x)).abs().max() < 1e-5
    if kind == "onnx":
        picture = (noisy(60, 70, 3).numpy() * 255).astype(np.uint8)
        ours, theirs = (Upscaler(file, tile=16, device="cpu")(picture) for file in (path, made.path))
        assert theirs.shape == (120, 140, 3) and np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.slow
def test_command_enlarges_by_onnx(enlarging, tmp_path, capsys):
    import cv2

    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra [onnx])")
    cv2.imwrite(str(tmp_path / "a.png"), (noisy(20, 25, 3).numpy() * 255).astype(np.uint8))
    files = [str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]
    status = run_cli("upscale", *files, "--model", str(enlarging[1]), "--backend", "onnxruntime")
    assert status == 0, capsys.readouterr().err
    expected = Upscaler(enlarging[1], device="cpu")(cv2.imread(str(tmp_path / "a.png"))[..., ::-1])
    found = cv2.imread(str(tmp_path / "out" / "a.png"))[..., ::-1].astype(int)
    assert found.shape == (40, 50, 3) and np.abs(found - expected).max() <= 1
