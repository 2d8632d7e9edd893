"""Requests like those of phones, sent as raw bytes over a TCP socket.

The forms are like those of OkHttp (Android), and of typical code with URLSession (iOS).
"""

import json
import os
import socket
from urllib.parse import urlsplit

from check import check

server = urlsplit(os.environ["IMAGESVC_URL"])
with open(os.environ["IMAGESVC_PHOTO"], "rb") as file:
    photo = file.read()


class Connection:
    """A connection to the service."""

    def __init__(self):
        self.socket = socket.create_connection((server.hostname, server.port), timeout=60)
        # Otherwise the system might send several pieces together.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.reader.close()
        self.socket.close()

    def send(self, *pieces):
        """Sends each piece by a system call of its own."""
        for piece in pieces:
            self.socket.sendall(piece)

    def read_head(self):
        """Returns the status and the headers of the next response."""
        line = self.reader.readline().decode()
        assert line.startswith("HTTP/1.1 ") and line.endswith("\r\n"), line
        headers = {}
        while (field := self.reader.readline()) != b"\r\n":
            assert field.endswith(b"\r\n"), field
            name, value = field.decode().split(":", 1)
            headers[name.lower()] = value.strip()
        return int(line.split()[1]), headers

    def read_answer(self):
        """Returns the status, the headers and the JSON of the next response."""
        status, headers = self.read_head()
        body = self.reader.read(int(headers["content-length"]))
        return status, headers, json.loads(body)

    def is_closed(self):
        """Waits until the service closes the connection, or sends another byte. Returns whether it was closed."""
        return self.reader.read(1) == b""


def request_head(route, *fields):
    """The head of a POST request with these header fields."""
    lines = [f"POST {route} HTTP/1.1", f"Host: {server.netloc}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def upload_request(form, boundary, *fields):
    content_type = f"Content-Type: multipart/form-data; boundary={boundary}"
    return request_head("/vectorize-image-upload", content_type, f"Content-Length: {len(form)}", *fields) + form


def okhttp_form(boundary):
    """A form like those of OkHttp's MultipartBody: each part has a length, and with Retrofit a transfer encoding."""
    return b"".join([
        f"--{boundary}\r\n".encode(),
        b'Content-Disposition: form-data; name="description"\r\n',
        b"Content-Transfer-Encoding: binary\r\n",
        b"Content-Type: text/plain; charset=UTF-8\r\n",
        b"Content-Length: 11\r\n\r\n",
        b"eine Rakete",
        f"\r\n--{boundary}\r\n".encode(),
        b'Content-Disposition: form-data; name="file"; filename="IMG_20240101_120000.jpg"\r\n',
        b"Content-Transfer-Encoding: binary\r\n",
        b"Content-Type: image/jpeg\r\n",
        f"Content-Length: {len(photo)}\r\n\r\n".encode(),
        photo,
        f"\r\n--{boundary}--\r\n".encode(),
    ])


def urlsession_form(boundary):
    """A form like those of Alamofire and of many samples: a line break before the first boundary, none after the last."""
    return b"".join([
        f"\r\n--{boundary}\r\n".encode(),
        'Content-Disposition: form-data; name="file"; filename="Größe.jpg"; filename*=UTF-8\'\'Gr%C3%B6%C3%9Fe.jpg\r\n'.encode(),
        b"content-type: image/jpeg\r\n\r\n",
        photo,
        f"\r\n--{boundary}--".encode(),
    ])


def chunked(body, size):
    """The pieces of a chunked body: a chunk for every `size` bytes, and the last chunk, which is empty."""
    pieces = [body[at:at + size] for at in range(0, len(body), size)]
    return [f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces] + [b"0\r\n\r\n"]


OKHTTP_BOUNDARY = "6f3d4a9c-2b8e-4c7f-9a51-0e8d7c6b5a43"
URLSESSION_BOUNDARY = "Boundary-5D1F2E3A-9B7C-4D8E-A6F5-1C2B3A4D5E6F"
# The URL of the sandbox's sample picture, which is the same photograph as `photo`.
SAMPLE = f"http://{server.netloc}/sandbox/photo.jpg"


def json_request(value, *fields):
    """A request to the URL route, with JSON as Android's org.json writes it: each slash is escaped."""
    body = json.dumps(value).replace("/", r"\/").encode()
    return request_head("/vectorize-image", "Content-Type: application/json; charset=utf-8", f"Content-Length: {len(body)}", *fields) + body


def uploads_of_okhttp_and_urlsession_and_a_url_are_answered_on_one_connection():
    with Connection() as connection:
        connection.send(upload_request(okhttp_form(OKHTTP_BOUNDARY), OKHTTP_BOUNDARY, "Connection: Keep-Alive", "Accept-Encoding: gzip", "User-Agent: okhttp/4.12.0"))
        first = check(*connection.read_answer())
        assert first["original_filename"] == "IMG_20240101_120000.jpg"
        connection.send(upload_request(urlsession_form(URLSESSION_BOUNDARY), f'"{URLSESSION_BOUNDARY}"', "Accept: */*", "Accept-Encoding: gzip, deflate"))
        second = check(*connection.read_answer())
        assert second["original_filename"] == "Größe.jpg", second["original_filename"]
        connection.send(json_request({"image_url": SAMPLE}))
        third = check(*connection.read_answer())
        assert third["source_url"] == SAMPLE
        assert first["vector"] == second["vector"] == third["vector"]


def a_chunked_upload_is_accepted():
    # Chunks of 7 bytes split every boundary and every header of a part.
    for size in (7, 16_384):
        with Connection() as connection:
            connection.send(request_head("/vectorize-image-upload", f"Content-Type: multipart/form-data; boundary={OKHTTP_BOUNDARY}", "Transfer-Encoding: chunked"))
            connection.send(*chunked(okhttp_form(OKHTTP_BOUNDARY), size))
            check(*connection.read_answer())


def a_client_that_expects_100_continue_gets_it():
    form = okhttp_form(OKHTTP_BOUNDARY)
    with Connection() as connection:
        head = upload_request(form, OKHTTP_BOUNDARY, "Expect: 100-continue").removesuffix(form)
        connection.send(head)
        assert connection.read_head()[0] == 100
        connection.send(form)
        check(*connection.read_answer())
        # A second request on this connection sends its body without waiting for `100 Continue`.
        connection.send(upload_request(form, OKHTTP_BOUNDARY, "Expect: 100-continue"))
        status, headers = connection.read_head()
        if status == 100:  # the service may send it nevertheless
            status, headers = connection.read_head()
        body = json.loads(connection.reader.read(int(headers["content-length"])))
        check(status, headers, body)


def a_request_with_a_too_large_body_is_refused_before_its_body_is_sent():
    with Connection() as connection:
        connection.send(request_head("/vectorize-image-upload", "Content-Type: multipart/form-data; boundary=x", "Content-Length: 999999999", "Expect: 100-continue"))
        status, headers, problem = connection.read_answer()
        assert (status, problem["code"]) == (413, "image_too_large"), problem
        assert headers["connection"] == "close" and connection.is_closed()


def pipelined_requests_are_answered_in_order():
    with Connection() as connection:
        ids = [f"request-{number}" for number in range(6)]
        # URLs and uploads alternate, so that the answers differ.
        requests = [upload_request(okhttp_form(OKHTTP_BOUNDARY), OKHTTP_BOUNDARY, f"X-Request-Id: {request_id}") if number % 2 else json_request({"image_url": SAMPLE}, f"X-Request-Id: {request_id}") for number, request_id in enumerate(ids)]
        connection.send(b"".join(requests))
        answers = [connection.read_answer() for _ in ids]
        assert [headers["x-request-id"] for _, headers, _ in answers] == ids
        for number, (status, headers, answer) in enumerate(answers):
            check(status, headers, answer)
            assert ("source_url" in answer) == (number % 2 == 0)


def a_connection_stays_open_after_an_error_and_closes_on_request():
    with Connection() as connection:
        connection.send(json_request({"image_url": 7}))  # not a string
        status, headers, problem = connection.read_answer()
        assert (status, problem["code"]) == (422, "validation_failed"), problem
        connection.send(json_request({"image_url": SAMPLE}, "Connection: close"))
        status, headers, answer = connection.read_answer()
        check(status, headers, answer)
        assert headers["connection"] == "close" and connection.is_closed()


def an_http_1_0_request_is_answered_and_its_connection_is_closed():
    with Connection() as connection:
        connection.send(json_request({"image_url": SAMPLE}).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        line = connection.reader.readline()
        assert line.startswith(b"HTTP/1.0 200") or line.startswith(b"HTTP/1.1 200"), line
        # Reads to the end of the connection. The vector is the last field of an answer.
        assert connection.reader.read().endswith(b"]}\n")


uploads_of_okhttp_and_urlsession_and_a_url_are_answered_on_one_connection()
a_chunked_upload_is_accepted()
a_client_that_expects_100_continue_gets_it()
a_request_with_a_too_large_body_is_refused_before_its_body_is_sent()
pipelined_requests_are_answered_in_order()
a_connection_stays_open_after_an_error_and_closes_on_request()
an_http_1_0_request_is_answered_and_its_connection_is_closed()
