"""``basicsr denoise``, ``upscale`` and ``dejpeg`` on the command line: what they take, what they say."""

from __future__ import annotations

import argparse
import sys

# By verb: the task, what it does, an example, and what --compare shows.
VERBS = {
    "denoise": ("denoise", "clean noisy pictures", "basicsr denoise scans -o clean --model net.pth", "before"),
    "upscale": ("sr", "enlarge pictures", "basicsr upscale small -o large --scale 2", "bicubic enlargement"),
    "dejpeg": ("jpeg", "take JPEG's blocks out of pictures", "basicsr dejpeg photos -o clean", "before"),
}
SETTINGS = ("model", "sigma", "scale", "device", "precision", "tile", "ensemble", "backend")


def run(arguments: argparse.Namespace) -> int:
    """Restores the pictures that a command line names; returns the exit status."""
    from tqdm import tqdm

    from hranet_arch import restore_files
    from hranet_arch.allocator import keep_freed_memory

    keep_freed_memory()
    items = restore_files.plan(
        arguments.input, arguments.output, is_recursive=arguments.recursive, has_compare=arguments.compare
    )
    given = {name: getattr(arguments, name) for name in SETTINGS if hasattr(arguments, name)}
    settings = restore_files.Settings(VERBS[arguments.verb][0], **given)
    failed = []
    for outcome in restore_files.run(items, settings, is_overwriting=arguments.overwrite):
        if outcome.status == "failed":
            failed.append(outcome.text)
        else:
            tqdm.write(outcome.text)
    for text in failed:
        print(f"failed: {text}", file=sys.stderr)
    if failed:
        print(f"basicsr: {len(failed)} of {len(items)} pictures could not be done.", file=sys.stderr)
    return 1 if failed else 0


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    """Adds what a verb takes to its parser: the same for each but ``--sigma`` and ``--scale``."""
    parser.add_argument(
        "input", nargs="+", metavar="INPUT", help="pictures, folders of pictures, patterns such as '*.png'"
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder, or, for one picture, a file")
    text = "released network, weights (.pth, .safetensors), or an exported .onnx (default: the released one that fits)"
    parser.add_argument("--model", metavar="NAME|FILE", help=text)
    if verb == "denoise":
        text = (
            "noise level in grey levels; 'auto' (the default): each picture's estimate; 'blind': of a network for any"
        )
        parser.add_argument("--sigma", type=_sigma, default="auto", metavar="N|auto|blind", help=text)
    if verb == "upscale":
        text = "how many times larger (default: as the model enlarges, else 2)"
        parser.add_argument("--scale", type=int, choices=[2, 3, 4], help=text)
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1")
    text = "what runs the network (default: onnxruntime for an .onnx file, else torch)"
    parser.add_argument("--backend", choices=["torch", "onnxruntime"], help=text)
    text = "of the convolutions: exact, in 16 bits, or, on a CPU, HRANet's large ones in 8 and the rest in 16"
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"], default="fp32", help=text)
    text = "side of tiles in pixels of the input (default: by the free memory)"
    parser.add_argument("--tile", type=int, metavar="N", help=text)
    parser.add_argument(
        "--ensemble", action="store_true", help="mean over eight symmetries: better, eight times the work"
    )
    text = f"write {VERBS[verb][3]} and result side by side as NAME_compare.png"
    parser.add_argument("--compare", action="store_true", help=text)
    parser.add_argument("--recursive", action="store_true", help="folders with their subfolders")
    parser.add_argument("--overwrite", action="store_true", help="make results anew that are there already")


def _sigma(text: str) -> float | str:
    if text in ("auto", "blind"):
        return text
    try:
        sigma = float(text)
    except ValueError:
        sigma = -1.0
    if not 0 <= sigma <= 255:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor 'blind' nor a noise level from 0 to 255")
    return sigma
