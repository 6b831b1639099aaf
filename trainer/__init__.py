"""Train a decoder-only language model on the schedule of a dataengine manifest, and evaluate it."""
