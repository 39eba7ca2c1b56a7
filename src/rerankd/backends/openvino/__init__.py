"""The OpenVINO backend: encoders and causal models compiled for the CPU, in a separate worker process.

Only the worker (`python -m rerankd.backends.openvino`) imports OpenVINO. The service imports backend.py and
the pure modules that it uses.
"""
