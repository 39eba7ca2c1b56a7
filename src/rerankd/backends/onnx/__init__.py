"""The ONNX Runtime backend: causal models and encoders in int8, with rotated weights, in a separate worker
process.

Only the worker (`python -m rerankd.backends.onnx`) imports ONNX Runtime. The service imports backend.py and
the pure modules that it uses.

x · Wᵀ = (x · R) · (W · R)ᵀ for an orthogonal R, and x · R has no outliers, so int8 with one scale for each
token and one for each row of weights suffices (QuaRot, arXiv:2404.00456). rotation.py has the matrices R,
folding.py says where they are part of the weights, quantise.py chooses the scales, graph.py makes products.
"""
