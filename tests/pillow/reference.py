"""Decodes pictures with Pillow: python3 reference.py FOLDER

Decodes every picture in the folder, and then the pictures of pictures.py, which it adds to the folder.
Writes the pixels of each to `<name>.expected.png`: upright, on white, with 8 bits. Prints a line of JSON
for each:

    {"name": …, "reference": {"width": …, "height": …, "orientation": …, "scaled": [360, 270]}}
    {"name": …, "error": "why Pillow cannot decode it"}

Width and height are those that the service should report. A large picture is also written at the widths in
`scaled`, as `<name>.expected.<width>.png`."""

import io, json, pathlib, sys

import numpy as np
from PIL import Image, ImageOps

from pictures import SIZE, Picture, all_pictures, on_white

# The mean difference between the samples (0 to 255) that Pillow decodes and the original ones must be smaller
# than this. Lossy formats cause a difference.
MAX_LOSS = 12

# The EXIF tag of the orientation.
ORIENTATION_TAG = 274


def decode(data):
    """Decodes a picture upright and on white, with 8 bits."""
    with Image.open(io.BytesIO(data)) as image:
        return eight_bits(ImageOps.exif_transpose(image))


def eight_bits(image):
    """Converts to 8-bit RGB on white."""
    if image.mode.startswith("I"):
        # Rounds to 8 bits. Pillow's own conversion of 16-bit grey limits the values to 255.
        return Image.fromarray(((np.asarray(image).astype(int) + 128) // 257).astype("uint8")).convert("RGB")
    if image.mode == "F":
        # The values are from 0 to 1. Pillow's own conversion assumes 0 to 255.
        return Image.fromarray(np.clip(np.rint(np.asarray(image) * 255), 0, 255).astype("uint8")).convert("RGB")
    return on_white(image) if image.has_transparency_data else image.convert("RGB")


def expected_pixels(picture):
    """Returns the pixels that Pillow decodes, or the original ones if Pillow decodes the picture wrongly."""
    original = picture.original
    if not picture.pillow_is_correct:
        return original
    decoded = decode(picture.data)
    if original is not None:
        assert decoded.size == original.size, picture.name
        loss = np.abs(np.asarray(decoded).astype(int) - np.asarray(original)).mean()
        assert loss < MAX_LOSS, f"{picture.name} differs by {loss} from the original"
    return decoded


def reported_size(picture, expected):
    """Returns the width and the height that the service should report: before the EXIF orientation is applied,
    or those of the upright picture for a HEIC."""
    # The orientations from 5 swap the width and the height.
    if picture.orientation >= 5 and "heic" not in picture.name:
        return expected.height, expected.width
    return expected.size


def scaled_down(expected):
    """If the picture is large, over twice as wide as SIZE, yields it at 3/4 and at 9/16 of its size. The
    service scales down by 3/4, once or repeatedly."""
    if expected.width > 2 * SIZE[0]:
        for sixteenths in (12, 9):
            size = expected.width * sixteenths // 16, expected.height * sixteenths // 16
            yield expected.resize(size, Image.Resampling.BICUBIC)


def report(folder, picture):
    """Writes the expected pixels. Returns what the picture's line of JSON contains."""
    try:
        expected = expected_pixels(picture)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        return {"name": picture.name, "error": str(error)}
    save = lambda image, suffix: image.save(folder / f"{picture.name}.{suffix}", compress_level=1)
    save(expected, "expected.png")
    scaled = list(scaled_down(expected))
    for image in scaled:
        save(image, f"expected.{image.width}.png")
    width, height = reported_size(picture, expected)
    reference = {"width": width, "height": height, "orientation": picture.orientation}
    return {"name": picture.name, "reference": {**reference, "scaled": [image.width for image in scaled]}}


def main(folder):
    # Every picture must be different, because the service caches the result of equal bytes.
    seen = set()
    for path in sorted(folder.iterdir()):
        picture = Picture(path.name, path.read_bytes(), original=None)
        assert picture.data not in seen, f"{picture.name} equals another picture"
        seen.add(picture.data)
        try:
            with Image.open(path) as image:
                picture.orientation = image.getexif().get(ORIENTATION_TAG, 1)
        except OSError:
            pass  # the report contains the error
        print(json.dumps(report(folder, picture)))
    for picture in all_pictures():
        path = folder / picture.name
        is_new = not path.exists() and picture.data not in seen
        assert is_new, f"{picture.name} has the name or the bytes of another picture"
        seen.add(picture.data)
        path.write_bytes(picture.data)
        print(json.dumps(report(folder, picture)))


main(pathlib.Path(sys.argv[1]))
