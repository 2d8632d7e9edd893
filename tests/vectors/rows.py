"""What the files of vectors must contain, read from the `.jsonl` file with Python's own JSON parser."""

import json
from fractions import Fraction

import numpy

# The columns that imagesvc adds after those of the source.
ADDED = ["sha256", "model", "prepared", "width", "height", "vector"]
DIMENSIONS = 1536


class Text(str):
    """The text of a number as it stands in the JSON."""


def read(path):
    """The rows, with numbers as their texts. Of equal names in an object, the last one counts."""
    rows = [json.loads(line, parse_float=Text, parse_int=Text) for line in lines(path)]
    assert rows and all(list(row)[-len(ADDED) :] == ADDED for row in rows), path
    return rows


def lines(path):
    """The lines of a file."""
    with open(path, encoding="utf-8") as file:
        return list(file)


def source_columns(rows):
    """The names of the source's fields, in the order in which they first occur."""
    return list(dict.fromkeys(name for row in rows for name in list(row)[: -len(ADDED)]))


def cell(row, name, line):
    """The text that the column `name` must contain for a row. None if the field is missing or null.

    `line` is the row's line of JSON.
    """
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, str):  # a string or a number
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    # The text of a nested value is unchanged, with its spaces. In the tested files, the name of such a
    # value occurs only once in the line.
    start = line.index(json.dumps(name) + ": ") + len(json.dumps(name)) + 2
    _, end = json.JSONDecoder().raw_decode(line, start)
    return line[start:end]


def vectors(rows):
    """The vectors as 32-bit floats. Each is the float that is nearest to the number's text."""
    array = numpy.array([[nearest(text) for text in row["vector"]] for row in rows], dtype="<f4")
    assert array.shape == (len(rows), DIMENSIONS), array.shape
    return array


def nearest(text):
    """The 32-bit float that is nearest to a number's text. Of two equally near floats, the even one."""
    guess = numpy.float32(float(text))  # rounds twice, so a neighbour may be nearer
    with numpy.errstate(over="ignore"):  # a neighbour may be infinite
        below, above = (numpy.nextafter(guess, numpy.float32(end)) for end in ("-inf", "inf"))
    exact = Fraction(text)

    def distance(number):
        is_odd = int(number.view(numpy.uint32)) & 1
        return abs(Fraction(float(number)) - exact), is_odd

    best = min((number for number in (guess, below, above) if numpy.isfinite(number)), key=distance)
    # The text may be -0.0. A Fraction has no such value.
    return numpy.copysign(best, numpy.float32(-1)) if text.startswith("-") and best == 0 else best


def same_bits(found, expected):
    """Whether two arrays of 32-bit floats are equal, including the signs of zeros."""
    found = numpy.asarray(found)
    assert found.dtype == numpy.float32, found.dtype
    return numpy.array_equal(found.view(numpy.uint32), expected.view(numpy.uint32))
