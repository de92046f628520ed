"""Look at and change objects with boto3, as somebody else would: none of this package's code, nor fsspec's."""

from functools import lru_cache
from typing import Any


@lru_cache
def client(server: str) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=server, aws_access_key_id="key", aws_secret_access_key="secret")


def place(url: str) -> dict[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key}


def names(server: str, url: str) -> list[str]:
    """Return the names of the objects below a URL."""
    where = place(url)
    found = client(server).list_objects_v2(Bucket=where["Bucket"], Prefix=where["Key"]).get("Contents", [])
    return sorted(each["Key"].removeprefix(where["Key"]).lstrip("/") for each in found)


def get(server: str, url: str) -> bytes:
    return bytes(client(server).get_object(**place(url))["Body"].read())


def put(server: str, url: str, data: bytes) -> None:
    client(server).put_object(**place(url), Body=data)


def delete(server: str, url: str) -> None:
    client(server).delete_object(**place(url))
