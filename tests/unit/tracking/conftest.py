from tracking_stores import embedded, empty_store, no_mlflow, project

__all__ = ["embedded", "empty_store", "no_mlflow", "project"]
