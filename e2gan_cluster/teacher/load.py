"""The one place that turns teacher settings into a loaded teacher.

Example:
    >>> load_teacher(TeacherConfig())                                     # the bundled one
    >>> load_teacher(TeacherConfig(model="timbrooks/instruct-pix2pix", dtype="float16", device="cuda"))
    >>> load_teacher(TeacherConfig(backend="custom", model="my_editors:make"))
"""

import importlib
import os
from collections.abc import Callable

from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.errors import TeacherError
from e2gan_cluster.teacher.base import Teacher
from e2gan_cluster.teacher.fingerprint import teacher_fingerprint, use_working_folder

__all__ = ["load_teacher", "teacher_fingerprint"]


def load_teacher(cfg: TeacherConfig) -> Teacher:
    """Loads a teacher: weights from a folder or a hub, placed on its device.

    Args:
        cfg: Teacher settings.

    Returns:
        A teacher in evaluation mode.

    Raises:
        TeacherError: It can't be found, isn't of the back-end's kind, or has no safetensors weights.
    """
    if cfg.backend == "custom":
        return _load_custom(cfg)
    # Both complain at every start about a missing torchvision that nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    return _factory(cfg)(cfg)


def _factory(cfg: TeacherConfig) -> Callable[[TeacherConfig], Teacher]:
    """The back-end's class; diffusers is imported here and not before."""
    if cfg.backend in ("instruct-pix2pix", "instruct-pix2pix-xl"):
        from e2gan_cluster.teacher.instruct import InstructTeacher

        return InstructTeacher
    if cfg.model == "bundled":
        raise TeacherError(
            f"the bundled teacher is of the kind instruct-pix2pix, not {cfg.backend}",
            "set teacher.model to a folder or hub id, or teacher.backend to instruct-pix2pix",
        )
    if cfg.backend == "flux-kontext":
        from e2gan_cluster.teacher.flux_kontext import FluxKontextTeacher

        return FluxKontextTeacher
    if cfg.backend == "qwen-image-edit":
        from e2gan_cluster.teacher.qwen_edit import QwenEditTeacher

        return QwenEditTeacher
    from e2gan_cluster.teacher.img2img import Img2ImgTeacher

    return Img2ImgTeacher


def _load_custom(cfg: TeacherConfig) -> Teacher:
    module, _, factory = cfg.model.partition(":")
    fix = "give package.module:factory, a function from TeacherConfig to an object with `edit` (docs/pairs.md)"
    use_working_folder()
    try:
        make = getattr(importlib.import_module(module), factory)
        teacher = make(cfg)
    except (ImportError, AttributeError, ValueError) as error:
        raise TeacherError(f"teacher.model {cfg.model!r} can't be loaded: {error}", fix) from error
    if not callable(getattr(teacher, "edit", None)):
        raise TeacherError(f"teacher.model {cfg.model!r} made no teacher: it has no `edit`", fix)
    return teacher
