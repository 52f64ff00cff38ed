"""The boto3 client: how it is made, and what its errors mean.

Credentials come from the environment or from AWS's own files, never from our config.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from e2gan_cluster.errors import StoreError
from e2gan_cluster.redact import redact
from e2gan_cluster.storage.retry import NetworkOptions

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

Kind = Literal["transient", "missing", "exists", "conflict", "changed", "fatal"]

_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to valid credentials"
_PERMISSIONS = (
    "give these credentials the permissions in docs/storage.md (without s3:ListBucket a missing key reads so, too)"
)
_FIXES = {
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "ExpiredToken": "the credentials have expired: renew them",
    "ExpiredTokenException": "the credentials have expired: renew them",
    "InvalidToken": _CREDENTIALS,
    "AccessDenied": _PERMISSIONS,
    "403": _PERMISSIONS,
    "NoSuchBucket": "create the bucket, or mend `storage:`",
    "PermanentRedirect": "set AWS_REGION to the bucket's region",
    "AuthorizationHeaderMalformed": "set AWS_REGION to the bucket's region",
    "RequestTimeTooSkewed": "set this machine's clock",
}
_TRANSIENT_CODES = {
    "RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
    "InternalError", "ServiceUnavailable", "BadDigest", "XAmzContentSHA256Mismatch",
}  # fmt: skip


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: boto3's import and its models are a great many objects, and all of them stay."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_uncollected()
def make_client(options: NetworkOptions) -> "S3Client":
    """A thread-safe client; endpoint from AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, region from AWS_REGION.

    Raises:
        StoreError: The settings in the environment cannot be used.
    """
    import boto3
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if endpoint and urlsplit(endpoint).username:
        raise StoreError("the S3 endpoint URL holds a user name", _CREDENTIALS)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    config = Config(
        connect_timeout=options.connect_timeout_s,
        read_timeout=options.read_timeout_s,
        # Our Retry does it: one deadline for all, and a conditional write has to know that it was sent before.
        retries={"total_max_attempts": 1},
        max_pool_connections=options.connections,
        tcp_keepalive=True,
        s3={"addressing_style": "path"} if endpoint else None,
    )
    try:
        core = botocore.session.get_session()
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
        session = boto3.session.Session(botocore_session=core)
        if region is None and session.region_name is None:
            region = "us-east-1"
        return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        raise StoreError(f"S3 cannot be set up: {redact(str(error))}", "mend the AWS_* environment variables") from None


def _moment(text: str) -> datetime:
    """Times of listings at a third of the cost of botocore's own reader, which gets those of headers."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        from botocore.utils import parse_timestamp

        return parse_timestamp(text)


@dataclass(frozen=True)
class Failure:
    """What a failed call means.

    Attributes:
        kind: What to do about it.
        code: The server's or botocore's name of it.
        text: For people, without secrets.
        maybe_done: The request may have been carried out although no success was heard.
    """

    kind: Kind
    code: str
    text: str
    maybe_done: bool = False

    def error(self, what: str) -> StoreError:
        """As a user's error."""
        return StoreError(f"{what}: {self.text}", _FIXES.get(self.code, "check storage, credentials and network"))


def classify(error: Exception) -> Failure:
    """Sort an exception of botocore or urllib3; anything else is raised again."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    if isinstance(error, boto.ClientError):
        return _classify_answer(error.response)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return Failure("fatal", "SignatureDoesNotMatch", redact(f"no usable credentials ({error})"))
    text = redact(f"{type(error).__name__}: {error}")
    # The first two are the parents of botocore's time-outs and connection errors.
    broken = (
        boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, boto.FlexibleChecksumError,
        ResponseParserError,
    )  # fmt: skip
    if isinstance(error, broken):
        return Failure("transient", type(error).__name__, text, maybe_done=True)
    if isinstance(error, boto.BotoCoreError):
        return Failure("fatal", type(error).__name__, text)
    if type(error).__module__.partition(".")[0] in ("urllib3", "http") or isinstance(error, OSError):
        return Failure("transient", type(error).__name__, text, maybe_done=True)
    raise error


def _classify_answer(response: Any) -> Failure:
    details: dict[str, Any] = response.get("Error", {})
    code = str(details.get("Code", "?"))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = redact(f"{code} ({status}): {details.get('Message', '')}".rstrip(": "))
    if status in (301, 307, 400) and code in ("PermanentRedirect", "301", "AuthorizationHeaderMalformed"):
        return Failure("fatal", "PermanentRedirect", text)
    if status == 412 or code == "PreconditionFailed":
        return Failure("exists", code, text)
    if status == 409:
        return Failure("conflict", code, text)
    if status == 416:
        return Failure("changed", code, text)
    if code == "NoSuchBucket":
        return Failure("fatal", code, text)
    if status == 404:
        return Failure("missing", code, text)
    if status >= 500 or status in (408, 429) or code in _TRANSIENT_CODES:
        return Failure("transient", code, text, maybe_done=True)
    return Failure("fatal", code, text)
