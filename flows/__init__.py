"""Prefect flows that launch this project: when, where, how much at once. DVC decides what is computed."""
