"""FID's Inception network from a file the user gives.

The weights are not part of this package. The file is the TorchScript Inception that FID code passes round as
``inception-2015-12-05.pt``: called with uint8 images [N,3,H,W] and ``return_features=True`` it resizes by
itself and returns 2048-d features.
"""

from pathlib import Path

import numpy as np
import torch

from e2gan_cluster.errors import InputError

_FIX = "give the TorchScript file inception-2015-12-05.pt (uint8 [N,3,H,W], return_features=True)"


class InceptionFeatures:
    """Inception features for FID.

    Args:
        path: TorchScript file.
        device: Where the network runs.

    Raises:
        InputError: The file is missing or is no TorchScript.
    """

    def __init__(self, path: Path, device: str | torch.device = "cpu") -> None:
        if not path.is_file():
            raise InputError(f"No Inception network at {path}.", fix=_FIX)
        self.device = torch.device(device)
        try:
            self._network = torch.jit.load(str(path), map_location=self.device).eval()
        except RuntimeError as error:
            raise InputError(f"{path} is no TorchScript file: {str(error).splitlines()[0]}", fix=_FIX) from error

    @torch.inference_mode()
    def features(self, images_NHWC: np.ndarray, batch_size: int = 16) -> np.ndarray:
        """Features of uint8 images.

        Args:
            images_NHWC: uint8, RGB.
            batch_size: Images per forward pass.

        Returns:
            float32 [N, D].

        Raises:
            InputError: The network does not take or return what it should.
        """
        rows = []
        for start in range(0, len(images_NHWC), batch_size):
            x_BCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC[start : start + batch_size])).permute(0, 3, 1, 2)
            try:
                rows.append(self._network(x_BCHW.to(self.device), return_features=True).float().cpu().numpy())
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise InputError(f"The Inception network does not work as one: {reason}", fix=_FIX) from error
        features_ND = np.concatenate(rows)
        if features_ND.ndim != 2:
            raise InputError(f"The Inception network returned {features_ND.shape}, not rows of features.", fix=_FIX)
        return features_ND
