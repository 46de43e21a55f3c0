"""What the package is called, needs and installs. How to install it: docs/install.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "hranet_arch" / "__init__.py").read_text("utf-8"), re.M)[1]

COMPARE = ["matplotlib", "pywavelets", "spandrel"]  # what `basicsr compare` needs beside the package itself
ONNX = ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript"]  # what `basicsr export --format onnx` needs, and runs
DEMO = ["starlette", "uvicorn"]  # what `basicsr demo` needs

setup(
    name="hranet-arch",
    version=VERSION,
    description="HRANet, a small image denoiser, and the training loop around it: a plug-in for BasicSR.",
    long_description=README.read_text("utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["hranet_arch", "hranet_arch.*"]),
    package_data={"hranet_arch": ["testsets.json", "published.json", "*.html", "*.css", "*.js", "weights/*"]},
    # `tensorboard` is left out on purpose: BasicSR brings the same files as `tb-nightly`, and TensorBoard does not
    # start where both are installed.
    install_requires=[
        "basicsr==1.4.2",
        "torch>=2.7",
        "torchvision>=0.22",
        "numpy",
        "opencv-python",
        "pillow",
        "tifffile",
        "lmdb",
        "pyyaml!=6.0.4",  # whose `<<: [*a, *b]` takes b's values where both have one
        "pydantic>=2",
        "safetensors",
        "tqdm",
        "filelock",
        "scikit-image",
        # BasicSR imports distutils, from Python 3.12 on in setuptools alone; tb-nightly's `tensorboard` imports
        # pkg_resources, which setuptools 82 dropped.
        "setuptools>=77,<82",
    ],
    extras_require={
        "compare": COMPARE,
        "onnx": ONNX,
        "demo": DEMO,
        "bm3d": ["bm3d"],  # non-commercial licence: asked for by name alone
        "dev": [*COMPARE, *ONNX, *DEMO, "httpx", "playwright", "pytest>=9", "pytest-xdist", "ruff"],
    },
    entry_points={
        "console_scripts": [
            "basicsr = hranet_arch.cli:main",
            "hranet = hranet_arch.cli:main",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
)
