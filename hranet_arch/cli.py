"""The ``basicsr`` command (also ``hranet``, and ``python -m hranet_arch``).

Exit status: 0 done; 1 a run that failed; 2 something the user gave cannot be used; 130 stopped (Ctrl-C,
SIGTERM, SIGHUP).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import inspect
import io
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from hranet_arch import cli_prepare, cli_restore
from hranet_arch.errors import InputError, Interrupted, TrainingError, first_line, list_stops

CHANNEL_KEYS = ("num_in_ch", "in_chans", "in_channels")  # what networks call the channels of their input

EXAMPLES = """examples, where options/ of the repository is:
  basicsr train -opt options/train_hranet.yml
  basicsr train -opt options/train_hranet.yml --auto_resume
  basicsr train -opt options/train_hranet.yml --force_yml train:total_iter=1000 network_g:num_feat=32
  basicsr test -opt options/test_hranet.yml
  basicsr prepare lmdb --input my_pictures --output datasets/mine.lmdb
  basicsr profile --arch HRANet
  basicsr denoise photo.png -o clean --model experiments/hranet_sample_gray_s25/models/net_g_best.pth
  basicsr upscale photo.png -o large --scale 2
  basicsr dejpeg photo.jpg -o clean.png
  basicsr doctor
"""


def main(argv: list[str] | None = None) -> None:
    """Runs a command line; ends the process with the exit status above."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # no name of a file ends a run because the terminal cannot show it
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = _build_parser().parse_args(argv)
    _show_messages()
    try:
        with _stop_as_ctrl_c():
            _check_current_folder()
            status = arguments.run(arguments) or 0
            print(end="", flush=True)  # here, where a closed pipe or a full disk gets its line
    except (InputError, TrainingError, Interrupted) as error:
        status = {InputError: 2, TrainingError: 1, Interrupted: 130}[type(error)]
        print(f"basicsr: {_without_traceback(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
        print("basicsr: stopped.", file=sys.stderr)
    except MemoryError:
        status = 1
        print("basicsr: not enough memory. Close other programs, or take smaller pictures or batches.", file=sys.stderr)
    except BrokenPipeError:  # `basicsr list | head`
        status = 1
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        status = 1
        hint = "(A perceptual loss downloads its VGG's weights the first time.)"
        print(f"basicsr: a connection failed: {first_line(error).rstrip('.')}. {hint}", file=sys.stderr)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # a fault of ours
            raise
        status = 2
        print(f"basicsr: {error.filename or 'the disk'}: {error.strerror}.", file=sys.stderr)
    try:
        print(end="", flush=True)
    except OSError:  # it has been said; Python would say it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _check_current_folder() -> None:
    """In a folder that was deleted torch ends the process as it is imported."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise InputError("The current folder has been deleted; go to another one by cd.") from error


@contextlib.contextmanager
def _stop_as_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP do as Ctrl-C: what is open is closed, and no half-written file stays."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in list_stops()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _show_messages() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    package = logging.getLogger("hranet_arch")
    package.handlers = [handler]
    package.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    package.propagate = False


def _without_traceback(error: Exception) -> str:
    """An error from a data loader's worker arrives as the text of its traceback; the message is its last part."""
    text = str(error)
    return text.rpartition(f"{type(error).__name__}: ")[2].strip() if "Original Traceback" in text else text


# --- train, test ------------------------------------------------------------------------------------------------------


def _run_options(arguments: argparse.Namespace) -> None:
    is_train = arguments.verb == "train"
    from hranet_arch import option_files

    opt = option_files.read_options(arguments.opt)  # before torch is waited for
    option_files.override(opt, arguments.force_yml or [])
    from hranet_arch import options, sample

    datasets = opt["datasets"].values() if isinstance(opt.get("datasets"), dict) else []
    roots = [str(dataset.get("dataroot_gt")) for dataset in datasets if isinstance(dataset, dict)]
    if any(sample.is_sample_path(root) and not Path(root).exists() for root in roots):
        sample.prepare_sample()
    import torch

    from hranet_arch import pipeline, preflight, registration

    # An optimiser's averages for weights behind a dead ReLU fade into denormal numbers, which a CPU multiplies many
    # times more slowly. Set before torch starts its threads, which inherit it.
    torch.set_flush_denormal(is_train)
    try:
        opt = options.check_options(opt, registration.registries(), is_train=is_train)
        auto_resume = is_train and arguments.auto_resume
        options.complete_options(opt, Path.cwd(), is_train=is_train, debug=arguments.debug, auto_resume=auto_resume)
        preflight.check_run(opt)
    except InputError as error:
        raise _name_file(error, arguments.opt) from error
    _start(opt, arguments.launcher)
    run = pipeline.run_train if is_train else pipeline.run_test
    run(opt, arguments.opt)


def _start(opt: dict, launcher: str) -> None:
    """What BasicSR's ``parse_options`` does besides parsing, processes and seeds; and memory."""
    from basicsr.utils import set_random_seed
    from basicsr.utils.dist_util import get_dist_info

    from hranet_arch import arithmetic, pipeline
    from hranet_arch.allocator import keep_freed_memory

    keep_freed_memory()
    opt["dist"] = launcher != "none"
    if opt["dist"]:
        pipeline.start_distributed(launcher, opt["num_gpu"] > 0, (opt.get("dist_params") or {}).get("port"))
    if opt["num_gpu"] > 0:
        arithmetic.find_device("cuda")  # each process its own, which can compute or is refused
    opt["rank"], opt["world_size"] = get_dist_info()
    opt.setdefault("manual_seed", 0)  # a resumed run must draw on: no seed of the moment
    set_random_seed(opt["manual_seed"] + opt["rank"])


# --- compare ----------------------------------------------------------------------------------------------------------


def _compare(arguments: argparse.Namespace) -> int:
    from hranet_arch import option_files

    opt = option_files.read_options(arguments.opt)
    option_files.override(opt, arguments.force_yml or [])
    from hranet_arch import options, registration

    try:
        opt = options.check_comparison(opt, registration.registries())
    except InputError as error:
        raise _name_file(error, arguments.opt) from error
    from hranet_arch import compare, pipeline, tables

    if arguments.launcher != "none":
        pipeline.start_distributed(arguments.launcher, on_gpu=False)  # processes exchange a few words, no tensors
    is_alone = arguments.launcher == "none"
    rank, world_size = (0, 1) if is_alone else (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    folder = Path("results", opt["name"])
    try:
        with pipeline.lock_folder(folder, rank):
            result = compare.run_compare(opt, folder, rank, world_size)
    finally:
        pipeline.end_distributed()
    if result is None:
        return 0
    print(tables.format_results(result))
    print(f"{folder / 'report.html'}: the whole comparison, with pictures; {folder / 'record.json'}: its numbers")
    for failure in result.failures:
        print(f"failed: {failure.describe()}", file=sys.stderr)
    return 1 if result.failures else 0


def _name_file(error: InputError, file: str) -> InputError:
    return InputError("\n".join(f"{file}: {line}" for line in str(error).splitlines()))


def _add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="how processes start")
    _add_force_yml(parser)


# --- list, doctor -----------------------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> None:
    from hranet_arch import networks, registration

    for kind, entries in registration.registries().items():
        if arguments.kind in (None, kind):
            print(f"{kind}:")
            for name, entry in sorted(entries.items()):
                is_stock = entry.__module__.startswith(("basicsr.", "torch."))
                print(f"  {name}" if is_stock else f"  {name}  ({entry.__module__})")
    if arguments.kind in (None, "weights"):
        print("weights:")
        for name, released in networks.list_released().items():
            print(f"  {name}: {networks.describe_purpose(released.card)}")


def _profile(arguments: argparse.Namespace) -> None:
    from hranet_arch import option_files

    is_named = arguments.arch is not None
    opt = {"network_g": {"type": arguments.arch}} if is_named else option_files.read_options(arguments.opt)
    option_files.override(opt, arguments.force_yml or [])
    from hranet_arch import complexity, options, preflight, registration

    network = opt.get("network_g")
    if not isinstance(network, dict) or not isinstance(network.get("type"), str):
        raise InputError(f"{arguments.opt or '--force_yml'}: network_g: is missing, or names no type.")
    registries = registration.registries()
    options.check_network(network, registries)
    built = preflight.build_network("network_g", network)
    defaults = inspect.signature(type(built)).parameters
    datasets = opt["datasets"].values() if isinstance(opt.get("datasets"), dict) else []
    colors = {str(one.get("color")) for one in datasets if isinstance(one, dict)}
    channels = [network.get(key, defaults[key].default) for key in CHANNEL_KEYS if key in defaults]
    channels = channels or [1 if colors & {"gray", "y"} else 3]
    size = (channels[0], *arguments.size)
    try:
        layers, macs = complexity.profile_layers(built, size, arguments.depth), complexity.count_macs(built, size)
    except Exception as error:  # a network refuses its input in every way there is
        raise InputError(
            f"network_g: {network['type']} does not take one picture of {size[0]} x {size[1]} x {size[2]}: "
            f"{first_line(error)}. Try another --size; networks for videos cannot be profiled."
        ) from error
    print(f"{network['type']} at {size[0]} x {size[1]} x {size[2]} (channels, height, width); 1 MAC = 2 FLOPs")
    print(complexity.format_layers(layers))
    print(f"{macs / (size[1] * size[2]):,.0f} MACs for each pixel of the input")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 256x256")
    return int(height), int(width)


def _depth(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of names: 1 or more")
    return int(text)


def _add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-opt", metavar="FILE", help="option file (its network_g)")
    which.add_argument("--arch", metavar="NAME", help="a registered architecture")
    parser.add_argument("--size", type=_size, default=(256, 256), metavar="HxW", help="of the picture (256x256)")
    parser.add_argument("--depth", type=_depth, metavar="N", help="take together what lies deeper than N names")
    _add_force_yml(parser)


def _doctor(arguments: argparse.Namespace) -> int:
    from hranet_arch import doctor

    return doctor.examine()


# --- export -----------------------------------------------------------------------------------------------------------


def _export(arguments: argparse.Namespace) -> None:
    from hranet_arch import export
    from hranet_arch.networks import load_network

    network = load_network(arguments.model)
    made = export.export(network, arguments.format, arguments.output, is_overwriting=arguments.overwrite)
    for (count, height, width), difference in made.differences.items():
        print(f"{count} x {height} x {width}: largest difference to PyTorch {difference:.1e}")
    largest = max(made.differences.values())
    print(f"{made.path}: {network.name} as {made.format}, within {largest:.1e} of PyTorch")


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    text = "released network, or weights (.pth, .safetensors)"
    parser.add_argument("--model", required=True, metavar="NAME|FILE", help=text)
    parser.add_argument("--format", required=True, choices=["onnx", "torchscript", "safetensors"], help="of the file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="NAME.onnx, NAME.pt or NAME.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there already")


# --- demo -------------------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError("The page needs Starlette and uvicorn: pip install 'hranet-arch[demo]'.") from error
    from hranet_arch.allocator import keep_freed_memory

    keep_freed_memory()
    try:
        with tempfile.TemporaryDirectory(prefix="basicsr-demo-", ignore_cleanup_errors=True) as folder:
            _serve_demo(arguments, folder)
    except KeyboardInterrupt:
        print("basicsr: stopped.", file=sys.stderr, flush=True)
        os._exit(130)  # Python would wait for a picture's thread, which looks up only after a whole tile


def _serve_demo(arguments: argparse.Namespace, folder: str) -> None:
    from hranet_arch import demo_cleaner, demo_page

    cleaner = demo_cleaner.Cleaner(arguments.model or [], arguments.device, folder=folder)
    app = demo_page.make_app(cleaner, arguments.host)
    with demo_page.listen(arguments.host, arguments.port) as listening:
        address, port = listening.getsockname()[:2]
        if not demo_page.is_local(address):
            print(f"WARNING: on {arguments.host} everyone on the network can use this page. It asks for no password.")
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"http://{host}:{port}/  (Ctrl-C ends it)", flush=True)
        demo_page.serve(app, listening)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535")
    return int(text)


def _add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    text = "networks to choose from: released ones' names, weights, .onnx files (default: all released ones)"
    parser.add_argument("--model", nargs="+", metavar="NAME|FILE", help=text)
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=_port, default=7860, metavar="N", help="0: any that is free (7860)")


# --- the parser -------------------------------------------------------------------------------------------------------


def _build_parser() -> argparse.ArgumentParser:
    from hranet_arch import __version__

    parser = argparse.ArgumentParser(
        prog="basicsr",
        description="Train, test and use image restoration networks with BasicSR and HRANet.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hranet-arch {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in (("train", "train a network as an option file says"), ("test", "test a trained network")):
        run = _add(verbs, verb, text, _run_options, f"basicsr {verb} -opt options/{verb}_hranet.yml")
        _add_run_arguments(run)
        if verb == "train":
            run.add_argument("--auto_resume", action="store_true", help="go on from the newest whole checkpoint")
    text = "networks and classical methods beside each other, on the same pictures, noise and machine"
    _add_compare_arguments(_add(verbs, "compare", text, _compare, "basicsr compare -opt options/compare_gray.yml"))
    example = "basicsr prepare lmdb --input pictures --output datasets/mine.lmdb"
    prepare = _add(verbs, "prepare", "pictures to LMDBs that BasicSR reads", None, example)
    what = prepare.add_subparsers(dest="what", required=True, metavar="WHAT")
    for verb, (text, run, example) in cli_prepare.VERBS.items():
        cli_prepare.add_arguments(_add(what, verb, text, run, example), verb)
    listing = _add(verbs, "list", "what option files may name", _list, "basicsr list\n  basicsr list arch")
    kinds = ("arch", "model", "dataset", "degradation", "loss", "metric", "optimizer", "scheduler", "weights")
    listing.add_argument("kind", nargs="?", choices=kinds, help="only this kind")
    text = "what is installed, what is repaired, and whether training steps work"
    _add(verbs, "doctor", text, _doctor, "basicsr doctor")
    for verb, (_, text, example, _) in cli_restore.VERBS.items():
        cli_restore.add_arguments(_add(verbs, verb, text, cli_restore.run, example), verb)
    text = "write a network for other programs"
    example = "basicsr export --model net.pth --format onnx -o net.onnx"
    _add_export_arguments(_add(verbs, "export", text, _export, example))
    text = "clean pictures on a page in the browser"
    _add_demo_arguments(_add(verbs, "demo", text, _demo, "basicsr demo --model net.pth"))
    text = "parameters and multiply-accumulates, layer by layer"
    example = "basicsr profile --arch HRANet --force_yml network_g:num_feat=32"
    _add_profile_arguments(_add(verbs, "profile", text, _profile, example))
    return parser


def _add(verbs, name: str, text: str, run, example: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="how processes start")
    parser.add_argument("--debug", action="store_true", help="log and validate every few iterations")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="ignored; launchers set LOCAL_RANK")
    _add_force_yml(parser)


def _add_force_yml(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force_yml",
        nargs="+",
        action="extend",
        metavar="KEY:KEY=VALUE",
        help="change options, e.g. train:total_iter=1000 (VALUE is YAML)",
    )
