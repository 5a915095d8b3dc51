"""Secrets at rest: encrypted with a key made of SECRET_KEY, so that a copy of the database alone gives none away.

After a change of SECRET_KEY what was sealed before cannot be opened any more, unless the old one stands in
SECRET_KEY_FALLBACKS.
"""

import base64
from functools import cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings


class CannotOpen(ValueError):
    """It was sealed with another SECRET_KEY, or is no sealed text at all."""


def seal(text: str) -> str:
    """`text`, encrypted; empty stays empty."""
    return _keys(_secrets()).encrypt(text.encode()).decode() if text else ""


def unseal(sealed: str) -> str:
    """What was sealed; empty stays empty. Raises CannotOpen."""
    if not sealed:
        return ""
    try:
        return _keys(_secrets()).decrypt(sealed.encode()).decode()
    except InvalidToken:
        raise CannotOpen("sealed with another SECRET_KEY") from None


def _secrets() -> tuple[str, ...]:
    return (settings.SECRET_KEY, *map(str, settings.SECRET_KEY_FALLBACKS))


@cache
def _keys(secrets: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(_key(secret)) for secret in secrets])


def _key(secret: str) -> bytes:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"omni2 sealing").derive(secret.encode())
    return base64.urlsafe_b64encode(derived)
