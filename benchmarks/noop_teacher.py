"""A teacher that costs nothing: it inverts the photo. For benchmarks of what is around the teacher."""

from collections.abc import Mapping, Sequence

import numpy as np

from e2gan_cluster.config import TeacherConfig


class NoopTeacher:
    """Inverts colours; the same for all prompts and seeds."""

    fingerprint = "noop"

    def edit(
        self,
        images_BHWC: np.ndarray,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        overrides: Mapping[str, float] | None = None,
        negative_prompt: str | None = None,
    ) -> np.ndarray:
        """Returns the negative of each photo, uint8 [B,H,W,3]."""
        return 255 - images_BHWC


def make(cfg: TeacherConfig) -> NoopTeacher:
    """Factory for ``teacher.model``."""
    return NoopTeacher()
