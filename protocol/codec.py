"""JSON in and out: every malformed input becomes one of our own errors, with a sentence that names the field.

msgspec raises four different exceptions for strangers' bytes: `DecodeError`, `ValidationError` (its subclass),
`UnicodeDecodeError` for invalid UTF-8 in a string that it builds, `RecursionError` for deep nesting. It does not look
inside a value kept as `msgspec.Raw`, so UTF-8 is checked over the whole input first.
"""

from typing import Any, TypeVar

import msgspec

from protocol.errors import BridgeError, InvalidRequest

T = TypeVar("T")

EMPTY_OBJECT = msgspec.Raw(b"{}")

encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode


def decode(decoder: msgspec.json.Decoder[T], data: bytes, error: type[BridgeError] = InvalidRequest) -> T:
    """Decode strangers' bytes; raise `error` where they are not what `decoder` expects."""
    try:
        if not data.isascii():
            data.decode()
        return decoder.decode(data)
    except msgspec.ValidationError as exc:
        raise error(_sentence(str(exc))) from exc
    except UnicodeDecodeError as exc:
        raise error("the message is not valid UTF-8") from exc
    except RecursionError as exc:
        raise error("the message is nested too deeply") from exc
    except msgspec.DecodeError as exc:
        raise error("the message is not valid JSON") from exc


def decode_value(data: bytes | msgspec.Raw, error: type[BridgeError] = InvalidRequest) -> Any:
    """Decode an open JSON value (parameters, a schema) to plain Python objects; raise `error` where it is none."""
    try:
        return _decode_any(data)
    except RecursionError as exc:
        raise error("the value is nested too deeply") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise error("the value is not valid JSON") from exc


def raw_bytes(raw: msgspec.Raw) -> bytes:
    """Return the bytes of a raw value, as they stood in the message."""
    return bytes(memoryview(raw))


def is_object(raw: msgspec.Raw) -> bool:
    """Tell whether a raw value, which msgspec has already found to be well formed, is a JSON object."""
    return bytes(memoryview(raw)[:1]) == b"{"


def _sentence(text: str) -> str:
    """Turn msgspec's "Expected `str`, got `null` - at `$.target`" into "`target`: expected `str`, got `null`"."""
    what, _, path = text.partition(" - at ")
    field = path.strip("`").removeprefix("$").removeprefix(".")
    what = what[:1].lower() + what[1:]
    return f"`{field}`: {what}" if field else what
