"""Training and inference of the ResUNet on 128² patches, by width.

Beside the paper's (width 64, one P100): 200 s per epoch of 8960 patches, 11 ms per patch.
"""

import time

import keras
import numpy as np

from cobaya_cnnlens.pipeline.training_state import ScaledMSE
from cobaya_cnnlens.reconstruct.resunet import NetworkEstimator, ResUNet

PAPER_EPOCH, PAPER_PATCH = 200.0, 0.011

print(f"backend {keras.backend.backend()}")
for width, batch in ((16, 4), (32, 4), (64, 4)):
    maps = np.random.default_rng(0).standard_normal((batch, 128, 128, 2)).astype("f4")
    targets = {k: maps[..., :1] for k in ("e", "kappa")}
    network = ResUNet(width)
    network.compile("adam", loss={k: ScaledMSE() for k in targets}, jit_compile=True)
    network.train_on_batch(maps, targets)
    start = time.perf_counter()
    for _ in range(3):
        network.train_on_batch(maps, targets)
    epoch = (time.perf_counter() - start) / (3 * batch) * 8960
    estimator = NetworkEstimator(network)
    many = np.zeros((32, 128, 128), "f4")
    estimator.reconstruct(many, many)
    start = time.perf_counter()
    estimator.reconstruct(many, many)
    patch = (time.perf_counter() - start) / len(many)
    print(
        f"width {width:2d}: 8960 training patches in {epoch:6.0f} s "
        f"({epoch / PAPER_EPOCH:.1f} of the paper's); inference {1e3 * patch:6.1f} ms a patch "
        f"({patch / PAPER_PATCH:.1f} of the paper's)"
    )
