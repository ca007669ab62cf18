"""Tables of one row per file: rows, formats, writing, reading, selecting, labels."""
