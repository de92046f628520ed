"""fsspec, opened as this package needs it, and what it raises as sentences."""

from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.errors import MissingExtraError, PipelineError, UserError
from pipeline.remote.retry import is_transient, retrying

T = TypeVar("T")

_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs")}
"""Protocol → the package that speaks it, and the extra that installs it."""
_S3 = {"config_kwargs": {"retries": {"total_max_attempts": 1, "mode": "standard"}}}
"""Retries are this package's own: three layers of them would wait for minutes at a wrong endpoint."""
_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "RefreshError",
)


def filesystem(protocol: str) -> Any:
    """Return the file system of a protocol; what it lists is never remembered.

    Raises:
        MissingExtraError: Its package is not installed.
        UserError: fsspec knows no such protocol.
    """
    import fsspec

    try:
        found = fsspec.filesystem(protocol, use_listings_cache=False, **(_S3 if _is_s3(protocol) else {}))
    except ImportError as error:
        package, extra = _EXTRAS.get(protocol, ("", ""))
        install = f"pip install 'fewpairs[{extra}]'" if extra else "pip install the package that fsspec names"
        name = package or " ".join(str(error).split())
        raise MissingExtraError(name, install, f"{protocol}:// addresses") from error
    except ValueError as error:
        expected = "a protocol that fsspec knows, such as s3 or gs"
        raise UserError(expected=expected, found=repr(protocol), where=f"{protocol}://") from error
    if _is_s3(protocol):
        found.retries = 1
    return found


def asked(action: Callable[[], T], url: str) -> T:
    """Return what a request returns, tried again where that may help, with a sentence where it does not.

    FileNotFoundError and FileExistsError pass through: they are answers. A missing bucket is no such answer.

    Raises:
        UserError: The bucket is missing, the credentials are, or access is denied.
        PipelineError: The store cannot be reached or refuses for another reason.
    """
    try:
        return retrying(action, url)
    except (PipelineError, FileExistsError):
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not _is_bucket(error):
            raise
        raise _explained(error, url) from error


def is_conflict(error: BaseException) -> bool:
    """Say whether a conditional request was refused because the object is another (HTTP 412)."""
    metadata = _response(error).get("ResponseMetadata", {})
    return isinstance(error, FileExistsError) or bool(metadata.get("HTTPStatusCode") == 412)


def is_unknown(error: BaseException) -> bool:
    """Say whether a request was refused because the store does not know its kind (HTTP 501)."""
    metadata = _response(error).get("ResponseMetadata", {})
    return isinstance(error, NotImplementedError) or bool(metadata.get("HTTPStatusCode") == 501)


def _is_s3(protocol: str) -> bool:
    return protocol in ("s3", "s3a")


def _is_bucket(error: BaseException) -> bool:
    return bool(_response(error).get("Error", {}).get("Code") == "NoSuchBucket")


def _response(error: BaseException) -> dict[str, Any]:
    found = getattr(error.__cause__, "response", None)
    return found if isinstance(found, dict) else {}


def _explained(error: Exception, url: str) -> PipelineError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    names = {kind.__name__ for kind in type(error).__mro__}
    if _is_bucket(error):
        remedy = "make the bucket, or correct its name"
        return UserError(expected="a bucket that is there", found="none of this name", where=url, remedy=remedy)
    if isinstance(error, PermissionError):
        remedy = "check the credentials and what they may do there"
        return UserError(expected="permission", found=f"access denied ({reason})", where=url, remedy=remedy)
    if names & set(_CREDENTIALS):
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or what the store's own client reads"
        return UserError(expected="credentials", found=f"none that can be used ({reason})", where=url, remedy=remedy)
    if is_transient(error):
        remedy = (
            "check the endpoint (AWS_ENDPOINT_URL) and the network; what is finished stays: run again later, or with "
            "FEWPAIRS_OFFLINE=1 read what is in the cache"
        )
        return PipelineError(expected="an answer", found=reason, where=url, remedy=remedy)
    return PipelineError(expected="the request to be done", found=reason, where=url)
