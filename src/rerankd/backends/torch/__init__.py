"""The PyTorch backend: any device that PyTorch supports, in a separate worker process.

Only the worker (`python -m rerankd.backends.torch`) and probe.py import PyTorch. The service imports
backend.py and the pure modules that it uses.
"""
