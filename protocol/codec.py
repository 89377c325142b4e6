"""JSON in and out: every malformed input becomes one of our own errors, with a sentence that names the field.

msgspec raises four exceptions for bad input: `DecodeError`, `ValidationError` (its subclass), `UnicodeDecodeError` for
invalid UTF-8 in a string that it builds, and `RecursionError` for deep nesting. It does not look inside a value that it
keeps as `msgspec.Raw`. So we check UTF-8 over the whole input first, and the numbers in such a value with
`require_usual_numbers`. Half a surrogate pair, which `JSON.stringify` writes as an escape, is read as U+FFFD.
"""

import contextlib
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from protocol.errors import BridgeError, InvalidRequest
from protocol.field_names import is_unknown_field, near_miss, sentence_of

# 1500, 1500.0 and 1.5e3 are the same number in JSON, and some languages write only the second or third form. msgspec
# decodes these as floats. So such a field allows both, and `whole()` makes an integer before anybody computes with it.
if TYPE_CHECKING:
    WholeNumber = int
else:
    WholeNumber = int | float

T = TypeVar("T")

EMPTY_OBJECT = msgspec.Raw(b"{}")
MAX_NESTING = 64
MAX_UNKNOWN_FIELDS = 64
MAX_UNKNOWN_BYTES = 64 * 1024
_MAX_SENTENCE_CHARS = 300
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF_PAIRS = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_ESCAPED_BACKSLASH, _REPLACEMENT = b"\\\\", rb"\\ufffd"
_SMALL_BYTES = 1024
_LONG_TEXT_BYTES = 64  # if strings are longer on average, removing them is faster than searching them
# Digits as `0`, for a number is too large if it has many of them or an exponent of three.
_NUMBERS = bytes(ord("0") if byte in b"0123456789." else ord("e") if byte in b"eE" else byte for byte in range(256))
_MANY_DIGITS = b"0" * 200  # with an exponent of two digits, fewer are not too large


class _Tagged(msgspec.Struct):
    type: Any = None


encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode
_tag_decoder = msgspec.json.Decoder(_Tagged)
_names_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode(decoder: msgspec.json.Decoder[T], data: bytes, error: type[BridgeError] = InvalidRequest) -> T:
    """Decode untrusted bytes; raise `error` if `decoder` refuses them."""
    try:
        if not data.isascii():
            data.decode()
        if b"\\u" in data:
            data = _whole_surrogates(data)
        return decoder.decode(data)
    except msgspec.ValidationError as exc:
        raise error(_sentence(str(exc), decoder, data)) from exc
    except UnicodeDecodeError as exc:
        raise error("the message is not valid UTF-8") from exc
    except RecursionError as exc:
        raise error("the message is nested too deeply") from exc
    except msgspec.DecodeError as exc:
        raise error("the message is not valid JSON") from exc


def decode_newer(
    strict: msgspec.json.Decoder[T], tolerant: msgspec.json.Decoder[T], data: bytes, error: type[BridgeError]
) -> T:
    """Decode a struct, and ignore unknown fields, which a newer version may have added.

    Raises `error` for a near miss of a known field, because ignoring it would widen the message's meaning.
    `strict` is a decoder that refuses unknown fields. It is tried first, so that the usual message is decoded once.
    """
    try:
        if not data.isascii():
            data.decode()
        if b"\\u" in data:
            data = _whole_surrogates(data)
        return strict.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        if is_unknown_field(str(exc)):
            if len(data) > MAX_UNKNOWN_BYTES:  # reading a megabyte of field names takes 20 ms
                require_little_unknown(decode(tolerant, data, error), data, error)
            refuse_near_misses(data, _fields_of(strict.type), error)
        return decode(tolerant, data, error)


def refuse_near_misses(data: bytes, fields: Collection[str], error: type[BridgeError] = InvalidRequest) -> None:
    """Raise `error` if a JSON object has a near miss of one of `fields`, or very many unknown fields."""
    unknown = [name for name in decode(_names_decoder, data, error) if name not in fields]
    if len(unknown) > MAX_UNKNOWN_FIELDS:
        raise error(f"the message has {len(unknown)} unknown fields")
    for name in unknown:
        meant = near_miss(name, fields)
        if meant is not None:
            raise error(f"`{name}`: there is no such field; did you mean `{meant}`?")


def decode_value(data: bytes | msgspec.Raw, error: type[BridgeError] = InvalidRequest) -> Any:
    """Decode an open JSON value (parameters, a schema) to plain Python objects. Raises `error` if it is not JSON."""
    try:
        return _decode_any(data)
    except msgspec.ValidationError as exc:  # raised although any value is allowed
        raise error("the value holds a number that is out of range") from exc
    except RecursionError as exc:
        raise error("the value is nested too deeply") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise error("the value is not valid JSON") from exc


def whole(value: float, field: str) -> int:
    """Return a decoded number as an integer. Raises `InvalidRequest` that names the field if it has a fraction."""
    if isinstance(value, int):
        return value
    if not value.is_integer():
        raise InvalidRequest(f"{field}: must be a whole number")
    return int(value)


def raw_bytes(raw: msgspec.Raw) -> bytes:
    """Return the bytes of a raw value, unchanged from the message."""
    return bytes(memoryview(raw))


def is_object(raw: msgspec.Raw) -> bool:
    """Tell whether a raw value, which msgspec has already found well formed, is a JSON object."""
    return bytes(memoryview(raw)[:1]) == b"{"


def require_usual_numbers(raw: msgspec.Raw, where: str, error: type[BridgeError] = InvalidRequest) -> None:
    """Raise `error` if a raw value contains a number, such as 1e400, that is too large for JSON in many languages.

    A small value is simply decoded. A large one is searched for suspicious digits first, in a tenth of the time.
    """
    if len(memoryview(raw)) > _SMALL_BYTES and not _has_large_number(bytes(memoryview(raw))):
        return
    try:
        _decode_any(raw)
    except msgspec.ValidationError as exc:
        raise error(f"{where}: a number is out of range") from exc
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(f"{where}: not JSON that can be read, or nested too deeply") from exc


def require_shallow(value: Any, where: str, error: type[BridgeError] = InvalidRequest) -> None:
    """Raise `error` if a decoded value is nested more than 64 levels deep.

    msgspec's own limit depends on the depth of the Python stack, so one process may read a value that another cannot.
    A value that is stored, or sent in a batch with other tenants' data, must stay far from that limit.
    """
    level = [value]
    for _ in range(MAX_NESTING + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
    raise error(f"{where}: nested more than {MAX_NESTING} levels deep")


def require_little_unknown(decoded: Any, data: bytes, error: type[BridgeError]) -> None:
    """Raise `error` if a message has more bytes in unknown fields than a newer version may add."""
    values = (getattr(decoded, name) for name in decoded.__struct_fields__)
    known = sum(len(memoryview(value)) for value in values if isinstance(value, msgspec.Raw))
    if len(data) - known > MAX_UNKNOWN_BYTES:
        raise error(f"the unknown fields have more than {MAX_UNKNOWN_BYTES} bytes")


def _fields_of(struct: Any) -> frozenset[str]:
    """Return the names that a struct has in JSON, its tag included."""
    tag = struct.__struct_config__.tag_field
    return frozenset((*struct.__struct_encode_fields__, *(() if tag is None else (tag,))))


def _has_large_number(data: bytes) -> bool:
    """Tell whether there may be a number with 200 digits or a three-digit exponent. A string can look like one."""
    shape = _outside_long_texts(data).translate(_NUMBERS)
    return b"0e000" in shape or b"0e+000" in shape or _MANY_DIGITS in shape


def _outside_long_texts(data: bytes) -> bytes:
    """Return a JSON value without its long strings."""
    if b"\\" in data:
        data = data.replace(_ESCAPED_BACKSLASH, b"").replace(b'\\"', b"")
    most = len(data) // _LONG_TEXT_BYTES
    parts = data.split(b'"', most)
    return data if len(parts) > most else b'"'.join(parts[::2])


def _whole_surrogates(data: bytes) -> bytes:
    """Return JSON with U+FFFD for each escape that is half a surrogate pair (RFC 8259 section 8.2)."""
    if b"\\ud" not in data and b"\\uD" not in data:
        return data
    parts = data.split(_ESCAPED_BACKSLASH)  # then every remaining backslash begins an escape
    return _ESCAPED_BACKSLASH.join(_HALF_PAIRS.sub(_REPLACEMENT, part) for part in parts)


def _sentence(text: str, decoder: msgspec.json.Decoder[Any], data: bytes) -> str:
    """Turn msgspec's "Expected `str`, got `null` - at `$.target`" into "`target`: expected `str`, got `null`"."""
    if is_unknown_field(text):
        sentence = sentence_of(text, decoder.type, _tag_of(data))
    else:
        what, _, path = text.partition(" - at ")
        field = path.strip("`").removeprefix("$").removeprefix(".")
        what = what[:1].lower() + what[1:]
        sentence = f"`{field}`: {what}" if field else what
    return sentence if len(sentence) <= _MAX_SENTENCE_CHARS else f"{sentence[:_MAX_SENTENCE_CHARS]}…"


def _tag_of(data: bytes) -> Any:
    """Return the `type` of a message, or None if it has none."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _tag_decoder.decode(data).type
    return None
