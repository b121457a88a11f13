"""Make a YOLO of ultralytics smaller without labels, and run what came of it in ONNX Runtime.

    pip install "taskprune[ultralytics,onnx]"
    python examples/yolo.py                    # yolo11n.yaml, with random weights
    python examples/yolo.py yolo11n-pose.pt    # detection, segmentation and pose alike

`docs/integrations.md` shows the same with labels, validation and training on.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from ultralytics import YOLO

from taskprune.integrations.ultralytics import load, prune


def main(name: str = "yolo11n.yaml", size: int = 320) -> float:
    yolo = YOLO(name)
    images = [torch.rand(2, 3, size, size) for _ in range(2)]  # your own, from 0 to 1
    smaller = prune(yolo, 0.3, data=images)
    print(smaller.pruning)

    file = Path(f"{Path(name).stem}-small.pt")
    smaller.save(file)
    again = load(file)

    exported = again.export(format="onnx", imgsz=size, simplify=False, verbose=False)
    session = onnxruntime.InferenceSession(exported)
    one = images[0][:1]
    found = session.run(None, {session.get_inputs()[0].name: one.numpy()})
    with torch.no_grad():
        outputs = again.model.eval()(one)
    expected = outputs[0] if isinstance(outputs[0], torch.Tensor) else outputs[0][0]
    error: float = np.abs(found[0] - expected.numpy()).max() / np.abs(expected.numpy()).max()
    print(f"{exported} in ONNX Runtime: largest relative difference {error:.1e}")
    return error


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "yolo11n.yaml")
