"""What a key hides, only that key opens."""

import base64

import pytest

from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.likelihood.encryption import BlindingKey, decrypted, encrypted, read_key

KEY, OTHER = BlindingKey(b"one" * 11), BlindingKey(b"two" * 11)
TEXT = "Ω_c h² = 0.1203, and " + "a long tail " * 20


def xor(first: bytes, second: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(first, second, strict=True))


def test_only_its_key_opens_a_text():
    cipher = encrypted(TEXT, KEY)
    assert decrypted(cipher, KEY) == TEXT
    assert decrypted(cipher, OTHER) is None
    assert TEXT[-12:].encode() not in base64.b64decode(cipher)


def test_the_empty_text_is_a_text():
    assert decrypted(encrypted("", KEY), KEY) == ""


@pytest.mark.parametrize("place", [0, 31, 32, -1])
def test_an_altered_cipher_is_noticed(place):
    content = bytearray(base64.b64decode(encrypted(TEXT, KEY)))
    content[place] ^= 1
    assert decrypted(base64.b64encode(bytes(content)).decode(), KEY) is None


@pytest.mark.parametrize("cipher", ["", "no base64 at all", "AAAA", "ä"])
def test_what_is_no_cipher_opens_to_nothing(cipher):
    assert decrypted(cipher, KEY) is None


def test_the_same_text_gives_the_same_cipher():
    assert encrypted(TEXT, KEY) == encrypted(TEXT, KEY)
    assert encrypted(TEXT, KEY) != encrypted(TEXT, OTHER)


def test_two_texts_of_a_key_share_no_stream():
    """With one stream, the ciphers would differ by what the texts differ by."""
    texts = ["0" * 100, "1" * 100]
    ciphers = [base64.b64decode(encrypted(text, KEY))[32:] for text in texts]
    assert xor(*ciphers) != xor(*(text.encode() for text in texts))
    blocks = [ciphers[0][i : i + 32] for i in (0, 32, 64)]  # of a text that repeats itself
    assert len(set(blocks)) == 3


def test_the_name_of_a_key_does_not_tell_it():
    assert KEY.name != OTHER.name
    assert len(KEY.name) == 16
    assert KEY.secret.hex()[:16] != KEY.name


def test_a_key_is_the_text_of_its_file(tmp_path):
    path = tmp_path / "key.txt"
    path.write_text("  nobody looks\n")
    assert read_key(path) == BlindingKey.of("nobody looks")
    assert read_key(path) != BlindingKey.of("nobody look")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read as a key"), (b" \n", "is empty"), (b"\xff\xfe\x00", "cannot be read")],
)
def test_a_file_without_a_key_is_one_error(tmp_path, content, said):
    path = tmp_path / "key.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CNNLensError, match=rf"key\.txt: {said}.*openssl rand -hex 32 > "):
        read_key(path)
