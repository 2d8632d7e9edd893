"""A small JPEG encoder for files that Pillow cannot write: with any sampling, colours and order of scans
(ITU-T T.81). All Huffman codes of a table have the same length, so no statistics are needed."""

import struct

import numpy as np

# The kinds of frame: the second bytes of their markers, SOF0 and SOF2.
BASELINE, PROGRESSIVE = 0xC0, 0xC2

# The divisor of every coefficient. It is so small that little is lost.
QUANTIZER = 2

# The matrix of the discrete cosine transform: one basis function in each row.
DCT = np.array([
    [(0.5 if u else 0.125 ** 0.5) * np.cos((2 * x + 1) * u * np.pi / 16) for x in range(8)] for u in range(8)
])

# The positions (across, down) of a block's coefficients, in their order in the file (figure A.6).
ZIGZAG = sorted(((u, v) for v in range(8) for u in range(8)), key=lambda at: (
    sum(at), at[1] if sum(at) % 2 else at[0]))

# The symbols of AC codes: the end of a block, 16 zeros, and each number of zeros with the number of bits of
# the coefficient after them.
AC_SYMBOLS = [0x00, 0xF0] + [zeros << 4 | bits for zeros in range(16) for bits in range(1, 11)]
AC_CODES = {symbol: f"{code:08b}" for code, symbol in enumerate(AC_SYMBOLS)}


def segment(marker, data):
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def encode(planes, sampling, *, frame=BASELINE, scans=None, ids=None, adobe=None, restart=0):
    """Encodes planes of values from 0 to 255. All planes have the picture's size.

    `sampling` contains each plane's sampling factors, horizontal and vertical. `scans` lists the planes of
    each scan; by default, one scan contains all planes. In a progressive file, these scans contain only DC
    coefficients, and scans of single planes follow. `ids` are the components' ids. `adobe` is the colour
    transform in the APP14 segment. `restart` is the number of units (MCUs) between two restart
    markers, or 0 for none."""
    height, width = planes[0].shape
    ids = ids or range(1, len(planes) + 1)
    max_factors = [max(factors[axis] for factors in sampling) for axis in (0, 1)]
    # The number of units across and down, rounded up.
    unit_counts = -(-width // (8 * max_factors[0])), -(-height // (8 * max_factors[1]))
    blocks = [transform(plane, unit_counts, max_factors, factors) for plane, factors in zip(planes, sampling)]

    file = b"\xff\xd8"
    if adobe is not None:
        file += segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, adobe))
    file += segment(0xDB, bytes([0] + [QUANTIZER] * 64))
    components = b"".join(bytes([id, h << 4 | v, 0]) for id, (h, v) in zip(ids, sampling))
    file += segment(frame, struct.pack(">BHHB", 8, height, width, len(planes)) + components)
    # The Huffman tables: twelve DC codes of four bits each, then the AC codes of eight bits each.
    file += segment(0xC4, bytes([0] + [0, 0, 0, 12] + [0] * 12) + bytes(range(12)))
    file += segment(0xC4, bytes([0x10] + [0] * 7 + [len(AC_SYMBOLS)] + [0] * 8) + bytes(AC_SYMBOLS))
    if restart:
        file += segment(0xDD, struct.pack(">H", restart))

    scans = scans or [range(len(planes))]
    # For each scan in the file: its planes, its first coefficient and its last one.
    file_scans = [(scan, 0, 63) for scan in scans]
    if frame == PROGRESSIVE:
        single_planes = [[plane] for plane in range(len(planes))]
        file_scans = [(scan, 0, 0) for scan in scans]
        file_scans += [(scan, *band) for band in [(1, 5), (6, 63)] for scan in single_planes]
    for scan, first, last in file_scans:
        head = b"".join(bytes([ids[plane], 0]) for plane in scan)
        file += segment(0xDA, bytes([len(scan)]) + head + bytes([first, last, 0]))
        coded_units = list(scan_units(scan, blocks, sampling, unit_counts, (width, height), max_factors))
        file += compress(coded_units, first, last, restart)
    return file + b"\xff\xd9"


def transform(plane, unit_counts, max_factors, factors):
    """Returns the blocks of a plane by row and column. Each has 64 coefficients in the file's order."""
    # The height and the width with padding, in the order of numpy's axes.
    padded_size = unit_counts[1] * 8 * max_factors[1], unit_counts[0] * 8 * max_factors[0]
    padding = [(0, padded_size[axis] - plane.shape[axis]) for axis in (0, 1)]
    plane = np.pad(plane.astype(float), padding, "edge")
    across, down = max_factors[0] // factors[0], max_factors[1] // factors[1]
    plane = plane.reshape(padded_size[0] // down, down, padded_size[1] // across, across).mean((1, 3)) - 128
    blocks = plane.reshape(plane.shape[0] // 8, 8, plane.shape[1] // 8, 8).swapaxes(1, 2)
    blocks = np.rint(DCT @ blocks @ DCT.T / QUANTIZER).astype(int)
    return np.stack([blocks[:, :, at[1], at[0]] for at in ZIGZAG], axis=-1)


def scan_units(scan, blocks, sampling, unit_counts, size, max_factors):
    """Yields the units of a scan (MCUs). Each is a list of pairs of a plane and a block."""
    if len(scan) == 1:
        # In a scan of one plane, each unit is one block, and blocks of only padding are left out (A.2.2).
        plane = scan[0]
        width, height = (-(-size[axis] * sampling[plane][axis] // max_factors[axis]) for axis in (0, 1))
        for row in range(-(-height // 8)):
            for column in range(-(-width // 8)):
                yield [(plane, blocks[plane][row, column])]
        return
    for row in range(unit_counts[1]):
        for column in range(unit_counts[0]):
            yield [
                (plane, blocks[plane][row * sampling[plane][1] + y, column * sampling[plane][0] + x])
                for plane in scan for y in range(sampling[plane][1]) for x in range(sampling[plane][0])
            ]


def compress(units, first, last, restart):
    """Encodes the coefficients `first` to `last` of each block, with a restart marker after each `restart` units."""
    coded = b""
    for start in range(0, len(units), restart or len(units)):
        if start:
            coded += bytes([0xFF, 0xD0 + (start // restart - 1) % 8])
        # `previous` contains the last DC coefficient of each plane, since only differences are encoded.
        bits, previous = [], {}
        for unit in units[start:start + (restart or len(units))]:
            for plane, block in unit:
                if first == 0:
                    difference = int(block[0]) - previous.get(plane, 0)
                    previous[plane] = int(block[0])
                    length = abs(difference).bit_length()
                    bits += [f"{length:04b}", additional_bits(difference, length)]
                if last > 0:
                    bits += ac_codes(block[max(first, 1):last + 1].tolist())
        text = "".join(bits)
        text += "1" * (-len(text) % 8)
        coded += bytes(int(text[at:at + 8], 2) for at in range(0, len(text), 8)).replace(b"\xff", b"\xff\0")
    return coded


def ac_codes(values):
    """Yields the codes of a block's AC coefficients."""
    zeros = 0
    for value in values:
        if value == 0:
            zeros += 1
            continue
        while zeros > 15:
            yield AC_CODES[0xF0]
            zeros -= 16
        length = abs(value).bit_length()
        yield AC_CODES[zeros << 4 | length]
        yield additional_bits(value, length)
        zeros = 0
    if zeros:
        yield AC_CODES[0x00]


def additional_bits(value, length):
    """Returns the bits of the absolute value, inverted if the value is negative (F.1.2.1)."""
    return f"{value if value > 0 else value + (1 << length) - 1:0{length}b}" if length else ""
