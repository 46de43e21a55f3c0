"""``basicsr prepare`` on the command line: LMDBs, the sample and the test sets; what it takes, what it says."""

from __future__ import annotations

import argparse
from pathlib import Path

from hranet_arch.errors import InputError


def _lmdb(arguments: argparse.Namespace) -> None:
    from hranet_arch import prepare

    _report(prepare.prepare_lmdb(arguments.input, arguments.output, **_cutting(arguments)))


def _pairs(arguments: argparse.Namespace) -> None:
    from hranet_arch import prepare

    _report(
        prepare.prepare_pairs(
            arguments.input_lq, arguments.input_gt, arguments.output_lq, arguments.output_gt,
            filename_tmpl=arguments.filename_tmpl, scale=arguments.scale, **_cutting(arguments),
        )
    )  # fmt: skip


def _sample(arguments: argparse.Namespace) -> None:
    from hranet_arch import sample

    for summary in sample.prepare_sample(overwrite=arguments.overwrite).values():
        _report(summary)


def _testsets(arguments: argparse.Namespace) -> None:
    from hranet_arch import overlaps, testsets

    missing = [path for path in arguments.training or [] if not Path(path).exists()]
    if missing:
        raise InputError(f"--training: {', '.join(missing)}: no such file or folder.")
    found = testsets.find_testsets(getattr(arguments, "from"))
    for one in found:
        if one.is_usable:
            print(f"{testsets.link_or_copy(one, arguments.output, link=arguments.link)}: {one.name}, {one.status}")
    for line in testsets.list_missing(found):
        print(line)
    if arguments.training:
        usable = {one.name: list(one.files.values()) for one in found if one.is_usable}
        if not usable:
            raise InputError("--training: there is no test set to look for in it. Give --from the folder of some.")
        overlaps.refuse_test_pictures(arguments.training, usable)
        print(f"{', '.join(arguments.training)}: no picture of {', '.join(usable)} in it")


def _cutting(arguments: argparse.Namespace) -> dict:
    names = ("crop_size", "step", "gray", "workers", "skip_bad", "overwrite")
    return {name: getattr(arguments, name) for name in names}


def _report(summary: dict) -> None:
    for reason in summary["left_out"]:
        print(f"left out: {reason}")
    paths = " and ".join(value for key, value in summary.items() if key.endswith("path"))
    state = "is up to date" if summary["unchanged"] else "written"
    print(f"{paths}: {state}; {summary['pictures']} pictures, {summary['entries']} entries")


# By verb: what it does, what runs, an example.
VERBS = {
    "lmdb": (
        "a folder of pictures to one LMDB",
        _lmdb,
        "basicsr prepare lmdb --input pictures --output datasets/mine.lmdb --crop-size 240 --step 240",
    ),
    "pairs": (
        "two folders of paired pictures to two LMDBs",
        _pairs,
        "basicsr prepare pairs --input-lq noisy --input-gt clean --output-lq noisy.lmdb --output-gt clean.lmdb",
    ),
    "testsets": (
        "benchmark sets, recognised by their pixels or names, laid out by name",
        _testsets,
        "basicsr prepare testsets --from downloads",
    ),
    "sample": ("the bundled sample, under datasets/sample", _sample, "basicsr prepare sample"),
}


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    """Adds what a verb takes to its parser."""
    if verb == "lmdb":
        parser.add_argument("--input", required=True, metavar="DIR", help="folder of pictures (its subfolders too)")
        parser.add_argument("--output", required=True, metavar="X.lmdb", help="LMDB folder to make")
    if verb == "pairs":
        for kind, text in (("lq", "degraded (noisy)"), ("gt", "clean")):
            parser.add_argument(f"--input-{kind}", required=True, metavar="DIR", help=f"folder of {text} pictures")
            text = f"LMDB folder of {text} pictures"
            parser.add_argument(f"--output-{kind}", required=True, metavar="X.lmdb", help=text)
        text = "a degraded picture's name, from the clean one's: {}_noisy"
        parser.add_argument("--filename-tmpl", default="{}", help=text)
        text = "size of the clean pictures over the degraded ones'"
        parser.add_argument("--scale", type=int, default=1, help=text)
    if verb in ("lmdb", "pairs"):
        parser.add_argument("--crop-size", type=int, metavar="N", help="cut into sub-pictures of NxN pixels")
        parser.add_argument("--step", type=int, metavar="N", help="distance of sub-pictures (default: --crop-size)")
        parser.add_argument("--gray", action="store_true", help="store one channel")
        parser.add_argument("--workers", type=int, metavar="N", help="pictures read at the same time")
        parser.add_argument("--skip-bad", action="store_true", help="leave out and name pictures that cannot be used")
        parser.add_argument("--overwrite", action="store_true", help="replace an LMDB of other pictures or settings")
    if verb == "testsets":
        text = "folder to search, with its subfolders"
        parser.add_argument("--from", required=True, metavar="DIR", help=text)
        text = "where each gets a folder (datasets)"
        parser.add_argument("--output", default="datasets", metavar="DIR", help=text)
        parser.add_argument("--link", action="store_true", help="link the files instead of copying them")
        text = "training folders or LMDBs that must hold none of the test pictures, crops and altered copies included"
        parser.add_argument("--training", nargs="+", metavar="PATH", help=text)
    if verb == "sample":
        parser.add_argument("--overwrite", action="store_true", help="replace one made by another version")
