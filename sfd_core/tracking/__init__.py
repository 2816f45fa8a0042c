"""Runs and curves in MLflow. The only package that imports mlflow, and only on use.

Curves are written to disk first and sent from there, so a server that is down or slow costs no points and no time.
"""

SHAPES_RESULTS = False
