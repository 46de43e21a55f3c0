"""Networks in ONNX files, run by ONNX Runtime in the place of a torch module (extra ``[onnx]``)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from hranet_arch.errors import InputError, first_line
from hranet_arch.networks import Description, LoadedNetwork

INSTALL = "Install what it needs: pip install 'hranet-arch[onnx]'."
ERRORS_ONLY = 3
OUT_OF_MEMORY = ("Failed to allocate memory", "bad allocation", "bad_alloc", "out of memory")


class OnnxNetwork(nn.Module):
    """An ONNX model as a module: ``forward(x)``, or ``forward(x, sigma)``; of torch it uses tensors alone.

    Its session is opened for the device that the network is moved to, with as many threads as torch has.

    Args:
        model: the bytes of the file.
        halo: pixels around a tile that its result depends on; None where the network cannot go tile by tile, since it
            averages over the whole picture.
        tile_multiple: tiles start at multiples of this many pixels.
        bytes_per_pixel: memory that a run takes at most for each pixel of the picture.
        upscale: how many times larger its result is.

    Raises:
        InputError: if ONNX Runtime is not installed, or cannot run the model.
    """

    def __init__(
        self, model: bytes, *, halo: int | None, tile_multiple: int, bytes_per_pixel: float, upscale: int = 1
    ) -> None:
        super().__init__()
        self.halo = halo
        self.tile_multiple = tile_multiple
        self.bytes_per_pixel = bytes_per_pixel
        self.upscale = upscale
        self.device = torch.device("cpu")
        self._model = model
        self._session = _open_session(model, self.device)
        self.takes_sigma = "sigma" in [one.name for one in self._session.get_inputs()]
        self.channels = self._session.get_inputs()[0].shape[1]

    def __getstate__(self) -> dict:
        """For copies, and for other processes: without the session, which is opened anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._session = _open_session(self._model, self.device)

    @property
    def is_divisible(self) -> bool:
        """Whether tiles, each with its halo, give the whole picture's result."""
        return self.halo is not None

    def to(self, device: str | torch.device) -> OnnxNetwork:
        """Opens the session anew for another device.

        Raises:
            InputError: if the installed ONNX Runtime has no way to use it.
        """
        device = torch.device(device)
        if device != self.device:
            self._session, self.device = _open_session(self._model, device), device
        return self

    def forward(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """Restores ``(n, c, h, w)`` in [0, 1]; ``sigma`` in grey levels, for a network that is told."""
        inputs = {"noisy": x.detach().cpu().contiguous().numpy()}
        if self.takes_sigma:
            inputs["sigma"] = torch.tensor([sigma], dtype=torch.float32).numpy()
        try:
            (clean,) = self._session.run(["clean"], inputs)
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            if not any(text in str(error) for text in OUT_OF_MEMORY):
                raise
            if not self.is_divisible:
                raise InputError(explain_whole(x.shape[-2:])) from error
            raise MemoryError(str(error)) from error
        return torch.from_numpy(clean).to(x.device)


def explain_whole(size: tuple[int, int]) -> str:
    """Why a picture of this height and width does not go through a network that is not divisible."""
    return (
        f"A picture of {size[1]} x {size[0]} pixels does not fit into memory at once, and this ONNX model cannot go "
        "tile by tile: its attention averages over the whole picture. Take the weights that it was made from, which "
        "can (--backend torch)."
    )


def load_onnx(path: str | Path) -> LoadedNetwork:
    """Loads a file that ``basicsr export --format onnx`` wrote.

    Raises:
        InputError: if the extra ``[onnx]`` is missing, or the file is damaged or another program's.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        return read_onnx(path.read_bytes(), path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_onnx(model: bytes, path: Path) -> LoadedNetwork:
    """As ``load_onnx``, from the bytes of a file; ``path`` gives the network its name."""
    texts = _open_session(model, torch.device("cpu")).get_modelmeta().custom_metadata_map
    try:
        halo = json.loads(texts["halo"])
        multiple, nbytes = int(texts["tile_multiple"]), float(texts["bytes_per_pixel"])
        is_sound = (halo is None or (isinstance(halo, int) and halo >= 0)) and multiple >= 1 and 0 < nbytes < math.inf
    except (KeyError, ValueError) as error:
        raise InputError(
            "is not a model that `basicsr export --format onnx` wrote: it does not say its halo."
        ) from error
    if not is_sound:
        raise InputError(f"its entries halo={halo}, tile_multiple={multiple}, bytes_per_pixel={nbytes} are no sizes.")
    description = Description.read(path, texts)
    module = OnnxNetwork(model, halo=halo, tile_multiple=multiple, bytes_per_pixel=nbytes, upscale=description.scale)
    return LoadedNetwork(module, module.channels, module.takes_sigma, description, "onnxruntime")


def convert(network: LoadedNetwork) -> LoadedNetwork:
    """A torch network as an ONNX one, checked as ``basicsr export`` does; takes about ten seconds."""
    from hranet_arch import export

    return read_onnx(export.to_onnx(network), network.description.path)


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime is the one for CUDA."""
    return "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()


def import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"ONNX models are run by ONNX Runtime, which is not installed. {INSTALL}") from error
    return onnxruntime


def _open_session(model: bytes, device: torch.device):
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    # Its own choice is all cores, also where the process may use fewer.
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = ERRORS_ONLY
    options.enable_mem_pattern = False  # a plan for one size of picture; tiles at the border have others
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would take others' time
    providers: list[object] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if not has_cuda():
            raise InputError("This ONNX Runtime cannot use a GPU: pip install onnxruntime-gpu, or give --device cpu.")
        # TF32 rounds to 10 bits, which a difference of 1e-4 to PyTorch does not allow.
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0}))
    elif device.type != "cpu":
        raise InputError(f"ONNX Runtime cannot use the device {str(device)!r} here: give cpu or cuda.")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # no base class, see above
        raise InputError(f"ONNX Runtime cannot run this model: {first_line(error)}") from error
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():  # it goes on without, silently
        raise InputError("ONNX Runtime found no CUDA or cuDNN that it can use: install them, or give --device cpu.")
    return session
