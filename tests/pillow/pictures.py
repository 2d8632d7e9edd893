"""Makes pictures in the variants that real files have. `reference.py` decodes all of them.

tests/api/support/kinds makes the variants that are built bit by bit: depths, palettes, planes, run lengths."""

import dataclasses, io, struct, zlib

import numpy as np
import pillow_heif
from PIL import Image

import jpeg

pillow_heif.register_heif_opener()

# Width and height. Neither is a multiple of a block's size, so that the last blocks reach beyond the picture.
SIZE = 97, 65
# The size of pictures that the service scales down in a test with a low inline limit.
LARGE = 480, 320


@dataclasses.dataclass
class Picture:
    name: str
    data: bytes
    # The pixels before the encoding, upright and on white. None if Pillow's pixels are not compared with them.
    original: Image.Image | None
    # The EXIF orientation that applies: 1 if the file has none or an invalid one.
    orientation: int = 1
    # Whether Pillow decodes this picture correctly. If not, the expected pixels are the original ones.
    pillow_is_correct: bool = True


def scene(size=SIZE):
    """A picture that looks different in every orientation, because each corner has a colour of its own. Colours
    change slowly, because JPEG blurs them. Two rectangles add edges of brightness."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    x, y = x / (width - 1), y / (height - 1)
    corners = [(0, 0, (210, 60, 60)), (1, 0, (60, 190, 80)), (0, 1, (60, 80, 210)), (1, 1, (220, 200, 90))]
    # The share of a corner's colour in each pixel.
    weight = lambda cx, cy: ((1 - abs(x - cx)) * (1 - abs(y - cy)))[..., None]
    pixels = sum(weight(cx, cy) * np.array(color) for cx, cy, color in corners)
    pixels[(x > 0.2) & (x < 0.45) & (y > 0.3) & (y < 0.5)] -= 45
    pixels[(x > 0.6) & (y > 0.7) & (y < 0.78)] += 30
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype("uint8"))


def grained(size=LARGE):
    """The scene with the grain of a photograph, so that its file exceeds the inline limit of the tests."""
    grain = np.random.default_rng(1).normal(0, 9, (size[1], size[0], 1))
    return Image.fromarray(np.clip(np.asarray(scene(size)) + grain, 0, 255).astype("uint8"))


def translucent(size=SIZE):
    """The scene with alpha, from transparent on the left to opaque on the right, where a hole is transparent."""
    image = scene(size).convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, size[0]).astype("uint8"), (size[1], 1))
    alpha[:10, -20:] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


def on_white(image):
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def inks(image):
    """Converts to CMYK with much black. Pillow's own conversion uses no black."""
    cmy = 255 - np.asarray(image).astype(float)
    black = 0.7 * cmy.min(2, keepdims=True)
    colors = (cmy - black) * 255 / (255 - black)
    cmyk = np.rint(np.concatenate([colors, black], 2)).astype("uint8")
    return Image.merge("CMYK", [Image.fromarray(cmyk[..., ink]) for ink in range(4)])


# For each EXIF orientation (tag 274) except 1, the inverse of the transform that a viewer applies.
INVERSE_TRANSFORMS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(image, orientation):
    """Transforms an image so that a viewer that applies this orientation shows the original."""
    return image if orientation == 1 else image.transpose(INVERSE_TRANSFORMS[orientation])


def exif(orientation, order="<"):
    """EXIF data whose only entry is the orientation, or the unit of the resolution if `orientation` is None."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    tag, value = (274, orientation) if orientation is not None else (296, 2)
    return head + struct.pack(order + "HHHIHHI", 1, tag, 3, 1, value, 0, 0)


def encoded(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def as_jpeg(image, **options):
    return encoded(image, "JPEG", **{"quality": 95, "subsampling": 0, **options})


def after_start(file, *segments):
    """Inserts segments after a JPEG's first marker."""
    return file[:2] + b"".join(segments) + file[2:]


def app1(data):
    return jpeg.segment(0xE1, data)


def before_marker(file, marker, data):
    """Inserts bytes before the first occurrence of a marker in a JPEG."""
    at = file.index(bytes([0xFF, marker]))
    return file[:at] + data + file[at:]


def planes(image):
    return [np.asarray(plane) for plane in image.split()]


def jpegs():
    original = scene()
    for name, options in {
        "444": {}, "422": {"subsampling": 1}, "420": {"subsampling": 2}, "optimised": {"optimize": True},
        "progressive-444": {"progressive": True}, "progressive-422": {"progressive": True, "subsampling": 1},
        "progressive-420": {"progressive": True, "subsampling": 2}, "restart": {"restart_marker_blocks": 2},
        "progressive-restart": {"progressive": True, "restart_marker_rows": 1}, "low": {"quality": 60},
    }.items():
        yield Picture(f"jpeg-{name}", as_jpeg(original, **options), original)
    grey, cmyk = original.convert("L"), inks(original)
    for name, options in {"": {}, "-progressive": {"progressive": True}}.items():
        yield Picture(f"jpeg-grey{name}", as_jpeg(grey, **options), grey.convert("RGB"))
        yield Picture(f"jpeg-cmyk-adobe{name}", as_jpeg(cmyk, **options), original)

    # Sampling factors, horizontal and vertical: how many of a plane's blocks are in one MCU.
    once, two_across, four_across, two_down, two_each = (1, 1), (2, 1), (4, 1), (1, 2), (2, 2)
    colors = planes(original.convert("YCbCr"))
    three_scans, two_scans = [[0], [1], [2]], [[0], [1, 2]]
    for name, sampling, options in [
        ("411", [four_across, once, once], {}),
        ("440", [two_down, once, once], {}),
        ("410", [(4, 2), once, once], {}),
        ("420-restart", [two_each, once, once], {"restart": 3}),
        ("422-of-twos", [two_each, two_down, two_down], {}),  # the ratios of 4:2:2, with larger factors
        ("444-of-twos", [two_across] * 3, {}),  # the ratios of 4:4:4, with larger factors
        ("three-scans-444", [once] * 3, {"scans": three_scans}),
        ("three-scans-422", [two_across, once, once], {"scans": three_scans}),
        ("three-scans-420", [two_each, once, once], {"scans": three_scans}),
        ("three-scans-411", [four_across, once, once], {"scans": three_scans}),
        ("two-scans-444", [once] * 3, {"scans": two_scans}),
        ("two-scans-420", [two_each, once, once], {"scans": two_scans}),
        ("progressive-three-scans-444", [once] * 3, {"scans": three_scans, "frame": jpeg.PROGRESSIVE}),
        ("progressive-three-scans-420", [two_each, once, once], {"scans": three_scans, "frame": jpeg.PROGRESSIVE}),
        ("progressive-two-scans-420", [two_each, once, once], {"scans": two_scans, "frame": jpeg.PROGRESSIVE}),
    ]:
        yield Picture(f"jpeg-{name}", jpeg.encode(colors, sampling, **options), original)
    for name, sampling in {"twos": two_each, "two-across": two_across, "four-across": four_across}.items():
        data = jpeg.encode(planes(grey), [sampling])
        yield Picture(f"jpeg-grey-{name}", data, grey.convert("RGB"))
    yield Picture("jpeg-rgb-adobe", jpeg.encode(planes(original), [once] * 3, adobe=0), original)
    yield Picture("jpeg-rgb-by-names", jpeg.encode(planes(original), [once] * 3, ids=b"RGB"), original)

    # Adobe's programs invert all inks of CMYK, but only the black of YCCK (libjpeg's jdcolor.c). Pillow and
    # browsers assume inverted inks in every CMYK JPEG, even without Adobe's segment.
    inverted = [255 - plane for plane in planes(cmyk)]
    as_ycc = planes(Image.merge("RGB", [Image.fromarray(plane) for plane in planes(cmyk)[:3]]).convert("YCbCr"))
    as_ycck = [*as_ycc, inverted[3]]
    yield Picture("jpeg-cmyk-without-adobe", jpeg.encode(inverted, [once] * 4), original)
    yield Picture("jpeg-ycck", jpeg.encode(as_ycck, [once] * 4, adobe=2), original)
    yield Picture("jpeg-ycck-420", jpeg.encode(as_ycck, [two_each, once, once, two_each], adobe=2), original)
    four_scans = [[0], [1], [2], [3]]
    yield Picture("jpeg-cmyk-four-scans", jpeg.encode(inverted, [once] * 4, adobe=0, scans=four_scans), original)

    plain = as_jpeg(original)
    for name, data in {
        "fill-before-frame": before_marker(plain, 0xC0, b"\xff" * 5),
        "fill-before-scan": before_marker(plain, 0xDA, b"\xff"),
        "fill-before-end": before_marker(plain, 0xD9, b"\xff\xff"),
        "stray-zero": before_marker(plain, 0xDB, b"\0"),
        "stray-bytes": before_marker(plain, 0xC4, b"stray bytes"),
        "short-app-length": after_start(plain, b"\xff\xe4\0\x06some text that is longer"),
        "thumbnail": after_start(plain, app1(b"Exif\0\0" + exif(None) + as_jpeg(scene((32, 24))))),
        "profile": encoded(original, "JPEG", quality=95, subsampling=0, icc_profile=b"no profile" * 9000),
        "after-its-end": plain + b"\xff\xd8\xff\xc0 what cameras leave",
    }.items():
        yield Picture(f"jpeg-odd-{name}", data, original)
    rotated = as_jpeg(stored(original, 6))
    xmp = app1(b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    # EXIF segments with the orientations 8, none, 6 and 1.
    eight, none, six, one = (app1(b"Exif\0\0" + exif(which)) for which in (8, None, 6, 1))
    for name, data, pillow_is_correct in [
        ("after-xmp", after_start(rotated, xmp, six), True),
        ("in-two", after_start(rotated, six, one), True),
        # The first EXIF segment with an orientation applies. Pillow reads only the first EXIF segment.
        ("in-the-second", after_start(rotated, none, six), False),
        ("in-two-and-none", after_start(rotated, none, six, eight), False),
        # Pillow ignores a segment whose second byte after `Exif` is not 0.
        ("padded-oddly", after_start(rotated, app1(b"Exif\0\xff" + exif(6))), False),
        ("with-fill-bytes", before_marker(after_start(rotated, b"\xff\xff\xff", six), 0xC0, b"\xff" * 3), True),
    ]:
        yield Picture(f"turned-jpeg-{name}-6", data, original, 6, pillow_is_correct)
    rotated_colors = planes(stored(original, 6).convert("YCbCr"))
    in_scans = jpeg.encode(rotated_colors, [two_each, once, once], scans=three_scans)
    yield Picture("turned-jpeg-three-scans-420-6", after_start(in_scans, six), original, 6)
    for orientation in (0, 9, 65535):  # invalid, so they are ignored
        data = after_start(plain, app1(b"Exif\0\0" + exif(orientation)))
        yield Picture(f"jpeg-orientation-{orientation}", data, original)


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(image, data, before_pixels):
    """A PNG with EXIF data before or after the pixels."""
    file, chunk = encoded(image, "PNG"), png_chunk(b"eXIf", data)
    # After the signature and the chunk IHDR, or before the chunk IEND.
    at = 33 if before_pixels else len(file) - 12
    return file[:at] + chunk + file[at:]


def webp_with(image, data, **options):
    """A WebP whose EXIF chunk contains exactly `data`, in place of what Pillow writes."""
    file = encoded(image, "WEBP", exif=exif(1), **{"quality": 95, **options})
    at = file.index(b"EXIF")
    chunk = b"EXIF" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    chunks = file[8:at] + chunk + file[at + 8 + len(exif(1)):]
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def big_endian_tiff(image, orientation):
    """A big-endian TIFF of one strip: the directory, the number of bits per sample at 134, and the pixels at 140."""
    width, height = image.size
    pixels = image.tobytes()
    # Values of 16 bits (type 3) are in the upper half of an entry's 32 bits.
    entries = [(256, 3, 1, width << 16), (257, 3, 1, height << 16), (258, 3, 3, 134), (259, 3, 1, 1 << 16),
               (262, 3, 1, 2 << 16), (273, 4, 1, 140), (274, 3, 1, orientation << 16), (277, 3, 1, 3 << 16),
               (278, 3, 1, height << 16), (279, 4, 1, len(pixels))]
    directory = struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return (b"MM\0*\0\0\0\x08" + directory + bytes(4)).ljust(134, b"\0") + struct.pack(">HHH", 8, 8, 8) + pixels


def heic(image, orientation=1, **options):
    # libheif writes the orientation as the properties `irot` and `imir`.
    if orientation > 1:
        options["exif"] = b"Exif\0\0" + exif(orientation)
    return encoded(image, "HEIF", **{"quality": 90, "chroma": 444, "enc_params": {"preset": "ultrafast"}, **options})


# Functions that encode an image with an EXIF orientation.
ENCODERS = {
    "jpeg": lambda image, orientation: after_start(as_jpeg(image), app1(b"Exif\0\0" + exif(orientation))),
    "jpeg-big-endian": lambda image, orientation: after_start(
        as_jpeg(image), app1(b"Exif\0\0" + exif(orientation, ">"))),
    "jpeg-progressive": lambda image, orientation: as_jpeg(
        image, progressive=True, exif=b"Exif\0\0" + exif(orientation)),
    "png": lambda image, orientation: png_with(image, exif(orientation), True),
    "png-after": lambda image, orientation: png_with(image, exif(orientation, ">"), False),
    "png-prefixed": lambda image, orientation: png_with(image, b"Exif\0\0" + exif(orientation), True),
    "webp": lambda image, orientation: webp_with(image, exif(orientation)),
    "webp-prefixed": lambda image, orientation: webp_with(image, b"Exif\0\0" + exif(orientation, ">")),
    "webp-lossless": lambda image, orientation: webp_with(image, exif(orientation), lossless=True),
    "tiff": lambda image, orientation: encoded(image, "TIFF", tiffinfo={274: orientation}),
    "tiff-big-endian": big_endian_tiff,
    "tiff-deflate": lambda image, orientation: encoded(
        image, "TIFF", tiffinfo={274: orientation}, compression="tiff_deflate"),
    "heic": heic,
}


def turned(prefix, original, encoders):
    """The picture in each orientation, encoded by these encoders."""
    for encoder in encoders:
        for orientation in range(1, 9):
            data = ENCODERS[encoder](stored(original, orientation), orientation)
            yield Picture(f"{prefix}-{encoder}-{orientation}", data, original, orientation)


def pngs():
    original, with_alpha = scene(), translucent()
    palette = original.quantize(64)
    for name, image, options in [
        ("rgb", original, {}),
        ("grey", original.convert("L"), {}),
        ("grey-alpha", with_alpha.convert("LA"), {}),
        ("rgba", with_alpha, {}),
        ("palette", palette, {}),
        ("palette-2-bits", original.quantize(4), {"bits": 2}),
        ("palette-4-bits", original.quantize(16), {"bits": 4}),
        ("palette-one-clear", palette, {"transparency": 7}),
        ("palette-translucent", palette, {"transparency": bytes(range(0, 256, 4))}),
        ("1-bit", original.convert("1"), {}),
        ("grey-one-clear", original.convert("L"), {"transparency": original.convert("L").getpixel((5, 5))}),
        ("rgb-one-clear", original, {"transparency": original.getpixel((5, 5))}),
        ("animated", original, {"save_all": True, "append_images": [Image.new("RGB", SIZE)]}),
    ]:
        yield Picture(f"png-{name}", encoded(image, "PNG", **options), None)
    # 16-bit grey. Divided by 257 and rounded, its bright pixels are one less than those of the original.
    deep = (np.asarray(original.convert("L")).astype("uint16") << 8) + 40
    yield Picture("png-16-bits", encoded(Image.fromarray(deep), "PNG"), original.convert("L").convert("RGB"))


def webps():
    original, with_alpha = scene(), translucent()
    for name, image, options in [
        ("lossy", original, {"quality": 90}),
        ("lossy-low", original, {"quality": 40}),
        ("lossless", original, {"lossless": True}),
        ("lossless-grey", original.convert("L"), {"lossless": True}),
        ("lossless-few-colours", original.quantize(12).convert("RGB"), {"lossless": True}),
        ("alpha", with_alpha, {"quality": 90}),
        ("alpha-lossless", with_alpha, {"lossless": True, "exact": True}),
        ("animated", original, {"save_all": True, "append_images": [Image.new("RGB", SIZE)], "quality": 90}),
        ("animated-alpha", with_alpha, {"save_all": True, "append_images": [Image.new("RGBA", SIZE)], "quality": 90}),
    ]:
        yield Picture(f"webp-{name}", encoded(image, "WEBP", **options), on_white(image))


def gifs():
    original = scene()
    palette = original.quantize(128)
    plain = encoded(palette, "GIF", interlace=0)
    # In `local`, the colour table is moved from the file's header to the first frame. Byte 10 has its size.
    table_len = 3 * 2 ** ((plain[10] & 7) + 1)
    table, rest = plain[13:13 + table_len], plain[13 + table_len:]
    frame = rest.index(b",")
    local = (plain[:10] + bytes([plain[10] & 0x70, 0, 0]) + rest[:frame + 9]
             + bytes([rest[frame + 9] | 0x80 | plain[10] & 7]) + table + rest[frame + 10:])
    for name, data in {
        "plain": plain,
        "interlaced": encoded(palette, "GIF", interlace=1),
        "local-table": local,
        "clear": encoded(palette, "GIF", transparency=palette.getpixel((50, 20))),
        "grey": encoded(original.convert("L"), "GIF"),
        "two-colours": encoded(original.convert("1"), "GIF"),
        "animated": encoded(palette, "GIF", save_all=True, append_images=[Image.new("P", SIZE)], duration=50),
    }.items():
        yield Picture(f"gif-{name}", data, None)


def bmps():
    original = scene()
    for name, image in {
        "rgb": original, "grey": original.convert("L"), "palette": original.quantize(100),
        "1-bit": original.convert("1"), "rgba": translucent(),
    }.items():
        yield Picture(f"bmp-{name}", encoded(image, "BMP"), None)


def tiffs():
    original, with_alpha = scene(), translucent()
    grey = original.convert("L")
    deep = Image.fromarray((np.asarray(grey).astype("uint16") << 8) + 40)
    for name, image in {
        "1-bit": original.convert("1"), "grey": grey, "16-bits": deep, "palette": original.quantize(200),
        "grey-alpha": with_alpha.convert("LA"), "rgb": original, "rgba": with_alpha, "cmyk": inks(original),
        "float": Image.fromarray(np.asarray(grey, "float32") / 255),
    }.items():
        for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits"):
            yield Picture(f"tiff-{name}-{compression}", encoded(image, "TIFF", compression=compression), None)
    for compression in ("tiff_lzw", "tiff_deflate"):
        # With the horizontal predictor (tag 317).
        data = encoded(original, "TIFF", compression=compression, tiffinfo={317: 2})
        yield Picture(f"tiff-differences-{compression}", data, original)
    for name, image in {"rgb": original, "grey": grey, "ycbcr": original.convert("YCbCr")}.items():
        data = encoded(image, "TIFF", compression="jpeg", quality=95)
        yield Picture(f"tiff-{name}-jpeg", data, image.convert("RGB"))
    yield Picture("tiff-uncompressed-ycbcr", encoded(original.convert("YCbCr"), "TIFF"), original)
    for compression in ("group3", "group4"):
        yield Picture(f"tiff-{compression}", encoded(original.convert("1"), "TIFF", compression=compression), None)
    yield Picture("tiff-white-is-zero", encoded(original.convert("1"), "TIFF", tiffinfo={262: 0}), None)
    strips = encoded(original, "TIFF", compression="tiff_lzw", strip_size=1000)
    yield Picture("tiff-strips", strips, original)
    yield Picture("tiff-large-addresses", encoded(original, "TIFF", big_tiff=True), original)
    pages = encoded(original, "TIFF", save_all=True, append_images=[Image.new("RGB", SIZE)])
    yield Picture("tiff-pages", pages, original)


def heics():
    original, with_alpha = scene(), translucent()
    grey = original.convert("L")
    yield Picture("heic-420", heic(original, chroma=420), original)
    yield Picture("heic-grey", heic(grey), grey.convert("RGB"))
    yield Picture("heic-alpha", heic(with_alpha), on_white(with_alpha))


def all_pictures():
    for maker in (jpegs, pngs, webps, gifs, bmps, tiffs, heics):
        yield from maker()
    yield from turned("turned", scene(), ENCODERS)
    yield from turned("large", grained(), ["jpeg", "png", "webp", "tiff", "heic"])
