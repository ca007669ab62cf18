"""The method, from top to bottom, and the model file.

Read in this order: `scales` names and grids → `backbones` images to feature maps → `features` feature maps to
embeddings → `whitening` → `coreset`, `nearest_prototype`, `memory` Hopfield retrieval and its nearest-prototype
limit → `contrastive` stage 1, the loss → `anomaly_detector` distance and anomaly maps → `anomaly_distance` stage 2,
weights of scales and components → `labelled_anomalies` → `calibration` scores in units of the limit of normal.

Beside the method: `devices`, `prototype_patches`, `checkpoint`, `onnx_export`. The loops over images that call these
formulas lie in `anomaly_cli.training`.
"""
