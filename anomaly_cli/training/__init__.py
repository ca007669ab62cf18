"""From normal images to a model: samples, cross-fitting, the loops of stages 1 and 2, updates, audit."""
