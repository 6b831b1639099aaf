"""The decoder, its loss, its size, its optimizer and what a step of it needs in memory.

The `model` section of a config comes in; modules, losses and figures go out. Only `composer_model` knows Composer;
none knows streams or checkpoints' folders.
"""
