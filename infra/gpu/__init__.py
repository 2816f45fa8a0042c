"""What to find out on a GPU: is the engine right there, how fast is it, and what does it learn in minutes.

    python -m infra.gpu check
    python -m infra.gpu bench
    python -m infra.gpu evidence --set train.optimisation.steps=4000
    python -m infra.gpu pack --images FOLDER

The machine needs little more than torch; `pack` collects the rest. docs/gpu.md says how to run it.
"""
