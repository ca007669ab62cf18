"""Commands that measure the tool: quality on labelled sets, speed and memory; none of them ships."""
