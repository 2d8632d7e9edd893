"""What Amazon's S3 has and moto lacks."""

import hashlib
import tempfile
from urllib.parse import parse_qsl

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.access_control import IAMPolicy, PermissionResult, create_access_key
from moto.iam.models import iam_backends
from moto.sts.models import sts_backends

REGION = "eu-central-1"


class LikeAmazon:
    """Adds to moto what it lacks: checks of the region and of the body, signatures in URLs, and 403
    in place of 404 for clients that may not list the bucket.

    If the query of a URL contains a signature, moto answers 500. So the signature is checked here. The
    request then gets a signature in its headers instead, so that moto checks the policies.
    """

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
        credential = credential_of(environ)
        if len(credential) == 5 and credential[3] == "s3" and credential[2] != REGION:
            message = f"the region '{credential[2]}' is wrong; expecting '{REGION}'"
            return refuse(environ, start_response, "400 Bad Request", "AuthorizationHeaderMalformed", message)
        if environ["REQUEST_METHOD"] == "PUT":
            environ["wsgi.input"], digest = receive(environ)
            signed_digest = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "")
            # In place of a hash, the header may contain a word such as UNSIGNED-PAYLOAD.
            if len(signed_digest) == len(digest) and signed_digest != digest:
                message = "The body does not match x-amz-content-sha256."
                return refuse(
                    environ, start_response, "400 Bad Request", "XAmzContentSHA256Mismatch", message
                )
        if "X-Amz-Signature" in query and "HTTP_AUTHORIZATION" not in environ:
            if not sign_again(environ, query, credential[0]):
                message = "The signature in the URL is wrong."
                return refuse(environ, start_response, "403 Forbidden", "SignatureDoesNotMatch", message)
        return self.let_moto_answer(environ, start_response)

    def let_moto_answer(self, environ, start_response):
        """Lets moto answer. If an object is missing, a signed request gets 403, not 404, unless its client
        may list the bucket. An unsigned request gets moto's answer."""
        request = dict(environ)  # a copy, because moto may change `environ`
        access_key_id = credential_of(request)[0]
        bucket, _, key = request["PATH_INFO"].lstrip("/").partition("/")
        status_and_headers = []
        body = self.app(environ, lambda *response: status_and_headers.extend(response))
        is_read = request["REQUEST_METHOD"] in ("GET", "HEAD")
        if status_and_headers[0].startswith("404") and is_read and key:
            body = [b"".join(body)]
            # A 404 to HEAD has no body, so it does not say whether the object or the bucket is missing.
            is_missing_object = b"NoSuchKey" in body[0] or request["REQUEST_METHOD"] == "HEAD"
            if is_missing_object and access_key_id and not may_list(access_key_id, bucket, request):
                return refuse(environ, start_response, "403 Forbidden", "AccessDenied", "Access Denied")
        start_response(*status_and_headers)
        return body


def credential_of(environ):
    """The access key's id, the date, the region, the service and `aws4_request`, as the signature in the
    URL or in the header names them. Without a signature, a list with one empty text."""
    in_url = dict(parse_qsl(environ["QUERY_STRING"])).get("X-Amz-Credential")
    in_header = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition(",")[0]
    return (in_url or in_header).split("/")


def may_list(access_key_id, bucket, environ):
    """Whether the policies of the access key's user or role allow listing the bucket."""
    headers = {}
    if "HTTP_X_AMZ_SECURITY_TOKEN" in environ:
        headers["X-Amz-Security-Token"] = environ["HTTP_X_AMZ_SECURITY_TOKEN"]
    # moto's `create_access_key` finds an existing key.
    policies = create_access_key(DEFAULT_ACCOUNT_ID, "aws", access_key_id, headers).collect_policies()
    arn = f"arn:aws:s3:::{bucket}"
    results = [IAMPolicy(policy).is_action_permitted("s3:ListBucket", arn) for policy in policies]
    return PermissionResult.PERMITTED in results and PermissionResult.DENIED not in results


def receive(environ):
    """Receives a whole body. Returns it as a file, and its SHA-256."""
    body, digest = tempfile.SpooledTemporaryFile(max_size=1 << 20), hashlib.sha256()
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0:
        chunk = environ["wsgi.input"].read(min(left, 1 << 16))
        if not chunk:
            raise ConnectionError("the body ended early")
        left -= len(chunk)
        body.write(chunk)
        digest.update(chunk)
    body.seek(0)
    return body, digest.hexdigest()


def refuse(environ, start_response, status, code, message):
    # The body is read, so that the client receives the response instead of a reset.
    receive(environ)
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def sign_again(environ, query, access_key_id):
    """Returns whether the signature in the query is valid. If so, signs the request in its headers."""
    credentials = find_credentials(access_key_id)
    if credentials is None or query.get("X-Amz-Security-Token") != credentials.token:
        return False
    path = environ.get("RAW_URI", environ["PATH_INFO"]).partition("?")[0]
    url = f"http://{environ['HTTP_HOST']}{path}"
    signed_names = query["X-Amz-SignedHeaders"].split(";")
    headers = {name: environ.get(environ_key(name), "") for name in signed_names}
    pairs = [pair for pair in environ["QUERY_STRING"].split("&") if not pair.startswith("X-Amz-Signature=")]
    request = AWSRequest(environ["REQUEST_METHOD"], f"{url}?{'&'.join(pairs)}", headers=headers)
    request.context["timestamp"] = query["X-Amz-Date"]
    auth = S3SigV4QueryAuth(credentials, "s3", REGION)
    expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    if expected != query["X-Amz-Signature"]:
        return False
    rest = "&".join(pair for pair in pairs if not pair.startswith("X-Amz-"))
    signed_again = AWSRequest(environ["REQUEST_METHOD"], f"{url}?{rest}" if rest else url)
    S3SigV4Auth(credentials, "s3", REGION).add_auth(signed_again)
    environ["QUERY_STRING"] = rest
    for name in ("RAW_URI", "REQUEST_URI"):
        environ[name] = f"{path}?{rest}" if rest else path
    for name, value in signed_again.headers.items():
        environ[environ_key(name)] = value
    return True


def environ_key(name):
    """The key of a request header in `environ`."""
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


def find_credentials(access_key_id):
    for user in iam_backends[DEFAULT_ACCOUNT_ID]["aws"].list_users("/", None, None):
        for access_key in user.access_keys:
            if access_key.access_key_id == access_key_id:
                return Credentials(access_key_id, access_key.secret_access_key)
    for role in assumed_roles():
        if role.access_key_id == access_key_id:
            return Credentials(access_key_id, role.secret_access_key, role.session_token)
    return None


def assumed_roles():
    return sts_backends[DEFAULT_ACCOUNT_ID]["aws"].assumed_roles
