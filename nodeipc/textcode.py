"""How raw mode turns text into bytes: ``config.encoding`` by Python's names and by Node's.

The names and their meaning are those of Node's ``Buffer.from(text, encoding)``; where both have a name it is the same
encoding, but ``ascii``, in which Node cuts characters off where Python refuses them. Values only.
"""

from __future__ import annotations

import binascii
import codecs
import re
from typing import Callable, Optional

Encode = Callable[[str], bytes]

# Node's names that Python does not know, or knows as something else. Compared without case, '-' and '_'.
_NODE_CODECS = {'utf8': 'utf-8', 'ucs2': 'utf-16-le', 'utf16le': 'utf-16-le', 'binary': 'latin-1'}

_BASE64 = '([A-Za-z0-9+/]*)=*'
_URL_SAFE = str.maketrans('-_', '+/')


def text_encoder(name: str) -> Optional[Encode]:
    """Return what turns text into bytes; None for a name that neither Node nor Python has for an encoding of text.

    What is returned raises ValueError for text that the encoding cannot carry.

    >>> text_encoder('hex')('68 65 6c 6c 6f'), text_encoder('utf16le')('hi')
    (b'hello', b'h\\x00i\\x00')
    >>> text_encoder('base46') is None
    True
    """
    plain = name.lower().replace('-', '').replace('_', '')
    if plain == 'hex':
        return bytes.fromhex
    if plain in ('base64', 'base64url'):
        return _from_base64
    try:
        codec = codecs.lookup(_NODE_CODECS.get(plain, name))
    except (LookupError, ValueError):  # ValueError: a NUL in the name, say
        return None
    if not getattr(codec, '_is_text_encoding', True):  # rot13, zip …
        return None
    return lambda text: codec.encode(text)[0]


def _from_base64(text: str) -> bytes:
    """Both alphabets, with padding or without, and white space anywhere, as Node takes them."""
    digits = re.fullmatch(_BASE64, ''.join(text.split()).translate(_URL_SAFE))
    if digits is None:  # binascii would skip what is no digit
        raise ValueError('not base64: it has other characters than A-Z, a-z, 0-9, + and / (or - and _)')
    try:
        return binascii.a2b_base64(digits[1] + '=' * (-len(digits[1]) % 4))
    except binascii.Error as error:
        raise ValueError(f'not base64: {error}') from None
