"""The method, from top to bottom, and the model file.

Read in this order:

1. `scales`: names and grids. Local scales have a map, pooled scales one cell an image.
2. `backbones`: images to feature maps, at several strides or, of a transformer, at several depths.
3. `features`: feature maps to the embeddings of each scale.
4. `whitening`: mean and shrunk covariance of normal embeddings.
5. `coreset`, `memory`, `nearest_prototype`: prototypes, and the distance from the nearest.
6. `turn_prediction`: the loss of stage 1, which trains a backbone from random weights.
7. `anomaly_detector`: distances, anomaly maps, and one deviation for each component of the score.
8. `anomaly_distance`: stage 2, the weights of scales and components.
9. `labelled_anomalies`: a classifier of labelled anomalies, one more component.
10. `calibration`: deviations to one image score, in units of the limit of normal.
11. `attribution`: which cells of an image make up the distance of a pooled scale.

Beside the method: `devices`, `prototype_patches`, `checkpoint`, `onnx_export`. The loops over images that call these
formulas are in `anomaly_cli.training`.
"""
