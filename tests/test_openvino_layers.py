"""Building blocks of OpenVINO's graphs."""

from __future__ import annotations

import numpy as np

from rerankd.backends.openvino import layers
from rerankd.backends.openvino.runtime import config, op, ov
from rerankd.backends.worker.positions import MASKED


def test_the_mask_of_local_attention_is_held_once() -> None:
    # At 8,000 tokens each matrix of tokens × tokens takes 244 MiB.
    embeddings = op.parameter([-1, -1, 8], np.float32, name="embeddings")
    mask = op.parameter([-1, 1, 1, -1], np.float32, name="mask")
    local = op.add(mask, layers.band(layers.tokens(embeddings), 2))
    model = ov.Model([op.result(local)], [embeddings, mask], "mask")
    compiled = ov.Core().compile_model(model, "CPU", config(1, "f32"))
    nodes = compiled.get_runtime_model().get_ordered_ops()
    computed = [node for node in nodes if node.get_rt_info()["layerType"].astype(str) == "Eltwise"]
    assert sum(str(node.get_output_partial_shape(0)).endswith("?,?]") for node in computed) == 1, computed
    request = compiled.create_infer_request()
    values = request.infer([np.zeros((1, 4, 8), np.float32), np.zeros((1, 1, 1, 4), np.float32)])[0]
    places = np.arange(4)
    is_far = abs(places[:, None] - places) > 2
    assert (values[0, 0] == np.where(is_far, np.float32(MASKED), 0)).all()
