"""A teacher that costs nothing and fails on demand; used through `teacher.backend=custom`.

Faults are words of the prompt (`black=0.5`), so that they reach Ray's workers and one concept only.
"""

import hashlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from e2gan_cluster.config import TeacherConfig


def make(cfg: TeacherConfig) -> "FakeEditor":
    return FakeEditor()


class FakeEditor:
    """Inverts the colours and shifts them by prompt and seed."""

    fingerprint = "fake"

    def edit(
        self,
        images_BHWC: np.ndarray,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        overrides: Mapping[str, float] | None = None,
        negative_prompt: str | None = None,
    ) -> np.ndarray:
        return np.stack([self._one(i, p, s) for i, p, s in zip(images_BHWC, prompts, seeds, strict=True)])

    def _one(self, image_HWC: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        for word in prompt.split():
            if "=" in word:
                done = self._fault(*word.split("=", 1), image_HWC=image_HWC, seed=seed)
                if done is not None:
                    return done
        shift = hashlib.sha256(f"{prompt}|{seed}".encode()).digest()[0] % 32
        return (255 - image_HWC.astype(np.int16) // 2 - shift).clip(0, 255).astype(np.uint8)

    def _fault(self, kind: str, value: str, image_HWC: np.ndarray, seed: int) -> np.ndarray | None:
        """`kill-once=FLAG` and `hang-once=FLAG`; `kill`, `raise`, `black`, `small` `=SHARE` or `=SEED`; `sleep=S`."""
        if kind in ("kill-once", "hang-once"):
            if not Path(value).exists():
                Path(value).touch()
                _die() if kind == "kill-once" else time.sleep(3600)
            return None
        if kind == "sleep":
            time.sleep(float(value))
            return None
        if not (seed == int(value) if value.isdigit() else (seed % 1000) / 1000 < float(value)):
            return None
        if kind == "kill":
            _die()
        if kind == "raise":
            raise RuntimeError("the fake editor was told to fail")
        return np.zeros_like(image_HWC) if kind == "black" else image_HWC[:4, :4]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
