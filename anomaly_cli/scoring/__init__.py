"""From files through a model to ranked rows: measuring, journal, streams, Ray, verdict of a batch."""
