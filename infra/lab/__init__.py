"""The laboratory on one machine, without Docker: SeaweedFS (S3), MLflow, Prefect and a worker, under one supervisor.

`python -m infra.lab up | down | status`, or `make up` and so on. All of its state lies in one folder, `.sfd/lab`.
"""
