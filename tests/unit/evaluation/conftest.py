from measured_together import measuring, studied

__all__ = ["measuring", "studied"]
