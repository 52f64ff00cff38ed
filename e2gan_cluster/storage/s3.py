"""S3 and servers that speak it (boto3), with conditional writes, retries under a deadline and resumed downloads."""

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from e2gan_cluster.errors import ConfigError
from e2gan_cluster.storage import files, keys
from e2gan_cluster.storage.base import Leftover, ObjectInfo
from e2gan_cluster.storage.checks import check_bytes
from e2gan_cluster.storage.download import CHUNK_BYTES, Body, Changed, Cut, fetch, fetch_to_file
from e2gan_cluster.storage.probing import probe_store
from e2gan_cluster.storage.retry import NetworkOptions, Retry
from e2gan_cluster.storage.s3_client import Failure, classify, make_client

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_WRITER = "e2gan-writer"
_R = TypeVar("_R")


class S3Store:
    """Objects below ``s3://bucket/prefix``.

    A conditional write carries a token of its call in the object's metadata. When an answer was lost and the
    retry finds the object there, the token tells whether this call or another writer made it: of racing
    writers exactly one hears "created", whatever the network did.

    Args:
        bucket: Bucket name.
        prefix: Key prefix without slashes at the ends; may be empty.
        options: Deadline, time-outs, part sizes.
    """

    def __init__(self, bucket: str, prefix: str = "", options: NetworkOptions | None = None) -> None:
        if not _BUCKET.match(bucket):
            raise ConfigError(
                "storage: not a bucket name after s3:// (3 to 63 of a-z, 0-9, '.', '-')", "write s3://bucket/prefix"
            )
        if prefix:
            keys.check_key(prefix)
        self._bucket = bucket
        self._root = f"{prefix}/" if prefix else ""
        self._options = options or NetworkOptions()
        self._made: tuple[int, S3Client] | None = None
        self._server = "the S3 server"
        self._safe_copies: bool | None = None

    def __reduce__(self) -> tuple[type["S3Store"], tuple[str, str, NetworkOptions]]:
        return (type(self), (self._bucket, self._root.rstrip("/"), self._options))

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    @property
    def url(self) -> str:
        """``s3://bucket/prefix``."""
        return f"s3://{self._bucket}/{self._root}".rstrip("/")

    @property
    def _client(self) -> "S3Client":
        if self._made is None or self._made[0] != os.getpid():  # connections do not survive a fork
            self._made = (os.getpid(), make_client(self._options))
        return self._made[1]

    def _where(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._root + keys.check_key(key)}

    def _what(self, action: str, key: str) -> str:
        return f"{action} {self.url}/{key}"

    def _remember(self, answer: Any) -> None:
        server = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("server")
        if server:
            self._server = f"server {server!r}"

    def _call(self, what: str, call: Callable[[], _R], retry: Retry | None = None, accept: str = "") -> _R | Failure:
        """Call until success or the deadline; failures of the kinds in ``accept`` are returned."""
        retry = retry or Retry(self._options, what)
        while True:
            try:
                answer = call()
            except Exception as error:  # noqa: BLE001 - classify raises again what it does not know
                failure = classify(error)
            else:
                self._remember(answer)
                return answer
            if failure.kind in accept.split():
                return failure
            if failure.kind not in ("transient", "conflict"):
                raise failure.error(what)
            retry.wait(failure.text)

    def _write(self, what: str, key: str, send: Callable[[str], Any]) -> bool:
        """A conditional write; ``send`` gets the token to store in the metadata."""
        token = secrets.token_hex(16)
        retry = Retry(self._options, what)
        maybe_done = False
        while True:
            try:
                self._remember(send(token))
                return True
            except Exception as error:  # noqa: BLE001 - classify raises again what it does not know
                failure = classify(error)
            if failure.kind in ("exists", "missing"):  # missing: If-Match on an object that is gone
                return maybe_done and self._writer(key) == token
            if failure.kind not in ("transient", "conflict"):
                raise failure.error(what)
            maybe_done = maybe_done or failure.maybe_done
            retry.wait(failure.text)

    def _writer(self, key: str) -> str | None:
        where = self._where(key)
        answer = self._call(self._what("reading", key), lambda: self._client.head_object(**where), accept="missing")
        return None if isinstance(answer, Failure) else answer["Metadata"].get(_WRITER)

    def put_new(self, key: str, data: bytes) -> bool:
        """See `ObjectStore.put_new`."""
        where = self._where(key)

        def send(token: str) -> Any:
            return self._client.put_object(**where, Body=data, IfNoneMatch="*", Metadata={_WRITER: token})

        return self._write(self._what("writing", key), key, send)

    def put_new_file(self, key: str, path: Path) -> bool:
        """See `ObjectStore.put_new_file`."""
        try:
            size = path.stat().st_size
            if size < self._options.multipart_bytes:
                return self.put_new(key, path.read_bytes())
        except OSError as error:
            raise files.file_error(error, "read", path) from error
        if self.head(key) is not None:
            return False
        if not self._copies_conditionally():
            return self._put_stream(key, path)
        # Servers let several racing conditional CompleteMultipartUpload calls win (seen on SeaweedFS), so the parts go
        # to a key of our own, and one conditional copy decides.
        temporary = keys.upload(secrets.token_hex(16))
        try:
            self._upload_parts(temporary, path)
            return self._copy_new(temporary, key)
        finally:
            self.delete(temporary)

    def _put_stream(self, key: str, path: Path) -> bool:
        """Create from a file in one request; S3 allows that up to 5 GB."""
        where = self._where(key)

        def send(token: str) -> Any:
            with path.open("rb") as f:
                return self._client.put_object(**where, Body=f, IfNoneMatch="*", Metadata={_WRITER: token})

        return self._write(self._what("writing", key), key, send)

    def _copy_new(self, source_key: str, key: str) -> bool:
        where, source = self._where(key), self._where(source_key)

        def send(token: str) -> Any:
            return self._client.copy_object(
                **where,
                CopySource={"Bucket": source["Bucket"], "Key": source["Key"]},
                IfNoneMatch="*",
                MetadataDirective="REPLACE",
                Metadata={_WRITER: token},
            )

        return self._write(self._what("placing", key), key, send)

    def _copies_conditionally(self) -> bool:
        """Whether the server honours If-None-Match on copies; asked once per process, before the first large file."""
        if self._safe_copies is None:
            key = keys.upload(secrets.token_hex(16))
            try:
                self.put(key, b"probe")
                self._safe_copies = not self._copy_new(key, key)
            finally:
                self.delete(key)
        return self._safe_copies

    def _upload_parts(self, key: str, path: Path) -> None:
        what, where = self._what("uploading", key), self._where(key)
        started: Any = self._call(what, lambda: self._client.create_multipart_upload(**where))
        upload = {**where, "UploadId": started["UploadId"]}
        parts: list[Any] = []
        try:
            with path.open("rb") as f:
                while data := f.read(self._options.part_bytes):
                    part = {**upload, "PartNumber": len(parts) + 1, "Body": data}
                    sent: Any = self._call(what, lambda part=part: self._client.upload_part(**part))
                    parts.append({"PartNumber": part["PartNumber"], "ETag": sent["ETag"]})
            whole: Any = {"Parts": parts}
            done = self._call(
                what,
                lambda: self._client.complete_multipart_upload(**upload, MultipartUpload=whole),
                accept="missing",
            )
            # A retry after a lost answer finds the upload gone; then the object must be there.
            if isinstance(done, Failure) and self.head(key) is None:
                raise done.error(what)
        except BaseException:
            self._call(what, lambda: self._client.abort_multipart_upload(**upload), accept="missing fatal")
            raise

    def put_if_match(self, key: str, data: bytes, etag: str | None) -> bool:
        """See `ObjectStore.put_if_match`."""
        if etag is None:
            return self.put_new(key, data)
        where = self._where(key)

        def send(token: str) -> Any:
            return self._client.put_object(**where, Body=data, IfMatch=etag, Metadata={_WRITER: token})

        return self._write(self._what("writing", key), key, send)

    def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put`."""
        where = self._where(key)
        self._call(self._what("writing", key), lambda: self._client.put_object(**where, Body=data))

    @contextmanager
    def _open_at(self, key: str, offset: int, etag: str | None) -> Iterator[Body]:
        where: dict[str, Any] = self._where(key)
        if offset:
            where["Range"] = f"bytes={offset}-"
        if etag is not None:
            where["IfMatch"] = etag
        try:
            answer = self._client.get_object(**where)
        except Exception as error:  # noqa: BLE001 - classify raises again what it does not know
            failure = classify(error)
            if failure.kind == "missing":
                raise KeyError(key) from None
            if failure.kind in ("exists", "changed"):  # 412 on a read: another version than the one begun
                raise Changed(failure.text) from None
            if failure.kind in ("transient", "conflict"):
                raise Cut(failure.text) from None
            raise failure.error(self._what("reading", key)) from None
        self._remember(answer)
        length = int(answer["ContentLength"])
        content_range = str(answer.get("ContentRange") or "")
        begins = offset if content_range else 0
        total = int(content_range.rpartition("/")[2]) if content_range else length
        try:
            yield Body(self._chunks(answer["Body"]), total, answer["ETag"], begins)
        finally:
            answer["Body"].close()

    @staticmethod
    def _chunks(stream: Any) -> Iterator[bytes]:
        while True:
            try:
                chunk = stream.read(CHUNK_BYTES)
            except Exception as error:  # noqa: BLE001 - classify raises again what it does not know
                raise Cut(classify(error).text) from None
            if not chunk:
                return
            yield chunk

    def _get(self, key: str, sha256: str | None, size: int | None) -> tuple[bytes, str]:
        what = self._what("reading", key)
        sink = BytesIO()
        etag = fetch(
            lambda offset, version: self._open_at(key, offset, version), sink, Retry(self._options, what), size=size
        )
        data = sink.getvalue()
        check_bytes(f"{self.url}/{key}", data, sha256, size)
        return data, etag

    def get(self, key: str, *, sha256: str | None = None, size: int | None = None) -> bytes:
        """See `ObjectStore.get`."""
        return self._get(key, sha256, size)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """See `ObjectStore.get_with_etag`."""
        return self._get(key, None, None)

    def get_file(self, key: str, path: Path, *, sha256: str | None = None, size: int | None = None) -> None:
        """See `ObjectStore.get_file`."""
        keys.check_key(key)
        retry = Retry(self._options, self._what("downloading", key))
        fetch_to_file(
            f"{self.url}/{key}", lambda offset, etag: self._open_at(key, offset, etag), path, retry, sha256, size
        )

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        where = self._where(key)
        answer = self._call(self._what("looking up", key), lambda: self._client.head_object(**where), accept="missing")
        if isinstance(answer, Failure):
            return None
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"], answer["LastModified"].timestamp())

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`; sorted here, since SeaweedFS lists folder by folder."""
        yield from sorted(self._pages(prefix), key=lambda info: info.key)

    def _pages(self, prefix: str) -> Iterator[ObjectInfo]:
        what = f"listing {self.url}/{keys.check_prefix(prefix)}"
        more: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._root + prefix}
        while True:
            page: Any = self._call(what, lambda: self._client.list_objects_v2(**more))
            for item in page.get("Contents", []):
                key = item["Key"].removeprefix(self._root)
                if not key.endswith("/"):  # folder markers of some consoles
                    yield ObjectInfo(key, item["Size"], item["ETag"], item["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        where = self._where(key)
        self._call(self._what("deleting", key), lambda: self._client.delete_object(**where), accept="missing")

    def presign(self, key: str, expires_s: int) -> str:
        """A link that reads one object without credentials until it expires."""
        return self._client.generate_presigned_url("get_object", Params=self._where(key), ExpiresIn=expires_s)

    def leftovers(self, older_than_s: float = 86_400, *, remove: bool = False) -> Sequence[Leftover]:
        """See `ObjectStore.leftovers`: unfinished multipart uploads and unplaced large files."""
        now_s = time.time()
        found = [
            Leftover(info.key, "large file that was never placed", now_s - info.modified_s)
            for info in self.list(keys.UPLOADS)
            if now_s - info.modified_s >= older_than_s
        ]
        if remove:
            for leftover in found:
                self.delete(leftover.name)
        what = f"listing unfinished uploads of {self.url}"
        more: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._root + keys.UPLOADS}
        while True:
            page: Any = self._call(what, lambda: self._client.list_multipart_uploads(**more))
            for item in page.get("Uploads", []):
                age_s = now_s - item["Initiated"].timestamp()
                if age_s < older_than_s:
                    continue
                found.append(Leftover(item["Key"].removeprefix(self._root), "unfinished multipart upload", age_s))
                if remove:
                    upload = {"Bucket": self._bucket, "Key": item["Key"], "UploadId": item["UploadId"]}
                    self._call(what, lambda u=upload: self._client.abort_multipart_upload(**u), accept="missing")
            if not page.get("IsTruncated"):
                return sorted(found, key=lambda leftover: -leftover.age_s)
            more["KeyMarker"], more["UploadIdMarker"] = page["NextKeyMarker"], page["NextUploadIdMarker"]

    def probe(self) -> None:
        """See `ObjectStore.probe`."""
        # Some servers create a bucket at the first write, which would hide a slip in its name; a listing does not.
        next(self._pages(keys.PROBES), None)
        probe_store(self, lambda: self._server)
