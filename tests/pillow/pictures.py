"""Makes pictures in the forms that real files have. Each is a `Picture`; `judge.py` asks for all of them.

What needs single bits (depths, palettes, planes, run lengths) tests/api/support/kinds makes."""

import dataclasses, io, struct, zlib

import numpy as np
import pillow_heif
from PIL import Image

import jpeg

pillow_heif.register_heif_opener()

# Odd, so that blocks and units stick out on the right and below.
SIZE = 97, 65
# Large enough to be shrunk where the test sets the limit low.
LARGE = 480, 320


@dataclasses.dataclass
class Picture:
    name: str
    data: bytes
    # How it should look, upright and on white.
    look: Image.Image
    # What its EXIF says.
    orientation: int = 1
    # Whether Pillow shows it as it should be.
    pillow_is_right: bool = True


def scene(size=SIZE):
    """A picture that looks different however it is turned or mirrored: each corner has a colour of its
    own. Colours change slowly, since JPEG blurs them; light and shade have edges."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    x, y = x / (width - 1), y / (height - 1)
    corners = [(0, 0, (210, 60, 60)), (1, 0, (60, 190, 80)), (0, 1, (60, 80, 210)), (1, 1, (220, 200, 90))]
    weight = lambda cx, cy: ((1 - abs(x - cx)) * (1 - abs(y - cy)))[..., None]
    pixels = sum(weight(cx, cy) * np.array(color) for cx, cy, color in corners)
    pixels[(x > 0.2) & (x < 0.45) & (y > 0.3) & (y < 0.5)] -= 45
    pixels[(x > 0.6) & (y > 0.7) & (y < 0.78)] += 30
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype("uint8"))


def grained(size=LARGE):
    """The same with grain, as photographs have: it needs more bytes."""
    grain = np.random.default_rng(1).normal(0, 9, (size[1], size[0], 1))
    return Image.fromarray(np.clip(np.asarray(scene(size)) + grain, 0, 255).astype("uint8"))


def translucent(size=SIZE):
    """The scene behind glass: clear on the left, solid on the right, and a hole."""
    image = scene(size).convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, size[0]).astype("uint8"), (size[1], 1))
    alpha[:10, -20:] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


def on_white(image):
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


# What is stored so that the orientation makes it upright (EXIF tag 274): the opposite of what is done
# when it is shown.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(image, orientation):
    return image if orientation == 1 else image.transpose(STORED[orientation])


def exif(orientation, order="<"):
    """EXIF with one entry, the orientation; without one if there is none."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    tag, value = (274, orientation) if orientation is not None else (296, 2)
    return head + struct.pack(order + "HHHIHHI", 1, tag, 3, 1, value, 0, 0)


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def photo(image, **options):
    return encoded(image, "JPEG", **{"quality": 95, "subsampling": 0, **options})


def behind_start(file, *segments):
    """Puts segments behind a JPEG's first marker."""
    return file[:2] + b"".join(segments) + file[2:]


def app1(data):
    return jpeg.segment(0xE1, data)


def before_marker(file, marker, data):
    """Puts bytes before the first such marker of a JPEG."""
    at = file.index(bytes([0xFF, marker]))
    return file[:at] + data + file[at:]


def planes(image):
    return [np.asarray(plane) for plane in image.split()]


def jpegs():
    look = scene()
    for name, options in {
        "444": {}, "422": {"subsampling": 1}, "420": {"subsampling": 2}, "optimised": {"optimize": True},
        "progressive-444": {"progressive": True}, "progressive-422": {"progressive": True, "subsampling": 1},
        "progressive-420": {"progressive": True, "subsampling": 2}, "restart": {"restart_marker_blocks": 2},
        "progressive-restart": {"progressive": True, "restart_marker_rows": 1}, "low": {"quality": 60},
    }.items():
        yield Picture(f"jpeg-{name}", photo(look, **options), look)
    grey, cmyk = look.convert("L"), look.convert("CMYK")
    for name, options in {"": {}, "-progressive": {"progressive": True}}.items():
        yield Picture(f"jpeg-grey{name}", photo(grey, **options), grey.convert("RGB"))
        yield Picture(f"jpeg-cmyk-adobe{name}", photo(cmyk, **options), look)

    full, half, quarter, rows = (1, 1), (2, 1), (4, 1), (1, 2)
    both = (2, 2)
    colors = planes(look.convert("YCbCr"))
    each, two = [[0], [1], [2]], [[0], [1, 2]]
    for name, sampling, options in [
        ("411", [quarter, full, full], {}),
        ("440", [rows, full, full], {}),
        ("410", [(4, 2), full, full], {}),
        ("420-restart", [both, full, full], {"restart": 3}),
        ("422-of-twos", [both, rows, rows], {}),
        ("444-of-twos", [half] * 3, {}),
        ("three-scans-444", [full] * 3, {"scans": each}),
        ("three-scans-422", [half, full, full], {"scans": each}),
        ("three-scans-420", [both, full, full], {"scans": each}),
        ("three-scans-411", [quarter, full, full], {"scans": each}),
        ("two-scans-444", [full] * 3, {"scans": two}),
        ("two-scans-420", [both, full, full], {"scans": two}),
        ("progressive-three-scans-444", [full] * 3, {"scans": each, "frame": jpeg.PROGRESSIVE}),
        ("progressive-three-scans-420", [both, full, full], {"scans": each, "frame": jpeg.PROGRESSIVE}),
        ("progressive-two-scans-420", [both, full, full], {"scans": two, "frame": jpeg.PROGRESSIVE}),
    ]:
        yield Picture(f"jpeg-{name}", jpeg.encode(colors, sampling, **options), look)
    for name, sampling in {"twos": both, "two-across": half, "four-across": quarter}.items():
        data = jpeg.encode(planes(grey), [sampling])
        yield Picture(f"jpeg-grey-{name}", data, grey.convert("RGB"))
    yield Picture("jpeg-rgb-adobe", jpeg.encode(planes(look), [full] * 3, adobe=0), look)
    yield Picture("jpeg-rgb-by-names", jpeg.encode(planes(look), [full] * 3, ids=b"RGB"), look)

    # Adobe's programs store ink upside down, but YCC of it as it is (libjpeg's jdcolor.c). Pillow and
    # browsers take all CMYK to be so.
    upside_down = [255 - plane for plane in planes(cmyk)]
    as_ycc = planes(Image.merge("RGB", [Image.fromarray(plane) for plane in planes(cmyk)[:3]]).convert("YCbCr"))
    as_ycck = [*as_ycc, upside_down[3]]
    yield Picture("jpeg-cmyk-without-adobe", jpeg.encode(upside_down, [full] * 4), look)
    yield Picture("jpeg-ycck", jpeg.encode(as_ycck, [full] * 4, adobe=2), look)
    yield Picture("jpeg-ycck-420", jpeg.encode(as_ycck, [both, full, full, both], adobe=2), look)
    four = [[0], [1], [2], [3]]
    yield Picture("jpeg-cmyk-four-scans", jpeg.encode(upside_down, [full] * 4, adobe=0, scans=four), look)

    plain = photo(look)
    for name, data in {
        "fill-before-frame": before_marker(plain, 0xC0, b"\xff" * 5),
        "fill-before-scan": before_marker(plain, 0xDA, b"\xff"),
        "fill-before-end": before_marker(plain, 0xD9, b"\xff\xff"),
        "stray-zero": before_marker(plain, 0xDB, b"\0"),
        "stray-bytes": before_marker(plain, 0xC4, b"stray bytes"),
        "short-app-length": behind_start(plain, b"\xff\xe4\0\x06some text that is longer"),
        "thumbnail": behind_start(plain, app1(b"Exif\0\0" + exif(None) + photo(scene((32, 24))))),
        "profile": encoded(look, "JPEG", quality=95, subsampling=0, icc_profile=b"no profile" * 9000),
        "behind-its-end": plain + b"\xff\xd8\xff\xc0 what cameras leave",
    }.items():
        yield Picture(f"jpeg-odd-{name}", data, look)
    lying = photo(stored(look, 6))
    xmp = app1(b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    eight, none, six, one = (app1(b"Exif\0\0" + exif(which)) for which in (8, None, 6, 1))
    for name, data, pillow_is_right in [
        ("behind-xmp", behind_start(lying, xmp, six), True),
        ("in-two", behind_start(lying, six, one), True),
        # The first EXIF that has an orientation counts. Pillow looks at the first EXIF only.
        ("in-the-second", behind_start(lying, none, six), False),
        ("in-two-and-none", behind_start(lying, none, six, eight), False),
        ("padded-oddly", behind_start(lying, app1(b"Exif\0\xff" + exif(6))), False),
        ("before-app0", lying[:2] + six + lying[2:], True),
        ("with-fill-bytes", before_marker(behind_start(lying, b"\xff\xff\xff", six), 0xC0, b"\xff" * 3), True),
    ]:
        yield Picture(f"turned-jpeg-{name}-6", data, look, 6, pillow_is_right)
    lying_colors = planes(stored(look, 6).convert("YCbCr"))
    in_scans = jpeg.encode(lying_colors, [both, full, full], scans=each)
    yield Picture("turned-jpeg-three-scans-420-6", behind_start(in_scans, six), look, 6)
    for orientation in (0, 9, 65535):
        data = behind_start(plain, app1(b"Exif\0\0" + exif(orientation)))
        yield Picture(f"jpeg-orientation-{orientation}", data, look)


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(image, data, before):
    """A PNG with EXIF, before the pixels or behind them."""
    file, chunk = encoded(image, "PNG"), png_chunk(b"eXIf", data)
    at = 33 if before else len(file) - 12
    return file[:at] + chunk + file[at:]


def webp_with(image, data, **options):
    """A WebP with EXIF, taken as it is."""
    file = encoded(image, "WEBP", exif=exif(6), **{"quality": 95, **options})
    at = file.index(b"EXIF")
    chunk = b"EXIF" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    chunks = file[8:at] + chunk + file[at + 8 + len(exif(6)):]
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def big_endian_tiff(image, orientation):
    """A TIFF with the most significant byte first, in one strip."""
    width, height = image.size
    pixels = image.tobytes()
    entries = [(256, 3, 1, width << 16), (257, 3, 1, height << 16), (258, 3, 3, 134), (259, 3, 1, 1 << 16),
               (262, 3, 1, 2 << 16), (273, 4, 1, 140), (274, 3, 1, orientation << 16), (277, 3, 1, 3 << 16),
               (278, 3, 1, height << 16), (279, 4, 1, len(pixels))]
    directory = struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return (b"MM\0*\0\0\0\x08" + directory + bytes(4)).ljust(134, b"\0") + struct.pack(">HHH", 8, 8, 8) + pixels


def heic(image, orientation=1, **options):
    # libheif writes the orientation as `irot` and `imir`.
    if orientation > 1:
        options["exif"] = b"Exif\0\0" + exif(orientation)
    return encoded(image, "HEIF", **{"quality": 90, "chroma": 444, "enc_params": {"preset": "ultrafast"}, **options})


# How a picture is stored that lies in some way.
LYING = {
    "jpeg": lambda image, lies: behind_start(photo(image), app1(b"Exif\0\0" + exif(lies))),
    "jpeg-big-endian": lambda image, lies: behind_start(photo(image), app1(b"Exif\0\0" + exif(lies, ">"))),
    "jpeg-progressive": lambda image, lies: photo(image, progressive=True, exif=b"Exif\0\0" + exif(lies)),
    "png": lambda image, lies: png_with(image, exif(lies), True),
    "png-behind": lambda image, lies: png_with(image, exif(lies, ">"), False),
    "png-prefixed": lambda image, lies: png_with(image, b"Exif\0\0" + exif(lies), True),
    "webp": lambda image, lies: webp_with(image, exif(lies)),
    "webp-prefixed": lambda image, lies: webp_with(image, b"Exif\0\0" + exif(lies, ">")),
    "webp-lossless": lambda image, lies: webp_with(image, exif(lies), lossless=True),
    "tiff": lambda image, lies: encoded(image, "TIFF", tiffinfo={274: lies}),
    "tiff-big-endian": big_endian_tiff,
    "tiff-deflate": lambda image, lies: encoded(image, "TIFF", tiffinfo={274: lies}, compression="tiff_deflate"),
    "heic": heic,
}


def turned(prefix, look, forms):
    """The picture in some forms and each orientation."""
    for form in forms:
        for orientation in range(1, 9):
            data = LYING[form](stored(look, orientation), orientation)
            yield Picture(f"{prefix}-{form}-{orientation}", data, look, orientation)


def pngs():
    look, glass = scene(), translucent()
    palette = look.quantize(64)
    for name, image, options in [
        ("rgb", look, {}),
        ("grey", look.convert("L"), {}),
        ("grey-alpha", glass.convert("LA"), {}),
        ("rgba", glass, {}),
        ("palette", palette, {}),
        ("palette-2-bits", look.quantize(4), {"bits": 2}),
        ("palette-4-bits", look.quantize(16), {"bits": 4}),
        ("palette-one-clear", palette, {"transparency": 7}),
        ("palette-translucent", palette, {"transparency": bytes(range(0, 256, 4))}),
        ("1-bit", look.convert("1"), {}),
        ("grey-one-clear", look.convert("L"), {"transparency": look.convert("L").getpixel((5, 5))}),
        ("rgb-one-clear", look, {"transparency": look.getpixel((5, 5))}),
        ("animated", look, {"save_all": True, "append_images": [Image.new("RGB", SIZE)]}),
    ]:
        yield Picture(f"png-{name}", encoded(image, "PNG", **options), None)
    # 16 bits of grey that the eight high ones alone do not tell.
    deep = (np.asarray(look.convert("L")).astype("uint16") << 8) + 40
    yield Picture("png-16-bits", encoded(Image.fromarray(deep), "PNG"), look.convert("L").convert("RGB"))


def webps():
    look, glass = scene(), translucent()
    for name, image, options in [
        ("lossy", look, {"quality": 90}),
        ("lossy-low", look, {"quality": 40}),
        ("lossless", look, {"lossless": True}),
        ("lossless-grey", look.convert("L"), {"lossless": True}),
        ("lossless-few-colours", look.quantize(12).convert("RGB"), {"lossless": True}),
        ("alpha", glass, {"quality": 90}),
        ("alpha-lossless", glass, {"lossless": True, "exact": True}),
        ("animated", look, {"save_all": True, "append_images": [Image.new("RGB", SIZE)], "quality": 90}),
        ("animated-alpha", glass, {"save_all": True, "append_images": [Image.new("RGBA", SIZE)], "quality": 90}),
    ]:
        yield Picture(f"webp-{name}", encoded(image, "WEBP", **options), on_white(image))


def gifs():
    look = scene()
    palette = look.quantize(128)
    plain = encoded(palette, "GIF", interlace=0)
    # The table of colours moves behind the first frame's head.
    colors = 3 << (plain[10] & 7) + 1
    table, rest = plain[13:13 + colors], plain[13 + colors:]
    frame = rest.index(b",")
    local = (plain[:10] + bytes([plain[10] & 0x70, 0, 0]) + rest[:frame + 9]
             + bytes([rest[frame + 9] | 0x80 | plain[10] & 7]) + table + rest[frame + 10:])
    for name, data in {
        "plain": plain,
        "interlaced": encoded(palette, "GIF", interlace=1),
        "local-table": local,
        "clear": encoded(palette, "GIF", transparency=palette.getpixel((50, 20))),
        "grey": encoded(look.convert("L"), "GIF"),
        "two-colours": encoded(look.convert("1"), "GIF"),
        "animated": encoded(palette, "GIF", save_all=True, append_images=[Image.new("P", SIZE)], duration=50),
    }.items():
        yield Picture(f"gif-{name}", data, None)


def bmps():
    look = scene()
    for name, image in {
        "rgb": look, "grey": look.convert("L"), "palette": look.quantize(100), "1-bit": look.convert("1"),
        "rgba": translucent(),
    }.items():
        yield Picture(f"bmp-{name}", encoded(image, "BMP"), None)


def tiffs():
    look, glass = scene(), translucent()
    grey = look.convert("L")
    deep = Image.fromarray((np.asarray(grey).astype("uint16") << 8) + 40)
    for name, image in {
        "1-bit": look.convert("1"), "grey": grey, "16-bits": deep, "palette": look.quantize(200),
        "grey-alpha": glass.convert("LA"), "rgb": look, "rgba": glass, "cmyk": look.convert("CMYK"),
        "float": Image.fromarray(np.asarray(grey, "float32") / 255),
    }.items():
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"):
            yield Picture(f"tiff-{name}-{compression}", encoded(image, "TIFF", compression=compression), None)
    for compression in ("tiff_lzw", "tiff_adobe_deflate"):
        # Each sample as its difference from the one before it.
        data = encoded(look, "TIFF", compression=compression, tiffinfo={317: 2})
        yield Picture(f"tiff-differences-{compression}", data, look)
    for name, image in {"rgb": look, "grey": grey, "ycbcr": look.convert("YCbCr")}.items():
        data = encoded(image, "TIFF", compression="jpeg", quality=95)
        yield Picture(f"tiff-{name}-jpeg", data, image.convert("RGB"))
    yield Picture("tiff-uncompressed-ycbcr", encoded(look.convert("YCbCr"), "TIFF"), look)
    for compression in ("group3", "group4"):
        yield Picture(f"tiff-{compression}", encoded(look.convert("1"), "TIFF", compression=compression), None)
    yield Picture("tiff-white-is-zero", encoded(look.convert("1"), "TIFF", tiffinfo={262: 0}), None)
    strips = encoded(look, "TIFF", strip_size=1000)
    yield Picture("tiff-strips", strips, look)
    yield Picture("tiff-large-addresses", encoded(look, "TIFF", big_tiff=True), look)
    pages = encoded(look, "TIFF", save_all=True, append_images=[Image.new("RGB", SIZE)])
    yield Picture("tiff-pages", pages, look)


def heics():
    look, glass = scene(), translucent()
    grey = look.convert("L")
    yield Picture("heic-444", heic(look), look)
    yield Picture("heic-420", heic(look, chroma=420), look)
    yield Picture("heic-grey", heic(grey), grey.convert("RGB"))
    yield Picture("heic-alpha", heic(glass), on_white(glass))


def all_pictures():
    for maker in (jpegs, pngs, webps, gifs, bmps, tiffs, heics):
        yield from maker()
    yield from turned("turned", scene(), LYING)
    yield from turned("large", grained(), ["jpeg", "png", "webp", "tiff", "heic"])
