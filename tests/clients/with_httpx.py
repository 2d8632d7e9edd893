"""Python, httpx: sequential and concurrent requests."""

import asyncio
import base64
import os

import httpx

from check import check

url = os.environ["IMAGESVC_URL"]
with open(os.environ["IMAGESVC_PHOTO"], "rb") as file:
    photo = file.read()


def checked(response):
    """The answer, which must be a success."""
    return check(response.status_code, response.headers, response.json())


with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
    checked(client.post("/vectorize-image", json={"image_url": url + "/sandbox/photo.jpg"}))
    data_url = "data:image/jpeg;base64," + base64.b64encode(photo).decode()
    checked(client.post("/vectorize-image-base64", json={"image_base64": data_url}))
    answer = checked(client.post("/vectorize-image-upload", files={"file": ("rocket.jpg", photo)}))
    assert answer["original_filename"] == "rocket.jpg"


async def upload_sixteen_times_at_once():
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        posts = (client.post("/vectorize-image-upload", files={"file": ("a.jpg", photo)}) for _ in range(16))
        answers = [checked(response) for response in await asyncio.gather(*posts)]
    assert len({answer["saved_as"] for answer in answers}) == 16
    assert len({tuple(answer["vector"]) for answer in answers}) == 1


asyncio.run(upload_sixteen_times_at_once())
