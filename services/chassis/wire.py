"""What protobuf writes, for the few messages that are answered so often that an object of each would cost more than finding the answer.

Source: protobuf.dev/programming-guides/encoding
"""


def varint(value: int) -> bytes:
    """Return a number, which is not negative, in seven bits a byte."""
    if value < 0x80:
        return bytes((value,))
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def member(number: int, body: bytes) -> bytes:
    """Return field `number`, at most 15, that holds a text or a message."""
    return bytes((number << 3 | 2,)) + varint(len(body)) + body
