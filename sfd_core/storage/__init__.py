"""Files in S3-compatible storage. The only package that imports boto3, and only on use.

Endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on).
"""

from sfd_core.storage.shared_training import shared_training

SHAPES_RESULTS = False

__all__ = ["shared_training"]
