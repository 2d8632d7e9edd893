"""Tells how pictures look: python3 judge.py FOLDER

Makes the pictures of pictures.py in the folder, and judges them and all others that lie there: what
Pillow shows of each is put beside it, `<name>.right.png`, upright, on white, in 8 bits. A line of JSON
for each goes to standard output:

    {"name": …, "shown": {"width": …, "height": …, "orientation": …, "scaled": [360, 270]}}
    {"name": …, "unknown": "why Pillow cannot show it"}

Width and height are those of the file, before it is turned. A large picture is put there scaled down
to these widths, too: `<name>.right.<width>.png`."""

import io, json, pathlib, sys

import numpy as np
from PIL import Image, ImageOps

from pictures import SIZE, Picture, all_pictures, on_white

# The most that Pillow's pixels may differ on average from what was drawn, since some formats lose much.
LOSS = 12


def show(data):
    """How Pillow shows a picture."""
    with Image.open(io.BytesIO(data)) as image:
        return eight_bits(ImageOps.exif_transpose(image))


def eight_bits(image):
    """On white, in 8 bits a channel."""
    if image.mode.startswith("I"):
        # Rounded. Pillow's own conversion cuts at 255; of colours of 16 bits it drops the low eight.
        return Image.fromarray(((np.asarray(image).astype(int) + 128) // 257).astype("uint8")).convert("RGB")
    if image.mode == "F":
        # Floating point is from 0 to 1. Pillow takes it to be from 0 to 255.
        return Image.fromarray(np.clip(np.rint(np.asarray(image) * 255), 0, 255).astype("uint8")).convert("RGB")
    return on_white(image) if image.has_transparency_data else image.convert("RGB")


def judge(picture):
    look = picture.look
    if picture.pillow_is_right:
        shown = show(picture.data)
        if look is not None:
            assert shown.size == look.size, picture.name
            loss = np.abs(np.asarray(shown).astype(int) - np.asarray(look)).mean()
            assert loss < LOSS, f"{picture.name} differs by {loss} from what was drawn"
        look = shown
    return look


def size(picture, look):
    """As it is stored; HEIC's own turns are part of its size."""
    if picture.orientation >= 5 and "heic" not in picture.name:
        return look.height, look.width
    return look.size


def scaled_down(look):
    """A large picture at three quarters of its size, and at three quarters of that."""
    if look.width > 2 * SIZE[0]:
        for parts in (12, 9):
            yield look.resize((look.width * parts // 16, look.height * parts // 16), Image.Resampling.BICUBIC)


def report(folder, picture):
    try:
        look = judge(picture)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        return {"name": picture.name, "unknown": str(error)}
    save = lambda image, suffix: image.save(folder / f"{picture.name}.{suffix}", compress_level=1)
    save(look, "right.png")
    scaled = list(scaled_down(look))
    for image in scaled:
        save(image, f"right.{image.width}.png")
    width, height = size(picture, look)
    shown = {"width": width, "height": height, "orientation": picture.orientation}
    return {"name": picture.name, "shown": {**shown, "scaled": [image.width for image in scaled]}}


def main(folder):
    for path in sorted(folder.iterdir()):
        picture = Picture(path.name, path.read_bytes(), None)
        try:
            with Image.open(path) as image:
                picture.orientation = image.getexif().get(274, 1)
        except OSError:
            pass  # the report says why
        print(json.dumps(report(folder, picture)))
    for picture in all_pictures():
        path = folder / picture.name
        assert not path.exists(), f"{picture.name} is there twice"
        path.write_bytes(picture.data)
        print(json.dumps(report(folder, picture)))


main(pathlib.Path(sys.argv[1]))
