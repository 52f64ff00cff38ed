"""What every diffusion editor looks like to the rest of the package.

Example:
    >>> teacher = load_teacher(TeacherConfig())
    >>> teacher.edit(photos_BHWC, ["make it an oil painting"] * len(photos_BHWC), seeds=range(len(photos_BHWC)))
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np


class Teacher(Protocol):
    """Edits photos by prompt. Each result depends on its own photo, prompt, seed and the settings only."""

    @property
    def fingerprint(self) -> str:
        """`teacher_fingerprint` of the settings."""
        ...

    def edit(
        self,
        images_BHWC: np.ndarray,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        overrides: Mapping[str, float] | None = None,
        negative_prompt: str | None = None,
    ) -> np.ndarray:
        """Edits photos.

        Args:
            images_BHWC: Photos, uint8, sides a multiple of 16.
            prompts: One instruction per photo.
            seeds: One seed per photo, 0 to 2**63 - 1.
            overrides: Of a concept: `steps`, `guidance_scale`, `image_guidance_scale`, `strength`.
            negative_prompt: What to avoid; None takes the teacher's own.

        Returns:
            Edits, uint8 [B, H, W, 3].

        Raises:
            TeacherError: The settings don't fit this kind of teacher.
        """
        ...
