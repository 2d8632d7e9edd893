"""The checks that every client of OpenAI's API must pass, and the pictures that the clients send."""

import base64
import json
import math
import os
import pathlib
import struct
import urllib.request

FIXTURES = pathlib.Path(os.environ["IMAGESVC_PHOTO"]).parent
MODEL = "nvidia/nv-dinov2"
TEXT_IS_REFUSED = "is text, but this model embeds pictures only: send an http or https URL, a data: URL, or the picture's bytes as Base64."

# The services, each with the key that the clients send. Only the second service requires its key.
SERVICES = [
    (os.environ["IMAGESVC_URL"], "any"),
    (os.environ["IMAGESVC_KEYED_URL"], os.environ["IMAGESVC_KEY"]),
]


def encoded(name):
    return base64.b64encode((FIXTURES / name).read_bytes()).decode()


def pictures(url):
    """Three different pictures: a data: URL, an http URL, and bare Base64."""
    return ["data:image/jpeg;base64," + encoded("formats/plain.jpg"), url + "/sandbox/photo.jpg", encoded("chelsea.png")]


def post(url, key, route, body):
    headers = {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url + route, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def expected_vectors(url, key):
    """The vectors that the routes for single pictures return for the three pictures."""
    data_url, http_url, base64_text = pictures(url)
    answers = [
        post(url, key, "/vectorize-image-base64", {"image_base64": data_url}),
        post(url, key, "/vectorize-image", {"image_url": http_url}),
        post(url, key, "/vectorize-image-base64", {"image_base64": base64_text}),
    ]
    vectors = [answer["vector"] for answer in answers]
    assert vectors[0] != vectors[1] != vectors[2] != vectors[0]
    return vectors


def float32_bytes(vector):
    """The bytes of the numbers as 32-bit floats. An embedding in Base64 contains these bytes."""
    return struct.pack("<1536f", *vector)


def check(url, key, embed_one, embed_batch, is_exact):
    """Checks the vectors of single pictures and of a batch. With `is_exact`, they must equal the
    expected ones. Without it, they must be equal as 32-bit floats: the client requests Base64 vectors."""
    batch = embed_batch(pictures(url))
    assert len(batch) == 3
    singles = [embed_one(picture) for picture in pictures(url)]
    for vector, single, reference in zip(batch, singles, expected_vectors(url, key)):
        assert len(vector) == 1536 and all(math.isfinite(number) for number in vector), len(vector)
        assert vector == single
        assert float32_bytes(vector) == float32_bytes(reference)
        if is_exact:
            assert vector == reference


def refusal(call, kind=Exception):
    """The exception of a call that must fail with this kind of exception."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("the call should fail, but succeeded")
