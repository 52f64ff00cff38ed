"""Keeps secrets out of everything that is printed, logged or stored.

Example:
    redact("postgresql://me:hunter2@db/mlflow")  # "postgresql://me:***@db/mlflow"
"""

import os
import re

_SECRET_NAME = re.compile(r"(?i)(SECRET|PASSWORD|PASSWD|TOKEN|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL)")
_URL_PASSWORD = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s/@]+@")
_SIGNATURE = re.compile(r"(?i)((?:x-amz-signature|x-amz-credential|x-amz-security-token|signature|sig)=)[^&\s\"']+")
_SHORTEST_SECRET = 6


def secret_values() -> list[str]:
    """Values of environment variables whose names say that they are secret, longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET and value.lower() not in {"disabled", "enabled"}
    }
    return sorted(found, key=len, reverse=True)


def redact(text: str) -> str:
    """``text`` with secrets of the environment, passwords in URLs and URL signatures replaced by ``***``."""
    for value in secret_values():
        text = text.replace(value, "***")
    text = _URL_PASSWORD.sub(r"\1***@", text)
    return _SIGNATURE.sub(r"\1***", text)


def has_password(url: str) -> bool:
    """Whether a URL carries a password."""
    return bool(_URL_PASSWORD.search(url))
