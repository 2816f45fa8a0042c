"""How fast the engine is, and what it is measured against: workloads, a plain eager model and clocks.

`make bench` runs them under pytest; `infra.gpu` runs them on a machine that has little more than torch.
"""
