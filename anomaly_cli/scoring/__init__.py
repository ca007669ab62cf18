"""Score files with a model: measuring, ranked rows, journal, streams, Ray, the verdict on a batch."""
