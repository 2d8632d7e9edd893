"""Python, requests: each route for single pictures, and a body of unknown length."""

import base64
import os

import requests

from check import check

url = os.environ["IMAGESVC_URL"]
photo = os.environ["IMAGESVC_PHOTO"]

with requests.Session() as session:
    session.trust_env = False  # ignores a proxy in the environment

    def post(route, **body):
        response = session.post(url + route, timeout=60, **body)
        return check(response.status_code, response.headers, response.json())

    post("/vectorize-image", json={"image_url": url + "/sandbox/photo.jpg"})
    with open(photo, "rb") as file:
        base64_text = base64.b64encode(file.read()).decode()
    # `None` becomes null, which means the same as an absent file name.
    post("/vectorize-image-base64", json={"image_base64": base64_text, "filename": None})
    with open(photo, "rb") as file:
        answer = post("/vectorize-image-upload", files={"file": file})
    assert answer["original_filename"] == os.path.basename(photo)
    with open(photo, "rb") as file:
        files = {"file": ("Foto größer.jpg", file, "image/jpeg")}
        # The service ignores the field `note`.
        answer = post("/vectorize-image-upload", files=files, data={"note": "x"})
    assert answer["original_filename"] == "Foto größer.jpg", answer["original_filename"]

    # requests sends a body of unknown length with chunked transfer encoding.
    body = iter([b'{"image_url": "', url.encode(), b'/sandbox/photo.jpg"}'])
    post("/vectorize-image", data=body)
