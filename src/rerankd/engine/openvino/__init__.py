"""An encoder GGUF compiled for the CPU by OpenVINO, in a worker process of its own.

`client.py` is the service's side; all else runs in the worker (`python -m rerankd.engine.openvino`), so that
only the worker loads OpenVINO.
"""
