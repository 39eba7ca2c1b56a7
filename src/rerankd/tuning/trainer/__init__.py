"""The trainer: a program of its own, the only part of `rerankd tune` that imports PyTorch.

    python -P -m rerankd.tuning.trainer WORK_FOLDER [--probe]

It reads the job of the folder, trains, and writes messages as JSON Lines to standard output (see
messages.py). SIGTERM makes it save a checkpoint after the step under way,
and stop.
"""
