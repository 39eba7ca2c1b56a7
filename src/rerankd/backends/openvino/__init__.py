"""An encoder GGUF compiled for the CPU by OpenVINO, in a worker process of its own.

All but what chooses it runs in the worker (`python -m rerankd.backends.openvino`), so that only the worker
loads OpenVINO.
"""
