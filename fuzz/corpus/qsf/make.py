"""Makes the QSF files of this folder: python make.py (no packages needed)."""
import pathlib
import struct
import zlib

here = pathlib.Path(__file__).parent
WIDTH, VOCAB, BLOCK = 32, 4, 32
BITS = {0: 2, 2: 3, 3: 4, 4: 4, 9: 2, 10: 4}


def data(quant, n):
    """A tensor of n values: any blocks, and two outliers where the type has them."""
    if quant == 7:
        return bytes([0, 0x3c]) * n
    block = struct.pack("<ee", 0.5, -1.0) + bytes(range(BLOCK * BITS[quant] // 8))
    outliers = struct.pack("<IIeIe", 2, n - 1, 3.0, 0, -3.0) if quant >= 9 else b""
    return outliers + block * -(-n // BLOCK)


def lz4(plain):
    """A raw LZ4 block of literals."""
    n = len(plain)
    head = bytes([n << 4]) if n < 15 else bytes([0xf0]) + b"\xff" * ((n - 15) // 255) + bytes([(n - 15) % 255])
    return head + plain


def tensor(number, quant, rows, cols):
    body = data(quant, rows * cols)
    return struct.pack("<HBBIIIII", number, quant, 0, rows, cols, len(body), 0, 0) + body


def file(name, quant, packed=False, tied=False, tokenizer=True, layers=1):
    pad = lambda b: b + b"\0" * (-len(b) % 64)
    pack = lz4 if packed else lambda b: b
    out = bytearray(256 + 48 * layers)
    out = bytearray(pad(bytes(out)))
    embedding = len(out)
    stored = pack(data(quant, VOCAB * WIDTH))
    out += struct.pack("<IIIIBxxxIII", quant, len(stored) if packed else 0, VOCAB, WIDTH, int(packed),
                       zlib.crc32(stored), 1, VOCAB) + stored
    out = bytearray(pad(bytes(out)))
    at_tokenizer = len(out) if tokenizer else 0
    if tokenizer:
        vocab = b"".join(struct.pack("<H", len(t)) + t for t in [b"a", b"b", b"ab", b""])
        merges, added = struct.pack("<3I", 0, 1, 2), struct.pack("<IH", 3, 1) + b"x\1"
        out += struct.pack("<8I", 0, VOCAB, 1, 1, len(vocab), len(merges), len(added), 0)
        out += vocab + struct.pack("<I", zlib.crc32(vocab)) + merges + added
        out = bytearray(pad(bytes(out)))
    for i in range(layers):
        plain = tensor(0, quant, 5, 16) + tensor(7, 7, 1, WIDTH) + tensor(25, quant, 2, 32)
        stored = pack(plain)
        struct.pack_into("<QIIBBHII", out, 256 + 48 * i, len(out), len(stored), len(plain), quant, int(packed), 3,
                         zlib.crc32(stored), zlib.crc32(plain))
        out = bytearray(pad(bytes(out + stored)))
    last = len(out)
    norm, head = data(7, WIDTH), b"" if tied else data(quant, VOCAB * WIDTH)
    out += struct.pack("<4I", int(tied), len(norm), len(head), zlib.crc32(norm + head)) + norm + head
    struct.pack_into("<12I4B2fI", out, 0, 0x51534631, 1, 256, 1, layers, WIDTH, 2, 1, VOCAB, 8, 16, 16,
                     quant, 2, 2, 1, 1e4, 1e-5, BLOCK)
    struct.pack_into("<4Q", out, 64, 256, embedding, last, at_tokenizer)
    struct.pack_into("<5I", out, 120, 0, 1, 0xffffffff, 0xffffffff, 0)
    out[141] = 1
    struct.pack_into("<Q", out, 160, len(out))
    struct.pack_into("<I", out, 168, zlib.crc32(bytes(out[:168])))
    out[172] = 1
    (here / name).write_bytes(out)


file("4bit.qsf", 3)
file("3bit-two-layers.qsf", 2, layers=2)
file("2bit-outlier-lz4.qsf", 9, packed=True)
file("half-tied.qsf", 7, tied=True, tokenizer=False)
