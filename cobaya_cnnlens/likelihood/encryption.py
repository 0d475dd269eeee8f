"""Encryption of what a blinded release hides, by the standard library alone.

It is the deterministic authenticated encryption SIV (Rogaway & Shrimpton 2006)::

    tag = HMAC(k₁, text),    cipher = text ⊕ (HMAC(k₂, tag ‖ 0) ‖ HMAC(k₂, tag ‖ 1) ‖ …)

Every text has a tag, and therefore a stream, of its own: releases may share a key. The same text
gives the same cipher, so that a release that is made again is the same file. k₁ and k₂ follow from
the user's key by scrypt (RFC 7914). No package that the likelihood depends on encrypts anything.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
from dataclasses import dataclass
from pathlib import Path

from ..errors import CNNLensError
from ..files import given_path

# The salt is fixed: the same key hides the same offset in all releases of a collaboration.
SALT = b"cobaya_cnnlens blinding"
# Cost of scrypt: 16 MiB and 0.05 s.
SCRYPT = {"n": 2**14, "r": 8, "p": 1, "dklen": 32}
TAG_BYTES = 32


@dataclass(frozen=True)
class BlindingKey:
    """A user's key, stretched.

    Attributes
    ----------
    secret : from which the keys of every purpose follow
    """

    secret: bytes

    @classmethod
    def of(cls, text: str) -> BlindingKey:
        """The key that a text makes.

        Parameters
        ----------
        text : of the user

        Returns
        -------
        the key
        """
        return cls(hashlib.scrypt(text.encode(), salt=SALT, **SCRYPT))

    def derived(self, purpose: str) -> bytes:
        """A key for one purpose, which tells nothing of the others.

        Parameters
        ----------
        purpose : a word

        Returns
        -------
        32 bytes
        """
        return hmac.digest(self.secret, purpose.encode(), "sha256")

    @property
    def name(self) -> str:
        """What names the key in a file without telling it, 16 hex digits."""
        return self.derived("name")[:8].hex()


def read_key(path: str | Path) -> BlindingKey:
    """The key that a file holds, whatever its text is; space about the text does not count.

    Parameters
    ----------
    path : of the file

    Returns
    -------
    the key

    Raises
    ------
    CNNLensError
        if there is no such file, or it is empty
    """
    path = given_path(path)
    mend = f"give a file with any text that nobody guesses, e.g. of `openssl rand -hex 32 > {path}`"
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise CNNLensError(f"{path}: cannot be read as a key ({said}); {mend}") from None
    if not text:
        raise CNNLensError(f"{path}: is empty, and a key is not; {mend}")
    return BlindingKey.of(text)


def encrypted(text: str, key: BlindingKey) -> str:
    """A text that only the key opens.

    Parameters
    ----------
    text : to be hidden
    key : to be kept

    Returns
    -------
    tag and cipher in base64

    Examples
    --------
    >>> key = BlindingKey.of("nobody looks")
    >>> decrypted(encrypted("omch2 = 0.12", key), key)
    'omch2 = 0.12'
    """
    plain = text.encode()
    tag = hmac.digest(key.derived("tag"), plain, "sha256")
    return base64.b64encode(tag + _with_stream(plain, tag, key)).decode()


def decrypted(cipher: str, key: BlindingKey) -> str | None:
    """The text that was encrypted.

    Parameters
    ----------
    cipher : of :func:`encrypted`
    key : with which that was done

    Returns
    -------
    the text; None if the key is another one, or the cipher was altered
    """
    try:
        content = base64.b64decode(cipher, validate=True)
    except ValueError:
        return None
    tag, hidden = content[:TAG_BYTES], content[TAG_BYTES:]
    plain = _with_stream(hidden, tag, key)
    if not hmac.compare_digest(tag, hmac.digest(key.derived("tag"), plain, "sha256")):
        return None
    return plain.decode()


def _with_stream(content: bytes, tag: bytes, key: BlindingKey) -> bytes:
    """The content ⊕ the stream of a tag, which turns a text into its cipher and back."""
    secret, blocks, size = key.derived("stream"), list[bytes](), 0
    for counter in itertools.count():
        if size >= len(content):
            break
        blocks.append(hmac.digest(secret, tag + counter.to_bytes(8, "big"), "sha256"))
        size += len(blocks[-1])
    return bytes(a ^ b for a, b in zip(content, b"".join(blocks), strict=False))
