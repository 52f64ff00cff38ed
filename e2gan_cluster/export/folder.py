"""What lies in a folder of pulled effects: ``adapters/<concept>/`` and ``base/``, each with its manifest.

Example:
    >>> read_folder(Path("build/effects")).concepts
    ['oil-painting', 'snowy-winter']
"""

from dataclasses import dataclass
from pathlib import Path

from e2gan_cluster.errors import InputError, IntegrityError
from e2gan_cluster.names import did_you_mean
from e2gan_cluster.storage.bundle import local_manifest
from e2gan_cluster.storage.checks import sha256_of_file
from e2gan_cluster.storage.folder import adapter_folder, base_folder
from e2gan_cluster.storage.manifest import MANIFEST, Manifest


@dataclass(frozen=True)
class Published:
    """One folder of published files.

    Attributes:
        path: The folder.
        manifest: What it holds.
    """

    path: Path
    manifest: Manifest

    @property
    def base_id(self) -> str:
        """Base that the files belong to."""
        return str(self.manifest.meta.get("base_id", ""))

    def file(self, name: str) -> Path | None:
        """A file as it was published, or None if it was not pulled.

        Raises:
            IntegrityError: Its bytes were changed.
        """
        path = self.path / name
        entry = self.manifest.entry(name)
        if entry is None or not path.is_file():
            return None
        if path.stat().st_size != entry.size or sha256_of_file(path) != entry.sha256:
            raise IntegrityError(f"{path} was changed: it does not fit its manifest", "pull it again")
        return path


@dataclass(frozen=True)
class EffectFolder:
    """Effects at hand.

    Attributes:
        root: The folder.
        concepts: Names of the effects.
    """

    root: Path
    concepts: list[str]

    def effect(self, concept: str) -> Published:
        """Files of an effect.

        Raises:
            InputError: There is no such effect.
            IntegrityError: Its manifest is damaged.
        """
        if concept not in self.concepts:
            raise InputError(
                f"{self.root} has no effect {concept}{did_you_mean(concept, self.concepts)}",
                f"pull it, or take one of {', '.join(self.concepts[:8])}",
            )
        folder = adapter_folder(self.root, concept)
        return Published(folder, local_manifest(folder))

    def base(self) -> Published | None:
        """Files of the base, if some were pulled.

        Raises:
            IntegrityError: Its manifest is damaged.
        """
        folder = base_folder(self.root)
        return Published(folder, local_manifest(folder)) if folder.is_dir() else None


def read_folder(root: Path) -> EffectFolder:
    """Finds the effects in a folder written by ``e2gan pull``.

    Raises:
        InputError: No effect in it.
    """
    concepts = sorted(path.parent.name for path in (root / "adapters").glob(f"*/{MANIFEST}"))
    if not concepts:
        raise InputError(f"{root} holds no pulled effect", "run e2gan pull first, and give its --out folder here")
    return EffectFolder(root, concepts)
