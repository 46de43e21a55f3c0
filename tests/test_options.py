"""Option files: what passes, what is refused and in which words. Nothing is trained here."""

import contextlib
import copy
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import create_model
from safetensors.torch import save_file

from hranet_arch import networks, preflight, registration, schema
from hranet_arch.baselines import FFDNet
from hranet_arch.errors import InputError
from hranet_arch.hranet import HRANet
from hranet_arch.option_files import override, read_options
from hranet_arch.options import check_options, complete_options
from hranet_arch.prepare import prepare_lmdb
from tests.conftest import REPOSITORY, make_pictures

SHIPPED = sorted(path for path in (REPOSITORY / "options").glob("**/*.yml") if not path.stem.startswith("compare_"))

# As in BasicSR's own options/train/SRResNet_SRGAN and options/train/SwinIR, with paths and sizes of a toy.
BASICSR_TRAIN = r"""
name: 001_MSRResNet_x4_f64b16_DIV2K_1000k_B16G1_wandb
model_type: SRModel
scale: 4
num_gpu: auto  # set num_gpu: 0 for cpu mode
manual_seed: 0

datasets:
  train:
    name: DIV2K
    type: PairedImageDataset
    dataroot_gt: gt
    dataroot_lq: lq
    filename_tmpl: '{}'
    io_backend:
      type: disk
    gt_size: 32
    use_hflip: true
    use_rot: true
    # data loader
    use_shuffle: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: 16
    dataset_enlarge_ratio: 100
    prefetch_mode: ~
  val:
    name: Set5
    type: PairedImageDataset
    dataroot_gt: gt
    dataroot_lq: lq
    io_backend:
      type: disk
  val_2:
    name: Set14
    type: PairedImageDataset
    dataroot_gt: gt
    dataroot_lq: lq
    filename_tmpl: '{}x4'
    color: y
    io_backend:
      type: disk

network_g:
  type: MSRResNet
  num_in_ch: 3
  num_out_ch: 3
  num_feat: 8
  num_block: 2
  upscale: 4

path:
  pretrain_network_g: ~
  param_key_g: params
  strict_load_g: true
  resume_state: ~

train:
  ema_decay: 0.999
  optim_g:
    type: Adam
    lr: !!float 2e-4
    weight_decay: 0
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: [250000, 400000, 450000, 475000]
    gamma: 0.5
  total_iter: 500000
  warmup_iter: -1  # no warm up
  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean

val:
  val_freq: !!float 5e3
  save_img: false
  metrics:
    psnr: # metric name, can be arbitrary
      type: calculate_psnr
      crop_border: 4
      test_y_channel: false
      better: higher  # the higher, the better. Default: higher
    niqe:
      type: calculate_niqe
      crop_border: 4
      better: lower  # the lower, the better

logger:
  print_freq: 100
  save_checkpoint_freq: !!float 5e3
  use_tb_logger: true
  wandb:
    project: ~
    resume_id: ~

dist_params:
  backend: nccl
  port: 29500
"""

SWINIR = {
    "model_type": "SwinIRModel",
    "network_g": yaml.safe_load("""
        {type: SwinIR, upscale: 4, in_chans: 3, img_size: 8, window_size: 4, img_range: 1., depths: [2], embed_dim: 12,
         num_heads: [2], mlp_ratio: 2, upsampler: 'pixelshuffle', resi_connection: '1conv'}"""),
    "train": {"scheduler": yaml.safe_load("""
        {type: CosineAnnealingRestartLR, periods: [250000, 250000], restart_weights: [1, 1],
         eta_min: !!float 1e-7}""")},
}  # fmt: skip
RIDNET = {
    "scale": 1,
    "datasets": {"train": {"dataroot_lq": "gt"}, "val": {"dataroot_lq": "gt"}, "val_2": None},
    "network_g": yaml.safe_load("""
        {type: RIDNet, in_channels: 3, mid_channels: 16, out_channels: 3, num_block: 1, img_range: 1.0,
         rgb_mean: [0.4488, 0.4371, 0.4040], rgb_std: [1.0, 1.0, 1.0]}"""),
}  # fmt: skip

# As in BasicSR's options/train/SRResNet_SRGAN/train_MSRGAN_x4.yml: what a GAN has beside the above.
GAN = yaml.safe_load("""
model_type: SRGANModel
datasets: {val_2: ~}
network_d: {type: VGGStyleDiscriminator, num_in_ch: 3, num_feat: 4}
train:
  optim_d: {type: Adam, lr: 0.0001, weight_decay: 0, betas: [0.9, 0.99]}
  perceptual_opt:
    type: PerceptualLoss
    layer_weights: {'conv5_4': 1}
    vgg_type: vgg19
    use_input_norm: true
    range_norm: false
    perceptual_weight: 1.0
    style_weight: 0
    criterion: l1
  gan_opt: {type: GANLoss, gan_type: vanilla, real_label_val: 1.0, fake_label_val: 0.0, loss_weight: 0.005}
  net_d_iters: 1
  net_d_init_iters: 0
""")


def check(options, is_train=True):
    return check_options(copy.deepcopy(options), registration.registries(), is_train=is_train)


def refusal(options, is_train=True):
    """The message that options are refused with."""
    with pytest.raises(InputError) as caught:
        check(options, is_train)
    return str(caught.value)


def change(options, *entries):
    changed = copy.deepcopy(options)
    override(changed, entries)
    return changed


def write(text, name="options.yml"):
    Path(name).write_text(text, encoding="utf-8")
    return name


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lmdb(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lmdb")
    prepare_lmdb(make_pictures(folder / "pictures", 2, (64, 64)), folder / "x.lmdb", workers=1)
    return folder


def build_stand_ins(options, source):
    """A link for each path that the options name: an LMDB, a folder of pictures, a list of some, a checkpoint."""
    Path("options").symlink_to(REPOSITORY / "options")
    for dataset in options["datasets"].values():
        for key in ("dataroot_gt", "dataroot_lq"):
            root = Path(dataset.get(key, "."))
            if not root.exists():
                root.parent.mkdir(parents=True, exist_ok=True)
                root.symlink_to(source / ("x.lmdb" if root.suffix else "pictures"))
    checkpoints = [(options.get("path") or {}).get("pretrain_network_g"), (options.get("train") or {}).get("teacher")]
    for checkpoint in filter(None, checkpoints):
        arguments = {key: value for key, value in options["network_g"].items() if key != "type"}
        network = registration.registries()["arch"][options["network_g"]["type"]](**arguments)
        Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
        if checkpoint.endswith(".safetensors"):
            save_file(network.state_dict(), checkpoint)
        else:
            torch.save({"params": network.state_dict()}, checkpoint)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_pass_and_build(path, lmdb):
    options = read_options(path)
    options["num_gpu"] = 0
    is_train = not path.name.startswith("test_")
    build_stand_ins(options, lmdb)
    checked = check(options, is_train)
    complete_options(checked, Path.cwd(), is_train=is_train)
    preflight.check_run(checked)


def test_every_shipped_file_was_found():
    folders = {"options", "bsd400", "cbsd432", "jpeg", "paired", "released", "sr"}
    assert {path.parent.name for path in SHIPPED} >= folders
    assert len({read_options(path)["name"] for path in SHIPPED}) == len(SHIPPED) >= 11


def test_a_cosine_lasts_as_long_as_the_training_where_no_periods_say_otherwise(lmdb):
    options = read_options(REPOSITORY / "options" / "train_hranet.yml")
    build_stand_ins(options, lmdb)
    assert check(change(options, "train:total_iter=1000"))["train"]["scheduler"]["periods"] == [1000]
    halves = change(options, "train:scheduler:periods=[500, 500]", "train:scheduler:restart_weights=[1, 1]")
    assert check(change(halves, "train:total_iter=1000"))["train"]["scheduler"]["periods"] == [500, 500]
    assert "periods" not in refusal(change(options, "train:total_iter=null"))


@pytest.mark.parametrize("changes", [{}, SWINIR, RIDNET, GAN], ids=["MSRResNet", "SwinIR", "RIDNet", "GAN"])
def test_files_of_basicsr_pass(changes, tmp_path):
    make_pictures(tmp_path / "gt", 2, (64, 64))
    make_pictures(tmp_path / "lq", 2, (16, 16))
    write(BASICSR_TRAIN, "base.yml")
    write(yaml.safe_dump({"base": "base.yml", **changes}))
    options = read_options("options.yml")
    if changes is not GAN:
        options["datasets"]["val_2"] = None  # its one-channel pictures are for another network
    checked = check(options)
    complete_options(checked, tmp_path, is_train=True)
    preflight.check_run(checked)
    assert checked["val"]["val_freq"] == 5000 and isinstance(checked["val"]["val_freq"], int)
    assert checked["train"]["optim_g"]["lr"] == 2e-4
    assert checked["datasets"]["train"]["scale"] == checked["scale"]
    assert "prefetch_mode" not in checked["datasets"]["train"] and "resume_state" not in checked["path"]


def test_a_test_file_of_basicsr_passes(tmp_path):
    make_pictures(tmp_path / "lq", 1)
    text = """
        name: x
        model_type: SRModel
        scale: 4
        num_gpu: 0
        datasets:
          test_1: {name: Set5, type: SingleImageDataset, dataroot_lq: lq, io_backend: {type: disk}}
        network_g: {type: MSRResNet, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 4}
        path: {pretrain_network_g: lq/0.png, strict_load_g: true}
        val:
          save_img: true
          suffix: ~  # add suffix to saved images, if None, use exp name
    """
    checked = check(read_options(write(text)), is_train=False)
    assert checked["path"]["param_key_g"] == "params_ema"  # what training validated
    complete_options(checked, tmp_path, is_train=False)
    assert checked["datasets"]["test_1"]["phase"] == "test"
    assert checked["path"]["results_root"] == checked["path"]["log"] == str(tmp_path / "results" / "x")


def test_datasets_that_only_basicsr_knows_keep_their_keys(recipe):
    reds = yaml.safe_load("""
        {name: REDS, type: REDSDataset, dataroot_gt: train, dataroot_lq: train, dataroot_flow: ~, val_partition: REDS4,
         meta_info_file: options.txt, num_frame: 5, interval_list: [1], random_reverse: false}""")  # fmt: skip
    Path("options.txt").touch()
    recipe["model_type"] = "EDVRModel"
    recipe["datasets"] = {"train": reds}
    recipe["network_g"] = {"type": "EDVR", "center_frame_idx": None}
    recipe["train"]["dcn_lr_mul"] = 1
    recipe["train"]["pixel_opt"] = {"type": "CharbonnierLoss", "reduction": "sum"}
    checked = check(recipe)
    assert checked["datasets"]["train"].items() >= reds.items()  # BasicSR reads ['dataroot_flow'], null as it is
    assert checked["network_g"] == {"type": "EDVR", "center_frame_idx": None}
    assert checked["train"]["dcn_lr_mul"] == 1


def test_the_first_set_with_clean_pictures_picks_the_best(recipe):
    noisy = {"name": "noisy", "type": "SingleImageDataset", "dataroot_lq": "val"}
    recipe["datasets"] = {"train": recipe["datasets"]["train"], "val": noisy, "val_2": recipe["datasets"]["val"]}
    assert check(copy.deepcopy(recipe))["val"]["best_on"] == ["val"]
    del recipe["datasets"]["val_2"]
    assert check(recipe)["val"]["best_on"] == []


def test_without_metrics_nothing_picks_the_best(recipe):
    del recipe["val"]["metrics"]
    assert check(copy.deepcopy(recipe))["val"]["best_on"] == []
    recipe["val"]["best_on"] = "val"
    with pytest.raises(InputError, match="^val.best_on: needs val.metrics, the first of which picks"):
        check(recipe)


def test_a_test_made_of_a_trainings_file_needs_none_of_its_validation_sets(recipe):
    test = {**recipe, "datasets": {"test": {**recipe["datasets"]["val"], "name": "other"}}}
    test["val"]["best_on"] = "val"
    del test["train"]
    assert check_options(test, registration.registries(), is_train=False)["datasets"]["test"]["name"] == "other"


def test_defaults_are_filled_in(recipe):
    checked = check(recipe)
    assert checked["train"]["precision"] == "fp32" and checked["train"]["max_skipped"] == 100
    assert checked["val"]["best_on"] == ["val"] and checked["val"]["metrics"]["psnr"]["better"] == "higher"
    assert checked["datasets"]["val"]["io_backend"] == {"type": "disk"}
    assert check({**recipe, "val": None, "path": None, "logger": None})["logger"]["print_freq"] == 100


def test_the_copy_in_a_runs_folder_is_an_option_file(recipe):
    checked = check(recipe)
    complete_options(checked, Path.cwd(), is_train=True, debug=True)
    checked.update(dist=False, rank=0, world_size=1, root_path="/elsewhere")
    again = check(read_options(write(yaml.safe_dump(checked))))
    complete_options(again, Path.cwd(), is_train=True, debug=True)
    assert again == {
        key: value for key, value in checked.items() if key not in ("dist", "rank", "world_size", "root_path")
    }


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nmae=x", "nmae: unknown key. Did you mean 'name'?"),
        ("datasets:train:gt_siz=16", "datasets.train.gt_siz: unknown key. Did you mean 'gt_size'?"),
        ("datasets:train:use_flip=true", "datasets.train.use_flip: unknown key. Did you mean 'use_hflip'?"),
        ("datasets:train:io_backend:typ=disk", "datasets.train.io_backend.typ: unknown key. Did you mean 'type'?"),
        ("network_g:num_fea=8", "network_g.num_fea: unknown key. Did you mean 'num_feat'?"),
        ("path:pretrain_model_g=x", "path.pretrain_model_g: unknown key. Did you mean 'pretrain_network_g'?"),
        ("train:total_iters=3", "train.total_iters: unknown key. Did you mean 'total_iter'?"),
        ("train:optim_g:Lr=0.1", "train.optim_g.Lr: unknown key. Did you mean 'lr'?"),
        ("train:scheduler:milestone=[3]", "train.scheduler.milestone: unknown key. Did you mean 'milestones'?"),
        (
            "train:pixel_opt={type: L1Loss, weight: 2}",
            "train.pixel_opt.weight: unknown key. Did you mean 'loss_weight'?",
        ),
        ("val:metrics:psnr:crop=2", "val.metrics.psnr.crop: unknown key. Known: crop_border, "),
        ("val:metrics:psnr:crop_boarder=2", "val.metrics.psnr.crop_boarder: unknown key. Did you mean 'crop_border'?"),
        ("logger:wandb:projct=x", "logger.wandb.projct: unknown key. Did you mean 'project'?"),
        ("dist_params:prot=3", "dist_params.prot: unknown key. Did you mean 'port'?"),
        ("training:precision=bf16", "training: unknown key. Did you mean 'train'?"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(recipe, entry, message):
    assert message in refusal(change(recipe, entry))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("train:total_iter=many", "train.total_iter: 'many': must be a valid integer"),
        ("train:total_iter=0", "train.total_iter: 0: must be greater than or equal to 1."),
        ("train:total_iter=2.5", "train.total_iter: 2.5: must be a valid integer"),
        ("train:total_iter=true", "train.total_iter: True: must be a number."),
        ("train:optim_g:lr=fast", "train.optim_g.lr: 'fast': must be a valid number"),
        ("train:optim_g:lr=-1", "train.optim_g.lr: -1: must be greater than 0."),
        ("train:optim_g:lr=.inf", "train.optim_g.lr: inf: must be a finite number."),
        ("train:ema_decay=1", "train.ema_decay: 1: must be less than 1."),
        ("train:precision=half", "train.precision: 'half': must be 'fp32', 'bf16' or 'fp16'."),
        ("train:optim_g=Adam", "train.optim_g: 'Adam': must be keys and values."),
        ("network_g=HRANet", "network_g: 'HRANet': must be keys and values."),
        ("network_g:type=[HRANet]", "network_g.type: ['HRANet']: must be a valid string."),
        ("datasets=train", "datasets: 'train': must be keys and values."),
        ("datasets:train=[1]", "datasets.train: [1]: must be keys and values."),
        ("datasets:train:color=grey", "datasets.train.color: 'grey': must be 'gray' or 'rgb'."),
        ("datasets:train:sigma=-1", "datasets.train.sigma: -1: must be a noise level in grey levels"),
        ("datasets:train:sigma=[0]", "datasets.train.sigma: [0]: must be a noise level in grey levels"),
        ("datasets:train:sigma=.inf", "datasets.train.sigma: inf: must be a noise level in grey levels"),
        ("datasets:train:sigma=[55, 0]", "datasets.train.sigma: [55, 0]: runs backwards; write [lowest, highest]."),
        ("datasets:train:use_rot=perhaps", "datasets.train.use_rot: 'perhaps': must be a valid boolean"),
        ("num_gpu=all", "num_gpu: 'all': must be auto, or a number of GPUs (0 for the CPU)."),
        ("num_gpu=-1", "num_gpu: -1: must be auto, or a number of GPUs"),
        ("val:metrics:psnr:crop_border=-2", "val.metrics.psnr.crop_border: -2: must be greater than or equal to 0."),
        ("val:metrics:psnr:better=more", "val.metrics.psnr.better: 'more': must be 'higher' or 'lower'."),
        ("name=../other", "name: '../other': must be the name of a folder: not empty"),
        ("name=..", "name: '..': "),
        ("datasets:val:name=a/b", "datasets.val.name: 'a/b': "),
        ("val=5", "val: 5: must be keys and values."),
        ("train=now", "train: 'now': must be keys and values."),
        ("val:metrics=psnr", "val.metrics: 'psnr': must be keys and values."),
    ],
)
def test_wrong_types_and_values(recipe, entry, message):
    assert message in refusal(change(recipe, entry))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"milestones": ["2k"]}, "milestones: ['2k'] must be a list of numbers."),
        ({"milestones": "6"}, "milestones: '6' must be a list of numbers."),
        ({"milestones": [6], "gamma": "0,5"}, "gamma: '0,5' must be a number, 0 or more"),
        ({"periods": [None]}, "periods: [None] must be a list of numbers."),
        ({"periods": ["8"]}, "periods: ['8'] must be a list of numbers."),
        ({"periods": [4, 4], "restart_weights": [1, "0,5"]}, "restart_weights: [1, '0,5'] must be a list of numbers."),
        ({"periods": [8], "eta_min": "low"}, "eta_min: 'low' must be a number, 0 or more"),
        ({"periods": [8], "eta_min": -1e-3}, "eta_min: -0.001 must be a number, 0 or more: rates are."),
        ({"periods": [4, 4], "restart_weights": [1, -1]}, "restart_weights: [1, -1] must be 0 or more: rates are."),
    ],
)
def test_schedules_that_are_no_numbers(recipe, scheduler, message):
    """Some of them BasicSR takes, and never reaches; others end the run when they are reached."""
    kind = "MultiStepLR" if "milestones" in scheduler else "CosineAnnealingRestartLR"
    recipe["train"]["scheduler"] = {"type": kind, **scheduler}
    assert f"train.scheduler.{message}" in refusal(recipe)


@pytest.mark.parametrize("model_type", ["RestorationModel", "SRModel"])
def test_a_model_without_a_loss(recipe, model_type):
    recipe["model_type"] = model_type
    assert f"train.pixel_opt: is missing; {model_type} needs a loss" in refusal(recipe)


@pytest.mark.parametrize("workers", [{"num_worker_per_gpu": 0}, {"num_worker_per_gpu": 1, "persistent_workers": True}])
def test_a_prefetching_thread_needs_workers_of_its_own(recipe, workers):
    """It would draw from the network's random numbers, or read from workers that another thread reads from."""
    recipe["datasets"]["train"].update(prefetch_mode="cpu", **workers)
    assert "datasets.train.prefetch_mode: 'cpu' needs num_worker_per_gpu > 0" in refusal(recipe)


@pytest.mark.parametrize("key", ["tile", "halo", "best_on"])
def test_what_basicsrs_model_leaves_out_is_said(recipe, key, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hranet_arch"), "propagate", True)
    recipe["model_type"] = "SRModel"
    recipe["train"] = {name: recipe["train"][name] for name in ("total_iter", "optim_g", "scheduler")}
    recipe["train"]["pixel_opt"] = {"type": "L1Loss"}
    recipe["val"] = {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}}
    check(copy.deepcopy(recipe))
    assert "SRModel" not in caplog.text
    recipe["val"][key] = "val" if key == "best_on" else 16
    check(recipe)
    assert f"val.{key}: SRModel " in caplog.text


def test_a_list_of_pictures_in_the_home_folder(recipe, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    Path("list.txt").write_text("0.png\n")
    recipe["datasets"]["val"]["meta_info_file"] = "~/list.txt"
    assert check(recipe)["datasets"]["val"]["meta_info_file"] == str(Path.cwd() / "list.txt")


@pytest.mark.parametrize(
    "place",
    ["name", "model_type", "datasets", "datasets.train", "datasets.train.name", "datasets.train.type",
     "datasets.val.sigma", "datasets.train.color", "datasets.train.dataroot_gt", "network_g", "network_g.type",
     "train", "train.total_iter", "train.optim_g", "train.optim_g.type", "train.optim_g.lr", "train.scheduler",
     "val.metrics.psnr.type"],
)  # fmt: skip
def test_missing_keys(recipe, place):
    *parents, last = place.split(".")
    section = recipe
    for key in parents:
        section = section[key]
    del section[last]
    assert f"{place}: is missing" in refusal(recipe)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("model_type=DenoiseModel", "model_type: there is no model 'DenoiseModel'. Did you mean 'DenoisingModel'"),
        ("network_g:type=hranet", "network_g.type: there is no arch 'hranet'. Did you mean 'HRANet'"),
        ("datasets:val:type=GausianDenoisingDataset", "datasets.val.type: there is no dataset "
         "'GausianDenoisingDataset'. Did you mean 'GaussianDenoisingDataset'"),
        ("train:pixel_opt:type=MSEloss", "train.pixel_opt.type: there is no loss 'MSEloss'. Did you mean 'MSELoss'"),
        ("train:optim_g:type=Adm", "train.optim_g.type: there is no optimizer 'Adm'. Did you mean 'Adam'"),
        ("train:scheduler:type=CosineLR", "train.scheduler.type: there is no scheduler 'CosineLR'."),
        ("val:metrics:psnr:type=psnr", "val.metrics.psnr.type: there is no metric 'psnr'."),
        ("val:metrics:psnr:type=calculate_psnr_pt", "val.metrics.psnr.type: there is no metric 'calculate_psnr_pt'. "
         "Did you mean 'calculate_psnr'"),
        ("model_type=RealESRNetModle", "Did you mean 'RealESRNetModel'"),  # registered as RealESRNetModel_basicsr
    ],
)  # fmt: skip
def test_names_that_no_registry_holds(recipe, entry, message):
    assert message in refusal(change(recipe, entry))


def test_missing_arguments_of_classes(recipe):
    assert "network_g.in_channels: is missing; RIDNet needs it." in refusal(change(recipe, "network_g={type: RIDNet}"))
    lines = refusal(change(recipe, "train:scheduler={type: MultiStepLR}", "val:metrics:psnr={type: calculate_psnr}"))
    assert "train.scheduler.milestones: is missing; MultiStepLR needs it." in lines
    assert "val.metrics.psnr.crop_border: is missing; calculate_psnr needs it." in lines


def test_a_class_that_swallows_unknown_arguments_does_not_hide_a_typo(recipe):
    assert "network_g.window_sise: unknown key. Did you mean 'window_size'" in refusal(
        change(recipe, "network_g={type: SwinIR, window_sise: 8}")
    )


def test_a_plug_in_may_pass_unknown_arguments_on(recipe):
    def network(width, **rest): ...

    registries = {**registration.registries(), "arch": {"network": network}}
    recipe["network_g"] = {"type": "network", "width": 1, "depth": 2}
    assert check_options(recipe, registries, is_train=True)["network_g"]["depth"] == 2


def test_a_class_that_takes_no_arguments_says_so(recipe):
    def calculate_zero(img, img2): ...

    registries = {**registration.registries(), "metric": {"calculate_zero": calculate_zero}}
    recipe["val"]["metrics"] = {"zero": {"type": "calculate_zero", "crop": 2}}
    with pytest.raises(InputError, match=r"val\.metrics\.zero\.crop: unknown key\. There are none to choose from\."):
        check_options(recipe, registries, is_train=True)


def test_a_plug_ins_dataset_is_checked_by_its_section(recipe, monkeypatch):
    class Rainy(schema.OtherDataset):
        rate: schema.Positive

    monkeypatch.setitem(schema.DATASETS, "RainyDataset", Rainy)
    registries = {**registration.registries(), "dataset": {"RainyDataset": object}}
    for name in ("train", "val"):
        recipe["datasets"][name] = {"name": name, "type": "RainyDataset", "rate": 0, "rte": 3}
    with pytest.raises(InputError) as refused:
        check_options(recipe, registries, is_train=True)
    assert "datasets.train.rte: unknown key. Did you mean 'rate'?" in str(refused.value)
    assert "datasets.val.rate: 0: must be greater than or equal to 1." in str(refused.value)


@pytest.mark.parametrize(("color", "is_tried"), [({}, False), ({"color": (str, "rgb")}, True)])
def test_a_network_is_tried_on_pictures_whose_channels_are_known(recipe, monkeypatch, color, is_tried):
    """A dataset without ``color`` may give grey pictures; only one that says ``rgb`` does not fit a grey network."""
    section = create_model("Rainy", __base__=schema.OtherDataset, **color)
    monkeypatch.setitem(schema.DATASETS, "RainyDataset", section)
    registries = {**registration.registries(), "dataset": {"RainyDataset": object}}
    recipe["datasets"] = {name: {"name": name, "type": "RainyDataset"} for name in ("train", "val")}
    checked = check_options(recipe, registries, is_train=True)
    complete_options(checked, Path.cwd(), is_train=True)
    with pytest.raises(InputError, match="3 channels") if is_tried else contextlib.nullcontext():
        preflight.check_run(checked)


def test_all_mistakes_are_in_one_message(recipe):
    message = refusal(
        change(
            recipe, "model_type=DenoisinModel", "nmae=x", "datasets:train:dataroot_gt=missing.lmdb",
            "network_g:num_fea=8", "datasets:val:sigma=loud", "train:optim_g:type=Adm", "train:totl_iter=4",
            "val:metrics:psnr:crop_border=no", "val:best_on=nowhere",
        )
    )  # fmt: skip
    lines = message.splitlines()
    assert len(lines) == 8, message  # val.best_on waits for the sets' names to be right
    assert len(set(lines)) == len(lines)
    message = refusal(
        change(recipe, "nmae=x", "val:best_on=nowhere", "train:accumulate=5", "path:resume_state=none.state")
    )
    assert len(message.splitlines()) == 4, message


def test_missing_data_comes_with_the_command_that_makes_it(recipe):
    message = refusal(
        change(recipe, "datasets:train:dataroot_gt=datasets/mine.lmdb", "datasets:val:dataroot_gt=pictures")
    )
    assert (
        "datasets.train.dataroot_gt: datasets/mine.lmdb is not there. "
        "Make it with: basicsr prepare lmdb --input FOLDER --output datasets/mine.lmdb" in message
    )
    assert "datasets.val.dataroot_gt: pictures is not there. Give the folder of your pictures." in message
    pairs = "datasets:val={name: v, type: PairedDenoisingDataset, color: rgb, dataroot_gt: g.lmdb, dataroot_lq: l.lmdb}"
    message = refusal(change(recipe, pairs))
    command = "basicsr prepare pairs --input-lq NOISY --input-gt CLEAN --output-lq l.lmdb --output-gt g.lmdb"
    assert message.count(command) == 2
    assert "meta_info_file: list.txt is not there" in refusal(change(recipe, "datasets:val:meta_info_file=list.txt"))
    assert "path.pretrain_network_g: x.pth is not there." in refusal(change(recipe, "path:pretrain_network_g=x.pth"))
    for key in ("datasets:val:dataroot_gt", "datasets:val:meta_info_file", "path:resume_state"):
        assert "~nobody1/x is not there" in refusal(change(recipe, f"{key}=~nobody1/x"))  # no such user
    for name in ("net_g_8.pth", "net_g_best.pth", "8.state"):
        Path(name).write_bytes(b"")
    message = refusal(change(recipe, "path:pretrain_network_g=x.pth"))
    assert "x.pth is not there. There are net_g_8.pth, net_g_best.pth." in message


def test_a_folder_may_end_in_a_slash(recipe):
    prepare_lmdb("val", "val.lmdb")
    checked = check(change(recipe, "datasets:val:dataroot_gt=val.lmdb/"))
    assert checked["datasets"]["val"]["dataroot_gt"] == "val.lmdb"
    assert checked["datasets"]["val"]["io_backend"] == {"type": "lmdb"}


def test_a_released_network_is_a_start_by_its_name(recipe):
    checked = check(change(recipe, "path:pretrain_network_g=hranet_s_gray_s25"))
    assert Path(checked["path"]["pretrain_network_g"]) == networks.WEIGHTS / "hranet_s_gray_s25.safetensors"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["datasets:val:sigma=[0, 55]"], "datasets.val.sigma: [0, 55] is a range; a test has one level."),
        (["datasets:train:io_backend={type: lmdb}"], "datasets.train.io_backend.type: 'lmdb' does not fit train;"),
        (
            ["datasets:train:persistent_workers=true"],
            "datasets.train.persistent_workers: true, but num_worker_per_gpu is 0",
        ),
        (
            ["datasets:val:persistent_workers=true"],
            "datasets.val.persistent_workers: true, but validation has no workers",
        ),
        (["datasets:train:prefetch_mode=cuda"], "datasets.train.prefetch_mode: 'cuda' needs pin_memory: true."),
        (["datasets:train:scale=2"], "datasets.train.scale: 2, but the file's scale is 1."),
        (["train:scheduler={type: CosineAnnealingRestartLR, periods: [7]}"], "train.scheduler.periods: [7] end before"),
        (
            ["train:scheduler={type: CosineAnnealingRestartLR, periods: [4, 4]}"],
            "restart_weights: [1] must have a weight for",
        ),
        (
            ["train:scheduler={type: CosineAnnealingRestartLR, periods: 8}"],
            "train.scheduler.periods: periods and restart_weights are lists",
        ),
        (["train:scheduler:restarts=[0, 4]"], "restart_weights: [1] must have a weight for each of restarts [0, 4]"),
        (["model_type=SwinIRModel", "train:pixel_opt={type: L1Loss}"], "model_type: SwinIRModel needs network_g.w"),
        (["val:best_on=vall"], "val.best_on: no validation set is named 'vall'. Did you mean 'val'?"),
        (["val:best_on=[val, vall]"], "val.best_on: no validation set is named 'vall'. Did you mean 'val'?"),
        (["val:best_on=[val, val]"], "val.best_on: names 'val' twice."),
        (
            ["datasets:val_2={name: noisy, type: SingleImageDataset, dataroot_lq: val}", "val:best_on=[val, noisy]"],
            "val.best_on: 'noisy' has no clean pictures to measure by;",
        ),
        (
            ["datasets:val_2={name: val, type: SingleImageDataset, dataroot_lq: val}"],
            "datasets: two sets are named 'val'",
        ),
        (["train:accumulate=3"], "train.accumulate: 3 parts of a batch of 2; at most 2."),
        (
            ["datasets:val:dataroot_gt=val.lmdb", "datasets:val:meta_info_file=list.txt"],
            "datasets.val.meta_info_file: LMDBs have a list of their own.",
        ),
        (
            ["train:accumulate=2", "train:compile=reduce-overhead"],
            "train.accumulate: the CUDA graphs of train.compile: reduce-overhead overwrite",
        ),
        (
            ["train:accumulate=2", "train:pixel_opt={type: L1Loss, reduction: sum}"],
            "train.accumulate: adds up means of parts, but train.pixel_opt.reduction is sum",
        ),
        (
            ["datasets:train={name: t, type: SingleImageDataset, dataroot_lq: val}"],
            "datasets.train.type: SingleImageDataset has no clean pictures and cuts no patches. Take Paired",
        ),
        (
            ["datasets:test={name: t, type: SingleImageDataset, dataroot_lq: val}"],
            "datasets.test: training has sets named",
        ),
        (
            ["model_type=SRModel", "train:precision=bf16"],
            "train.precision: unknown key. It needs model_type: Restoration",
        ),
        (["logger:wandb:project=x"], "logger.wandb.project: wandb is not installed."),
    ],
)
def test_keys_that_contradict_each_other(recipe, entries, message):
    assert message in refusal(change(recipe, *entries))


def test_a_test_has_no_training_set_and_some_set(recipe):
    assert "datasets.train: a test has sets named test, test_2" in refusal(recipe, is_train=False)
    assert "datasets: are missing" in refusal(change(recipe, "datasets={}"), is_train=False)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("network_g:num_feat=0", "network_g: HRANet refuses its arguments: num_feat"),
        ("network_g:num_feat=wide", "network_g: HRANet refuses its arguments: "),
        (
            "train:pixel_opt={type: L1Loss, reduction: most}",
            "train.pixel_opt: L1Loss refuses its arguments: Unsupported",
        ),
        ("train:optim_g:betas=[2, 2]", "train.optim_g: Adam refuses its arguments: Invalid beta"),
        ("train:scheduler:milestones=6", "train.scheduler: MultiStepLR refuses its arguments: "),
    ],
)
def test_arguments_that_classes_refuse_are_found_before_the_run(recipe, entry, message):
    checked = check(change(recipe, entry))
    complete_options(checked, Path.cwd(), is_train=True)
    with pytest.raises(InputError, match=re.escape(message)):
        preflight.check_run(checked)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["train:teacher=''"], "train.teacher: : no network of this name"),
        (["train:teacher=hranet_gray_s52"], "train.teacher: hranet_gray_s52: no network of this name"),
        (["train:teacher=hranet_color_s25"], "train.teacher: hranet_color_s25 takes pictures of 3 channels, and "
                                             "datasets.train gives pictures of 1."),
        (["train:teacher=hranet_s_x2"], "train.teacher: hranet_s_x2 enlarges 2 times, but the file's scale is 1."),
        (["train:teacher=net.onnx"], "train.teacher: net.onnx is an ONNX model."),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_is_found_before_the_run(recipe, entries, message, monkeypatch):
    checked = check(change(recipe, *entries))
    complete_options(checked, Path.cwd(), is_train=True)
    if "net.onnx" in entries[0]:
        loaded = networks.load_network("hranet_s_gray_s25")
        monkeypatch.setattr(networks, "load_network", lambda name: replace(loaded, backend="onnxruntime"))
    with pytest.raises(InputError, match=re.escape(message)):
        preflight.check_run(checked)


@pytest.mark.parametrize(
    ("teacher", "sigma", "is_warned"),
    [
        ("hranet_s_gray_s25", "25", False),
        ("hranet_s_gray_s50", "25", True),
        ("hranet_s_gray_s25", "[0, 55]", True),
        ("hranet_s_gray_blind", "[15, 50]", False),
        ("hranet_s_gray_blind", "75", True),
    ],
)
def test_a_teacher_for_other_noise_is_warned_of(recipe, teacher, sigma, is_warned, caplog):
    checked = check(change(recipe, f"train:teacher={teacher}", f"datasets:train:sigma={sigma}"))
    complete_options(checked, Path.cwd(), is_train=True)
    preflight.check_run(checked)
    assert (f"train.teacher: {teacher} is for noise of sigma" in caplog.text) is is_warned


@pytest.mark.parametrize(
    ("teacher", "dataset", "warning"),
    [
        ("hranet_s_gray_all", "GaussianDenoisingDataset", ""),
        ("hranet_s_color_jpeg", "GaussianDenoisingDataset", "is for the task 'jpeg', and datasets.train has noise."),
        ("hranet_s_gray_s25", "PairedDenoisingDataset", "is for noise of sigma 25, and datasets.train does not say"),
    ],
)
def test_a_teacher_of_another_task_is_warned_of(recipe, teacher, dataset, warning, caplog):
    color = "rgb" if "color" in teacher else "gray"
    train = {"name": "train", "type": dataset, "dataroot_gt": "train", "color": color}
    opt = {"train": {"teacher": teacher}, "datasets": {"train": train}, "scale": 1, "model_type": "DenoisingModel"}
    preflight._check_teacher(opt)
    assert warning in caplog.text and bool(caplog.text) is bool(warning)


@pytest.mark.parametrize("entry", ["path:pretrain_network_g", "train:teacher"])
def test_weights_in_the_folder_that_a_new_run_moves_aside_are_refused(recipe, entry):
    weights = Path("experiments/tiny/models/net_g_best.pth")
    weights.parent.mkdir(parents=True)
    torch.save({"params": HRANet(num_feat=8).state_dict()}, weights)
    checked = check(change(recipe, f"{entry}={weights}"))
    complete_options(checked, Path.cwd(), is_train=True)
    with pytest.raises(InputError, match="lies in this run's own folder, which a new run moves aside. Give this run"):
        preflight.check_run(checked)
    complete_options(checked, Path.cwd(), is_train=True, auto_resume=True)
    preflight.check_run(checked)


def test_a_teacher_that_must_be_told_the_noise_needs_a_dataset_that_knows_it(recipe, tmp_path):
    torch.save({"params": FFDNet(num_feat=4, num_conv=3).state_dict()}, tmp_path / "ffdnet.pth")
    checked = check(change(recipe, f"train:teacher={tmp_path / 'ffdnet.pth'}"))
    complete_options(checked, Path.cwd(), is_train=True)
    preflight.check_run(checked)
    for section, key, value in (
        (checked["datasets"]["train"], "type", "PairedDenoisingDataset"),
        (checked, "model_type", "RestorationModel"),
    ):
        kept, section[key] = section[key], value
        with pytest.raises(InputError, match="ffdnet.pth must be told the noise level; a DenoisingModel tells it"):
            preflight.check_run(checked)
        section[key] = kept


# --- reading YAML -----------------------------------------------------------------------------------------------------


def test_numbers_are_numbers_and_dates_are_text():
    text = "a: 1e-4\nb: 5e3\nc: -1E+2\nd: 1.5e-3\ne: .5e1\nf: 1e5x\ng: e5\nh: 2024-01-05\ni: !!float 2e-4\nj: '1e-4'\n"
    assert read_options(write(text)) == {
        "a": 1e-4, "b": 5000.0, "c": -100.0, "d": 1.5e-3, "e": 5.0, "f": "1e5x", "g": "e5", "h": "2024-01-05",
        "i": 2e-4, "j": "1e-4",
    }  # fmt: skip


def test_what_a_merge_brings_is_not_there_twice():
    """``c`` is read first: by then YAML has filled ``a``, which has a ``p`` of its own, with those of ``base``."""
    text = "x: &base {p: 1, q: 2}\ny:\n  z: &a {<<: *base, p: 3}\nc: {<<: *a, r: 4}\n"
    options = read_options(write(text))
    assert options["x"] == {"p": 1, "q": 2} and options["y"] == {"z": {"p": 3, "q": 2}}
    assert options["c"] == {"p": 3, "q": 2, "r": 4}


def test_of_several_mappings_that_are_merged_the_first_counts():
    """As YAML has it; PyYAML 6.0.4 does not."""
    options = read_options(write("x: &x {sigma: 15}\ny: &y {sigma: 25, color: rgb}\nz: {<<: [*x, *y]}\n"))
    assert options["z"] == {"sigma": 15, "color": "rgb"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {x: 1}\na: 2\n", "line 3, column 1: the key 'a' is there twice."),
        ("b:\n  x: 1\n  y: 2\n  x: 3\n", "line 4, column 3: the key 'x' is there twice."),
        ("a:\n\tb: 1\n", "line 2, column 1: found character '\\t' that cannot start any token (indent with spaces"),
        ("a: 1\n  b: 2\n", "line 2, column 4: mapping values are not allowed here."),
        ("a: [1, 2\nb: 3\n", "not valid YAML: line 2"),
        ("", "holds nothing; an option file holds keys and values"),
        ("# only a comment\n", "holds nothing"),
        ("- a\n- b\n", "holds a list"),
        ("just words\n", "holds a str"),
        ("[a]: 1\n", "line 1, column 1: a key must be a word."),
        ("a: !!bool maybe\n", "not valid YAML: a value does not fit its tag"),
        ("a: !!timestamp soon\n", "not valid YAML: a value does not fit its tag"),
        ("a: !!float\n", "not valid YAML: a value does not fit its tag"),
        ('base: "a\\0b"\n', "must be the name of another option file."),
        ("a: &x {b: *x}\n", "not valid YAML: an alias inside what it names"),
        ("a: 1\n---\nb: 2\n", "not valid YAML: line 2"),
        ("a: \x00\n", "not valid YAML: "),
        ("base: [a]\n", "base: ['a'] must be the name of another option file."),
        ("base: other.yml\n", "other.yml: cannot be read: No such file or directory (the base of options.yml)."),
    ],
)
def test_files_that_cannot_be_read(text, message):
    with pytest.raises(InputError) as caught:
        read_options(write(text))
    assert message in str(caught.value) and "yml: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_are_no_text_or_not_there():
    Path("latin.yml").write_bytes(b"name: \xe9\n")
    for name in ("latin.yml", "missing.yml", "."):
        with pytest.raises(InputError, match=re.escape(name)):
            read_options(name)


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"]
)
def test_no_python_objects_are_built(tag):
    with pytest.raises(InputError, match="could not determine a constructor"):
        read_options(write(f"name: {tag} ['touch made']\n"))
    with pytest.raises(InputError, match="could not determine a constructor"):
        override({}, [f"name={tag} ['touch made']"])
    assert not Path("made").exists()


def test_an_alias_is_a_copy():
    options = read_options(write("a: &x {sigma: 15}\nb: *x\n"))
    override(options, ["b:sigma=25"])
    assert options == {"a": {"sigma": 15}, "b": {"sigma": 25}}


def test_a_base_gives_what_the_file_does_not():
    write("a: {type: P, x: 1, y: 2}\nb: {x: 1, y: 2}\nc: 1\nd: {x: 1}\n", "base.yml")
    os.mkdir("deeper")
    write("base: ../base.yml\na: {type: Q, z: 3}\nb: {y: 3}\nd: ~\n", "deeper/middle.yml")
    write("base: deeper/middle.yml\nb: {z: 4}\n")
    assert read_options("options.yml") == {"a": {"type": "Q", "z": 3}, "b": {"x": 1, "y": 3, "z": 4}, "c": 1, "d": None}


@pytest.mark.parametrize("length", [1, 2, 3])
def test_bases_that_lead_back_are_named(length):
    for i in range(length):
        write(f"base: ./{(i + 1) % length}.yml\n", f"{i}.yml")
    with pytest.raises(
        InputError, match=f"{length - 1}.yml: base: ./0.yml leads back to a file that is built on this one"
    ):
        read_options("0.yml")


# --- --force_yml ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-1", -1), ("1e-4", 1e-4), ("5e3", 5000.0), ("-2.5", -2.5), ("12", 12), ("true", True), ("null", None),
        ("~", None), ("", None), ("[1, 2e-1, x]", [1, 0.2, "x"]), ("{type: L, x: [3]}", {"type": "L", "x": [3]}),
        ("a=b=c", "a=b=c"), ("'a: b'", "a: b"), ('"x"', "x"), ("!!float 3", 3.0), ("a b", "a b"),
        ("/some/where.pth", "/some/where.pth"),
    ],
)  # fmt: skip
def test_forced_values_are_yaml(text, value):
    options = {"train": {"x": 0}}
    override(options, [f"train:x={text}", f"new:deep:er={text}"])
    assert options == {"train": {"x": value}, "new": {"deep": {"er": value}}}


def test_forced_values_go_into_absent_sections():
    options = {"logger": {"wandb": None}}
    override(options, [" logger : wandb : project =x"])
    assert options == {"logger": {"wandb": {"project": "x"}}}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("train:total_iter", "write key:sub_key=value"),
        ("=5", "write key:sub_key=value"),
        ("train::x=5", "write key:sub_key=value"),
        ("name:x=5", "'name' is a value and has no keys inside."),
        ("name=[1", "not a YAML value: "),
        ("name=@x", "Quote it: key='...'."),
        ("name={a: 1, a: 2}", "the key 'a' is there twice"),
    ],
)
def test_forced_entries_that_cannot_be_understood(entry, message):
    with pytest.raises(InputError) as caught:
        override({"name": "x"}, [entry])
    assert message in str(caught.value) and f"--force_yml {entry!r}: " in str(caught.value)


def test_forced_text_is_never_run(recipe):
    for attack in ("[__import__('os').system('touch made')]", "__import__('os').system('touch made')"):
        options = change(recipe, f"name={attack}")
        assert "made" in str(options["name"])
    changed = change(recipe, "x\nimport os; os.system('touch made')\n=1")
    assert "unknown key" in refusal(changed)
    assert not Path("made").exists()


def test_a_forced_name_that_is_a_number_is_a_name(recipe):
    assert check(change(recipe, "name=123"))["name"] == "123"
