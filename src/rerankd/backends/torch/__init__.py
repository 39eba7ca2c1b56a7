"""The PyTorch backend: any device that PyTorch supports, in a separate worker process.

Only the worker (`python -m rerankd.backends.torch`) and probe.py import PyTorch. The service imports
backend.py and the pure modules that it uses.
"""

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment variables with which the libraries of Hugging Face read files only."""
