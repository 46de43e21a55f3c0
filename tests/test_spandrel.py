"""spandrel loads our files, once the registration is imported, and gives our results."""

import json
import subprocess
import sys

import pytest
import torch

from hranet_arch import HRANet, compat, export
from hranet_arch.baselines import DnCNN
from hranet_arch.errors import InputError
from hranet_arch.networks import load_network
from tests.conftest import REPOSITORY

compat.make_importable()  # importorskip is to fail for spandrel's own sake alone
spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed")
from hranet_arch import spandrel_registration  # noqa: E402


def make_file(folder, *, key="params_ema", **arguments):
    torch.manual_seed(0)
    network = HRANet(num_feat=8, **arguments)
    network.detail_enhancement[1].running_var.uniform_(0.5, 2)
    path = folder / "net_g_latest.pth"
    torch.save(
        {key: network.state_dict(), "network_g": json.dumps({"type": "HRANet", "num_feat": 8, **arguments})}, path
    )
    return path


@pytest.mark.filterwarnings("ignore:.torch.jit")  # which torch means to give up
@pytest.mark.parametrize("size", [(1, 1), (31, 17), (64, 65)])
@pytest.mark.parametrize("color", [1, 3])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pt"])
def test_files_load_by_themselves(tmp_path, suffix, color, size):
    path = make_file(tmp_path, num_in_ch=color, num_out_ch=color)
    ours = load_network(path)
    if suffix != ".pth":
        kind = {".pt": "torchscript", ".safetensors": "safetensors"}[suffix]
        path = export.export(ours, kind, tmp_path / f"net{suffix}").path
    model = spandrel.ModelLoader().load_from_file(path)
    assert isinstance(model, spandrel.ImageModelDescriptor) and model.architecture.id == "HRANet"
    assert (model.scale, model.input_channels, model.output_channels, model.purpose) == (1, color, color, "Restoration")
    assert model.size_requirements.none and model.tiling is spandrel.ModelTiling.SUPPORTED
    assert model.tags == ["8nf", "3nb"] and model.supports_bfloat16 and not model.supports_half
    x = 0.25 + 0.5 * torch.rand(1, color, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = ours.module(x).clamp(0, 1)  # spandrel's descriptors clamp
    assert (model(x) - expected).abs().max() < 1e-6


def test_what_leaves_no_trace_is_read_from_the_file(tmp_path):
    path = make_file(tmp_path, attention_pool="global", attention_gate="sigmoid")
    model = spandrel_registration.load_from_file(path)
    assert model.tiling is spandrel.ModelTiling.DISCOURAGED
    x = torch.rand(1, 1, 20, 30)
    with torch.inference_mode():
        assert (model(x) - load_network(path).module(x).clamp(0, 1)).abs().max() < 1e-6
    torch.save(DnCNN(num_feat=4, num_conv=3).state_dict(), tmp_path / "dncnn.pth")
    with pytest.raises(InputError, match="holds a DnCNN, not an HRANet"):
        spandrel_registration.load_from_file(tmp_path / "dncnn.pth")


def test_other_networks_stay_what_they_are():
    """A DnCNN, of which spandrel has its own, is not taken for ours; registering again changes nothing."""
    before = len(spandrel.MAIN_REGISTRY)
    spandrel_registration.register()
    assert len(spandrel.MAIN_REGISTRY) == before
    model = spandrel.ModelLoader().load_from_state_dict(DnCNN(num_feat=4, num_conv=17, bn=False).state_dict())
    assert model.architecture.id == "DnCNN"


def test_registration_needs_neither_basicsr_nor_torchvision():
    """spandrel itself imports torchvision; ours adds nothing to it."""
    code = "from hranet_arch import compat\ncompat.make_importable()\nimport spandrel, sys\n"
    code += "before = set(sys.modules)\nimport hranet_arch.spandrel_registration\n"
    code += "print({name.split('.')[0] for name in set(sys.modules) - before} & {'basicsr', 'torchvision', 'cv2'})"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


def test_the_one_import_is_enough():
    """In a new process: spandrel imports torchvision, which may be built for another torch and need its repair."""
    code = "import hranet_arch.spandrel_registration\nfrom spandrel import MAIN_REGISTRY\n"
    code += "print([support.architecture.id for support in MAIN_REGISTRY.architectures('detection')])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.stdout.startswith("['HRANet', "), result.stderr  # asked before the others, which look at some names


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("upscale", [2, 3])
def test_an_enlarging_network_exported_to_torchscript_loads(tmp_path, upscale):
    path = make_file(tmp_path, num_in_ch=3, num_out_ch=3, upscale=upscale)
    exported = export.export(load_network(path), "torchscript", tmp_path / "net.pt").path
    model = spandrel.ModelLoader().load_from_file(exported)
    assert (model.scale, model.purpose) == (upscale, "SR")
    x = torch.rand(1, 3, 17, 20)
    assert (model(x) - spandrel.ModelLoader().load_from_file(path)(x)).abs().max() < 1e-5


@pytest.mark.parametrize("upscale", [2, 3])
def test_an_enlarging_network_says_its_scale(tmp_path, upscale):
    path = make_file(tmp_path, num_in_ch=3, num_out_ch=3, upscale=upscale)
    x = 0.25 + 0.5 * torch.rand(1, 3, 31, 17, generator=torch.Generator().manual_seed(1))
    for model in (spandrel.ModelLoader().load_from_file(path), spandrel_registration.load_from_file(path)):
        assert (model.scale, model.purpose, model.input_channels, model.output_channels) == (upscale, "SR", 3, 3)
        with torch.inference_mode():
            expected = load_network(path).module(x).clamp(0, 1)
        result = model(x)
        assert result.shape == (1, 3, 31 * upscale, 17 * upscale) and (result - expected).abs().max() < 1e-6
