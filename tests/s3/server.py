"""An S3 server for the tests: moto, which checks signatures and policies.

The first line on standard output has the address and the credentials, as JSON. After that, each line on
standard input is a command, and each further line on standard output is its result or error. `COMMANDS`
lists the commands. The process ends when standard input ends, so that it cannot outlive the tests.
"""

import base64
import json
import os
import sys
import threading

import boto3
import urllib3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header
from moto import settings
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from like_amazon import REGION, LikeAmazon, assumed_roles

BUCKET = "test-pictures"
PREFIX = "imagesvc"
USER = "service"
ROLE = "service-role"
ADMIN_STATEMENTS = [{"Effect": "Allow", "Action": "*", "Resource": "*"}]
# The permissions that the service needs.
SERVICE_STATEMENTS = [
    {
        "Effect": "Allow",
        "Action": ["s3:PutObject", "s3:GetObject", "s3:DeleteObject"],
        "Resource": f"arn:aws:s3:::{BUCKET}/{PREFIX}/*",
    },
    # Without this, S3 answers with 403 instead of 404 if there is no object with the key.
    {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{BUCKET}"},
]


def document(statements):
    """Returns a policy with these statements, as JSON."""
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


class Admin:
    """Carries out the commands. Has all permissions."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        # Until the users and the role exist, no request needs a signature or a permission.
        settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf")
        iam = self.client("iam", "any", "any")
        access_keys = {}
        for name, statements in (("admin", ADMIN_STATEMENTS), (USER, SERVICE_STATEMENTS)):
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName="main", PolicyDocument=document(statements))
            access_key = iam.create_access_key(UserName=name)["AccessKey"]
            access_keys[name] = (access_key["AccessKeyId"], access_key["SecretAccessKey"])
        iam.create_role(
            RoleName=ROLE,
            AssumeRolePolicyDocument=document(
                [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "*"}}]
            ),
        )
        iam.put_role_policy(RoleName=ROLE, PolicyName="main", PolicyDocument=document(SERVICE_STATEMENTS))
        services = ("iam", "sts", "s3")
        self.iam, self.sts, self.s3 = (self.client(name, *access_keys["admin"]) for name in services)
        self.user_key_id, self.user_secret = access_keys[USER]
        self.create_bucket()
        # moto's instance metadata always returns the credentials below. moto accepts them only if they
        # belong to an assumed role.
        self.assume_role()
        metadata_role = assumed_roles()[-1]
        metadata_role.access_key_id, metadata_role.secret_access_key = "test-key", "test-secret-key"
        metadata_role.session_token = "test-session-token"
        # From now on, every request needs a signature and a permission.
        settings.INITIAL_NO_AUTH_ACTION_COUNT = 0

    def client(self, service, key_id, secret, token=None, endpoint=None):
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            retries={"max_attempts": 0},
            connect_timeout=5,
            read_timeout=20,
        )
        if service != "s3":
            config = config.merge(Config(signature_version="v4"))
        return boto3.client(
            service,
            endpoint_url=endpoint or self.endpoint,
            region_name=REGION,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=config,
        )

    def keys(self):
        """Returns the keys of all objects."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def read(self, key):
        """Returns an object in Base64, or None if it does not exist."""
        try:
            return base64.b64encode(self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()).decode()
        except ClientError as error:
            if code_of(error) == "NoSuchKey":
                return None
            raise

    def write(self, key, body):
        """Writes an object. `body` is in Base64."""
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=base64.b64decode(body))

    def delete(self, key):
        self.s3.delete_object(Bucket=BUCKET, Key=key)

    def set_policy(self, policy):
        """Replaces the policy of the user and that of the role."""
        self.iam.put_user_policy(UserName=USER, PolicyName="main", PolicyDocument=json.dumps(policy))
        self.iam.put_role_policy(RoleName=ROLE, PolicyName="main", PolicyDocument=json.dumps(policy))

    def deny(self, actions):
        """Gives the user and the role the permissions of the service, without these actions."""
        statements = list(SERVICE_STATEMENTS)
        if actions:
            statements.append({"Effect": "Deny", "Action": actions, "Resource": "*"})
        self.set_policy({"Version": "2012-10-17", "Statement": statements})

    def attempt(self, endpoint, credentials, operation, parameters):
        """Calls an operation of S3. Returns `ok`, the code of S3's error, or the name of boto3's error."""
        client = self.client("s3", *credentials, endpoint=endpoint)
        # The proxy of the tests does not answer `Expect: 100-continue`, for which boto3 waits a second.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        try:
            response = getattr(client, operation)(**{"Bucket": BUCKET, **parameters})
            if "Body" in response:
                response["Body"].read()
            return "ok"
        except ClientError as error:
            return code_of(error)
        except (BotoCoreError, urllib3.exceptions.HTTPError) as error:
            return type(error).__name__

    def set_lifecycle(self, configuration):
        """Applies lifecycle rules, and returns those that the bucket then has."""
        self.s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=configuration)
        return self.s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]

    def create_bucket(self):
        self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})

    def delete_bucket(self):
        for key in self.keys():
            self.delete(key)
        self.s3.delete_bucket(Bucket=BUCKET)

    def assume_role(self):
        """Returns new temporary credentials of the role."""
        credentials = self.sts.assume_role(
            RoleArn=f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/{ROLE}", RoleSessionName="test"
        )["Credentials"]
        return {
            "key_id": credentials["AccessKeyId"],
            "secret": credentials["SecretAccessKey"],
            "token": credentials["SessionToken"],
        }

    def revoke(self, key_id):
        """From now on, refuses the temporary credentials with this key id."""
        assumed_roles()[:] = [role for role in assumed_roles() if role.access_key_id != key_id]


COMMANDS = (
    "keys",
    "read",
    "write",
    "delete",
    "set_policy",
    "deny",
    "attempt",
    "set_lifecycle",
    "create_bucket",
    "delete_bucket",
    "assume_role",
    "revoke",
)


def code_of(error):
    return error.response["Error"]["Code"]


def main():
    # Without this, boto3 reads the settings of the user who runs the tests.
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        os.environ[name] = os.devnull
    server = make_server(
        "127.0.0.1",
        0,
        LikeAmazon(DomainDispatcherApplication(create_backend_app)),
        threaded=True,
        request_handler=MotoRequestHandler,
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    admin = Admin(f"http://{address}")
    answer(
        {
            "address": address,
            "region": REGION,
            "bucket": BUCKET,
            "prefix": PREFIX,
            "key_id": admin.user_key_id,
            "secret": admin.user_secret,
        }
    )
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        assert command in COMMANDS, command
        try:
            answer({"result": getattr(admin, command)(*arguments)})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


def answer(value):
    print(json.dumps(value, default=str), flush=True)


main()
