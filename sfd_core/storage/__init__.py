"""Bytes in S3-compatible storage: the only package that imports boto3, and only when there is something to store.

Endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on).
"""

from sfd_core.storage.bucket import Storage, StoredObject

__all__ = ["Storage", "StoredObject"]
