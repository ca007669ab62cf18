"""What it survives: damaged files, kills, broken pipes, and what an exported model gives."""
