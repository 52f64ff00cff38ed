"""Optional Ed25519 signatures (RFC 8032, by `cryptography`: extra ``sign``, 17 MB that the plain package does without).

Make a key pair: ``openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out key.pub.pem``
"""

import base64
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from e2gan_cluster.errors import InputError, IntegrityError

_DOMAIN = b"e2gan manifest\n"
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64


@dataclass(frozen=True)
class Signature:
    """Who signed, and the signature; base64.

    Attributes:
        public_key: Raw Ed25519 public key.
        value: The signature.
    """

    public_key: str
    value: str


def sign(payload: bytes, key_file: Path) -> Signature:
    """Sign with a PEM private key.

    Raises:
        InputError: The file is not an unencrypted Ed25519 private key, or `cryptography` is not installed.
    """
    _require_library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    fix = "make one with: openssl genpkey -algorithm ed25519 -out key.pem"
    try:
        key = load_pem_private_key(key_file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"signing key {key_file} cannot be read: {type(error).__name__}", fix) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"signing key {key_file} is not an Ed25519 key", fix)
    return Signature(_encode(key.public_key().public_bytes_raw()), _encode(key.sign(_DOMAIN + payload)))


def check(payload: bytes, signature: Signature, what: str, trusted: str | None = None) -> None:
    """Verify a signature.

    Args:
        payload: What was signed.
        signature: Key and signature as stored.
        what: Where it stands, for the message.
        trusted: The public key (as `public_key_of` gives it) that must have signed; None: whichever key it names.

    Raises:
        IntegrityError: Wrong signature or another signer.
    """
    if trusted is not None and signature.public_key != trusted:
        raise IntegrityError(
            f"{what}: signed by {signature.public_key}, not by {trusted}", "use the signer's public key"
        )
    key = _decode(signature.public_key, _KEY_BYTES, what)
    value = _decode(signature.value, _SIGNATURE_BYTES, what)
    if trusted is None and find_spec("cryptography") is None:
        return  # nobody asks who signed, and that the content is whole is the digest's matter
    _require_library()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(value, _DOMAIN + payload)
    except (InvalidSignature, ValueError):
        raise IntegrityError(
            f"{what}: the signature does not fit the content", "fetch it again from its publisher"
        ) from None


def public_key_of(key_file: Path) -> str:
    """The public key in a PEM file (public or private), base64.

    Raises:
        InputError: The file holds no Ed25519 key, or `cryptography` is not installed.
    """
    _require_library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    try:
        data = key_file.read_bytes()
        key = load_pem_private_key(data, None) if b"PRIVATE" in data else load_pem_public_key(data)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"key {key_file} cannot be read: {type(error).__name__}", "give a PEM file") from None
    if isinstance(key, Ed25519PrivateKey):
        key = key.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"key {key_file} is not an Ed25519 key", "make one with openssl genpkey -algorithm ed25519")
    return _encode(key.public_bytes_raw())


def _require_library() -> None:
    if find_spec("cryptography") is None:
        raise InputError("signatures need the package `cryptography`", "pip install 'e2gan-cluster[sign]'")


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str, length: int, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = b""
    if len(data) != length or _encode(data) != text:
        raise IntegrityError(f"{what}: the signature is malformed", "fetch it again from its publisher")
    return data
