"""The rules of the house: who imports whom, that documents say what is true, that README's commands run."""

import ast
import json
import re
import shlex
import subprocess
import sys

import pytest
import torch

from hranet_arch import cli
from tests.conftest import REPOSITORY, run_cli

PACKAGE = REPOSITORY / "hranet_arch"
WITHOUT_BASICSR = (
    "hranet", "tiling", "noise", "images", "errors", "metrics", "checkpoints", "lmdb_reader", "lmdb_writer", "schema",
    "option_files", "options", "resize", "pages", "prepare", "cli_prepare", "sample", "baselines", "complexity",
    "testsets", "overlaps", "record", "scores", "tables", "plots", "examples", "report", "journal", "restore",
    "networks", "fusion", "memory", "symmetries", "restore_files", "cli_restore", "before_after", "pictures", "png",
    "tiff", "exr", "onnx_network", "export", "demo_cleaner", "device_batches", "allocator",
    "step_graph",
)  # fmt: skip
README = (REPOSITORY / "README.md").read_text()


def imported_by(path):
    """The modules that a file imports anywhere, as ``package.module`` for our own."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_core_imports_neither_basicsr_nor_torchvision():
    code = "import sys, importlib\nfor n in sys.argv[1:]: importlib.import_module('hranet_arch.' + n)\n"
    code += "print([m for m in ('basicsr', 'torchvision') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code, *WITHOUT_BASICSR], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_nothing_imports_the_command_line():
    importers = [
        p.name for p in PACKAGE.glob("*.py") if "hranet_arch.cli" in imported_by(p) and p.name != "__main__.py"
    ]
    assert importers == []


def test_the_package_does_not_import_scripts_or_tests():
    for path in PACKAGE.glob("**/*.py"):
        assert not {name.split(".")[0] for name in imported_by(path) if name} & {"scripts", "tests"}, path


def test_nothing_is_evaluated_and_only_the_command_prints():
    for path in PACKAGE.glob("**/*.py"):
        calls = [node.func.id for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]  # fmt: skip
        assert "print" not in calls or path.name in ("cli.py", "cli_prepare.py", "cli_restore.py", "doctor.py"), path
        assert not {"eval", "exec"} & set(calls), path


@pytest.mark.parametrize(
    "text", ["README.md", "CHANGELOG.md", *sorted(f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md"))]
)
def test_files_that_documents_name_exist(text):
    content = (REPOSITORY / text).read_text()
    named = re.findall(r"`((?:options|docs|tests|scripts|hranet_arch)/[\w./-]*)`", content)
    named += re.findall(r"\]\(((?!http)[^)#]+)\)", content)
    folder = (REPOSITORY / text).parent
    missing = [name for name in named if not (REPOSITORY / name).exists() and not (folder / name).exists()]
    assert not missing


def readme_commands():
    blocks = re.findall(r"```bash\n(.*?)```", README.replace("\\\n", ""), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("basicsr ")]


@pytest.mark.parametrize("line", readme_commands())
def test_readme_commands_are_understood(line):
    arguments = cli._build_parser().parse_args(shlex.split(line)[1:])
    if getattr(arguments, "opt", None):
        assert (REPOSITORY / arguments.opt).is_file()


@pytest.mark.slow
def test_readme_from_top_to_bottom(tmp_path, monkeypatch):
    """Trains, resumes, tests and uses HRANet by README's own lines, shortened and narrowed by ``--force_yml``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options").symlink_to(REPOSITORY / "options")
    short = ["network_g:num_feat=8", "train:total_iter=4", "val:val_freq=2", "logger:save_checkpoint_freq=2"]
    for line in readme_commands():
        if not line.startswith(("basicsr train -opt options/train_hranet.yml", "basicsr test")) or "mine" in line:
            continue
        extra = short[:1] if line.startswith("basicsr test") else [*short, "datasets:train:batch_size_per_gpu=2"]
        status = run_cli(*shlex.split(line)[1:], "--force_yml", *extra)
        assert status == 0, line
    assert json.loads((tmp_path / "results/test_hranet_gray_s25/metrics.json").read_text())["sample_val"]["images"]
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1].replace("num_feat=64", "num_feat=8")
    space = {"noisy": torch.rand(1, 1, 20, 30)}
    exec(compile(code, "README.md", "exec"), space)  # noqa: S102
    assert space["clean"].shape == (1, 1, 20, 30)
