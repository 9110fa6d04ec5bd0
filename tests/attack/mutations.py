"""Mutations of valid files: flipped bits, truncations, edited headers, hostile numbers, bombs."""

import gzip
import json
import random
import re
import zlib
from pathlib import Path

import numcodecs

#: Numbers that headers should not hold.
NUMBERS = [
    "0",
    "-1",
    "1",
    "3",
    "65536",
    "2147483648",
    "99999999999999999999",
    "1e30",
    "-1e-30",
    "nan",
    "inf",
    "%n%s",
    "",
]
#: Values that JSON documents should not hold.
VALUES = [None, -1, 0, 1e300, 10**18, "", "a/../../b", "\u0000", [], {}, [[1]] * 3, True, "nan", {"a": {"b": []}}]
_SPECIAL_BYTES = (0, 1, 127, 128, 255)
_BOMB_BYTES = 1 << 28
#: Mutations that change bytes behind the back of a checksum.
UNAWARE = ("flip", "truncate", "zeros", "insert")


def mutate(folder: Path, rng: random.Random) -> tuple[str, int]:
    """Mutate one file of a folder in place; return the name of the mutation, and the first byte that changed."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    metadata = [p for p in files if p.suffix in (".json", ".yaml", ".yml")]
    file = rng.choice(metadata if metadata and rng.random() < 0.5 else files)
    content = file.read_bytes()
    names = ["flip", "flip", "truncate", "zeros", "insert", "header", "number"]
    names += ["json"] * 4 if file.suffix == ".json" else []
    names += ["inside"] * 3 + ["bomb"] if content[:2] == b"\x1f\x8b" else []
    names += ["bomb"] if not file.suffix and "scale0" in file.parts else []
    name = rng.choice(names)
    changed = MUTATIONS[name](content, rng)
    file.write_bytes(changed)
    return name, next((i for i, (a, b) in enumerate(zip(content, changed, strict=False)) if a != b), len(changed))


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice([rng.randrange(len(content)), len(content) - rng.randrange(1, 10)])]


def _zeros(content: bytes, rng: random.Random) -> bytes:
    start, count = rng.randrange(len(content)), rng.choice([4, 64, 4096])
    return content[:start] + bytes(min(count, len(content) - start)) + content[start + count :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + rng.randbytes(rng.choice([1, 8, 600])) + content[start:]


def _header(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    length = min(len(content), rng.choice([64, 352, 2000]))
    for _ in range(rng.choice([1, 1, 2, 4])):
        start = rng.randrange(length)
        size = min(rng.choice([1, 2, 4, 8]), len(changed) - start)
        changed[start : start + size] = bytes([rng.choice(_SPECIAL_BYTES)]) * size
    return bytes(changed)


def _number(content: bytes, rng: random.Random) -> bytes:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content[:4000]))
    if not numbers:
        return _header(content, rng)
    place = rng.choice(numbers)
    return content[: place.start()] + rng.choice(NUMBERS).encode() + content[place.end() :]


def _json(content: bytes, rng: random.Random) -> bytes:
    """Replace or remove one value of a JSON document."""
    try:
        document = json.loads(content)
    except ValueError:
        return _flip(content, rng)
    places = list(_places(document))
    if not places:
        return json.dumps(rng.choice(VALUES)).encode()
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(VALUES)
    return json.dumps(document).encode()


def _places(value):
    """Yield each container of a document with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _inside(content: bytes, rng: random.Random) -> bytes:
    """Mutate the header within a gzip stream, and compress it again with a valid checksum."""
    try:
        inner = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return _flip(content, rng)
    return gzip.compress(rng.choice([_header, _number, _truncate])(inner, rng), 1)


def _bomb(content: bytes, rng: random.Random) -> bytes:
    """Replace compressed voxels by a small stream that unpacks to 256 MB."""
    if content[:2] == b"\x1f\x8b":
        return content + gzip.compress(bytes(_BOMB_BYTES), 1)
    return rng.choice([numcodecs.Zstd(1), numcodecs.GZip(1)]).encode(bytes(_BOMB_BYTES))


MUTATIONS = {
    "flip": _flip,
    "truncate": _truncate,
    "zeros": _zeros,
    "insert": _insert,
    "header": _header,
    "number": _number,
    "json": _json,
    "inside": _inside,
    "bomb": _bomb,
}
